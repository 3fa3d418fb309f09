"""The architecture parameters of a model: the alphas of all its mixed operations, and the architecture read out."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle, unserializable_hook

from .._utils.modes import having
from .._utils.torch_private import at_end_of_backward, in_backward_pass, tensors_in
from ..relaxations import Moment, Relaxation, Softmax
from .alphas import Alphas
from .execution import Weights
from .forward import Forward
from .mixed_op import MixedOp
from .rows import kept, padded, relaxed
from .tables import AlphaTables

__all__ = ["ArchParameterGroup", "labelled_rows", "tie_alphas_"]


def labelled_rows(model: nn.Module) -> dict[str, list[MixedOp]]:
    """Group the mixed operations of a module tree by label, in module order; a module's path replaces a missing label.

    Operations without an alpha (``has_alpha=False``) are left out, since other code passes them their weights.

    Raises:
        ValueError: operations with the same label differ in candidates or node, or a label equals the path of an
            operation without a label.
    """
    rows: dict[str, list[MixedOp]] = {}
    for path, module in model.named_modules():
        if isinstance(module, MixedOp) and module.has_alpha:
            row = rows.setdefault(module.label or path, [])
            row.append(module)
            if module.label != row[0].label:
                raise ValueError(
                    f"label {module.label or row[0].label!r} is also the path of a mixed operation without a label; "
                    f"choose another"
                )
            if module.names != row[0].names:
                raise ValueError(
                    f"mixed operations labelled {module.label!r} must name the same candidates: "
                    f"{', '.join(row[0].names)} at first, {', '.join(module.names)} at {path!r}"
                )
            if module.node != row[0].node:
                raise ValueError(
                    f"mixed operations labelled {module.label!r} must lead to the same node: {row[0].node!r} at first, "
                    f"{module.node!r} at {path!r}"
                )
    return rows


def tie_alphas_(model: nn.Module) -> dict[str, list[MixedOp]]:
    """Tie mixed operations with the same label, in place: all get the first one's alpha, beta and allowed candidates.

    Parameters are tied as usual in PyTorch: ``model.parameters()`` lists each shared row once, ``model.state_dict()``
    lists it under each operation's name. A group does this when it is created; call this function to share rows in a
    supernet that has no group.

    Returns:
        The rows, as :func:`labelled_rows`.
    """
    rows = labelled_rows(model)
    for first, *others in rows.values():
        for op in others:
            op.alpha, op.beta = first.alpha, first.beta
            if op.is_restricted or first.is_restricted:
                op.restrict_(first.allowed_names)
    return rows


class ArchParameterGroup(Alphas):
    """The architecture parameters of any model that holds :class:`~sparsemix.MixedOp` modules.

    The group finds every mixed operation in the module tree and ties the alphas of operations with the same label. It
    relaxes all rows together at the start of each forward of ``model``; if only a part of the model is called, each of
    its mixed operations requests its weights separately. The group splits the model's parameters into alphas and
    weights, without overlap or omission, and reads out the architecture. It is a handle, not a module: the alphas stay
    in the model and in its ``state_dict``. A second group on the same model releases the first.

    Args:
        model: the supernet. Its ``forward`` may be called directly or through wrappers.
        relaxation: a callable ``(alpha, moment) -> weights`` on rows padded with ``-inf``, such as
            :class:`~sparsemix.SparseSmoothSoftmax` (the default) or :class:`~sparsemix.relaxations.Softmax`.
        threshold: eps in [0, 1). Operations with a smaller weight are skipped in a weights update (a forward within
            :meth:`fixed_alphas`) and *scored* in an alpha update: they run, but no gradient flows back through them.
            The strongest operation of a row always runs. If ``none`` takes part of the weight, the threshold is
            relative to the weight of the other operations (:meth:`MixedOp.executions`). 0 skips only weights of exactly
            zero.

    The operations to run are determined once per forward for the whole supernet, with a single transfer of the weights
    to the host. An operation with weight exactly 0 does not run. Skipping it changes only the running statistics of its
    batch norms: it would add ``0 o(x)``, its parameters still receive zero gradients, and under a softmax its alpha's
    gradient is zero as well. With a threshold, an edge's output in a weights update deviates by ``|sum_weak a_m o_m(x)|
    <= eps (M - 1) max_m |o_m(x)|``. In an alpha update the output is exact, and so is the gradient of the edge's own
    alphas. The gradient that flows on to earlier nodes lacks ``sum_weak a_m J_m^T g``, which is at most ``eps (M - 1)
    max_m |J_m| |g|``, where J_m are the operations' Jacobians. In a forward without gradients, only operations with
    weight exactly zero are skipped.

    Attributes:
        moment: the moment of the next batch, see :class:`~sparsemix.relaxations.Moment`;
            :class:`~sparsemix.BatchMixedScheduler` sets it.
        phi: whether the next batch is sparse (Eq. 15); part of the moment.
        edge_relaxation: the relaxation of the edges that compete for a node, see :meth:`weigh_edges_`.
        rows: label -> the mixed operations that share that row of alphas.

    Raises:
        ValueError: the model holds no mixed operation, a label is shared by different candidates, or some of the mixed
            operations are held by the group of another model; the model is compiled; a threshold outside [0, 1).

    Example:
        >>> model = nn.Sequential(MixedOp({"skip": nn.Identity(), "pool": nn.AvgPool2d(3, 1, 1)}), nn.Flatten())
        >>> arch = ArchParameterGroup(model)
        >>> len(arch.parameters()), len(arch.weight_parameters())
        (1, 0)
        >>> type(arch.discretize()[0]).__name__ in ("Identity", "AvgPool2d")
        True

    Source: Zhang and Ding, Eq. 4, 15 and 21.
    """

    def __init__(self, model: nn.Module, relaxation: Relaxation | None = None, *, threshold: float = 0.0) -> None:
        super().__init__(relaxation, threshold)
        self.edge_relaxation: Relaxation = Softmax()
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"ArchParameterGroup: needs the model, a torch.nn.Module; got a {type(model).__name__} (mix_ changes "
                f"the model in place: give the model itself)"
            )
        if "_orig_mod" in dict(model.named_children()):
            raise ValueError(
                "ArchParameterGroup: the model is the result of torch.compile; make the group of the model itself, and "
                "compile it afterwards"
            )
        self._model = model
        self._rows = tie_alphas_(model)
        if not self._rows:
            raise ValueError(
                f"ArchParameterGroup: no MixedOp among the {sum(1 for _ in model.modules())} modules of "
                f"{type(model).__name__}; replace the layers to be searched by MixedOp({{name: module, ...}})"
            )
        self._labels = {op: label for label, ops in self.rows.items() for op in ops}
        self._nodes = self._weighed_nodes()
        self._recomputing: _Past | None = None  # the forward that the running backward pass belongs to
        self._hooks: tuple[RemovableHandle, ...] = ()
        for holder in {op.group for op in self._labels if op.group is not None}:
            if holder.model is not model:
                raise ValueError(
                    f"ArchParameterGroup: mixed operations of {type(model).__name__} are held by the group of another "
                    f"module, {type(holder.model).__name__}; release() that one first"
                )
            holder.release()
        self._bind()

    @staticmethod
    def from_parameters(
        tables: Mapping[str, Tensor],
        relaxation: Relaxation | None = None,
        *,
        threshold: float = 0.0,
        model: nn.Module | None = None,
    ) -> AlphaTables:
        """Wrap alphas that other code owns, ``{"normal": alphas_normal, "reduce": alphas_reduce}``, with a relaxation.

        See :class:`~sparsemix.supernet.tables.AlphaTables`.
        """
        return AlphaTables(tables, relaxation, threshold=threshold, model=model)

    @property
    def model(self) -> nn.Module:
        return self._model

    @property
    def rows(self) -> dict[str, list[MixedOp]]:
        return self._rows

    def row_alphas(self) -> dict[str, Tensor]:
        rows = {label: ops[0] for label, ops in self.rows.items()}
        return {label: op.alpha.detach().masked_fill(~op.allowed, -torch.inf) for label, op in rows.items()}

    # The two sets of parameters

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The alphas with their rows' labels, in module order; one 1-D parameter a row."""
        return [(label, ops[0].alpha) for label, ops in self.rows.items()]

    def named_betas(self) -> list[tuple[str, nn.Parameter]]:
        """The logits of weighed edges with their rows' labels, in module order; one scalar parameter a row."""
        return [(label, ops[0].beta) for label, ops in self.rows.items() if ops[0].beta is not None]

    def weight_parameters(self) -> list[nn.Parameter]:
        """All parameters of the model that :meth:`parameters` does not return, for the weights' optimizer.

        Raises:
            RuntimeError: a row's operations no longer share their alpha (``load_state_dict(..., assign=True)``), or
                the model has got mixed operations that the group does not know.
        """
        for label, ops in self.rows.items():
            if any(op.alpha is not ops[0].alpha or op.beta is not ops[0].beta for op in ops):
                raise RuntimeError(f"the alphas of row {label!r} are no longer one parameter; make a new group")
        operations = ((path, op) for path, op in self.model.named_modules() if isinstance(op, MixedOp) and op.has_alpha)
        if new := [path for path, op in operations if op not in self._labels]:
            raise RuntimeError(
                f"mixed operations were added after the group was made: {', '.join(new)}; make a new group"
            )
        own = set(self.parameters())
        return [parameter for parameter in self.model.parameters() if parameter not in own]

    # What is searched

    def restrict(self, label: str, names: Iterable[str]) -> None:
        """Allow only these candidates of a row, in all operations that share it, from the next forward on.

        Relaxations ignore the other candidates: the row's weight is shared among the allowed ones, and the alphas of
        the others receive zero gradients.

        Args:
            label: the row's label.
            names: the candidates to allow. Naming all of them lifts the restriction. ``()`` removes the row: its
                weights are 0, its operations do not run, and a cell omits the edge if another edge leads to the node.

        Raises:
            ValueError: there is no such row or candidate.

        Example:
            >>> arch = ArchParameterGroup(MixedOp({"skip": nn.Identity(), "relu": nn.ReLU(), "tanh": nn.Tanh()}, "row"))
            >>> arch.restrict("row", ["relu"])
            >>> arch.weights()["row"].tolist(), arch.choices()
            ([0.0, 1.0, 0.0], {'row': ('relu',)})
            >>> arch.restrict("row", ())
            >>> arch.weights()["row"].tolist(), arch.choices()
            ([0.0, 0.0, 0.0], {'row': ()})
        """
        if label not in self.rows:
            raise ValueError(f"cannot restrict row {label!r}; the rows are {', '.join(self.rows)}")
        names = [*names]
        for op in self.rows[label]:
            op.restrict_(names)

    def weigh_edges_(self, relaxation: Relaxation | None = None) -> None:
        """Give every row that names its node a trainable edge weight: a logit beta, relaxed over that node's edges.

        The edge weight multiplies the operation weights, ``beta_e a_em``, so an edge with weight zero does not run.
        Removed rows do not compete, and rows without a node keep weight 1. Existing betas are kept. Call this before
        creating optimizers and before loading a state dict with betas, since it adds parameters.

        Args:
            relaxation: maps the betas, one row per node, padded with ``-inf``, to edge weights; by default the present
                :attr:`edge_relaxation` is kept, which is initially a softmax.

        Raises:
            ValueError: no row names a node.

        Example:
            >>> edge = lambda source: MixedOp({"skip": nn.Identity(), "tanh": nn.Tanh()}, f"2<-{source}", node="2")
            >>> arch = ArchParameterGroup(nn.ModuleList([edge(0), edge(1)]))
            >>> arch.weigh_edges_()
            >>> [tuple(parameter.shape) for parameter in arch.parameters()]
            [(2,), (2,), (), ()]
            >>> round(sum(weight.item() for weight in arch.edge_weights().values()), 6)
            1.0

        Source: Xu et al., "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search", Eq. 3.
        """
        competing = [ops for ops in self.rows.values() if ops[0].node is not None]
        if not competing:
            raise ValueError(
                f"weigh_edges_: none of the rows {', '.join(self.rows)} names the node that it leads to; give "
                f"MixedOp(..., node=...)"
            )
        for first, *others in competing:
            if first.beta is None:
                first.beta = nn.Parameter(1e-3 * torch.randn(()).to(first.alpha))
            for op in others:
                op.beta = first.beta
        if relaxation is not None:
            self.edge_relaxation = relaxation
        self._nodes = self._weighed_nodes()

    def _weighed_nodes(self) -> dict[Hashable, list[str]]:
        """Node -> the labels of the rows that compete for it."""
        nodes: dict[Hashable, list[str]] = {}
        for label, _ in self.named_betas():
            nodes.setdefault(self.rows[label][0].node, []).append(label)
        return nodes

    # The relaxed weights

    def _relaxed(self, relaxation: Relaxation, moment: Moment) -> Tensor:
        rows = [ops[0] for ops in self.rows.values()]
        allowed = padded([op.allowed for op in rows]) if any(op.is_restricted for op in rows) else None
        return relaxed(padded([op.alpha for op in rows]), relaxation, moment, allowed)

    def _weights_at(self, moment: Moment) -> dict[str, Tensor]:
        table = self._relaxed(self.relaxation, moment)
        rows = {label: row[: len(ops[0].names)] for (label, ops), row in zip(self.rows.items(), table, strict=True)}
        return rows | {label: weight * rows[label] for label, weight in self._edge_weights_at(moment).items()}

    def _edge_weights_at(self, moment: Moment) -> dict[str, Tensor]:
        """The weights of the edges that compete: label -> scalar."""
        if not self._nodes:
            return {}
        nodes = [[self.rows[label][0] for label in labels] for labels in self._nodes.values()]
        betas = padded([torch.stack([op.beta for op in ops if op.beta is not None]) for ops in nodes])
        is_restricted = any(op.is_restricted for ops in nodes for op in ops)
        there = padded([torch.stack([op.allowed.any() for op in ops]) for ops in nodes]) if is_restricted else None
        table = relaxed(betas, self.edge_relaxation, _MomentOfEdges(**vars(moment)), there)
        return {
            label: weight
            for labels, row in zip(self._nodes.values(), table, strict=True)
            for label, weight in zip(labels, row[: len(labels)], strict=True)
        }

    def edge_weights(self) -> dict[str, Tensor]:
        """The weight of every row's edge among those of its node: label -> scalar; 1 for rows without a beta."""
        with self._gradients_wanted():
            weighed = self._edge_weights_at(self.moment)
        return {label: weighed.get(label, ops[0].alpha.new_ones(())) for label, ops in self.rows.items()}

    def discretized(self) -> AbstractContextManager[None]:
        """Within the context, the model runs with only the chosen operations of each row (Fig. 3b).

        The output matches that of :meth:`discretize`, so edge weights are ignored. The other operations do not run.
        """
        return having(self, relaxation=self.discretization, edge_relaxation=_ones)

    def operation_weights(self, op: MixedOp) -> Weights:
        """The weights of one mixed operation and how its candidates run, as its forward uses them."""
        if op not in self._labels:
            raise RuntimeError(
                "a mixed operation runs that its group does not know: a replica of DataParallel, or a copy of a part "
                "of the model; use DistributedDataParallel, or make a group for the copy"
            )
        if forward := Forward.of(self.model):
            decided = forward.decided
        elif past := self._past():
            decided = past.decided
        else:
            decided = self._decide()
        return decided[self._labels[op]]

    # The read-out

    def choices(self) -> dict[str, tuple[str, ...]]:
        rows = {label: ops[0] for label, ops in self.rows.items()}
        return {
            label: kept(op.names, op.alpha, self.discretization, op.allowed if op.is_restricted else None)
            for label, op in rows.items()
        }

    @contextmanager
    def reading(
        self, alphas: Mapping[str, Sequence[float] | Tensor], allowed: Mapping[str, Sequence[str]] | None = None
    ) -> Iterator[None]:
        """Within the context, the alphas have other values, such as their mean over the last epochs.

        If two operations of a row are nearly tied, the argmax of the last epoch is arbitrary; that of a mean is more
        stable.

        Args:
            alphas: label -> the values of the row.
            allowed: label -> the names that may be chosen; in rows that are not listed, all may be chosen. None keeps
                the present restrictions.
        """
        previous = {label: alpha.detach().clone() for label, alpha in self.named_parameters()}
        restricted = {label: ops[0].allowed_names for label, ops in self.rows.items()}
        try:
            self._set(alphas)
            if allowed is not None:
                self._restrict_all({label: allowed.get(label, ops[0].names) for label, ops in self.rows.items()})
            yield
        finally:
            self._set(previous)
            self._restrict_all(restricted)

    def _restrict_all(self, allowed: Mapping[str, Sequence[str]]) -> None:
        for label, names in allowed.items():
            if self.rows[label][0].allowed_names != tuple(names):
                self.restrict(label, names)

    def _set(self, alphas: Mapping[str, Sequence[float] | Tensor]) -> None:
        with torch.no_grad():
            for label, alpha in self.named_parameters():
                alpha.copy_(torch.as_tensor(alphas[label]))

    def _copied(self, memo: dict[int, Any], chosen: Mapping[str, tuple[str, ...]]) -> nn.Module:
        bound = bool(self._hooks)
        self.release()  # so that the copy holds neither hooks nor the group
        memo[id(self)] = None  # not as an attribute of the model either
        try:
            return super()._copied(memo, chosen)
        finally:
            if bound:
                self._bind()

    def _plain(self, op: MixedOp, names: tuple[str, ...], memo: dict[int, Any]) -> nn.Module:
        if len(names) == 1:  # the model calls it without weights, as any layer
            return copy.deepcopy(op.candidates[names[0]], memo)
        return super()._plain(op, names, memo)

    def __repr__(self) -> str:
        operations, rows = len(self._labels), len(self.rows)
        return (
            f"ArchParameterGroup({type(self.model).__name__}, {operations} mixed operations in {rows} rows, "
            f"{self.relaxation!r}, phi={self.phi}, threshold={self.threshold:g})"
        )

    # The bond with the model

    def release(self) -> None:
        """Detach from the model: remove all hooks; its mixed operations then compute their own softmax weights."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = ()
        for op in self._labels:
            if op.group is self:
                op.group = None

    def check_bound(self) -> None:
        """Check that the model still uses this group.

        Raises:
            RuntimeError: the group was released, by :meth:`release` or by a second group on the same model.
        """
        if not self._hooks:
            raise RuntimeError(
                f"this ArchParameterGroup has been released: {type(self.model).__name__} no longer runs under it. Use "
                f"the group that was made for the model last, with a scheduler and a step of its own"
            )

    def __getstate__(self) -> dict[str, Any]:
        """The state to copy or pickle: everything but a past forward's weights, which hold its autograd graph."""
        return {**self.__dict__, "_recomputing": None}

    def _bind(self) -> None:
        self._hooks = (
            self.model.register_forward_pre_hook(self._begin_forward),
            self.model.register_forward_hook(self._end_forward, always_call=True),
        )
        for op in self._labels:
            op.group = self

    def _begin_forward(self, model: nn.Module, args: Any) -> None:
        if not all(ops[0].is_fixed for ops in self.rows.values()):
            past = self._past()
            with having(self, **past.settings) if past else nullcontext():
                Forward(model, self._decide()).begin()

    def _end_forward(self, model: nn.Module, args: Any, output: Any) -> Any:
        if (forward := Forward.of(model)) is None:
            return output
        output = forward.end(output)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._note_past(output, forward)
        return output

    # Gradient checkpointing, which runs parts of the model again in the backward pass

    def _note_past(self, output: Any, forward: Forward) -> None:
        """A backward pass through the output then recomputes with the weights and settings of this forward.

        Before it is over, other forwards may have run, and the relaxation or the moment may have changed. If the whole
        model is recomputed, the output must be that of the recomputed function, since only a gradient of the output
        tells which forward it belongs to: ``checkpoint(model, x, use_reentrant=False)``.
        """
        past = _Past(forward.decided, {name: getattr(self, name) for name in _SETTINGS})

        @unserializable_hook
        def reached(gradient: Tensor) -> None:
            self._recomputing = past
            at_end_of_backward(forget)

        def forget() -> None:
            self._recomputing = None

        for value in tensors_in(output):
            if value.requires_grad and not value.is_leaf:  # a leaf would keep the hooks of all forwards
                value.register_hook(reached)

    def _past(self) -> _Past | None:
        return self._recomputing if in_backward_pass() else None


class _Past(NamedTuple):
    """What is needed to run parts of an earlier forward again."""

    decided: Mapping[str, Weights]
    settings: Mapping[str, Any]


_SETTINGS = ("relaxation", "edge_relaxation", "threshold", "_moment", "_alphas_fixed")
"""Attributes of a group on which the weights of a forward depend."""


class _MomentOfEdges(Moment):
    """The same moment with its own random draws, so that edges and operations do not get the same numbers."""

    def generator(self, name: str) -> torch.Generator:
        return super().generator(f"edges: {name}")


def _ones(betas: Tensor, moment: Moment) -> Tensor:
    return torch.ones_like(betas)
