"""Measure how much a threshold changes the result of the dense computation."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.modes import restoring
from ..supernet.architecture import Architecture
from ..supernet.gradients import Loss, alpha_gradient
from ..supernet.mixed_op import Execution

__all__ = ["Audit", "audit"]


@dataclass(frozen=True)
class Audit:
    """The relative errors ``|sparse - dense| / |dense|`` that a threshold causes in a search step.

    Attributes:
        loss, output: errors of the loss and the model's output in a weights update, where weak operations do not run.
        gradient, cosine: error of alpha's gradient, where weak operations are scored, and the cosine between the sparse
            and the dense gradient.
        update: error of the step that alpha's optimizer would take; None without an optimizer.
        executed: share of the operations that run in full.
    """

    loss: float
    output: float
    gradient: float
    cosine: float
    update: float | None
    executed: float


def audit(
    arch: Architecture, loss: Loss, batch: Any, threshold: float, optimizer: torch.optim.Optimizer | None = None
) -> Audit:
    """Measure on one batch what a threshold changes under the present relaxation and phi. All state is restored.

    Args:
        arch: the supernet's architecture parameters; their own threshold is ignored.
        loss: function of a batch that runs the model and returns a scalar.
        batch: the argument of ``loss``.
        threshold: see :class:`~sparsemix.ArchParameterGroup`.
        optimizer: alpha's, for the error of its step.

    If candidates draw random numbers (dropout), skipped candidates do not draw and scored ones draw last: the figures
    then reflect different draws rather than the threshold.

    Raises:
        ValueError: the optimizer does not hold every alpha, or the model's output holds no floating-point tensor.
    """
    dense, sparse = (_audited(arch, loss, batch, value, optimizer) for value in (0.0, threshold))
    return Audit(
        loss=_relative_error(sparse.loss, dense.loss),
        output=_relative_error(sparse.output, dense.output),
        gradient=_relative_error(sparse.gradient, dense.gradient),
        cosine=float(torch.cosine_similarity(sparse.gradient, dense.gradient, dim=0)),
        update=None if dense.update is None or sparse.update is None else _relative_error(sparse.update, dense.update),
        executed=sparse.executed,
    )


@dataclass(frozen=True)
class _Audited:
    loss: Tensor
    output: Tensor
    gradient: Tensor
    update: Tensor | None
    executed: float


def _audited(
    arch: Architecture, loss: Loss, batch: Any, threshold: float, optimizer: torch.optim.Optimizer | None
) -> _Audited:
    outputs: list[list[Tensor]] = []
    previous, arch.threshold = arch.threshold, threshold
    hook = arch.model.register_forward_hook(lambda model, args, output: outputs.append([*_numbers(output)]))
    try:
        with restoring(arch.model), arch.fixed_alphas():
            value = loss(batch).detach()
            executions = [e for op in arch.operations for e in op.ran]
        with restoring(arch.model):
            gradients, _ = alpha_gradient(arch, loss, batch)
    finally:
        hook.remove()
        arch.threshold = previous
    if not outputs[0]:
        raise ValueError("audit: the model's output holds no floating-point tensor, in sequences or mappings")
    return _Audited(
        value,
        torch.cat(outputs[0]),
        torch.cat([gradient.flatten() for gradient in gradients]),
        None if optimizer is None else _optimizer_step(optimizer, arch.parameters(), gradients),
        statistics.fmean(e is Execution.FULL for e in executions),
    )


def _numbers(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors of a model's output, flattened, including those in sequences and mappings."""
    if isinstance(output, Tensor):
        if output.is_floating_point() or output.is_complex():
            yield output.detach().flatten()
    elif isinstance(output, Mapping | list | tuple):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _numbers(part)


def _optimizer_step(
    optimizer: torch.optim.Optimizer, alphas: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> Tensor:
    """The step that a copy of the optimizer takes with these gradients."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if missing := sum(id(alpha) not in held for alpha in alphas):
        raise ValueError(
            f"audit: the optimizer does not hold {missing} of {len(alphas)} alphas; make it over arch.parameters()"
        )
    twins = {id(alpha): nn.Parameter(alpha.detach().clone()) for alpha in alphas}
    for alpha, gradient in zip(alphas, gradients, strict=True):
        twins[id(alpha)].grad = gradient
    memo: dict[int, Any] = dict(twins)  # the copy holds the twins where the optimizer holds the alphas
    copy.deepcopy(optimizer, memo).step()
    return torch.cat([(twins[id(alpha)].detach() - alpha.detach()).flatten() for alpha in alphas])


def _relative_error(value: Tensor, reference: Tensor) -> float:
    error = torch.linalg.vector_norm(value - reference)
    return float(error / torch.linalg.vector_norm(reference)) if error else 0.0
