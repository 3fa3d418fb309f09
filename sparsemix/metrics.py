"""What a search is judged by: accuracy, the discretisation gap, information bypass leakage, skip connections."""

from __future__ import annotations

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
        Label -> :class:`Leakage`; rows shared by several mixed operations have their mean.

    Example:
        >>> model = nn.Sequential(MixedOp({"skip": nn.Identity(), "same": nn.Identity()}))
        >>> arch = ArchParameterGroup(model, lambda alpha, phi: torch.full_like(alpha, 0.5))
        >>> leakage(arch, torch.ones(1, 4))["0"]
        Leakage(weight=0.5, output=0.5)
    """
    outputs: dict[MixedOp, float] = {}

    def measure(op: MixedOp, args: tuple[Tensor], mixed: Tensor) -> None:
        k = int(op.alpha.argmax())
        weight = op.operation_weights()[k]
        strongest = torch.zeros_like(mixed) if weight is None else weight * op.fuse()(args[0])
        rest = torch.linalg.vector_norm(mixed - strongest)
        total = torch.linalg.vector_norm(strongest) + rest
        outputs[op] = float(rest / total) if total > 0 else 0.0

    hooks = [op.register_forward_hook(measure) for ops in arch.rows.values() for op in ops]
    try:
        with evaluating(arch.model), torch.no_grad():
            arch.model(x)
            weights = arch.weights()
    finally:
        for hook in hooks:
            hook.remove()
    return {
        label: Leakage(
            weight=float(weights[label].sum() - weights[label][ops[0].alpha.argmax()]),
            output=sum(outputs[op] for op in ops) / len(ops),
        )
        for label, ops in arch.rows.items()
    }


def skip_count(genotype: Mapping[str, str], names: frozenset[str] = frozenset({"skip", "skip_connect"})) -> int:
    """How many rows chose a skip connection.

    Example:
        >>> skip_count({"1<-0": "skip_connect", "2<-0": "nor_conv_3x3"})
        1
    """
    return sum(operation in names for operation in genotype.values())
