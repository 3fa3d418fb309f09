"""Fair DARTS: every operation of an edge has a weight of its own, between 0 and 1, and none competes with another.

Source: Chu et al., "Fair DARTS: Eliminating Unfair Advantages in Differentiable Architecture Search". Presets follow
its published code, which searches the DARTS space only. One difference: nodes without incoming edges are left out of a
genotype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..relaxations import NEVER, Moment
from ..supernet.group import ArchParameterGroup
from .darts import ORIGINAL, SETTINGS
from .method import Method, Part, Plan
from .pc_darts import PCDARTS
from .sdarts import SDARTS

__all__ = ["METHODS", "FairDARTS", "Sigmoid", "StrongerThan", "separation"]


class Sigmoid(nn.Module):
    """``sigmoid(alpha_m)`` for each operation by itself (Eq. 2): a row's weights need not sum to 1.

    Example:
        >>> Sigmoid()(torch.tensor([0.0, -torch.inf]))
        tensor([0.5000, 0.0000])
    """

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        return alpha.sigmoid()


class StrongerThan(nn.Module):
    """Discretisation by a threshold: weight 1 for operations with ``sigmoid(alpha) >= threshold``, 0 for the others.

    Args:
        threshold: in (0, 1).
        most: at most this many operations of a row are kept, the strongest ones; None: any number.

    Example:
        >>> alpha = torch.tensor([3.0, 0.0, 2.0])
        >>> StrongerThan(0.85)(alpha), StrongerThan(0.85, most=1)(alpha)
        (tensor([1., 0., 1.]), tensor([1., 0., 0.]))
    """

    def __init__(self, threshold: float, most: int | None = None) -> None:
        super().__init__()
        self.threshold = threshold
        self.most = most

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        kept = alpha.sigmoid() >= self.threshold
        if self.most is not None:
            rank = alpha.argsort(dim=-1, descending=True, stable=True).argsort(-1)  # of equal ones the earlier is first
            kept &= rank < self.most
        return kept.to(alpha.dtype)


def separation(weights: Tensor) -> Tensor:
    """The zero-one loss ``-mean((a_m - 0.5)^2)`` (Eq. 3): its minimum, -0.25, is reached if all weights are 0 or 1.

    Example:
        >>> separation(torch.tensor([0.5, 1.0]))
        tensor(-0.1250)
    """
    return -(weights - 0.5).square().mean()


@dataclass(frozen=True)
class FairDARTS(Part):
    """Sigmoids in place of the softmax, a loss that drives them to 0 or 1, and a threshold for the operations kept."""

    zero_one: float = 10.0
    """Weight of the zero-one loss, -mean((sigmoid(alpha) - 0.5)^2), in the alphas' loss."""
    keep_from: float = 0.85
    """Minimum weight for an operation to be kept."""
    most_an_edge: int | None = None
    """Maximum number of operations (the strongest) kept on an edge. None keeps all that reach the minimum weight."""

    def __post_init__(self) -> None:
        if self.zero_one < 0 or not 0 < self.keep_from < 1 or (self.most_an_edge is not None and self.most_an_edge < 1):
            raise ValueError(
                f"FairDARTS: need zero_one >= 0, keep_from in (0, 1) and most_an_edge at least 1, got "
                f"{self.zero_one}, {self.keep_from} and {self.most_an_edge}"
            )

    def objection(self, other: Part) -> str | None:
        if isinstance(other, PCDARTS):
            return (
                "PCDARTS weighs edges by what their operations' weights sum to, and those of FairDARTS sum to anything"
            )
        if isinstance(other, SDARTS):
            return "SDARTS normalises perturbed weights to sum to 1 in a row, and those of FairDARTS sum to anything"
        if type(other).decide is not Part.decide:
            return f"FairDARTS keeps what passes a threshold, and {type(other).__name__} decides what is kept"
        return super().objection(other)

    def prepare_(self, arch: ArchParameterGroup) -> None:
        """Every weight begins at 0.5."""
        with torch.no_grad():
            for alpha in arch.parameters():
                alpha.zero_()

    def relaxation(self, plan: Plan) -> Sigmoid:
        return Sigmoid()

    def evaluation(self, plan: Plan) -> Sigmoid:
        return Sigmoid()

    def discretization(self) -> StrongerThan:
        return StrongerThan(self.keep_from, self.most_an_edge)

    def penalty(self, arch: ArchParameterGroup, plan: Plan) -> Tensor | None:
        if not self.zero_one:
            return None
        alphas = torch.cat([alpha for _, alpha in arch.named_parameters()])
        return self.zero_one * separation(alphas.sigmoid())


_DARTS: dict[str, Any] = {
    **ORIGINAL,
    "batch_size": 128,
    "weight_lr": 0.005,
    "alpha_lr": 3e-3,
    "alpha_betas": (0.9, 0.999),
    "most_an_edge": 1,
}
_ONE: dict[str, Any] = {"alpha_lr": 3e-3, "alpha_betas": (0.9, 0.999), "most_an_edge": 1}
# not published: this space has one operation on each edge, which is none if no operation is kept
_NB201: dict[str, Any] = {**ORIGINAL, **_ONE, "without": ("none",)}

METHODS = (
    Method(
        "fair-darts",
        (FairDARTS(),),
        "a sigmoid for each operation; those that pass a threshold are kept",
        {
            "nb201": {"adapted": {"*": _NB201}},
            "darts": {"original": {"*": _DARTS}},
            "robust": {"original": {"*": _DARTS}},
            "timm": {"default": {"*": {**SETTINGS, **_ONE}}},
        },
    ),
)
