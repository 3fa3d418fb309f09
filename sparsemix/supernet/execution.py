"""The weighted sum of mixed operations: which candidates run, which of them together, and what gradients they get."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._utils.modes import evaluating
from .._utils.torch_private import own_parameters, tensors_in, version
from .forward import in_forward, with_zero_gradients
from .sharing import Contribution, Source, adds_nothing, sharing_key
from .sums import Sums, Total

__all__ = [
    "Edge",
    "Execution",
    "Weights",
    "changed_in_place",
    "check_same_shape",
    "mix",
    "nothing_of",
    "shape_donor",
]


class Execution(Enum):
    """How a candidate takes part in a forward.

    Scoring suffices for weak candidates: the gradient with respect to a candidate's weight is ``<g, o_m(x)>``, with g
    the gradient of the edge's output, and needs only the candidate's output. The backward pass through the candidate,
    the more expensive part, would only add ``a_m J_m^T g`` to the gradient of earlier nodes.
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
        passing: the total weight of all candidates but ``none`` on all edges into the node; None: on this edge alone.
            See :meth:`MixedOp.executions`.
        row: the label of their row, if they come from a table that other code owns.
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
    can_share: bool


def mix(source: Source, edges: Sequence[Edge]) -> list[Tensor]:
    """``sum_m w_m o_m(x)`` for every edge; candidates with the same sharing key run together, even across edges.

    If no candidate of an edge runs, its output is zeros (:func:`nothing_of`). Outputs of several edges may be views of
    one tensor.
    """
    checks = _Checks(source, sum(len(edge.candidates) for edge in edges))
    with in_forward() as forward:
        sums = Sums(forward)
        for parts in _groups(source, edges, Execution.FULL):
            run = _run(parts, source, [part.weight for part in parts])
            checks.after(parts, run)
            if isinstance(run, Tensor):
                sums.add([part.edge for part in parts], run)
            else:
                for part, (value, weight) in zip(parts, run, strict=True):
                    sums.add_weighted(part.edge, value, weight)
        with torch.no_grad():
            for parts in _groups(source, edges, Execution.SCORED):
                # A score is of the output itself, without its weight.
                weight = parts[0].weight
                unit = forward.once("unit", (), partial(torch.ones_like, weight), weight.dtype, weight.device)
                run = _run(parts, source, [unit] * len(parts))
                checks.after(parts, run)
                values = run.chunk(len(parts), dim=1) if isinstance(run, Tensor) else [value for value, _ in run]
                for part, value in zip(parts, values, strict=True):
                    sums.score(part.edge, value, part.weight)
        totals = sums.totals()
    return [_result(source, edge, totals.get(index), len(edges) == 1) for index, edge in enumerate(edges)]


def _groups(source: Source, edges: Sequence[Edge], wanted: Execution) -> Iterable[list[_Part]]:
    """The candidates with this kind of execution; each list holds those that may run together."""
    groups: dict[Hashable, list[_Part]] = {}
    for index, edge in enumerate(edges):
        for (name, candidate), weight, execution in zip(
            edge.candidates.items(), edge.weights, edge.executions, strict=True
        ):
            if execution is wanted:
                key = None if source.keywords else sharing_key(candidate)
                part = _Part(index, name, candidate, weight, key is not None)
                if key is None or any(other.candidate is candidate for other in groups.get(key, ())):
                    key = (index, name)  # one module on several edges runs once for each
                groups.setdefault(key, []).append(part)
    return groups.values()


def _run(parts: Sequence[_Part], source: Source, weights: Sequence[Tensor]) -> Tensor | list[Contribution]:
    """What candidates that may run together contribute."""
    first = parts[0]
    if not first.can_share:
        [weight] = weights
        return [(first.candidate(source.x, **source.keywords), weight)]
    run = first.candidate.contributions([part.candidate for part in parts], source, weights)
    return run if isinstance(run, Tensor) else [*run]


def _result(source: Source, edge: Edge, total: Total | None, is_alone: bool) -> Tensor:
    """The sum of an edge; gives zero gradients to tensors that were not used in it.

    Later modules may change the sum of a single edge in place. Idle candidates must not interfere with that, so the sum
    is cloned if something else holds it.
    """
    if total is None:
        nothing = nothing_of(shape_donor(edge.candidates.values()), source.x, source.keywords)
        total = Total(nothing, is_own=False, passes_gradients=False)
    idle = zip(edge.candidates.values(), edge.executions, strict=True)
    without_part: list[Tensor] = []
    if torch.is_grad_enabled():
        for candidate, execution in idle:
            if execution is not Execution.FULL:
                without_part += own_parameters(candidate)
        if not total.passes_gradients:  # as the dense sum does, through the other candidates
            without_part += [source.x, *tensors_in(source.keywords)]
        if not total.value.requires_grad:
            without_part += edge.weights
    if is_alone and without_part and not total.is_own:
        total = total._replace(value=total.value.clone(), is_own=True)
    return with_zero_gradients(total.value, without_part, total.is_own)


class _Checks:
    """Checks that the candidates of an edge return the same shape, and leave their common input as it is."""

    def __init__(self, source: Source, readers: int) -> None:
        if not isinstance(source.x, Tensor):
            raise TypeError(
                f"MixedOp: the input must be a tensor, got a {type(source.x).__name__}; pass further inputs of the "
                f"candidates as keyword arguments"
            )
        self.source = source
        self.version = version(source.x) if readers > 1 else None
        self.first: dict[int, tuple[str, torch.Size]] = {}

    def after(self, parts: Sequence[_Part], run: Tensor | list[Contribution]) -> None:
        if self.version is not None and version(self.source.x) != self.version:
            raise changed_in_place([part.name for part in parts])
        if isinstance(run, Tensor):
            batch, channels, *sides = run.shape
            shapes: list[torch.Size | None] = [torch.Size((batch, channels // len(parts), *sides))] * len(parts)
        else:
            shapes = [_shape(part, value) for part, (value, _) in zip(parts, run, strict=True)]
        for part, shape in zip(parts, shapes, strict=True):
            if shape is not None:
                first, expected = self.first.setdefault(part.edge, (part.name, shape))
                check_same_shape(first, expected, part.name, shape, self.source.x.shape)


def _shape(part: _Part, value: Any) -> torch.Size | None:
    if not (value is None or isinstance(value, Tensor)):
        raise TypeError(f"MixedOp: candidate {part.name!r} must return a tensor, got a {type(value).__name__}")
    return None if value is None else value.shape


# Nothing


def shape_donor(candidates: Iterable[nn.Module]) -> nn.Module:
    """The candidate best suited to give zeros their shape: ``none``, else one without parameters, else the first."""
    ops = [*candidates]
    idle = [op for op in ops if adds_nothing(op)] or [op for op in ops if next(op.parameters(), None) is None]
    return (idle or ops)[0]


def nothing_of(donor: nn.Module, x: Tensor, keywords: Mapping[str, Any]) -> Tensor:
    """Zeros in the shape of a candidate's output, without a graph; its batch-norm statistics do not change."""
    if adds_nothing(donor):
        return donor(x, **keywords)
    with evaluating(donor), torch.no_grad():
        return torch.zeros_like(donor(x, **keywords))


def changed_in_place(names: Sequence[str]) -> ValueError:
    """The error of candidates that change an input that others read as well."""
    return ValueError(
        f"MixedOp: candidate {' or '.join(map(repr, names))} changes its input in place, which the other candidates "
        f"read as well; use inplace=False"
    )


def check_same_shape(first: str, first_shape: torch.Size, second: str, second_shape: torch.Size, x: torch.Size) -> None:
    """Check that two candidates have the same output shape for an input of shape ``x``.

    Raises:
        ValueError: the shapes differ; the message names both candidates.
    """
    if first_shape != second_shape:
        raise ValueError(
            f"MixedOp: candidates {first!r} and {second!r} disagree for input {tuple(x)}: "
            f"{tuple(first_shape)} and {tuple(second_shape)}"
        )
