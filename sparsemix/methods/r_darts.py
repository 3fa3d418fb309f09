"""R-DARTS: DARTS with stronger regularisation of the weights, by weight decay or by augmentation.

Source: Zela et al., "Understanding and Robustifying Differentiable Architecture Search", section 5. Both variants
search once with every value of their regulariser and keep the best network; each value is a preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..supernet.group import ArchParameterGroup
from .darts import ORIGINAL, SETTINGS
from .method import Columns, Method, Part, Plan

__all__ = ["METHODS", "RampedAugmentation"]


@dataclass(frozen=True)
class RampedAugmentation(Part):
    """Drop path and cutout, with probabilities that rise linearly to the last epoch."""

    drop_path: float = 0.2
    """Probability of dropping an edge, in the last epoch."""
    cutout: int = 16
    """Side of the square that is blanked in an image, in pixels."""
    cutout_probability: float = 1.0
    """Probability of applying cutout to an image, in the last epoch."""

    columns: ClassVar[Columns] = {"dropped": ("drop", "{:.2f}".format)}

    def __post_init__(self) -> None:
        if not (0 <= self.drop_path < 1 and 0 <= self.cutout_probability <= 1 and self.cutout >= 0):
            raise ValueError(
                f"RampedAugmentation: need drop_path in [0, 1), cutout_probability in [0, 1] and cutout >= 0, got "
                f"{self.drop_path}, {self.cutout_probability} and {self.cutout}"
            )

    def check(self, arch: ArchParameterGroup, epochs: int) -> None:
        if self.drop_path and not hasattr(arch.model, "set_drop_path"):
            raise ValueError(
                f"RampedAugmentation: {type(arch.model).__name__} has no edges that can be dropped "
                f"(set_drop_path(rate)); set drop_path to 0, got {self.drop_path}"
            )

    def plan(self, arch: ArchParameterGroup, epoch: int, epochs: int) -> Plan:
        progress = min(1.0, epoch / max(epochs - 1, 1))
        return {"dropped": self.drop_path * progress, "cut_out": self.cutout_probability * progress}

    def shape_(self, arch: ArchParameterGroup, pairs: Any, optimizer: torch.optim.Optimizer, plan: Plan) -> None:
        if self.drop_path:
            arch.model.set_drop_path(plan["dropped"])  # type: ignore[operator]
        pairs.cut_out(self.cutout, plan["cut_out"])


_DARTS: dict[str, Any] = {**ORIGINAL, "order": "second"}
_NB201: dict[str, Any] = {**_DARTS, "weight_decay": 3e-4, "nesterov": False}
_SMALL = {"*": {"cutout": 8}, "digits": {"cutout": 4}}  # half of an image, as in the original


def _with(base: dict[str, Any], of_preset: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {preset: {"*": {**base, **settings}} for preset, settings in of_preset.items()}


_DECAYS = {f"{value}e-4": {"weight_decay": value * 1e-4} for value in (9, 3, 27, 81, 243)}
_DROPS = {f"drop-{value}": {"drop_path": value} for value in (0.2, 0.4, 0.6)}
_DROP_PROXY = {"proxy": {"*": {**_DARTS, **_SMALL["*"]}, "digits": _SMALL["digits"]}}
_CUT = {"*": {**_NB201, "drop_path": 0.0}}  # cells of that supernet drop no edges

METHODS = (
    Method(
        "r-darts-l2",
        (Part(),),
        "DARTS with a larger weight decay; presets are the values that are tried",
        {
            "nb201": _with(_NB201, _DECAYS),
            "darts": _with(_DARTS, _DECAYS),
            "robust": _with(_DARTS, _DECAYS),
            "timm": {"default": {"*": {**SETTINGS, "weight_decay": 9e-4}}},
        },
    ),
    Method(
        "r-darts-dp",
        (RampedAugmentation(),),
        "DARTS with drop path and cutout that grow; presets are the values that are tried",
        {
            "nb201": {"cutout": _CUT, "proxy": {"*": {**_CUT["*"], **_SMALL["*"]}, "digits": _SMALL["digits"]}},
            "darts": {**_with(_DARTS, _DROPS), **_DROP_PROXY},
            "robust": {**_with(_DARTS, _DROPS), **_DROP_PROXY},
            "timm": {
                "default": {"*": {**SETTINGS, "drop_path": 0.0}},
                "proxy": {"*": {**SETTINGS, "drop_path": 0.0, "cutout": 8}, "digits": _SMALL["digits"]},
            },
        },
    ),
)
