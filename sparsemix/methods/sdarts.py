"""SDARTS: the weights are trained under perturbed operation weights, drawn at random or the worst ones nearby.

Source: Chen and Hsieh, "Stabilizing Differentiable Architecture Search via Perturbation-based Regularization". Presets
are their published code. The alphas' update uses unperturbed operation weights (with ``--order single`` there is only
one update, under perturbed ones).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._utils.modes import evaluating
from ..relaxations import NEVER, Moment, Relaxation
from ..supernet.group import ArchParameterGroup
from .bilevel import SearchStep
from .darts import ORIGINAL, SETTINGS
from .method import Columns, Method, Part, Plan, Step

__all__ = ["METHODS", "SDARTS", "Given", "SDARTSAdv", "Shaken", "attacked", "on_simplex", "shaken"]


def on_simplex(weights: Tensor) -> Tensor:
    """Rows of weights clamped to [0, 1] and normalised; a row that becomes all zero keeps only its largest entry.

    Example:
        >>> on_simplex(torch.tensor([[0.5, -0.1], [-0.3, -0.2]]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    clamped = weights.clamp(0, 1)
    largest = nn.functional.one_hot(weights.argmax(-1), weights.shape[-1]).to(weights)
    clamped = torch.where(clamped.sum(-1, keepdim=True) == 0, largest, clamped)
    return clamped / clamped.sum(-1, keepdim=True)


class Shaken(nn.Module):
    """A relaxation with uniform noise of [-radius, radius] on its weights, put back on the simplex (SDARTS-RS, Eq. 7).

    Args:
        relaxation: the relaxation whose weights are perturbed.
        radius: epsilon.
    """

    def __init__(self, relaxation: Relaxation, radius: float) -> None:
        super().__init__()
        self.relaxation = relaxation
        self.radius = radius

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        weights = self.relaxation(alpha, moment)
        return on_simplex(_noisy(weights, alpha != -torch.inf, self.radius, moment))


class Given(nn.Module):
    """A relaxation that returns given weights, regardless of the alphas.

    Args:
        weights: the weights.
        like: a relaxation whose gradient reaches the alphas nevertheless; None: no gradient does.
    """

    def __init__(self, weights: Tensor, like: Relaxation | None = None) -> None:
        super().__init__()
        self.weights = weights
        self.like = like

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        if self.like is None:
            return self.weights
        weights = self.like(alpha, moment)
        return self.weights + (weights - weights.detach())


def _noisy(weights: Tensor, exists: Tensor, radius: float, moment: Moment) -> Tensor:
    """The weights plus noise that the moment determines; padding is ``-inf``, which :func:`on_simplex` turns into 0."""
    noise = torch.rand(weights.shape, generator=moment.generator("perturbation"), dtype=torch.float64)
    return (weights + radius * (2 * noise - 1).to(weights)).where(exists, -torch.inf)


def shaken(step: SearchStep[Any], radius: float) -> AbstractContextManager[None]:
    """A context in which operation weights are perturbed at random, for ``SearchStep(around_weights=...)``.

    Args:
        step: the search step; only its architecture parameters matter.
        radius: epsilon.
    """
    return step.arch.using(Shaken(step.arch.relaxation, radius))


@contextmanager
def attacked(step: SearchStep[Any], batch: Any, radius: float, steps: int = 7) -> Iterator[None]:
    """A context that perturbs operation weights within ``radius`` to maximise a batch's loss (SDARTS-ADV, Eq. 8).

    The attack makes ``steps`` ascents by ``2 radius / steps`` along the sign of the gradient, from a random start. Each
    is put back within ``radius`` of the weights and on the simplex (projected gradient descent in the maximum norm). If
    the loss falls, the weights are not perturbed. The attack runs in evaluation mode, as in published code.

    Args:
        step: the search step, whose loss is attacked.
        batch: the batch of the weights' update.
        radius: epsilon.
        steps: number of ascent steps.
    """
    arch = step.arch
    with torch.no_grad():
        weights = arch.relaxed_rows()
        with arch.using(_exists):
            exists = arch.relaxed_rows() > 0

    def loss_at(point: Tensor) -> tuple[Tensor, Tensor]:
        with arch.using(Given(point)):
            [gradient], loss = step.gradients(batch, [point])
        return gradient, loss

    with evaluating(arch.model):
        _, before = loss_at(weights.clone().requires_grad_())
        point = on_simplex(_noisy(weights, exists, radius, arch.moment))
        for _ in range(steps):
            gradient, _ = loss_at(point.requires_grad_())
            moved = point.detach() + 2 * radius / steps * gradient.sign()
            nearby = torch.minimum(torch.maximum(moved, weights - radius), weights + radius)
            point = on_simplex(nearby.where(exists, -torch.inf))
        _, after = loss_at(point.requires_grad_())
    with arch.using(Given(weights if before > after else point.detach(), like=arch.relaxation)):
        yield


def _exists(alpha: Tensor, moment: Moment) -> Tensor:
    """As a relaxation: 1 for every candidate that may be chosen, 0 for padding."""
    return (alpha != -torch.inf).to(alpha)


@dataclass(frozen=True)
class SDARTS(Part):
    """Weights updates under randomly perturbed operation weights; the radius grows linearly."""

    radius_first: float = 0.03
    """Largest perturbation epsilon of an operation weight in the first epoch."""
    radius_last: float = 0.3
    """Largest perturbation epsilon of an operation weight towards the last epoch."""

    columns: ClassVar[Columns] = {"radius": ("eps", "{:.2f}".format)}

    needs_mixtures: ClassVar[str | None] = "perturbs the weights of a mixture"

    def __post_init__(self) -> None:
        if not 0 < self.radius_first <= self.radius_last:
            raise ValueError(
                f"{type(self).__name__}: radii must be positive and grow, got radius_first={self.radius_first}, "
                f"radius_last={self.radius_last}"
            )

    def plan(self, arch: ArchParameterGroup, epoch: int, epochs: int) -> Plan:
        progress = min(1.0, epoch / epochs)
        return {"radius": self.radius_first + (self.radius_last - self.radius_first) * progress}

    def around_weights(self, step: Step, batch: Any, plan: Plan) -> AbstractContextManager[None]:
        return shaken(step, plan["radius"])


@dataclass(frozen=True)
class SDARTSAdv(SDARTS):
    """Weights updates under the worst operation weights nearby; the radius grows linearly."""

    attack_steps: int = 7
    """Gradient steps of the attack, each a forward and a backward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack_steps < 1:
            raise ValueError(f"SDARTSAdv: attack_steps must be at least 1, got {self.attack_steps}")

    def around_weights(self, step: Step, batch: Any, plan: Plan) -> AbstractContextManager[None]:
        return attacked(step, batch, plan["radius"], self.attack_steps)


_NB201: dict[str, Any] = {**ORIGINAL, "epochs": 100, "weight_decay": 3e-4, "nesterov": False}
_PRESETS = {
    "nb201": {"original": {"*": _NB201}},
    "darts": {"original": {"*": ORIGINAL}},
    "robust": {"original": {"*": ORIGINAL}},
    "timm": {"default": {"*": SETTINGS}},
}

METHODS = (
    Method("sdarts-rs", (SDARTS(),), "weights trained under randomly perturbed operation weights", _PRESETS),
    Method("sdarts-adv", (SDARTSAdv(),), "weights trained under the worst operation weights nearby", _PRESETS),
)
