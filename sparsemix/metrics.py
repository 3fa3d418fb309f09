"""What a search is judged by: accuracy, discretisation gap, leakage, skip connections, and the cost of a threshold."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .arch_parameters import ArchParameterGroup, evaluating, restoring
from .bilevel import Loss, alpha_gradient
from .mixed_op import Execution, MixedOp, call_arguments

__all__ = [
    "Audit",
    "Discretization",
    "Leakage",
    "accuracy",
    "audit",
    "discretization",
    "leakage",
    "renewed_statistics",
    "skip_count",
    "topk_accuracy",
]

Batches = Iterable[tuple[Tensor, Tensor]]


def accuracy(model: nn.Module, batches: Batches) -> float:
    """The share of images classified correctly, in [0, 1], in evaluation mode.

    Raises:
        ValueError: there is no image.
    """
    return topk_accuracy(model, batches, (1,))[1]


def topk_accuracy(model: nn.Module, batches: Batches, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """For each k the share of images whose class is among the k most likely, in [0, 1], in evaluation mode.

    Raises:
        ValueError: there is no image.
    """
    correct, count = torch.zeros(len(ks)), 0
    with evaluating(model), torch.no_grad():
        for x, y in batches:
            logits = model(x)
            ranked = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices == y[:, None]
            correct = correct.to(y.device) + torch.stack([ranked[:, :k].sum() for k in ks])
            count += len(y)
    if not count:
        raise ValueError("accuracy: no images to evaluate on")
    return dict(zip(ks, (correct.double() / count).tolist(), strict=True))


@contextmanager
def renewed_statistics(model: nn.Module, batches: Batches) -> Iterator[None]:
    """Within the context, running statistics of batch norms are those of these batches; then they are as before.

    In a search they are averages over the mixtures of the training batches, at two temperatures and with weights that
    move on. A network that is evaluated has others: its own, which this computes by one forward over the batches,
    without training (the mean of the batches' statistics, as ``torch.optim.swa_utils.update_bn``).

    Args:
        model: in the state in which it is to be evaluated; batch norms that do not run keep what they have.
        batches: (images, labels).
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    saved, momenta = [buffer.clone() for buffer in buffers], [norm.momentum for norm in norms]
    try:
        with evaluating(model), torch.no_grad():
            for norm in norms:
                norm.train()
            for count, (x, _) in enumerate(batches, 1):
                for norm in norms:
                    norm.momentum = 1 / count  # the mean so far
                model(x)
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)


@dataclass(frozen=True)
class Discretization:
    """Accuracy of the supernet as trained, and with only the strongest operation of each row."""

    supernet: float
    discretized: float

    @property
    def gap(self) -> float:
        """The discretisation gap: accuracy of the supernet minus that of its discretisation, on the same batches."""
        return self.supernet - self.discretized


def discretization(
    arch: ArchParameterGroup, batches: Batches, relaxation: Any = None, statistics: Batches | None = None
) -> Discretization:
    """Measure what is lost when only the strongest operations stay, without retraining (Fig. 3b).

    Args:
        arch: of the supernet.
        batches: (images, labels); gone through twice.
        relaxation: under which the supernet is evaluated; the group's present one by default.
        statistics: training batches on which batch-norm statistics are renewed before each of the two evaluations, see
            :func:`renewed_statistics`; None: running statistics as training left them.
    """

    def measured() -> float:
        with nullcontext() if statistics is None else renewed_statistics(arch.model, statistics):
            return accuracy(arch.model, batches)

    with arch.using(relaxation or arch.relaxation):
        supernet = measured()
    with arch.discretized():
        return Discretization(supernet, measured())


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

    Batch norms normalise by the batch's own statistics, as in training.

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


@dataclass(frozen=True)
class Audit:
    """How far a threshold takes a step from the dense computation: relative errors ``|sparse - dense| / |dense|``.

    Attributes:
        loss, output: of the loss and the model's output in a weights update, where weak operations do not run.
        gradient, cosine: of alpha's gradient, where weak operations are scored, and the cosine between the two.
        update: of the step that alpha's optimizer would take; None where none was given.
        executed: share of the operations that run in full.
    """

    loss: float
    output: float
    gradient: float
    cosine: float
    update: float | None
    executed: float


def audit(
    arch: ArchParameterGroup, loss: Loss, batch: Any, threshold: float, optimizer: torch.optim.Optimizer | None = None
) -> Audit:
    """Measure on one batch what a threshold changes under the present relaxation and phi. Nothing is left changed.

    Args:
        arch: of the supernet; its own threshold plays no part.
        loss: function of a batch that runs the model and returns a scalar.
        batch: what it takes.
        threshold: see :class:`~sparsemix.ArchParameterGroup`.
        optimizer: alpha's, for the error of its step.

    Where candidates draw random numbers (dropout), skipped ones do not draw and scored ones draw last: the figures are
    then of other draws rather than of the threshold.

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
    arch: ArchParameterGroup, loss: Loss, batch: Any, threshold: float, optimizer: torch.optim.Optimizer | None
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
        torch.cat([*gradients]),
        None if optimizer is None else _optimizer_step(optimizer, arch.parameters(), gradients),
        statistics.fmean(e is Execution.FULL for e in executions),
    )


def _numbers(output: Any) -> Iterator[Tensor]:
    """A model's output, flat: the floating-point tensors in sequences and mappings of whatever else."""
    if isinstance(output, Tensor):
        if output.is_floating_point() or output.is_complex():
            yield output.detach().flatten()
    elif isinstance(output, Mapping | list | tuple):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _numbers(part)


def _optimizer_step(
    optimizer: torch.optim.Optimizer, alphas: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> Tensor:
    """The step of a copy of the optimizer for these gradients."""
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
    return torch.cat([twins[id(alpha)].detach() - alpha.detach() for alpha in alphas])


def _relative_error(value: Tensor, reference: Tensor) -> float:
    error = torch.linalg.vector_norm(value - reference)
    return float(error / torch.linalg.vector_norm(reference)) if error else 0.0


def skip_count(genotype: Mapping[str, str], names: frozenset[str] = frozenset({"skip", "skip_connect"})) -> int:
    """How many rows chose a skip connection.

    Example:
        >>> skip_count({"1<-0": "skip_connect", "2<-0": "nor_conv_3x3"})
        1
    """
    return sum(operation in names for operation in genotype.values())
