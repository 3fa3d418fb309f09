"""What a search is judged by: accuracy, the discretisation gap, information bypass leakage, skip connections."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .arch_parameters import ArchParameterGroup, evaluating
from .mixed_op import MixedOp

__all__ = ["Discretization", "Leakage", "accuracy", "discretization", "leakage", "skip_count"]

Batches = Iterable[tuple[Tensor, Tensor]]


def accuracy(model: nn.Module, batches: Batches) -> float:
    """The share of images classified correctly, in [0, 1], in evaluation mode.

    Raises:
        ValueError: there is no image.
    """
    correct, count = torch.zeros(()), 0
    with evaluating(model), torch.no_grad():
        for x, y in batches:
            correct = correct.to(y.device) + (model(x).argmax(1) == y).sum()
            count += len(y)
    if not count:
        raise ValueError("accuracy: no images to evaluate on")
    return float(correct) / count


@dataclass(frozen=True)
class Discretization:
    """Accuracy of the supernet as trained, and with only the strongest operation of each row."""

    supernet: float
    discretized: float

    @property
    def gap(self) -> float:
        """The discretisation gap: accuracy of the supernet minus that of its discretisation, on the same batches."""
        return self.supernet - self.discretized


def discretization(arch: ArchParameterGroup, batches: Batches, relaxation: Any = None) -> Discretization:
    """Measure what is lost when only the strongest operations stay, without retraining (Fig. 3b).

    Args:
        arch: of the supernet.
        batches: (images, labels); gone through twice.
        relaxation: under which the supernet is evaluated; the group's present one by default.
    """
    with arch.using(relaxation or arch.relaxation):
        supernet = accuracy(arch.model, batches)
    with arch.discretized():
        return Discretization(supernet, accuracy(arch.model, batches))


@dataclass(frozen=True)
class Leakage:
    """Information bypass leakage of one edge: what passes through operations that discretisation will remove.

    Attributes:
        weight: ``1 - max_m a_m``, the weight that does not belong to the strongest operation k.
        output: ``|rest| / (|a_k o_k(x)| + |rest|)`` with ``rest = sum_{m != k} a_m o_m(x)`` and the Euclidean norm over
            a batch: the share of the edge's output that comes from the others. 1 where the strongest operation is
            ``none`` and yet something passes; 0 where nothing passes at all.
    """

    weight: float
    output: float


def leakage(arch: ArchParameterGroup, x: Tensor) -> dict[str, Leakage]:
    """Information bypass leakage of every row under the present relaxation and phi, on one batch.

    Args:
        arch: of the supernet.
        x: a batch of its input.

    Returns:
        Label -> :class:`Leakage`; rows shared by several mixed operations have their mean, rows of which none ran are
        left out.

    Example:
        >>> model = nn.Sequential(MixedOp({"skip": nn.Identity(), "same": nn.Identity()}))
        >>> arch = ArchParameterGroup(model, lambda alpha, phi: torch.full_like(alpha, 0.5))
        >>> leakage(arch, torch.ones(1, 4))["0"]
        Leakage(weight=0.5, output=0.5)
    """
    measured: dict[MixedOp, Leakage] = {}

    def measure(op: MixedOp, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], mixed: Tensor) -> None:
        weights = op.operation_weights(*args[1:], **kwargs)
        values = [0.0 if weight is None else float(weight) for weight in weights]
        k = max(range(len(values)), key=values.__getitem__)
        strongest = values[k] * op.candidates[op.names[k]](args[0])
        rest = torch.linalg.vector_norm(mixed - strongest)
        total = torch.linalg.vector_norm(strongest) + rest
        measured[op] = Leakage(sum(values) - values[k], float(rest / total) if total > 0 else 0.0)

    hooks = [op.register_forward_hook(measure, with_kwargs=True) for ops in arch.rows.values() for op in ops]
    try:
        with evaluating(arch.model), torch.no_grad():
            arch.model(x)
    finally:
        for hook in hooks:
            hook.remove()
    rows = {label: [measured[op] for op in ops if op in measured] for label, ops in arch.rows.items()}
    return {
        label: Leakage(
            weight=statistics.fmean(leak.weight for leak in leaks),
            output=statistics.fmean(leak.output for leak in leaks),
        )
        for label, leaks in rows.items()
        if leaks
    }


def skip_count(genotype: Mapping[str, str], names: frozenset[str] = frozenset({"skip", "skip_connect"})) -> int:
    """How many rows chose a skip connection.

    Example:
        >>> skip_count({"1<-0": "skip_connect", "2<-0": "nor_conv_3x3"})
        1
    """
    return sum(operation in names for operation in genotype.values())
