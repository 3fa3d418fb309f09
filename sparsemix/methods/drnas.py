"""DrNAS: the weights of an edge's operations are drawn from a Dirichlet distribution, whose parameters are learned.

Source: Chen et al., "DrNAS: Dirichlet Neural Architecture Search". Presets are their published code. Differences: one
draw serves all cells and both updates of a step, where the code draws anew in every forward; the supernet is evaluated
at the distribution's mean; within an edge, convolutions of one width grow by copies of the same channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Dirichlet, Gamma, kl_divergence

from .._utils.torch_private import is_compiled
from ..relaxations import NEVER, Moment
from ..supernet.group import ArchParameterGroup
from ..supernet.partial import check_partial, widen_channels_
from .darts import ORIGINAL, SETTINGS
from .method import Evidence, Method, Part, Plan

__all__ = ["METHODS", "DirichletMean", "DirichletSample", "DrNAS", "Progressive", "concentration"]


def concentration(alpha: Tensor) -> Tensor:
    """Parameters of the Dirichlet distribution, ``elu(alpha) + 1``: positive, and 0 where there is no candidate."""
    return F.elu(alpha) + 1


class DirichletSample(nn.Module):
    """A draw of ``Dir(elu(alpha) + 1)`` for each row, differentiable with respect to alpha (Eq. 3).

    Normalised Gamma draws are Dirichlet draws; PyTorch differentiates them pathwise.

    Example:
        >>> weights = DirichletSample()(torch.zeros(1, 3), Moment(step=1))
        >>> round(weights.sum().item(), 6)
        1.0
    """

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        shape = concentration(alpha.double().cpu())  # the draws are the same on every device
        exists = shape > 0
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(moment.generator("dirichlet").initial_seed())
            draws = Gamma(shape.where(exists, 1.0), 1.0).rsample()
        draws = draws.clamp_min(torch.finfo(draws.dtype).tiny) * exists
        return (draws / draws.sum(-1, keepdim=True)).to(alpha)


class DirichletMean(nn.Module):
    """The mean of ``Dir(elu(alpha) + 1)``: its parameters, normalised.

    Example:
        >>> DirichletMean()(torch.tensor([0.0, 2.0]))
        tensor([0.2500, 0.7500])
    """

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        shape = concentration(alpha)
        return shape / shape.sum(-1, keepdim=True)


@dataclass(frozen=True)
class DrNAS(Part):
    """Operation weights are a draw of a Dirichlet distribution."""

    kl: float = 0.0
    """Weight of KL(Dir(elu(alpha) + 1) || Dir(1)) in the alphas' loss. By default, alphas have weight decay instead."""

    def __post_init__(self) -> None:
        if self.kl < 0:
            raise ValueError(f"DrNAS: kl must not be negative, got {self.kl}")

    def relaxation(self, plan: Plan) -> DirichletSample:
        return DirichletSample()

    def evaluation(self, plan: Plan) -> DirichletMean:
        return DirichletMean()

    def penalty(self, arch: ArchParameterGroup, plan: Plan) -> Tensor | None:
        if not self.kl:
            return None
        tiny = torch.finfo(torch.float32).tiny  # elu(alpha) + 1 rounds to 0 at a very negative alpha
        shapes = (concentration(alpha).clamp_min(tiny) for _, alpha in arch.named_parameters())
        terms = [kl_divergence(Dirichlet(shape), Dirichlet(torch.ones_like(shape))) for shape in shapes]
        return self.kl * torch.stack(terms).sum()


@dataclass(frozen=True)
class Progressive(Part):
    """Stages of equal length, each with fewer operations per edge and a larger share of channels (section 3.3)."""

    stage_parts: tuple[int, ...] = (1,)
    """K of each stage, where 1/K of a node's channels are mixed and the others pass through."""
    stage_operations: tuple[int, ...] = ()
    """Number of operations (the strongest) that an edge keeps in each stage. If empty, it keeps all of them."""
    frozen_epochs: int = 0
    """Epochs at the beginning of each stage in which the alphas are not trained."""

    def __post_init__(self) -> None:
        parts, operations = self.stage_parts, self.stage_operations
        if not parts or min(parts) < 1 or [*parts] != sorted(parts, reverse=True):
            raise ValueError(f"Progressive: stage_parts must be at least 1 and must not rise, got {parts}")
        if operations and (len(operations) != len(parts) or min(operations) < 1):
            raise ValueError(
                f"Progressive: stage_operations must be at least 1, one number for each of the {len(parts)} stages of "
                f"stage_parts, or none at all; got {operations}"
            )
        if self.frozen_epochs < 0:
            raise ValueError(f"Progressive: frozen_epochs must not be negative, got {self.frozen_epochs}")

    def _stage(self, epoch: int, epochs: int) -> tuple[int, int]:
        """An epoch's stage, and its position in it; epochs after the search belong to the last stage."""
        length = -(-epochs // len(self.stage_parts))
        stage = min(epoch // length, len(self.stage_parts) - 1)
        return stage, epoch - stage * length

    def supernet(self) -> Mapping[str, Any]:
        return {"channel_parts": self.stage_parts[0]} if self.stage_parts[0] > 1 else {}

    def check(self, arch: ArchParameterGroup, epochs: int) -> None:
        stages = len(self.stage_parts)
        shortest = epochs - (stages - 1) * -(-epochs // stages)
        if self.frozen_epochs >= shortest:
            raise ValueError(
                f"Progressive: the alphas must train in each of {stages} stages, got frozen_epochs="
                f"{self.frozen_epochs} and {epochs} epochs in all, {max(shortest, 0)} in the last stage"
            )
        if stages > 1 and any(is_compiled(module) for module in arch.model.modules()):
            raise ValueError("Progressive: compiled operations cannot be widened; search without compiling")
        check_partial(arch.model, self.stage_parts, f"{type(self).__name__}, stage_parts")

    def plan(self, arch: ArchParameterGroup, epoch: int, epochs: int) -> Plan:
        return {"channel_parts": self.stage_parts[self._stage(epoch, epochs)[0]]}

    def shape_(self, arch: ArchParameterGroup, pairs: Any, optimizer: torch.optim.Optimizer, plan: Plan) -> None:
        widen_channels_(arch.model, plan["channel_parts"], arch.moment.generator("widening"), optimizer)

    def decide(self, arch: ArchParameterGroup, evidence: Evidence) -> Plan:
        """Drop the weakest operations of each edge where a stage begins."""
        stage, before = self._stage(evidence.moment.epoch, evidence.epochs)
        if before or not self.stage_operations:
            return {}
        kept = {}
        for label, (op, *_) in arch.rows.items():
            if len(ranked := op.ranked()) > self.stage_operations[stage]:
                kept[label] = ranked[: self.stage_operations[stage]]
                arch.restrict(label, kept[label])
        return {"kept": kept} if kept else {}

    def trains_alphas(self, epoch: int, epochs: int) -> bool:
        return self._stage(epoch, epochs)[1] >= self.frozen_epochs


_NB201: dict[str, Any] = {**ORIGINAL, "epochs": 100, "weight_decay": 3e-4, "nesterov": False}
_NB201_PROGRESSIVE: dict[str, Any] = {
    **_NB201,
    "stage_parts": (4, 2),
    "stage_operations": (5, 3),
    "frozen_epochs": 10,
}
_DARTS: dict[str, Any] = {
    **ORIGINAL,
    "channels": 36,
    "cells": 20,
    "weight_lr": 0.1,
    "weight_lr_min": 0.0,
    "alpha_lr": 6e-4,
    "stage_parts": (6, 4),
    "stage_operations": (7, 4),
    "frozen_epochs": 10,
}
# K that divides 8 channels, and alphas that are frozen for two fifths of a stage, as in the original
_SMALL: dict[str, Any] = {**_DARTS, "stage_parts": (4, 2), "frozen_epochs": 2}

METHODS = (
    Method(
        "drnas",
        (DrNAS(), Progressive()),
        "operation weights drawn from a learned Dirichlet distribution; in stages on the DARTS space",
        {
            "nb201": {"original": {"*": _NB201}, "progressive": {"*": _NB201_PROGRESSIVE}},
            "darts": {"original": {"*": _DARTS}, "proxy": {"*": _SMALL}},
            "robust": {"original": {"*": _DARTS}, "proxy": {"*": _SMALL}},
            "timm": {"default": {"*": SETTINGS}},
        },
    ),
)
