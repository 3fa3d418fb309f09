"""SNAS: the operations of an edge are mixed by soft samples whose temperature falls.

Source: Xie et al., "SNAS: Stochastic Neural Architecture Search". FBNet (Wu et al.) uses the same relaxation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..relaxations import NEVER, Moment, Softmax
from ..supernet.group import ArchParameterGroup
from .darts import ORIGINAL, SETTINGS
from .gdas import with_gumbel_noise
from .method import Columns, Method, Part, Plan

__all__ = ["METHODS", "SNAS", "GumbelSoftmax"]


class GumbelSoftmax(nn.Module):
    """``softmax((log softmax(alpha) + g) / tau)`` with Gumbel noise g that the moment determines (Eq. 4).

    Args:
        tau: temperature; towards 0 a sample becomes one-hot.

    Raises:
        ValueError: tau is not positive.

    Example:
        >>> import torch
        >>> weights = GumbelSoftmax(tau=1.0)(torch.zeros(1, 2), Moment(step=1))
        >>> round(weights.sum().item(), 6)
        1.0
    """

    def __init__(self, tau: float) -> None:
        super().__init__()
        if not tau > 0:
            raise ValueError(f"GumbelSoftmax: tau must be positive, got {tau}")
        self.tau = tau
        self.soft = Softmax(tau)

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        return self.soft(with_gumbel_noise(alpha, moment))

    def extra_repr(self) -> str:
        return f"tau={self.tau:g}"


@dataclass(frozen=True)
class SNAS(Part):
    """A Gumbel softmax mixes the operations; its temperature tau falls linearly."""

    tau_first: float = 1.0
    """Temperature tau of the Gumbel softmax in the first epoch."""
    tau_last: float = 0.33
    """Temperature tau of the Gumbel softmax in the last epoch."""

    columns: ClassVar[Columns] = {"tau": ("tau", "{:.2f}".format)}

    def __post_init__(self) -> None:
        if not self.tau_first >= self.tau_last > 0:
            raise ValueError(
                f"SNAS: temperatures must be positive and fall, got tau_first={self.tau_first}, "
                f"tau_last={self.tau_last}"
            )

    def plan(self, arch: ArchParameterGroup, epoch: int, epochs: int) -> Plan:
        progress = min(1.0, epoch / max(epochs - 1, 1))
        return {"tau": self.tau_first + (self.tau_last - self.tau_first) * progress}

    def relaxation(self, plan: Plan) -> GumbelSoftmax:
        return GumbelSoftmax(plan["tau"])


# as the published code of DrNAS runs it on NAS-Bench-201
_NB201: dict[str, Any] = {
    **ORIGINAL,
    "epochs": 100,
    "weight_decay": 3e-4,
    "nesterov": False,
    "tau_first": 10.0,
    "tau_last": 1.0,
}
# one loss trains weights and alphas
_DARTS: dict[str, Any] = {**SETTINGS, "epochs": 150, "order": "single", "tau_last": 0.03, "split": "whole"}

METHODS = (
    Method(
        "snas",
        (SNAS(),),
        "soft samples of the operations (Gumbel softmax), whose temperature falls",
        {
            "nb201": {"drnas": {"*": _NB201}},
            "darts": {"original": {"*": {**_DARTS, "space": "darts-none"}}, "proxy": {"*": _DARTS}},
            "robust": {"original": {"*": _DARTS}},
            "timm": {"default": {"*": SETTINGS}},
        },
    ),
)
