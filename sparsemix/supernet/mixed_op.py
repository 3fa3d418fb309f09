"""A mixed operation: named candidates, one alpha for each, and their weighted sum."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._utils.torch_private import has_forward_hooks, own_parameters
from ..relaxations import NEVER, Argmax, Moment, Relaxation
from .chosen import Chosen
from .execution import Edge, Execution, Weights, check_same_shape, mix
from .rows import kept, relaxed
from .sharing import Source, adds_nothing

__all__ = [
    "Execution",
    "MixedOp",
    "Source",
    "Weights",
    "call_arguments",
    "check_same_shape",
    "fan_out",
    "is_idle",
]


class Binding(Protocol):
    """Where a bound mixed operation gets its weights: an :class:`~sparsemix.ArchParameterGroup`."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def discretization(self) -> Relaxation: ...

    @property
    def keeps_one(self) -> bool: ...

    def operation_weights(self, op: MixedOp) -> Weights: ...

    def release(self) -> None: ...


class MixedOp(nn.Module):
    """Candidate operations on one edge, and their weighted sum ``sum_m a_m o_m(x)`` (Eq. 2).

    The weights come from one of three sources: the call itself, ``mixed_op(x, weights)``, as in DARTS code; the
    :class:`~sparsemix.ArchParameterGroup` that holds the operation; or, without a group, ``softmax(alpha)``. Without
    explicit weights, an operation with a single candidate calls it directly, at no extra cost. If all weights are
    exactly zero, the output is zero; only one candidate runs, without a graph, to determine the output's shape.

    Candidates must agree in output shape; a mismatch raises an error at the first input that reveals it
    (:meth:`~sparsemix.ArchParameterGroup.dry_run` finds it before training).

    Args:
        candidates: name -> module, in the order of the alphas.
        label: mixed operations with the same label share one row of alphas once a group holds them; they must name the
            same candidates. Without a label, the operation has its own row.
        always_run: run every candidate in every forward, whatever its weight. For candidates that have side effects, or
            keep state other than the running statistics of batch norm.
        has_alpha: whether it has an ``alpha``. If not, every call must pass weights, as in code that owns its alphas.
        node: the name of the node that the edge leads to, such as ``"normal 3"``. It tells which edges compete once
            edges are weighted (:meth:`~sparsemix.ArchParameterGroup.weigh_edges_`), and which edges belong to a node
            for methods that keep only some of them.

    Candidates are indexed by name or position, ``op["skip"]`` or ``op[0]``; iteration yields the modules.

    Attributes:
        alpha: the logits of the candidates, ``(M,)``, if ``has_alpha``.
        beta: the logit of the edge among those of its node, a scalar; None if edges are not weighted.
        allowed: bool ``(M,)``, the candidates that may have a weight; a state dict without it allows all.
        is_restricted: whether any candidate is forbidden; a Python bool, so ``allowed`` need not be read from its
            device. :meth:`restrict_` and ``load_state_dict`` set it; code that copies only tensors, such as a moving
            average of the model, must call :meth:`restrict_` on its copy.
        ran: how each candidate took part in the last forward.
        row: the label of the row of :class:`~sparsemix.supernet.tables.AlphaTables` that it was last called with; None
            if there was none.

    Shapes:
        input and output as the candidates have them; ``weights`` is ``(M,)``, one for each candidate. Keyword arguments
        of a call (an attention's mask) are passed on to the candidates.

    Raises:
        ValueError: there are no candidates; a name cannot be a module name; weights have the wrong length, or are
            missing where there is no alpha; candidate outputs differ in shape; one of several candidates changes its
            input in place.
        TypeError: the candidates are not a mapping, one of them is not a module, or the label is not a non-empty str;
            later, an input or a candidate's output is not a tensor.

    Example:
        >>> op = MixedOp({"skip": nn.Identity(), "pool": nn.AvgPool2d(3, 1, 1)})
        >>> op(torch.ones(1, 2, 4, 4), torch.tensor([1.0, 0.0])).shape
        torch.Size([1, 2, 4, 4])

    Source: Liu et al., "DARTS", Eq. 2; Xu et al., "PC-DARTS", Eq. 3 (node, beta).
    """

    alpha: nn.Parameter
    beta: nn.Parameter | None
    allowed: Tensor

    def __init__(
        self,
        candidates: Mapping[str, nn.Module],
        label: str | None = None,
        always_run: bool = False,
        has_alpha: bool = True,
        node: Hashable | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(candidates, Mapping):
            raise TypeError(f"MixedOp: candidates must be a mapping name -> module, got a {type(candidates).__name__}")
        if not candidates:
            raise ValueError("MixedOp: no candidates; give a mapping such as {'skip': nn.Identity(), 'conv': ...}")
        if not (label is None or (isinstance(label, str) and label)):
            raise TypeError(f"MixedOp: the label must be a non-empty string or None, got {label!r}")
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
            self.register_buffer("allowed", torch.ones(len(candidates), dtype=torch.bool))
            self.register_load_state_dict_pre_hook(_load_allowed)
        self.register_parameter("beta", None)
        self.has_alpha = has_alpha
        self.label = label
        self.always_run = always_run
        self.node = node
        self.group: Binding | None = None
        self.is_restricted = False
        self.ran = [Execution.FULL] * len(candidates)
        self.row: str | None = None

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

    # What may be chosen

    def restrict_(self, names: Iterable[str]) -> None:
        """Allow only these candidates, in place; the others get weight 0 from now on, and their alphas zero gradients.

        For operations that share a row, call :meth:`~sparsemix.ArchParameterGroup.restrict`, which restricts them all.

        Args:
            names: the candidates to allow. Naming all of them lifts the restriction; ``()`` removes the edge.

        Raises:
            ValueError: a name is not that of a candidate, or the operation has no alpha.

        Example:
            >>> op = MixedOp({"skip": nn.Identity(), "linear": nn.Linear(2, 2), "tanh": nn.Tanh()})
            >>> op.restrict_(["skip", "tanh"])
            >>> op.operation_weights().sizes[1]
            0.0
        """
        self._check_alpha()
        names = [*names]
        if unknown := [name for name in names if name not in self.candidates]:
            raise ValueError(
                f"MixedOp: cannot allow {', '.join(map(repr, unknown))}; the candidates are {', '.join(self.names)}"
            )
        self.allowed.copy_(torch.tensor([name in names for name in self.names]))
        self.is_restricted = len({*names}) < len(self)

    @property
    def allowed_names(self) -> tuple[str, ...]:
        """The names of the candidates that may be chosen; empty where the edge is removed."""
        if not self.is_restricted:
            return self.names
        return tuple(name for name, allowed in zip(self.names, self.allowed.tolist(), strict=True) if allowed)

    def ranked(self) -> list[str]:
        """The names of the candidates that may be chosen, the strongest alpha first; ties keep their order."""
        self._check_alpha()
        alphas = dict(zip(self.names, self.alpha.tolist(), strict=True))
        return sorted(self.allowed_names, key=alphas.__getitem__, reverse=True)

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to mix, because the only candidate always has weight 1."""
        if len(self.candidates) > 1 or not self.has_alpha or self.is_restricted or self.beta is not None:
            return False
        return self.group is None or self.group.keeps_one

    def choices(self) -> tuple[str, ...]:
        """The names of the chosen candidates: by default only the strongest allowed one, argmax of alpha (Eq. 4).

        An exact tie goes to the earlier candidate. ``()`` if the edge was removed. A group's ``discretization`` may
        keep several candidates, named with the strongest first, or none.
        """
        self._check_alpha()
        hard = Argmax() if self.group is None else self.group.discretization
        return kept(self.names, self.alpha, hard, self.allowed if self.is_restricted else None)

    def choice(self) -> str:
        """The name of the one chosen candidate.

        Raises:
            ValueError: none is chosen, or several are.
        """
        names = self.choices()
        if len(names) == 1:
            return names[0]
        chosen = f"{', '.join(names)} are chosen" if names else "no candidate is allowed, or none is chosen"
        raise ValueError(f"MixedOp of {', '.join(self.names)}: {chosen}; see choices()")

    def fuse(self) -> nn.Module:
        """The chosen candidate itself; timm's ``reparameterize_model`` (``--reparam``) calls this to discretise."""
        chosen = self.choices()
        return self.candidates[chosen[0]] if len(chosen) == 1 else Chosen(dict(self.candidates.items()), chosen)

    # The sum

    def forward(self, x: Tensor, weights: Tensor | Weights | None = None, **keywords: Any) -> Tensor:
        if weights is None and self.is_fixed:
            [only] = self.candidates.values()
            return only(x, **keywords)
        [mixed] = mix(Source(x, keywords), [self._part(self.operation_weights(weights))])
        return mixed

    def operation_weights(self, weights: Tensor | Weights | None = None) -> Weights:
        """This forward's weights: those given, the group's, or softmax(alpha)."""
        if weights is not None:
            shape = (len(weights.scalars),) if isinstance(weights, Weights) else tuple(weights.shape)
            if shape != (len(self.candidates),):
                raise ValueError(
                    f"MixedOp: expected weights of shape ({len(self.candidates)},), one for each of "
                    f"{', '.join(self.names)}; got shape {shape} (further inputs are passed by keyword)"
                )
            return weights if isinstance(weights, Weights) else Weights(weights.unbind())
        if self.group is not None:
            return self.group.operation_weights(self)
        self._check_alpha()
        row = relaxed(self.alpha, _softmax, NEVER, self.allowed if self.is_restricted else None)
        return Weights(row.unbind(), row.tolist() if self.is_restricted else None)

    def passing(self, weights: Weights) -> float:
        """The total weight of all candidates but ``none``, edge weight included; 1 where nothing can reduce it."""
        nothing = self._adding_nothing()
        if weights.sizes is None or not (any(nothing) or self.is_restricted or self.beta is not None):
            return 1.0
        return sum(size for size, adds_nothing in zip(weights.sizes, nothing, strict=True) if not adds_nothing)

    def executions(self, weights: Weights) -> list[Execution]:
        """How each candidate takes part in a forward under these weights.

        If ``none`` has almost all the weight on every edge into a node, the small contributions of the other candidates
        are the node's entire input, and a later batch norm scales them up again. The threshold is therefore multiplied
        by the total weight of the other candidates.
        """
        sizes = weights.sizes
        if self.always_run or sizes is None:
            return [Execution.FULL] * len(self.candidates)
        share = min(1.0, self.passing(weights) if weights.passing is None else weights.passing)
        nothing = self._adding_nothing() if share < 1 else [False] * len(sizes)
        strongest = max((size for size, adds in zip(sizes, nothing, strict=True) if not adds), default=0.0)
        bound = min(weights.threshold * share, strongest)
        return [Execution.SKIPPED if size == 0 else weights.weak if size < bound else Execution.FULL for size in sizes]

    def rest(self, weights: Weights) -> list[Tensor]:
        """Record that no candidate runs in this forward, since all weights are zero.

        Returns:
            The parameters and weights that must still receive zero gradients (:func:`with_zero_gradients`).
        """
        self.ran, self.row = [Execution.SKIPPED] * len(self.candidates), weights.row
        return [*(p for candidate in self.candidates.values() for p in own_parameters(candidate)), *weights.scalars]

    def _part(self, weights: Weights) -> Edge:
        self.ran, self.row = self.executions(weights), weights.row
        return Edge(self.candidates, weights.scalars, self.ran)

    def _adding_nothing(self) -> list[bool]:
        return [adds_nothing(candidate) for candidate in self.candidates.values()]

    def _check_alpha(self) -> None:
        if not self.has_alpha:
            raise ValueError(
                f"MixedOp of {', '.join(self.names)} has no alpha (has_alpha=False): call it with weights, "
                f"mixed_op(x, weights)"
            )

    def extra_repr(self) -> str:
        said = {"label": self.label, "node": self.node, "allowed": self.allowed_names if self.is_restricted else None}
        return ", ".join(f"{name}={value!r}" for name, value in said.items() if value is not None)


def _softmax(alpha: Tensor, moment: Moment) -> Tensor:
    return F.softmax(alpha, dim=-1)


def _load_allowed(op: MixedOp, state: dict[str, Any], prefix: str, *args: Any) -> None:
    """Before a state dict is loaded: if it has alphas but no ``allowed``, as older ones do, allow all candidates."""
    if f"{prefix}alpha" in state:
        allowed = state.setdefault(f"{prefix}allowed", torch.ones_like(op.allowed))
        op.is_restricted = not bool(allowed.all())


def call_arguments(
    x: Tensor, weights: Tensor | Weights | None = None, **keywords: Any
) -> tuple[Tensor, Tensor | Weights | None, dict[str, Any]]:
    """For hooks on a MixedOp: split its call into the input, the weights, and the candidates' keyword arguments."""
    return x, weights, keywords


def fan_out(x: Tensor, edges: Sequence[nn.Module], weights: Sequence[Weights | None] | None = None) -> list[Tensor]:
    """The outputs of all edges that leave one node; work that they have in common is done once.

    Equal to ``[edge(x) for edge in edges]`` up to rounding. Candidates that can run together
    (:class:`~sparsemix.supernet.sharing.SharesWork`) share a ReLU, a pooling or one wide convolution. Edges that are
    not a MixedOp are called separately. So are compiled candidates, and mixed operations and candidates with forward
    hooks, since a hook must see its module run.

    Args:
        x: the node's value.
        edges: the modules that read it.
        weights: for each edge the earlier result of its ``operation_weights()``, or None if it is not a MixedOp; by
            default computed here.
    """
    if weights is None:
        weights = [edge.operation_weights() if isinstance(edge, MixedOp) else None for edge in edges]
    together = [edge._part(w) for edge, w in zip(edges, weights, strict=True) if _can_share(edge) and w is not None]
    shared = iter(mix(Source(x), together))
    return [next(shared) if _can_share(edge) else _alone(edge, x, w) for edge, w in zip(edges, weights, strict=True)]


def _alone(edge: nn.Module, x: Tensor, weights: Weights | None) -> Tensor:
    if weights is None or (isinstance(edge, MixedOp) and edge.is_fixed):
        return edge(x)
    return edge(x, weights)


def _can_share(edge: nn.Module) -> TypeGuard[MixedOp]:
    if not isinstance(edge, MixedOp) or edge.is_fixed or has_forward_hooks(edge):
        return False
    return type(edge).forward is MixedOp.forward


def is_idle(edge: nn.Module, weights: Weights | None) -> bool:
    """Whether an edge need not run, since it certainly adds nothing: all its weights are zero, or it was removed."""
    if isinstance(edge, MixedOp):
        sizes = None if weights is None or edge.always_run else weights.sizes
        return sizes is not None and not any(sizes)
    return isinstance(edge, Chosen) and edge.is_nothing
