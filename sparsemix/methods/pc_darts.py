"""PC-DARTS: edges mix a share of their channels, and the edges that lead to a node compete.

Source: Xu et al., "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search". Presets are their
published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..supernet.group import ArchParameterGroup
from ..supernet.partial import check_partial
from .darts import ORIGINAL, SETTINGS
from .method import Method, Part, Presets

__all__ = ["METHODS", "PCDARTS", "pc_presets"]


@dataclass(frozen=True)
class PCDARTS(Part):
    """A share of the channels is mixed, the edges into a node are weighted, and alphas start to train later."""

    channel_parts: int = 4
    """K, where 1/K of a node's channels are mixed and the others pass through."""
    frozen_epochs: int = 15
    """Epochs at the beginning in which the alphas are not trained."""

    def __post_init__(self) -> None:
        if self.channel_parts < 1 or self.frozen_epochs < 0:
            raise ValueError(
                f"PCDARTS: channel_parts must be at least 1 and frozen_epochs not negative, got {self.channel_parts} "
                f"and {self.frozen_epochs}"
            )

    def supernet(self) -> Mapping[str, Any]:
        return {"channel_parts": self.channel_parts} if self.channel_parts > 1 else {}

    def check(self, arch: ArchParameterGroup, epochs: int) -> None:
        if self.frozen_epochs >= epochs > 1:
            raise ValueError(
                f"PCDARTS: the alphas must train, got frozen_epochs={self.frozen_epochs} of {epochs} epochs"
            )
        check_partial(arch.model, [self.channel_parts], f"{type(self).__name__}, channel_parts")

    def prepare_(self, arch: ArchParameterGroup) -> None:
        arch.weigh_edges_()

    def trains_alphas(self, epoch: int, epochs: int) -> bool:
        return epoch >= self.frozen_epochs or epochs == 1


_DARTS: dict[str, Any] = {
    **ORIGINAL,
    "batch_size": 256,
    "weight_lr": 0.1,
    "weight_lr_min": 0.0,
    "alpha_lr": 6e-4,
}


def pc_presets(nb201: dict[str, Any]) -> dict[str, Presets]:
    """The presets of PC-DARTS, with a method's settings on NAS-Bench-201; proxies freeze the same share of epochs."""
    small = {"*": {**_DARTS, "frozen_epochs": 3}}
    return {
        "nb201": {"darts": {"*": nb201}, "proxy": {"*": {**nb201, "frozen_epochs": 8}}},
        "darts": {"original": {"*": {**_DARTS, "space": "darts-none"}}, "proxy": small},
        "robust": {"original": {"*": _DARTS}, "proxy": small},
        "timm": {"default": {"*": SETTINGS}},
    }


_NB201: dict[str, Any] = {**ORIGINAL, "weight_decay": 3e-4, "nesterov": False}
_SUMMARY = "a share of the channels is mixed, and the edges of a node compete"

METHODS = (Method("pc-darts", (PCDARTS(),), _SUMMARY, pc_presets(_NB201)),)
