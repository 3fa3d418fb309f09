"""Information bypass leakage: what passes through operations that discretisation will remove."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._utils.modes import evaluating
from ..supernet.architecture import Architecture
from ..supernet.mixed_op import MixedOp, call_arguments
from .accuracy import renewed_statistics

__all__ = ["Leakage", "leakage"]


@dataclass(frozen=True)
class Leakage:
    """Information bypass leakage of one edge: what passes through operations that discretisation will remove.

    Attributes:
        weight: ``1 - max_m a_m``, the weight that does not belong to the strongest operation k; for a weighted edge,
            multiplied by the edge weight, ``beta_e (1 - max_m a_m)``.
        output: ``|rest| / (|a_k o_k(x)| + |rest|)`` with ``rest = sum_{m != k} a_m o_m(x)`` and the Euclidean norm over
            a batch: the share of the edge's output that comes from the others. 1 if the strongest operation is
            ``none`` and others pass something; 0 if nothing passes.
    """

    weight: float
    output: float


def leakage(arch: Architecture, x: Tensor) -> dict[str, Leakage]:
    """Information bypass leakage of every row under the present relaxation and phi, on one batch.

    Batch norms normalise by the batch's own statistics, as in training.

    Args:
        arch: the supernet's architecture parameters.
        x: a batch of the supernet's inputs.

    Returns:
        Label -> :class:`Leakage`. A row shared by several mixed operations gets the mean over those that ran; a row is
        left out if none of them ran.

    Example:
        >>> from torch import nn
        >>> from sparsemix import ArchParameterGroup, MixedOp
        >>> model = nn.Sequential(MixedOp({"skip": nn.Identity(), "same": nn.Identity()}))
        >>> arch = ArchParameterGroup(model, lambda alpha, moment: torch.full_like(alpha, 0.5))
        >>> leakage(arch, torch.ones(1, 4))["0"]
        Leakage(weight=0.5, output=0.5)
    """
    measured: dict[MixedOp, Leakage] = {}

    def measure(op: MixedOp, args: tuple[Any, ...], given: dict[str, Any], mixed: Tensor) -> None:
        x, weights, keywords = call_arguments(*args, **given)
        values = [float(weight) for weight in op.operation_weights(weights).scalars]
        k = max(range(len(values)), key=values.__getitem__)
        strongest = values[k] * op.candidates[op.names[k]](x, **keywords)
        rest = torch.linalg.vector_norm(mixed - strongest)
        total = torch.linalg.vector_norm(strongest) + rest
        measured[op] = Leakage(sum(values) - values[k], float(rest / total) if total > 0 else 0.0)

    with renewed_statistics(arch.model, [(x, x)]), evaluating(arch.model), torch.no_grad(), ExitStack() as hooks:
        for op in arch.operations:
            hooks.callback(op.register_forward_hook(measure, with_kwargs=True).remove)
        arch.model(x)
    rows = {label: [measured[op] for op in ops if op in measured] for label, ops in arch.rows.items()}
    return {
        label: Leakage(
            weight=statistics.fmean(leak.weight for leak in leaks),
            output=statistics.fmean(leak.output for leak in leaks),
        )
        for label, leaks in rows.items()
        if leaks
    }
