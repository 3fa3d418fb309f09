"""The weighted sum of mixed operations: which candidates run, which of them together, and what gradients they get."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._utils.modes import evaluating
from .._utils.torch_private import own_parameters
from .sharing import Source, adds_nothing, sharing_key

__all__ = [
    "Edge",
    "Execution",
    "Weights",
    "check_same_shape",
    "mix",
    "nothing_of",
    "shape_donor",
    "with_zero_gradients",
]


class Execution(Enum):
    """How a candidate takes part in a forward.

    Why scored: alpha's gradient by a candidate's weight is ``<g, o_m(x)>``, which needs the candidate's output and
    nothing else. A weak candidate's backward pass, the dearer part, would only bring ``a_m J_m^T g`` to earlier nodes.
    """

    FULL = "full"  # runs, and gradients flow through it
    SCORED = "scored"  # runs without a graph: its weight gets its gradient, nothing flows back through it
    SKIPPED = "skipped"  # does not run


class Weights(NamedTuple):
    """One mixed operation's weights in a forward, and what decides which candidates run.

    Attributes:
        scalars: a weight for each candidate.
        sizes: their absolute values on the host; None: every candidate runs in full.
        threshold: candidates of smaller weight are weak.
        weak: how weak candidates run.
        passing: the weight of all candidates that add something to the node, on this edge and those that lead there
            too; None: on this edge. See :meth:`MixedOp.executions`.
        row: the name of the row of alphas that they come from, where a table of other code holds it.
    """

    scalars: Sequence[Tensor]
    sizes: Sequence[float] | None = None
    threshold: float = 0.0
    weak: Execution = Execution.SCORED
    passing: float | None = None
    row: str | None = None


class Edge(NamedTuple):
    """One weighted sum that is to be computed: candidates, their weights, and how each takes part."""

    candidates: nn.ModuleDict
    weights: Sequence[Tensor]
    executions: Sequence[Execution]


class _Part(NamedTuple):
    """One candidate that is to run for one edge."""

    edge: int
    name: str
    candidate: Any
    weight: Tensor


def mix(source: Source, edges: Sequence[Edge]) -> list[Tensor]:
    """``sum_m w_m o_m(x)`` for every edge; candidates of one sharing key, across the edges, run together.

    An edge without a candidate that runs gives zeros (:func:`nothing_of`).
    """
    full: dict[Hashable, list[_Part]] = {}
    scored: dict[Hashable, list[_Part]] = {}
    totals = [_Total(edge, source) for edge in edges]
    for index, edge in enumerate(edges):
        for (name, candidate), weight, execution in zip(
            edge.candidates.items(), edge.weights, edge.executions, strict=True
        ):
            if execution is not Execution.FULL:
                totals[index].idle.append(candidate)
            if execution is not Execution.SKIPPED:
                key = None if source.keywords else sharing_key(candidate)
                group = full if execution is Execution.FULL else scored
                if key is None or any(part.candidate is candidate for part in group.get(key, ())):
                    key = (index, name)  # one module on several edges runs once for each
                group.setdefault(key, []).append(_Part(index, name, candidate, weight))
    for parts in full.values():
        for part, value, remaining in _run(parts, source, [part.weight for part in parts]):
            totals[part.edge].add(part.name, value, remaining)
    with torch.no_grad():
        unit: Tensor | None = None  # a score is of the output itself, without its weight
        for parts in scored.values():
            unit = torch.ones_like(parts[0].weight) if unit is None else unit
            for part, value, _ in _run(parts, source, [unit] * len(parts)):
                totals[part.edge].score(part.name, value, part.weight)
    return [total.result() for total in totals]


def _run(
    parts: Sequence[_Part], source: Source, weights: Sequence[Tensor]
) -> Iterator[tuple[_Part, Tensor | None, Tensor | None]]:
    """The outputs of candidates that may run together, each with the weight that is still to be applied."""
    first = parts[0].candidate
    if source.keywords or sharing_key(first) is None:
        [part], [weight] = parts, weights
        yield part, part.candidate(source.x, **source.keywords), weight
    else:
        run = first.contributions([part.candidate for part in parts], source, weights)
        for part, (value, weight) in zip(parts, run, strict=True):
            yield part, value, weight


# Nothing


def shape_donor(candidates: Iterable[nn.Module]) -> nn.Module:
    """The candidate best suited to give zeros their shape: ``none``, else one without parameters, else the first."""
    ops = [*candidates]
    idle = [op for op in ops if adds_nothing(op)] or [op for op in ops if next(op.parameters(), None) is None]
    return (idle or ops)[0]


def nothing_of(donor: nn.Module, x: Tensor, keywords: Mapping[str, Any]) -> Tensor:
    """Zeros of the shape of a candidate's output, which leave no graph and no trace in its batch norms."""
    if adds_nothing(donor):
        return donor(x, **keywords)
    with evaluating(donor), torch.no_grad():
        return torch.zeros_like(donor(x, **keywords))


# Gradients


class _WithZeroGradients(torch.autograd.Function):
    """A value as it is, and for tensors that had no part in it gradients of zero rather than none.

    Why: an operation at weight zero changes nothing, so that it need not run; but an optimizer passes over parameters
    whose gradient is None. With zeros, momentum and weight decay go on acting on them, as they would had the operation
    run at weight zero, and a wrapper that waits for every parameter's gradient (DistributedDataParallel) is not kept
    waiting.
    """

    @staticmethod
    def forward(value: Tensor, is_own: bool, *others: Tensor) -> Tensor:
        return value if is_own else value.clone()  # a view could not be changed in place by what follows (ReLU, +=)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, is_own, *ctx.others = inputs
        if is_own:
            ctx.mark_dirty(value)  # the same tensor, no view of it

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        zeros = [torch.zeros_like(other) if need else None for other, need in zip(ctx.others, needed, strict=True)]
        return gradients[0], None, *zeros


def with_zero_gradients(value: Tensor, others: Sequence[Tensor], is_own: bool = False) -> Tensor:
    """The value, behind which every other tensor has a gradient, if only of zero.

    Args:
        value: any tensor.
        others: tensors that had no part in it.
        is_own: nothing else holds the value, so that it need not be copied.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in others):
        return _WithZeroGradients.apply(value, is_own, *others)
    return value


class _WithScores(torch.autograd.Function):
    """``value + sum_m w_m y_m`` for outputs ``y_m`` without a graph: gradients reach the value and the weights."""

    @staticmethod
    def forward(value: Tensor, count: int, *weights_and_outputs: Tensor) -> Tensor:
        weights, outputs = weights_and_outputs[:count], weights_and_outputs[count:]
        total = value
        for weight, output in zip(weights, outputs, strict=True):
            wider = torch.result_type(total, output) != total.dtype  # a mixture of autocast's precisions
            total = torch.addcmul(total, output, weight) if total is value or wider else total.addcmul_(output, weight)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, count, *weights_and_outputs = inputs
        ctx.is_real = not value.is_complex()
        ctx.save_for_backward(*weights_and_outputs[count:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        [gradient], outputs = gradients, ctx.saved_tensors
        product = None if torch.is_grad_enabled() else torch.empty_like(gradient)  # unless there is a second backward
        scores = [torch.real(torch.mul(gradient, output.conj(), out=product).sum()) for output in outputs]
        return torch.real(gradient) if ctx.is_real else gradient, None, *scores, *(None for _ in outputs)


class _Total:
    """The running sum of one edge, which insists that all candidates agree on the shape.

    Attributes:
        is_own: the sum is a tensor made here, which nothing else holds.
        depends: gradients flow back from it to the source.
        idle: candidates that gradients do not flow through.
    """

    def __init__(self, edge: Edge, source: Source) -> None:
        self.edge = edge
        self.source = source
        self.first = ""
        self.shape: torch.Size | None = None
        self.value: Tensor | None = None
        self.is_own = False
        self.depends = False
        self.scored: list[tuple[Tensor, Tensor]] = []
        self.idle: list[nn.Module] = []

    def add(self, name: str, value: Tensor | None, weight: Tensor | None) -> None:
        """Add ``weight * value``; no weight: it is applied already; no value: the candidate adds nothing."""
        if value is None:
            return
        self._check(name, value)
        self.is_own = self.value is not None or weight is not None
        self.depends |= value.requires_grad
        if self.value is None:
            self.value = value if weight is None else value * weight
        else:
            self.value = self.value + value if weight is None else torch.addcmul(self.value, value, weight)

    def score(self, name: str, value: Tensor | None, weight: Tensor) -> None:
        """Add ``weight * value`` where the value has no graph."""
        if value is not None:
            self._check(name, value)
            self.scored.append((weight, value))

    def result(self) -> Tensor:
        value = self.value
        if value is None:
            value = nothing_of(shape_donor(self.edge.candidates.values()), self.source.x, self.source.keywords)
        if self.scored:
            scales, outputs = zip(*self.scored, strict=True)
            value = _WithScores.apply(value, len(scales), *scales, *outputs)
            self.is_own = True
        without_part: list[Tensor] = []
        if torch.is_grad_enabled():
            without_part += [p for candidate in self.idle for p in own_parameters(candidate)]
            if not self.depends:  # in the dense sum gradients would flow back through the others, times zero
                without_part.append(self.source.x)
            if not value.requires_grad:
                without_part += self.edge.weights
        return with_zero_gradients(value, without_part, self.is_own)

    def _check(self, name: str, value: Tensor) -> None:
        if self.shape is None:
            self.first, self.shape = name, value.shape
        check_same_shape(self.first, self.shape, name, value.shape, self.source.x.shape)


def check_same_shape(first: str, first_shape: torch.Size, second: str, second_shape: torch.Size, x: torch.Size) -> None:
    """Insist that two candidates agree on the shape of their output for an input of shape ``x``.

    Raises:
        ValueError: they do not; names both.
    """
    if first_shape != second_shape:
        raise ValueError(
            f"MixedOp: candidates {first!r} and {second!r} disagree for input {tuple(x)}: "
            f"{tuple(first_shape)} and {tuple(second_shape)}"
        )
