"""The architecture parameters of a model: all its mixed operations' alphas, in order, and what is read off them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle

from .._utils.modes import evaluating, restoring
from .._utils.torch_private import in_backward_pass
from ..relaxations import Relaxation, Softmax, entropy
from .alphas import Alphas, AlphaTables
from .mixed_op import MixedOp, Weights, call_arguments, check_same_shape

__all__ = ["ArchParameterGroup", "labelled_rows", "tie_alphas_"]


def labelled_rows(model: nn.Module) -> dict[str, list[MixedOp]]:
    """The mixed operations of a module tree by label, in module order; without a label, the module's path is its own.

    Those without an alpha (``has_alpha=False``) belong to the code that hands them their weights.

    Raises:
        ValueError: two operations share a label but not their candidates, or a label is another operation's path.
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
    return rows


def tie_alphas_(model: nn.Module) -> dict[str, list[MixedOp]]:
    """Let mixed operations with one label share one ``alpha`` parameter, the first one's, in place.

    Tied as weights usually are in PyTorch: ``model.parameters()`` lists the row once, ``model.state_dict()`` under each
    operation's name. A group does this by itself; a supernet that is to share its rows without one calls it.

    Returns:
        The rows, as :func:`labelled_rows`.
    """
    rows = labelled_rows(model)
    for first, *others in rows.values():
        for op in others:
            op.alpha = first.alpha
    return rows


class ArchParameterGroup(Alphas):
    """The architecture parameters of any model that holds :class:`~sparsemix.MixedOp` modules.

    The group finds every mixed operation of the module tree, ties the alphas of those with one label, and from then on
    relaxes all rows in one operation at the start of each forward of ``model`` (where a part of the model is called by
    itself, each of its operations asks for its own). It splits the model's parameters into alphas and weights, disjoint
    and complete, and reads the architecture out. It is a handle, not a module: the alphas stay in the model and in its
    ``state_dict``. A second group on the same model releases the first.

    Args:
        model: the supernet. Its ``forward`` may be called directly or through wrappers.
        relaxation: a callable ``(alpha, moment) -> weights`` on rows padded with ``-inf``, such as
            :class:`~sparsemix.SparseSmoothSoftmax` (the default) or :class:`~sparsemix.relaxations.Softmax`.
        threshold: eps in [0, 1): operations of smaller weight are left out of a weights update (a forward within
            :meth:`fixed_alphas`) and *scored* in an alpha update: they run, but no gradient flows back through them.
            The strongest operation of a row always runs. Where ``none`` holds almost all weight, the threshold is a
            share of what is left (:meth:`MixedOp.executions`). 0: only weights of exactly zero are left out.

    Which operations run is decided once a forward for the whole supernet, by one transfer of the weights to the host.
    An operation of weight exactly 0 never runs, which changes nothing but the running statistics of its batch norms:
    it would add ``0 o(x)``, its parameters get gradients of zero all the same, and under a softmax so does its alpha.
    With a threshold an edge's output in a weights update deviates by ``|sum_weak a_m o_m(x)| <= eps (M - 1) max_m
    |o_m(x)|``. In an alpha update the output is exact, and so is the gradient that reaches the edge's own alphas; what
    is dropped is ``sum_weak a_m J_m^T g`` of the gradient that flows on to earlier nodes, at most ``eps (M - 1) max_m
    |J_m| |g|`` with the operations' Jacobians J. Forwards without gradients leave out exact zeros only.

    Attributes:
        moment: of the coming batch, see :class:`~sparsemix.relaxations.Moment`;
            :class:`~sparsemix.BatchMixedScheduler` sets it.
        phi: whether the coming batch is a sparse one (Eq. 15), that of the moment.
        rows: label -> the mixed operations that share that row of alphas.

    Raises:
        ValueError: the model holds no mixed operation, a label is shared by different candidates, or some of the mixed
            operations are held by the group of another model; a threshold outside [0, 1).

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
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"ArchParameterGroup: needs the model, a torch.nn.Module; got a {type(model).__name__} (mix_ changes "
                f"the model in place: give the model itself)"
            )
        self.model = model
        self.rows = tie_alphas_(model)
        if not self.rows:
            raise ValueError(
                f"ArchParameterGroup: no MixedOp among the {sum(1 for _ in model.modules())} modules of "
                f"{type(model).__name__}; replace the layers to be searched by MixedOp({{name: module, ...}})"
            )
        self._labels = {op: label for label, ops in self.rows.items() for op in ops}
        self._relaxed: dict[str, Weights] | None = None  # while the model's forward runs
        self._differentiable: dict[str, Weights] | None = None  # those of its last forward with gradients
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
        """Alphas that other code owns, ``{"normal": alphas_normal, "reduce": alphas_reduce}``, under a relaxation.

        See :class:`~sparsemix.supernet.alphas.AlphaTables`.
        """
        return AlphaTables(tables, relaxation, threshold=threshold, model=model)

    @property
    def operations(self) -> list[MixedOp]:
        """All mixed operations of the model, row by row."""
        return [*self._labels]

    # The two sets of parameters

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The alphas with their rows' labels, in module order; one 1-D parameter a row."""
        return [(label, ops[0].alpha) for label, ops in self.rows.items()]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Every other parameter of the model, for the weights' optimizer: disjoint from the alphas, and complete.

        Raises:
            RuntimeError: a row's operations no longer share their alpha (``load_state_dict(..., assign=True)``).
        """
        for label, ops in self.rows.items():
            if any(op.alpha is not ops[0].alpha for op in ops):
                raise RuntimeError(f"the alphas of row {label!r} are no longer one parameter; make a new group")
        alphas = set(self.parameters())
        return [parameter for parameter in self.model.parameters() if parameter not in alphas]

    # The relaxed weights

    def weights(self) -> dict[str, Tensor]:
        """The operation weights of every row under the present relaxation and moment: label -> tensor ``(M,)``."""
        with self._gradients_wanted():
            table = self.relaxation(self._padded(), self.moment)
        return {label: row[: len(ops[0].names)] for (label, ops), row in zip(self.rows.items(), table, strict=True)}

    def operation_weights(self, op: MixedOp) -> Weights:
        """The weights of one mixed operation and how its candidates run, as its forward uses them."""
        if op not in self._labels:
            raise RuntimeError(
                "a mixed operation runs that its group does not know: a replica of DataParallel, or a copy of a part "
                "of the model; use DistributedDataParallel, or make a group for the copy"
            )
        # A backward pass runs a part of the model again where its activations were not kept (gradient checkpointing).
        again = in_backward_pass()
        relaxed = self._relaxed or (self._differentiable if again else None) or self._decide_all()
        return relaxed[self._labels[op]]

    # The read-out

    def entropy(self, temperature: float | None = None) -> float:
        """Information entropy summation over the rows, in nats (Eq. 21).

        Args:
            temperature: of a softmax of the alphas; 1 as the paper prints Eq. 21. None: of the weights that the
                relaxation gives in a sparse batch, at the temperature that the method itself trains at (t_sp for
                SP-DARTS, as its code logs it; 1 for DARTS). Methods are compared by the latter.
        """
        relaxation: Relaxation = self.relaxation if temperature is None else Softmax(temperature)
        with torch.no_grad():
            return float(entropy(relaxation(self._padded(), replace(self.moment, phi=True))))

    def genotype(self) -> dict[str, str]:
        """The strongest candidate of every row: label -> name (Eq. 4); an exact tie goes to the earlier candidate."""
        return {label: ops[0].choice() for label, ops in self.rows.items()}

    @contextmanager
    def reading(self, alphas: Mapping[str, Sequence[float] | Tensor]) -> Iterator[None]:
        """Within the context, the alphas have other values: label -> row, such as their mean over the last epochs.

        Where two operations share a row's weight, the last epoch's argmax says little; that of a mean is steadier.
        """
        previous = {label: alpha.detach().clone() for label, alpha in self.named_parameters()}
        try:
            self._set(alphas)
            yield
        finally:
            self._set(previous)

    def _set(self, alphas: Mapping[str, Sequence[float] | Tensor]) -> None:
        with torch.no_grad():
            for label, alpha in self.named_parameters():
                alpha.copy_(torch.as_tensor(alphas[label]))

    def discretize(self, genotype: Mapping[str, str] | None = None) -> nn.Module:
        """A copy of the model in which each mixed operation is replaced by one candidate.

        An ordinary module without alphas, hooks or discarded candidates; the model itself stays as it is. With a
        genotype that was saved, a freshly built supernet gives the network that was found, which then loads its
        weights.

        Args:
            genotype: label -> name, as :meth:`genotype` returns it; by default the strongest candidates.

        Raises:
            ValueError: the genotype is of other rows, or names a candidate that a row does not have.

        Example:
            >>> build = lambda: nn.Sequential(MixedOp({"skip": nn.Identity(), "linear": nn.Linear(4, 4)}))
            >>> arch = ArchParameterGroup(build())
            >>> found, genotype = arch.discretize(), arch.genotype()
            >>> again = ArchParameterGroup(build()).discretize(genotype)
            >>> again.load_state_dict(found.state_dict())
            <All keys matched successfully>
        """
        chosen = self.genotype() if genotype is None else self._checked(genotype)
        bound = bool(self._hooks)
        self.release()
        try:
            # A deep copy that meets a mixed operation takes its choice instead. modules() lists outer ones first, so
            # that in reverse the inner ones are chosen before they are copied.
            memo: dict[int, Any] = {}
            operations = [module for module in self.model.modules() if isinstance(module, MixedOp)]
            for op in reversed([op for op in operations if op in self._labels]):
                memo[id(op)] = copy.deepcopy(op.candidates[chosen[self._labels[op]]], memo)
            return copy.deepcopy(self.model, memo)
        finally:
            if bound:
                self._bind()

    def _checked(self, genotype: Mapping[str, str]) -> Mapping[str, str]:
        """Insist that a genotype is of these rows."""
        if missing := [label for label in self.rows if label not in genotype]:
            raise ValueError(f"the genotype lacks {', '.join(missing)}; it has {', '.join(genotype) or 'nothing'}")
        if others := [label for label in genotype if label not in self.rows]:
            raise ValueError(f"the genotype names rows that the model lacks: {', '.join(others)}")
        for label, name in genotype.items():
            if name not in (names := self.rows[label][0].names):
                raise ValueError(f"row {label!r} has no candidate {name!r}; it has {', '.join(names)}")
        return genotype

    def __repr__(self) -> str:
        operations, rows = len(self._labels), len(self.rows)
        return (
            f"ArchParameterGroup({type(self.model).__name__}, {operations} mixed operations in {rows} rows, "
            f"{self.relaxation!r}, phi={self.phi}, threshold={self.threshold:g})"
        )

    # Guards

    def dry_run(self, x: Tensor) -> None:
        """Run the model once on ``x`` without gradients and without touching any state, to meet errors before training.

        Raises:
            ValueError: candidates of some mixed operation disagree in shape; both are named.
        """

        def check(op: MixedOp, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            x, _, keywords = call_arguments(*args, **given)
            shapes = [c(x, **keywords).shape for c in op.candidates.values()]  # of those that add nothing, too
            for name, shape in zip(op.names, shapes, strict=True):
                check_same_shape(op.names[0], shapes[0], name, shape, x.shape)

        hooks = [op.register_forward_pre_hook(check, with_kwargs=True) for op in self._labels]
        try:
            with restoring(self.model), evaluating(self.model), torch.no_grad(), self.using(Softmax()):
                self.model(x)
        finally:
            for hook in hooks:
                hook.remove()

    # The bond with the model

    def release(self) -> None:
        """Let the model go: its mixed operations are on their own again, and no hook is left behind."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = ()
        for op in self._labels:
            if op.group is self:
                op.group = None

    def check_bound(self) -> None:
        """Insist that the model still runs under this group.

        Raises:
            RuntimeError: it was released, by :meth:`release` or by a second group on the same model.
        """
        if not self._hooks:
            raise RuntimeError(
                f"this ArchParameterGroup has been released: {type(self.model).__name__} no longer runs under it. Use "
                f"the group that was made for the model last, with a scheduler and a step of its own"
            )

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles of the model: everything but the last forward's weights, which belong to its graph."""
        return {**self.__dict__, "_relaxed": None, "_differentiable": None}

    def _bind(self) -> None:
        self._hooks = (
            self.model.register_forward_pre_hook(self._begin_forward),
            self.model.register_forward_hook(self._end_forward, always_call=True),
        )
        for op in self._labels:
            op.group = self

    def _begin_forward(self, model: nn.Module, args: Any) -> None:
        if any(len(ops[0].candidates) > 1 for ops in self.rows.values()):
            self._relaxed = self._decide_all()
            if torch.is_grad_enabled():
                self._differentiable = self._relaxed

    def _end_forward(self, model: nn.Module, args: Any, output: Any) -> None:
        self._relaxed = None

    def _padded(self) -> Tensor:
        """All rows, padded with -inf, shape (rows, widest row)."""
        return pad_sequence([*self.parameters()], batch_first=True, padding_value=-torch.inf)

    def _decide_all(self) -> dict[str, Weights]:
        return self._decide(self.weights())
