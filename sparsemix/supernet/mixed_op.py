"""A mixed operation: named candidates, one alpha for each, and their weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._utils.torch_private import has_forward_hooks, is_compiled, own_parameters

__all__ = ["Execution", "MixedOp", "Source", "Weights", "call_arguments", "check_same_shape", "fan_out"]


class Execution(Enum):
    """How a candidate takes part in a forward."""

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
    """

    scalars: Sequence[Tensor]
    sizes: Sequence[float] | None = None
    threshold: float = 0.0
    weak: Execution = Execution.SCORED
    passing: float | None = None


class Binding(Protocol):
    """Where a bound mixed operation gets its weights: an :class:`~sparsemix.ArchParameterGroup`."""

    model: nn.Module

    def operation_weights(self, op: MixedOp) -> Weights: ...

    def release(self) -> None: ...


class Source:
    """A node's value, and what the edges that leave it have in common, computed once."""

    def __init__(self, x: Tensor, keywords: Mapping[str, Any] | None = None) -> None:
        self.x = x
        self.keywords = keywords or {}  # further arguments of every candidate
        self._computed: dict[Hashable, Tensor] = {}

    def once(self, key: Hashable, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """``compute(x)``, remembered under the key."""
        if key not in self._computed:
            self._computed[key] = compute(self.x)
        return self._computed[key]

    @property
    def relu(self) -> Tensor:
        return self.once("relu", F.relu)


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
        has_alpha: False: it has no ``alpha``, and every call must give weights, as in code that owns its alphas.

    Candidates are found by name or position: ``op["skip"]``, ``op[0]``; iterating goes through the modules.

    Attributes:
        ran: how each candidate took part in the last forward.

    Shapes:
        input and output as the candidates have them; ``weights`` is ``(M,)``, one for each candidate. Keyword arguments
        of a call (an attention's mask) are passed on to the candidates.

    Raises:
        ValueError: no candidates; a name that no module can have; weights of another length, or none where there is no
            alpha; candidate outputs of different shapes.
        TypeError: the candidates are no mapping, or one of them is no module.

    Example:
        >>> op = MixedOp({"skip": nn.Identity(), "pool": nn.AvgPool2d(3, 1, 1)})
        >>> op(torch.ones(1, 2, 4, 4), torch.tensor([1.0, 0.0])).shape
        torch.Size([1, 2, 4, 4])

    Source: Liu et al., "DARTS", Eq. 2.
    """

    alpha: nn.Parameter

    def __init__(
        self,
        candidates: Mapping[str, nn.Module],
        label: str | None = None,
        always_run: bool = False,
        has_alpha: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(candidates, Mapping):
            raise TypeError(f"MixedOp: candidates must be a mapping name -> module, got a {type(candidates).__name__}")
        if not candidates:
            raise ValueError("MixedOp: no candidates; give a mapping such as {'skip': nn.Identity(), 'conv': ...}")
        empty = nn.ModuleDict()
        for name, candidate in candidates.items():
            if not isinstance(candidate, nn.Module):
                raise TypeError(f"MixedOp: candidate {name!r} must be a torch.nn.Module, got {candidate!r}")
            if not name or "." in name or hasattr(empty, name):
                raise ValueError(
                    f"MixedOp: {name!r} cannot name a module (it has a dot, or torch uses it); choose another"
                )
        self.candidates = nn.ModuleDict(candidates)
        if has_alpha:
            self.alpha = nn.Parameter(1e-3 * torch.randn(len(candidates)))
        self.has_alpha = has_alpha
        self.label = label
        self.always_run = always_run
        self.group: Binding | None = None
        self.ran = [Execution.FULL] * len(candidates)

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates' names, in the order of the alphas."""
        return tuple(self.candidates)

    def __getitem__(self, which: int | str) -> nn.Module:
        return self.candidates[which if isinstance(which, str) else self.names[which]]

    def __len__(self) -> int:
        return len(self.candidates)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.candidates.values())

    def forward(self, x: Tensor, weights: Tensor | Weights | None = None, **keywords: Any) -> Tensor:
        if weights is None and len(self.candidates) == 1:
            [only] = self.candidates.values()
            return only(x, **keywords)
        [mixed] = _mix(Source(x, keywords), [self], [self.operation_weights(weights)])
        return mixed

    def operation_weights(self, weights: Tensor | Weights | None = None) -> Weights:
        """This forward's weights: those given, the group's, or softmax(alpha)."""
        if isinstance(weights, Weights):
            return weights
        if weights is not None:
            if weights.shape != (len(self.candidates),):
                raise ValueError(
                    f"MixedOp: expected weights of shape ({len(self.candidates)},), one for each of "
                    f"{', '.join(self.names)}; got shape {tuple(weights.shape)}"
                )
            return Weights(weights.unbind())
        if self.group is not None:
            return self.group.operation_weights(self)
        self._check_alpha()
        return Weights(F.softmax(self.alpha, dim=-1).unbind())

    def passing(self, weights: Weights) -> float:
        """The weight of the candidates that add something: 1, or what ``none`` leaves of it."""
        nothing = self._adding_nothing()
        if weights.sizes is None or not any(nothing):
            return 1.0
        return sum(size for size, adds_nothing in zip(weights.sizes, nothing, strict=True) if not adds_nothing)

    def executions(self, weights: Weights) -> list[Execution]:
        """How each candidate takes part in a forward under these weights.

        Where ``none`` holds almost all weight on every edge that leads to a node, what little the others add is all
        that the node has, and a batch norm behind it scales that up again. The threshold is a share of that.
        """
        sizes = weights.sizes
        if self.always_run or sizes is None:
            return [Execution.FULL] * len(self.candidates)
        share = min(1.0, self.passing(weights) if weights.passing is None else weights.passing)
        nothing = self._adding_nothing() if share < 1 else [False] * len(sizes)
        strongest = max((size for size, adds in zip(sizes, nothing, strict=True) if not adds), default=0.0)
        bound = min(weights.threshold * share, strongest)
        return [Execution.SKIPPED if size == 0 else weights.weak if size < bound else Execution.FULL for size in sizes]

    def _adding_nothing(self) -> list[bool]:
        return [getattr(type(candidate), "adds_nothing", False) for candidate in self.candidates.values()]

    def choice(self) -> str:
        """The name of the strongest candidate, argmax of alpha (Eq. 4); an exact tie goes to the earlier one."""
        self._check_alpha()
        return self.names[int(self.alpha.argmax())]

    def fuse(self) -> nn.Module:
        """The chosen candidate itself; timm's ``reparameterize_model`` (``--reparam``) calls this to discretise."""
        return self.candidates[self.choice()]

    def _check_alpha(self) -> None:
        if not self.has_alpha:
            raise ValueError(
                f"MixedOp of {', '.join(self.names)} has no alpha (has_alpha=False): call it with weights, "
                f"mixed_op(x, weights)"
            )

    def extra_repr(self) -> str:
        return f"label={self.label!r}" if self.label else ""


def call_arguments(
    x: Tensor, weights: Tensor | Weights | None = None, **keywords: Any
) -> tuple[Tensor, Tensor | Weights | None, dict[str, Any]]:
    """For hooks on a MixedOp: what it was called with, apart: input, weights, and the arguments of its candidates."""
    return x, weights, keywords


def fan_out(x: Tensor, edges: Sequence[nn.Module], weights: Sequence[Weights | None] | None = None) -> list[Tensor]:
    """The outputs of all edges that leave one node, with the work they have in common done once.

    Equal to ``[edge(x) for edge in edges]`` up to rounding. Candidates of mixed operations that know how to run
    together (they define ``sharing_key`` and ``contributions``, see :mod:`sparsemix.spaces.primitives`) share a ReLU, a
    pooling or one wide convolution. Edges that are no MixedOp are called as they are; so are mixed operations and
    candidates with forward hooks, so that every hook sees its module run, and compiled candidates.

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
    return [next(shared) if _can_share(edge) else _alone(edge, x, w) for edge, w in zip(edges, weights, strict=True)]


def _alone(edge: nn.Module, x: Tensor, weights: Weights | None) -> Tensor:
    if weights is None or (isinstance(edge, MixedOp) and len(edge.candidates) == 1):
        return edge(x)
    return edge(x, weights)


def _can_share(edge: nn.Module) -> TypeGuard[MixedOp]:
    return isinstance(edge, MixedOp) and len(edge.candidates) > 1 and not has_forward_hooks(edge)


def _sharing_key(candidate: nn.Module) -> Hashable | None:
    key = getattr(candidate, "sharing_key", None)
    if key is None or is_compiled(candidate) or any(map(has_forward_hooks, candidate.modules())):
        return None  # compiled, it is to run by itself
    return key


class _Part(NamedTuple):
    """One candidate that is to run for one edge."""

    edge: int
    name: str
    candidate: Any
    weight: Tensor


def _mix(source: Source, edges: Sequence[MixedOp], weights: Sequence[Weights]) -> list[Tensor]:
    """``sum_m w_m o_m(x)`` for every edge; candidates of one sharing key, across the edges, run together."""
    full: dict[Hashable, list[_Part]] = {}
    scored: dict[Hashable, list[_Part]] = {}
    totals = [_Total(edge, source) for edge in edges]
    for index, (edge, edge_weights) in enumerate(zip(edges, weights, strict=True)):
        edge.ran = edge.executions(edge_weights)
        for (name, candidate), weight, execution in zip(
            edge.candidates.items(), edge_weights.scalars, edge.ran, strict=True
        ):
            if execution is not Execution.FULL:
                totals[index].idle.append(candidate)
            if execution is not Execution.SKIPPED:
                key = None if source.keywords else _sharing_key(candidate)
                group = full if execution is Execution.FULL else scored
                if key is None or any(part.candidate is candidate for part in group.get(key, ())):
                    key = (index, name)  # one module on several edges runs once for each
                group.setdefault(key, []).append(_Part(index, name, candidate, weight))
    for parts in full.values():
        for part, value, remaining in _run(parts, source, [part.weight for part in parts]):
            totals[part.edge].add(part.name, value, remaining)
    with torch.no_grad():
        for parts in scored.values():
            unit = torch.ones_like(parts[0].weight)
            for part, value, _ in _run(parts, source, [unit] * len(parts)):
                totals[part.edge].score(part.name, value, part.weight)
    return [total.result(edge_weights.scalars) for total, edge_weights in zip(totals, weights, strict=True)]


def _run(
    parts: Sequence[_Part], source: Source, weights: Sequence[Tensor]
) -> Iterator[tuple[_Part, Tensor | None, Tensor | None]]:
    """The outputs of candidates that may run together, each with the weight that is still to be applied."""
    first = parts[0].candidate
    if source.keywords or _sharing_key(first) is None:
        [part], [weight] = parts, weights
        yield part, part.candidate(source.x, **source.keywords), weight
    else:
        run = first.contributions([part.candidate for part in parts], source, weights)
        for part, (value, weight) in zip(parts, run, strict=True):
            yield part, value, weight


class _WithZeroGradients(torch.autograd.Function):
    """A value as it is, and for tensors that had no part in it gradients of zero rather than none.

    Momentum and weight decay go on acting on those parameters, as they would had the operation run at weight zero,
    and a wrapper that waits for every parameter's gradient (DistributedDataParallel) is not kept waiting.
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

    def __init__(self, edge: MixedOp, source: Source) -> None:
        self.edge = edge
        self.source = source
        self.first = ""
        self.shape: torch.Size | None = None
        self.nothing = ""
        self.value: Tensor | None = None
        self.is_own = False
        self.depends = False
        self.scored: list[tuple[Tensor, Tensor]] = []
        self.idle: list[nn.Module] = []

    def add(self, name: str, value: Tensor | None, weight: Tensor | None) -> None:
        """Add ``weight * value``; no weight: it is applied already; no value: the candidate adds nothing."""
        if value is None:
            self.nothing = name
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

    def result(self, weights: Sequence[Tensor]) -> Tensor:
        value = self.value
        if value is None:
            if not self.nothing:
                raise ValueError(f"MixedOp: all weights of {', '.join(self.edge.names)} are zero")
            nothing = self.edge.candidates[self.nothing]  # it knows the shape of nothing
            value = nothing(self.source.x, **self.source.keywords)
        if self.scored:
            scales, outputs = zip(*self.scored, strict=True)
            value = _WithScores.apply(value, len(scales), *scales, *outputs)
            self.is_own = True
        if torch.is_grad_enabled():
            without_part: list[Tensor] = [p for candidate in self.idle for p in own_parameters(candidate)]
            if not self.depends:  # in the dense sum gradients would flow back through the others, times zero
                without_part.append(self.source.x)
            if not value.requires_grad:
                without_part += weights
            if any(tensor.requires_grad for tensor in without_part):
                value = _WithZeroGradients.apply(value, self.is_own, *without_part)
        return value

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
