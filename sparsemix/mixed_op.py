"""A mixed operation: named candidates, one alpha for each, and their weighted sum."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MixedOp", "Source", "check_same_shape", "fan_out"]

# A weight of None marks a candidate that does not run: its weight is exactly zero and nobody asks for a gradient.
Weights = Sequence[Tensor | None]


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

    def __init__(self, candidates: Mapping[str, nn.Module], label: str | None = None) -> None:
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
        self.group: Binding | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates' names, in the order of the alphas."""
        return tuple(self.candidates)

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        if weights is None and len(self.candidates) == 1:
            return self.fuse()(x)
        [mixed] = _mix(Source(x), [self], [self.operation_weights(weights)])
        return mixed

    def operation_weights(self, weights: Tensor | None = None) -> Weights:
        """This forward's weights as scalars, one a candidate: those given, the group's, or softmax(alpha)."""
        if weights is not None:
            if weights.shape != self.alpha.shape:
                raise ValueError(
                    f"MixedOp: expected weights of shape {tuple(self.alpha.shape)}, one for each of "
                    f"{', '.join(self.names)}; got shape {tuple(weights.shape)}"
                )
            return weights.unbind()
        if self.group is not None:
            return self.group.operation_weights(self)
        return F.softmax(self.alpha, dim=-1).unbind()

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
        weights: for each edge the scalars that its ``operation_weights()`` returned earlier, or None for an edge that
            is no MixedOp; by default they are asked for now.
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
    groups: dict[Hashable, list[_Part]] = {}
    for index, (edge, edge_weights) in enumerate(zip(edges, weights, strict=True)):
        for (name, candidate), weight in zip(edge.candidates.items(), edge_weights, strict=True):
            if weight is not None:
                key = _sharing_key(candidate)
                groups.setdefault((index, name) if key is None else key, []).append(
                    _Part(index, name, candidate, weight)
                )
    totals = [_Total(edge, source.x) for edge in edges]
    for parts in groups.values():
        first = parts[0].candidate
        if _sharing_key(first) is None:
            [part] = parts
            totals[part.edge].add(part.name, part.candidate(source.x), part.weight)
        else:
            run = first.contributions([part.candidate for part in parts], source, [part.weight for part in parts])
            for part, (value, weight) in zip(parts, run, strict=True):
                totals[part.edge].add(part.name, value, weight)
    return [total.result() for total in totals]


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
