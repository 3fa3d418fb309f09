"""DrNAS: the weights of an edge's operations are drawn from a Dirichlet distribution, whose parameters are learned.

Source: Chen et al., "DrNAS: Dirichlet Neural Architecture Search". Presets are their published code. Differences: one
draw serves all cells and both updates of a step, where the code draws anew in every forward; the supernet is evaluated
at the distribution's mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Dirichlet, Gamma, kl_divergence

from ..relaxations import NEVER, Moment
from ..supernet.group import ArchParameterGroup
from .darts import ORIGINAL, SETTINGS
from .method import Method, Part, Plan

__all__ = ["METHODS", "DirichletMean", "DirichletSample", "DrNAS", "concentration"]


def concentration(alpha: Tensor) -> Tensor:
    """Parameters of the Dirichlet distribution, ``elu(alpha) + 1``: positive, and 0 where there is no candidate."""
    return F.elu(alpha) + 1


class DirichletSample(nn.Module):
    """A draw of ``Dir(elu(alpha) + 1)`` for each row, with the gradient of the draw by alpha (Eq. 3).

    Gamma draws, normalised, are Dirichlet draws; PyTorch differentiates them by their path.

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
    """Weight of the divergence KL(Dir(elu(alpha) + 1) || Dir(1)) in the alphas' loss; by default alphas are decayed."""
    frozen_epochs: int = 0
    """Epochs at the beginning in which the alphas are not trained."""

    def __post_init__(self) -> None:
        if self.kl < 0 or self.frozen_epochs < 0:
            raise ValueError(
                f"DrNAS: kl and frozen_epochs must not be negative, got {self.kl} and {self.frozen_epochs}"
            )

    def trains_alphas(self, epoch: int, epochs: int) -> bool:
        return epoch >= self.frozen_epochs

    def relaxation(self, plan: Plan) -> DirichletSample:
        return DirichletSample()

    def evaluation(self, plan: Plan) -> DirichletMean:
        return DirichletMean()

    def penalty(self, arch: ArchParameterGroup, plan: Plan) -> Tensor | None:
        if not self.kl:
            return None
        shapes = (concentration(alpha) for _, alpha in arch.named_parameters())
        terms = [kl_divergence(Dirichlet(shape), Dirichlet(torch.ones_like(shape))) for shape in shapes]
        return self.kl * torch.stack(terms).sum()


_NB201: dict[str, Any] = {**ORIGINAL, "epochs": 100, "weight_decay": 3e-4, "nesterov": False}
_DARTS: dict[str, Any] = {
    **ORIGINAL,
    "channels": 36,
    "cells": 20,
    "weight_lr": 0.1,
    "weight_lr_min": 0.0,
    "alpha_lr": 6e-4,
    "frozen_epochs": 10,
}
_SMALL: dict[str, Any] = {**_DARTS, "frozen_epochs": 2}  # a fifth of the search, as of a stage there

METHODS = (
    Method(
        "drnas",
        (DrNAS(),),
        "operation weights drawn from a learned Dirichlet distribution",
        {
            "nb201": {"original": {"*": _NB201}},
            "darts": {"original": {"*": _DARTS}, "proxy": {"*": _SMALL}},
            "robust": {"original": {"*": _DARTS}, "proxy": {"*": _SMALL}},
            "timm": {"default": {"*": SETTINGS}},
        },
    ),
)
