"""What every set of architecture parameters can do, whoever owns them; and tables of alphas that other code owns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..relaxations import NEVER, Argmax, Moment, Relaxation, Softmax, SparseSmoothSoftmax, entropy
from .mixed_op import Execution, MixedOp, Weights

__all__ = ["AlphaTables", "Alphas", "decided"]


class Alphas:
    """Architecture parameters with their relaxation, phi, and the decision which operations run.

    Subclasses say where the alphas are (:meth:`named_parameters`).

    Attributes:
        moment: of the coming batch; :class:`~sparsemix.BatchMixedScheduler` sets it.
        phi: whether the coming batch is a sparse one (Eq. 15), that of the moment.
        relaxation: ``(alpha, moment) -> weights``.
        threshold: see :class:`~sparsemix.ArchParameterGroup`.
    """

    def __init__(self, relaxation: Relaxation | None, threshold: float) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"{type(self).__name__}: the threshold must be in [0, 1), got {threshold}")
        self.threshold = threshold
        self.relaxation: Relaxation = SparseSmoothSoftmax() if relaxation is None else relaxation
        self._moment, self._is_spent, self._was_warned = NEVER, False, False
        self._alphas_fixed = False

    @property
    def moment(self) -> Moment:
        return self._moment

    @moment.setter
    def moment(self, value: Moment) -> None:
        self._moment, self._is_spent = value, False

    @property
    def phi(self) -> bool:
        return self._moment.phi

    @phi.setter
    def phi(self, value: bool) -> None:
        self.moment = replace(self._moment, phi=value)

    def spend_moment(self) -> None:
        """Note that a search step is made at the present moment; warn once if it is not the first one."""
        if self._is_spent and not self._was_warned and self._depends_on_phi():
            self._was_warned = True
            warnings.warn(
                f"a second search step under phi={self.phi}: nobody draws phi. Call "
                f"BatchMixedScheduler.step_update(update) before every step; for a single temperature use "
                f"sparsemix.relaxations.Softmax(temperature)",
                stacklevel=3,
            )
        self._is_spent = True

    def _depends_on_phi(self) -> bool:
        with torch.no_grad():
            for alpha in self.parameters():
                smooth, sparse = (self.relaxation(alpha, replace(self._moment, phi=phi)) for phi in (False, True))
                if not torch.equal(smooth, sparse):
                    return True
        return False

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The alphas with their names, in order."""
        raise NotImplementedError

    def parameters(self) -> list[nn.Parameter]:
        """The alphas, for their own optimizer."""
        return [alpha for _, alpha in self.named_parameters()]

    @contextmanager
    def using(self, relaxation: Relaxation) -> Iterator[None]:
        """Within the context, the model runs under another relaxation (for evaluation at another temperature, say)."""
        previous, self.relaxation = self.relaxation, relaxation
        try:
            yield
        finally:
            self.relaxation = previous

    def discretized(self) -> AbstractContextManager[None]:
        """Within the context, the model runs with only the strongest operation of each row (Fig. 3b).

        Without gradients the others are not executed.
        """
        return self.using(Argmax())

    @contextmanager
    def fixed_alphas(self) -> Iterator[None]:
        """Within the context, relaxed weights are constants: a weights update then computes no alpha gradient."""
        previous, self._alphas_fixed = self._alphas_fixed, True
        try:
            yield
        finally:
            self._alphas_fixed = previous

    @property
    def has_model(self) -> bool:
        """Whether the model is known, and with it its weights."""
        return True

    def check_bound(self) -> None:
        """Insist that the model still runs under these alphas; a group can be released, see its own method."""

    def check_finite(self) -> None:
        """Stop at an alpha that is NaN or infinite.

        Raises:
            FloatingPointError: names the first such row and shows its values.
        """
        alphas = self.parameters()
        if bool(torch.cat([alpha.detach().flatten() for alpha in alphas]).isfinite().all()):  # one transfer
            return
        for label, alpha in self.named_parameters():
            if not bool(alpha.isfinite().all()):
                raise FloatingPointError(
                    f"alpha of {label!r} is not finite: {alpha.tolist()}; lower the learning rates, or resume from "
                    f"the last checkpoint"
                )

    def _gradients_wanted(self) -> AbstractContextManager[None]:
        return torch.no_grad() if self._alphas_fixed else nullcontext()

    def _decide(self, rows: Mapping[str, Tensor]) -> dict[str, Weights]:
        """These relaxed weights with what decides which operations run, by one transfer to the host."""
        weak = Execution.SKIPPED if self._alphas_fixed else Execution.SCORED
        try:
            return dict(zip(rows, _on_host([*rows.values()], self.threshold, weak), strict=True))
        except FloatingPointError:
            self.check_finite()  # whose message says more
            raise


def decided(weights: Tensor, threshold: float = 0.0) -> list[Weights]:
    """Weights that other code has relaxed, as rows for ``MixedOp(...)(x, row)`` of which only what matters runs.

    A plain row of a tensor runs every candidate. Ask once a forward: all rows are decided by one transfer to the host.

    Args:
        weights: ``(edges, M)``.
        threshold: candidates of smaller weight are scored where the weights require gradients, and do not run where
            they do not, as in a weights update on ``weights.detach()``. 0: only weights of exactly zero do not run.

    Example:
        >>> op = MixedOp({"skip": nn.Identity(), "pool": nn.AvgPool2d(3, 1, 1)}, has_alpha=False)
        >>> [row] = decided(torch.tensor([[1.0, 0.0]]))
        >>> [execution.value for execution in op.executions(row)]
        ['full', 'skipped']
    """
    return _on_host([*weights], threshold, Execution.SCORED if weights.requires_grad else Execution.SKIPPED)


def _on_host(rows: list[Tensor], threshold: float, weak: Execution) -> list[Weights]:
    flat = torch.cat([row.detach() for row in rows]).abs().tolist()
    if not all(map(math.isfinite, flat)):
        raise FloatingPointError(f"the relaxation gave weights that are not finite: {flat}")
    values = iter(flat)
    threshold = threshold if torch.is_grad_enabled() else 0.0
    return [Weights(row.unbind(), [next(values) for _ in range(len(row))], threshold, weak) for row in rows]


class AlphaTables(Alphas):
    """Alphas that other code owns, as tables of one row an edge; made by ``ArchParameterGroup.from_parameters``.

    The other code goes on owning them and asks here for the operation weights, wherever it called ``softmax``.

    Args:
        tables: name -> parameter ``(edges, M)``, or ``(M,)``.
        relaxation, threshold: as for :class:`~sparsemix.ArchParameterGroup`.
        model: the module whose weights are searched with them, for :meth:`weight_parameters`. A table that is an
            attribute of it, or of a part of it, is followed: where other code replaces the attribute, the new parameter
            is the table. Without a model a replaced parameter goes unnoticed.

    Raises:
        ValueError: no tables, or one that is no leaf with gradients, of one or two dimensions; at a use, a table that
            was replaced by one of another shape.

    Example:
        >>> normal = (1e-3 * torch.randn(14, 8)).requires_grad_()
        >>> arch = AlphaTables({"normal": normal})
        >>> arch.weights()["normal"].shape
        torch.Size([14, 8])
    """

    def __init__(
        self,
        tables: Mapping[str, Tensor],
        relaxation: Relaxation | None = None,
        *,
        threshold: float = 0.0,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(relaxation, threshold)
        if not tables:
            raise ValueError("AlphaTables: no tables; give a mapping such as {'normal': alphas_normal}")
        for name, table in tables.items():
            if not table.is_leaf or not table.requires_grad or table.ndim not in (1, 2):
                raise ValueError(
                    f"AlphaTables: {name!r} must be a leaf tensor (edges, M) or (M,) that requires gradients; got "
                    f"shape {tuple(table.shape)}, is_leaf={table.is_leaf}, requires_grad={table.requires_grad}"
                )
        self._tables = dict(tables)
        self._model = model
        self._places = {} if model is None else _places(model, self._tables)

    @property
    def tables(self) -> dict[str, Tensor]:
        """Name -> parameter, as the model has it now."""
        for name, (owner, attribute) in self._places.items():
            table = getattr(owner, attribute)
            if table.shape != self._tables[name].shape:
                raise ValueError(
                    f"AlphaTables: {name!r} had the shape {tuple(self._tables[name].shape)} and was replaced by "
                    f"{tuple(table.shape)} ({type(owner).__name__}.{attribute}); make new AlphaTables"
                )
            self._tables[name] = table
        return self._tables

    @property
    def has_model(self) -> bool:
        return self._model is not None

    @property
    def model(self) -> nn.Module:
        if self._model is None:
            raise ValueError("AlphaTables: this needs the model; give model= to from_parameters")
        return self._model

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The tables with their names, as they were given."""
        return [*self.tables.items()]  # type: ignore[list-item]  # leaves, if not always of that class

    def weight_parameters(self) -> list[nn.Parameter]:
        """Every parameter of the model that is no table, nor the own alpha of a mixed operation."""
        alphas = {
            *self.parameters(),
            *(op.alpha for op in self.model.modules() if isinstance(op, MixedOp) and op.has_alpha),
        }
        return [parameter for parameter in self.model.parameters() if parameter not in alphas]

    def weights(self) -> dict[str, Tensor]:
        """The operation weights under the present relaxation and moment: name -> tensor of the table's shape."""
        with self._gradients_wanted():
            return {name: self.relaxation(table, self.moment) for name, table in self.tables.items()}

    def operation_weights(self) -> dict[str, list[Weights]]:
        """The same as rows for ``MixedOp(...)(x, row)``, with what runs decided: name -> one entry an edge.

        Ask once a forward: all tables are decided by one transfer to the host.
        """
        weights = {name: table.reshape(-1, table.shape[-1]) for name, table in self.weights().items()}
        rows = {f"{name} {edge}": row for name, table in weights.items() for edge, row in enumerate(table)}
        decided = self._decide(rows)
        return {name: [decided[f"{name} {edge}"] for edge in range(len(table))] for name, table in weights.items()}

    def entropy(self, temperature: float | None = None) -> float:
        """Information entropy summation over all rows, in nats; see :meth:`ArchParameterGroup.entropy`."""
        relaxation: Relaxation = self.relaxation if temperature is None else Softmax(temperature)
        sparse = replace(self.moment, phi=True)
        with torch.no_grad():
            return sum(float(entropy(relaxation(table, sparse))) for table in self.tables.values())

    def genotype(self) -> dict[str, list[int]]:
        """The strongest candidate of every row: name -> one index an edge; an exact tie goes to the lower one."""
        return {
            name: table.detach().reshape(-1, table.shape[-1]).argmax(-1).tolist() for name, table in self.tables.items()
        }


def _places(model: nn.Module, tables: Mapping[str, Tensor]) -> dict[str, tuple[nn.Module, str]]:
    """The modules and attributes that hold the tables, as far as there are any."""
    return {
        name: (module, attribute)
        for name, table in tables.items()
        for module in model.modules()
        for attribute, value in {**vars(module), **dict(module.named_parameters(recurse=False))}.items()
        if value is table
    }
