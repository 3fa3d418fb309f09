"""Base class of all networks here: the interface of timm models around a body and a linear classifier."""

from __future__ import annotations

from typing import Any

from timm.layers import create_classifier
from torch import Tensor, nn

from ..supernet.group import labelled_rows

__all__ = ["CIFAR_CFG", "Network"]

# timm's default configuration of a CIFAR-10 network, without the name of its first convolution
CIFAR_CFG: dict[str, Any] = {
    "url": "",
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "classifier": "fc",
}


class Network(nn.Module):
    """A network of cells with the interface of timm models: a subclass builds its body, then calls :meth:`make_head`.

    Args:
        num_classes, in_chans: as timm's models take them.
        channels, cells: sizes of the body; checked to be positive.

    Shapes:
        input ``(B, in_chans, H, W)``; output ``(B, num_classes)``.
    """

    num_features: int
    global_pool: Any

    def __init__(self, num_classes: int, in_chans: int, channels: int, cells: int) -> None:
        super().__init__()
        if channels < 1 or cells < 1:
            raise ValueError(f"{type(self).__name__}: channels and cells must be at least 1, got {channels}, {cells}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.grad_checkpointing = False

    def make_head(self, num_features: int, global_pool: str, drop_rate: float) -> None:
        """Global pooling, dropout and the linear classifier."""
        self.num_features = num_features
        self.global_pool, self.head_drop, self.fc = create_classifier(
            num_features, self.num_classes, pool_type=global_pool, drop_rate=drop_rate
        )
        self.head_hidden_size = num_features * self.global_pool.feat_mult()

    def forward_features(self, x: Tensor) -> Tensor:
        """The body, ``(B, num_features, h, w)``."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        any_weight = next(self.parameters())
        self.global_pool, self.fc = create_classifier(
            self.num_features,
            num_classes,
            pool_type=self.global_pool.pool_type if global_pool is None else global_pool,
            device=any_weight.device,
            dtype=any_weight.dtype,
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def no_weight_decay(self) -> set[str]:
        """The names of the alphas and betas; if they decay, it is by their own optimizer."""
        alphas = {id(parameter) for ops in labelled_rows(self).values() for parameter in (ops[0].alpha, ops[0].beta)}
        return {name for name, parameter in self.named_parameters() if id(parameter) in alphas}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable
