"""Models that this project did not write, and what is searched in them: a sample of the families."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import timm
import torchvision
from torch import nn

__all__ = ["MODELS", "Mixing"]


class Mixing(NamedTuple):
    """A model, and what is searched in it."""

    build: Callable[..., nn.Module]
    family: str
    where: str | None = None
    share: int | None = None


def _timm(name: str) -> Callable[..., nn.Module]:
    return lambda **options: timm.create_model(name, **options)


MODELS = {
    "resnet18": Mixing(_timm("resnet18"), "kernel", "layer1.*", 1),
    "resnet50": Mixing(_timm("resnet50"), "separable", "layer[12].*"),
    "mobilenetv3_small_100": Mixing(_timm("mobilenetv3_small_100"), "kernel", None, 2),
    "efficientnet_b0": Mixing(_timm("efficientnet_b0"), "activation", "blocks.*", 2),
    "convnext_atto": Mixing(_timm("convnext_atto"), "kernel"),
    "regnety_002": Mixing(_timm("regnety_002"), "skip", "s?.b?"),
    "vit_tiny_patch16_224": Mixing(_timm("vit_tiny_patch16_224"), "token_mixer", "blocks.*.attn"),
    "mixer_s32_224": Mixing(_timm("mixer_s32_224"), "token_mixer", "blocks.*.mlp_tokens"),
    "repvgg_a0": Mixing(_timm("repvgg_a0"), "activation", "stages.[01].*"),
    "nfnet_l0": Mixing(_timm("nfnet_l0"), "dilation", "stages.[01].*conv2*"),
    "poolformer_s12": Mixing(_timm("poolformer_s12"), "token_mixer", "stages.*.token_mixer"),
    "ghostnet_100": Mixing(_timm("ghostnet_100"), "norm", "blocks.*.bn_dw"),
    "torchvision resnet18": Mixing(torchvision.models.resnet18, "skip", "layer?.?"),
}
