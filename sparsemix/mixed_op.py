"""A mixed operation: named candidates, one alpha for each, and their weighted sum."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Execution", "MixedOp", "Source", "Weights", "check_same_shape", "fan_out"]


class Execution(Enum):
    """How a candidate takes part in a forward."""

    FULL = "full"  # runs, and gradients flow through it
    SCORED = "scored"  # runs on a detached input: its weight gets its gradient, the node before it none through it
    SKIPPED = "skipped"  # does not run; its parameters get gradients of zero


class Weights(NamedTuple):
    """One mixed operation's weights in a forward: a scalar for each candidate, and how it is to run."""

    scalars: Sequence[Tensor]
    executions: Sequence[Execution]

    @classmethod
    def dense(cls, weights: Tensor) -> Weights:
        """Every candidate runs in full."""
        return cls(weights.unbind(), (Execution.FULL,) * len(weights))


class Binding(Protocol):
    """Where a bound mixed operation gets its weights: an :class:`~sparsemix.ArchParameterGroup`."""

    model: nn.Module

    def operation_weights(self, op: MixedOp) -> Weights: ...

    def release(self) -> None: ...


class Source:
    """A node's value, and what the edges that leave it have in common, computed once."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    @cached_property
    def relu(self) -> Tensor:
        return F.relu(self.x)


class MixedOp(nn.Module):
    """Candidate operations on one edge, and their weighted sum ``sum_m a_m o_m(x)`` (Eq. 2).

    The weights come from one of three places. Given explicitly, ``mixed_op(x, weights)``, they are used as they are,
    as in DARTS code. Bound to an :class:`~sparsemix.ArchParameterGroup`, they are that group's relaxed weights. Alone,
    they are ``softmax(alpha)``. An operation with a single candidate has nothing to mix: without explicit weights it is
    that candidate, at no cost.

    Candidates whose outputs disagree in shape are an error, raised at the first input that shows it
    (:meth:`~sparsemix.ArchParameterGroup.dry_run` shows it before training).

    Args:
        candidates: name -> module, in the order of the alphas.
        label: mixed operations with the same label share one row of alphas once a group holds them; they must name the
            same candidates. Without a label the row is the operation's own.
        always_run: run every candidate in every forward, whatever its weight. For candidates that have side effects, or
            keep state other than the running statistics of batch norm.

    Shapes:
        input and output as the candidates have them; ``weights`` is ``(M,)``, one for each candidate.

    Raises:
        ValueError: no candidates; a name that no module can have; weights of another length; candidate outputs of
            different shapes.
        TypeError: the candidates are no mapping, or one of them is no module.

    Example:
        >>> op = MixedOp({"skip": nn.Identity(), "pool": nn.AvgPool2d(3, 1, 1)})
        >>> op(torch.ones(1, 2, 4, 4), torch.tensor([1.0, 0.0])).shape
        torch.Size([1, 2, 4, 4])

    Source: Liu et al., "DARTS", Eq. 2.
    """

    def __init__(self, candidates: Mapping[str, nn.Module], label: str | None = None, always_run: bool = False) -> None:
        super().__init__()
        if not isinstance(candidates, Mapping):
            raise TypeError(f"MixedOp: candidates must be a mapping name -> module, got a {type(candidates).__name__}")
        if not candidates:
            raise ValueError("MixedOp: no candidates; give a mapping such as {'skip': nn.Identity(), 'conv': ...}")
        for name, candidate in candidates.items():
            if not isinstance(candidate, nn.Module):
                raise TypeError(f"MixedOp: candidate {name!r} must be a torch.nn.Module, got {candidate!r}")
            if not name or "." in name or hasattr(nn.ModuleDict, name):
                raise ValueError(
                    f"MixedOp: {name!r} cannot name a module (it has a dot, or torch uses it); choose another"
                )
        self.candidates = nn.ModuleDict(candidates)
        self.alpha = nn.Parameter(1e-3 * torch.randn(len(candidates)))
        self.label = label
        self.always_run = always_run
        self.group: Binding | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates' names, in the order of the alphas."""
        return tuple(self.candidates)

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        if weights is None and len(self.candidates) == 1:
            [only] = self.candidates.values()
            return only(x)
        [mixed] = _mix(Source(x), [self], [self.operation_weights(weights)])
        return mixed

    def operation_weights(self, weights: Tensor | None = None) -> Weights:
        """This forward's weights: those given, the group's, or softmax(alpha)."""
        if weights is not None:
            if weights.shape != self.alpha.shape:
                raise ValueError(
                    f"MixedOp: expected weights of shape {tuple(self.alpha.shape)}, one for each of "
                    f"{', '.join(self.names)}; got shape {tuple(weights.shape)}"
                )
            return Weights.dense(weights)
        if self.group is not None:
            return self.group.operation_weights(self)
        return Weights.dense(F.softmax(self.alpha, dim=-1))

    def choice(self) -> str:
        """The name of the strongest candidate, argmax of alpha (Eq. 4); an exact tie goes to the earlier one."""
        return self.names[int(self.alpha.argmax())]

    def fuse(self) -> nn.Module:
        """The chosen candidate itself; timm's ``reparameterize_model`` (``--reparam``) calls this to discretise."""
        return self.candidates[self.choice()]

    def extra_repr(self) -> str:
        return f"label={self.label!r}" if self.label else ""


def fan_out(x: Tensor, edges: Sequence[nn.Module], weights: Sequence[Weights | None] | None = None) -> list[Tensor]:
    """The outputs of all edges that leave one node, with the work they have in common done once.

    Equal to ``[edge(x) for edge in edges]`` up to rounding. Candidates of mixed operations that know how to run
    together (they define ``sharing_key`` and ``contributions``, see :mod:`sparsemix.spaces.ops`) share a ReLU, a
    pooling or one wide convolution. Edges that are no MixedOp are called as they are; so are mixed operations and
    candidates with forward hooks, so that every hook sees its module run.

    Args:
        x: the node's value.
        edges: modules that read it.
        weights: for each edge what its ``operation_weights()`` returned earlier, or None for an edge that is no
            MixedOp; by default they are asked for now.
    """
    if weights is None:
        weights = [edge.operation_weights() if isinstance(edge, MixedOp) else None for edge in edges]
    together = [(edge, w) for edge, w in zip(edges, weights, strict=True) if _can_share(edge) and w is not None]
    shared = iter(_mix(Source(x), [edge for edge, _ in together], [w for _, w in together]))
    return [next(shared) if _can_share(edge) else edge(x) for edge in edges]


def _can_share(edge: nn.Module) -> TypeGuard[MixedOp]:
    return isinstance(edge, MixedOp) and len(edge.candidates) > 1 and not _is_watched(edge)


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _sharing_key(candidate: nn.Module) -> Hashable | None:
    key = getattr(candidate, "sharing_key", None)
    return None if key is None or any(map(_is_watched, candidate.modules())) else key


class _Part(NamedTuple):
    """One candidate that is to run for one edge."""

    edge: int
    name: str
    candidate: Any
    weight: Tensor


def _mix(source: Source, edges: Sequence[MixedOp], weights: Sequence[Weights]) -> list[Tensor]:
    """``sum_m w_m o_m(x)`` for every edge; candidates of one sharing key, across the edges, run together."""
    sources = {Execution.FULL: source, Execution.SCORED: Source(source.x.detach())}
    groups: dict[tuple[Execution, Hashable], list[_Part]] = {}
    skipped: list[nn.Parameter] = []
    for index, (edge, edge_weights) in enumerate(zip(edges, weights, strict=True)):
        for (name, candidate), weight, execution in zip(edge.candidates.items(), *edge_weights, strict=True):
            if execution is Execution.SKIPPED:
                skipped += candidate.parameters()
            else:
                key = _sharing_key(candidate)
                part = _Part(index, name, candidate, weight)
                groups.setdefault((execution, (index, name) if key is None else key), []).append(part)
    totals = [_Total(edge, source.x) for edge in edges]
    for (execution, _), parts in groups.items():
        first = parts[0].candidate
        if _sharing_key(first) is None:
            [part] = parts
            totals[part.edge].add(part.name, part.candidate(sources[execution].x), part.weight)
        else:
            candidates, scalars = [part.candidate for part in parts], [part.weight for part in parts]
            run = first.contributions(candidates, sources[execution], scalars)
            for part, (value, weight) in zip(parts, run, strict=True):
                totals[part.edge].add(part.name, value, weight)
    outputs = [total.result() for total in totals]
    if skipped and torch.is_grad_enabled():
        outputs[0] = _WithZeroGradients.apply(outputs[0], *skipped)
    return outputs


class _WithZeroGradients(torch.autograd.Function):
    """A value as it is, and for parameters that had no part in it gradients of zero rather than none.

    Momentum and weight decay go on acting on skipped parameters, as they would had the operation run at weight zero,
    and a wrapper that waits for every parameter's gradient (DistributedDataParallel) is not kept waiting.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        zeros = [torch.zeros_like(p) if need else None for p, need in zip(ctx.parameters, needed, strict=True)]
        return gradients[0], *zeros


class _Total:
    """The running sum of one edge, which insists that all candidates agree on the shape."""

    def __init__(self, edge: MixedOp, x: Tensor) -> None:
        self.edge = edge
        self.x = x
        self.first = ""
        self.nothing = ""
        self.value: Tensor | None = None

    def add(self, name: str, value: Tensor | None, weight: Tensor | None) -> None:
        """Add ``weight * value``; no weight: it is applied already; no value: the candidate adds nothing."""
        if value is None:
            self.nothing = name
        elif self.value is None:
            self.first = name
            self.value = value if weight is None else value * weight
        else:
            check_same_shape(self.first, self.value.shape, name, value.shape, self.x.shape)
            self.value = self.value + value if weight is None else torch.addcmul(self.value, value, weight)

    def result(self) -> Tensor:
        if self.value is not None:
            return self.value
        if not self.nothing:
            raise ValueError(f"MixedOp: all weights of {', '.join(self.edge.names)} are zero")
        return self.edge.candidates[self.nothing](self.x)  # it knows the shape of nothing


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
