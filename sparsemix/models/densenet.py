"""DenseNet-BC for CIFAR-size images, the manual design that papers on the DARTS space compare with."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.densenet import DenseNet
from torch import nn

from .network import CIFAR_CFG

__all__ = ["CifarDenseNet", "sparsemix_densenet_bc"]


class CifarDenseNet(DenseNet):
    """timm's DenseNet with the stem for small images: one 3x3 convolution, without pooling.

    Args:
        in_chans: as timm's models take it.
        kwargs: other arguments of timm's DenseNet.

    Shapes:
        input ``(B, in_chans, H, W)``, H and W divisible by 4; output ``(B, num_classes)``.

    Source: Huang et al., "Densely Connected Convolutional Networks", section 3 and 4.
    """

    def __init__(self, in_chans: int = 3, **kwargs: Any) -> None:
        super().__init__(in_chans=in_chans, **kwargs)
        large: Any = self.features.conv0
        self.features.conv0 = nn.Conv2d(in_chans, large.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.features.conv0.weight)
        self.features.norm0 = nn.Identity()  # the first layer of a dense block begins with its own
        self.features.pool0 = nn.Identity()
        features: Any = self.feature_info
        self.feature_info = [{**info, "reduction": max(1, info["reduction"] // 4)} for info in features]


default_cfgs = generate_default_cfgs(
    {"sparsemix_densenet_bc": {**CIFAR_CFG, "first_conv": "features.conv0", "classifier": "classifier"}}
)


@register_model
def sparsemix_densenet_bc(pretrained: bool = False, layers: int = 31, growth_rate: int = 40, **kwargs: Any) -> DenseNet:
    """DenseNet-BC (L 190, k 40): three dense blocks of ``layers`` bottleneck layers; L is ``6 layers + 4``."""
    sizes = {"growth_rate": growth_rate, "block_config": (layers,) * 3, "bn_size": 4}
    features = {"flatten_sequential": True, "out_indices": (0, 1, 2, 3)}
    return build_model_with_cfg(
        CifarDenseNet, "sparsemix_densenet_bc", pretrained, feature_cfg=features, **{**sizes, **kwargs}
    )
