"""GAEA: the operation weights themselves are the parameters, and take multiplicative steps on the simplex.

Source: Li et al., "Geometry-Aware Gradient Algorithms for Neural Architecture Search". Presets are their published
code. A point theta of the simplex is stored as alpha = log theta, so that genotypes, entropies and checkpoints work as
for other methods; the gradient is taken with respect to theta.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..relaxations import NEVER, Moment, Softmax
from ..supernet.group import ArchParameterGroup
from .darts import SETTINGS
from .method import Method, Part, Plan
from .pc_darts import PCDARTS, pc_presets

__all__ = ["GAEA", "METHODS", "ExponentiatedGradient", "Simplex"]


class Simplex(nn.Module):
    """``theta = softmax(alpha)``; alpha receives the gradient with respect to theta.

    For :class:`ExponentiatedGradient`, which needs the gradient with respect to theta, not the logits.

    Example:
        >>> alpha = torch.zeros(2, requires_grad=True)
        >>> (torch.tensor([1.0, 3.0]) * Simplex()(alpha)).sum().backward()
        >>> alpha.grad
        tensor([1., 3.])
    """

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        absent = alpha == -torch.inf
        finite = alpha.masked_fill(absent, 0)
        return (alpha.detach().softmax(-1) + (finite - finite.detach())).masked_fill(absent, 0)


class ExponentiatedGradient(torch.optim.Optimizer):
    """``theta <- normalise(max(theta exp(-eta g), floor))`` for simplices kept as logits, theta = softmax(alpha).

    Args:
        simplices: each entry holds the parameters of one simplex, or one table whose rows are simplices.
        lr: eta.
        floor: the least weight, before the weights are normalised.

    Raises:
        ValueError: lr is not positive, or the floor is outside [0, 1).

    Example:
        >>> alpha = torch.zeros(2, requires_grad=True)
        >>> optimizer = ExponentiatedGradient([[alpha]], lr=1.0)
        >>> alpha.grad = torch.tensor([0.0, 1.0])
        >>> optimizer.step()
        >>> alpha.softmax(-1)  # 1 and exp(-1), normalised
        tensor([0.7311, 0.2689], grad_fn=<SoftmaxBackward0>)

    Source: Li et al., Algorithm 1 with the entropic mirror map.
    """

    def __init__(self, simplices: Iterable[Iterable[Tensor]], lr: float = 0.1, floor: float = 1e-5) -> None:
        if not lr > 0 or not 0 <= floor < 1:
            raise ValueError(f"ExponentiatedGradient: need lr > 0 and floor in [0, 1), got lr={lr}, floor={floor}")
        super().__init__([{"params": [*simplex]} for simplex in simplices], {"lr": lr, "floor": floor})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if len(moved) < len(group["params"]):
                continue
            scalars = moved[0].ndim == 0
            alpha, gradient = ((torch.stack(ts) if scalars else ts[0]) for ts in (moved, [p.grad for p in moved]))
            theta = (alpha.log_softmax(-1) - group["lr"] * gradient).exp().clamp_min(group["floor"])
            new = (theta / theta.sum(-1, keepdim=True)).log()
            for parameter, value in zip(moved, new.unbind() if scalars else [new], strict=True):
                parameter.copy_(value)


@dataclass(frozen=True)
class GAEA(Part):
    """Alphas on the simplex, moved by exponentiated gradients; the edges' weights likewise, where they are weighed."""

    eta: float = 0.1
    """Learning rate of the exponentiated gradient."""
    floor: float = 1e-5
    """Minimum operation weight before a row is normalised."""

    def __post_init__(self) -> None:
        if not self.eta > 0 or not 0 <= self.floor < 1:
            raise ValueError(f"GAEA: need eta > 0 and floor in [0, 1), got eta={self.eta} and floor={self.floor}")

    def prepare_(self, arch: ArchParameterGroup) -> None:
        """Start at the centre of every simplex."""
        arch.edge_relaxation = Simplex()
        with torch.no_grad():
            for alpha in arch.parameters():
                alpha.zero_()

    def alpha_optimizer(self, arch: ArchParameterGroup, settings: Any) -> ExponentiatedGradient:
        nodes: dict[Any, list[Tensor]] = {}
        for label, beta in arch.named_betas():
            nodes.setdefault(arch.rows[label][0].node, []).append(beta)
        rows = [[alpha] for _, alpha in arch.named_parameters()]
        return ExponentiatedGradient([*rows, *nodes.values()], self.eta, self.floor)

    def relaxation(self, plan: Plan) -> Simplex:
        return Simplex()

    def evaluation(self, plan: Plan) -> Softmax:
        return Softmax()


_NB201: dict[str, Any] = {
    **SETTINGS,
    "channels": 24,
    "epochs": 25,
    "weight_decay": 3e-4,
    "nesterov": False,
    "weights_first": False,
}
_BILEVEL: dict[str, Any] = {**_NB201, "split": "benchmark", "sampling": "replacement"}
_ERM: dict[str, Any] = {**_NB201, "split": "whole", "sampling": "anew"}
_DARTS: dict[str, Any] = {
    **SETTINGS,
    "batch_size": 256,
    "weight_lr": 0.1,
    "weight_lr_min": 0.0,
    "weights_first": False,
    "sampling": "anew",
}


def _presets(nb201: dict[str, Any], **changes: Any) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """With and without ``none`` on NAS-Bench-201."""
    return {
        "nb201": {"original": {"*": nb201}, "without-none": {"*": {**nb201, "without": ("none",)}}},
        "darts": {"original": {"*": {**_DARTS, **changes}}},
        "robust": {"original": {"*": {**_DARTS, **changes}}},
        "timm": {"default": {"*": {**SETTINGS, **changes}}},
    }


METHODS = (
    Method(
        "gaea-bilevel",
        (GAEA(),),
        "exponentiated gradients on the simplex, alphas on validation images",
        _presets(_BILEVEL),
    ),
    Method(
        "gaea-pc-darts",
        (PCDARTS(), GAEA()),
        "PC-DARTS with exponentiated gradients for operations and edges",
        pc_presets(_BILEVEL),
    ),
    Method(
        "gaea-erm",
        (GAEA(),),
        "exponentiated gradients on the simplex, weights and alphas on all training images",
        _presets(_ERM, split="whole"),
    ),
)
