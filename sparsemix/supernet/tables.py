"""Tables of alphas that other code owns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..relaxations import Moment, Relaxation
from .alphas import Alphas
from .execution import Weights
from .mixed_op import MixedOp
from .rows import kept, relaxed

__all__ = ["AlphaTables"]


class AlphaTables(Alphas):
    """Alphas that other code owns, as tables with one row per edge; made by ``ArchParameterGroup.from_parameters``.

    The other code still owns them, and gets the operation weights here instead of calling ``softmax``. All tables are
    relaxed together. A row is named by its table and its index in it, such as ``"normal 3"``; the mixed operations that
    use it are known once the model has run (:attr:`rows`). From then on, measures and costs (:mod:`sparsemix.measure`)
    accept the tables in place of a group.

    Args:
        tables: name -> parameter ``(edges, M)``, or ``(M,)``.
        relaxation, threshold: as for :class:`~sparsemix.ArchParameterGroup`.
        model: the supernet that uses the alphas, for :meth:`weight_parameters` and for measurements. If a table is an
            attribute of the model or of a submodule, and other code replaces that attribute, the new parameter is used
            from then on. Without a model, a replacement goes unnoticed.

    Raises:
        ValueError: there are no tables, or one is not a leaf tensor of one or two dimensions that requires gradients;
            later, a table was replaced by one of another shape, or a method needs the model and none was given.
        TypeError: ``tables`` is not a mapping.

    Example:
        >>> normal = (1e-3 * torch.randn(14, 8)).requires_grad_()
        >>> arch = AlphaTables({"normal": normal})
        >>> arch.table_weights()["normal"].shape, arch.weights()["normal 13"].shape
        (torch.Size([14, 8]), torch.Size([8]))
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
        if not isinstance(tables, Mapping):
            raise TypeError(
                f"AlphaTables: needs a mapping such as {{'normal': alphas_normal}}, got a {type(tables).__name__}"
            )
        if not tables:
            raise ValueError("AlphaTables: no tables; give a mapping such as {'normal': alphas_normal}")
        for name, table in tables.items():
            if not table.is_leaf or not table.requires_grad or table.ndim not in (1, 2):
                raise ValueError(
                    f"AlphaTables: {name!r} must be a leaf tensor (edges, M) or (M,) that requires gradients; got "
                    f"shape {tuple(table.shape)}, is_leaf={table.is_leaf}, requires_grad={table.requires_grad}"
                )
        self._tables = dict(tables)
        self._labels = {name: [f"{name} {i}" for i in range(t.shape[:-1].numel())] for name, t in tables.items()}
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

    @property
    def rows(self) -> dict[str, list[MixedOp]]:
        """Label, ``"normal 3"`` -> the mixed operations that were last called with that row.

        Only a forward of the other code shows which operation uses which row. Rows that no operation was called with
        are left out.

        Raises:
            ValueError: no operation was called yet; or operations of one row name different candidates.
        """
        known: dict[str, list[MixedOp]] = {label: [] for labels in self._labels.values() for label in labels}
        for op in self.model.modules():
            if isinstance(op, MixedOp) and op.row in known:
                known[op.row].append(op)
        rows = {label: ops for label, ops in known.items() if ops}
        if not rows:
            raise ValueError(
                f"AlphaTables: no mixed operation of {type(self.model).__name__} was called yet with a row of "
                f"{', '.join(self.tables)}, by which they are known: run the model once, such as dry_run(x)"
            )
        for label, (first, *others) in rows.items():
            for op in others:
                if op.names != first.names:
                    raise ValueError(
                        f"AlphaTables: mixed operations called with row {label!r} must name the same candidates: "
                        f"{', '.join(first.names)}, and {', '.join(op.names)}"
                    )
        return rows

    def row_alphas(self) -> dict[str, Tensor]:
        return {
            label: alpha
            for name, table in self.tables.items()
            for label, alpha in zip(self._labels[name], table.detach().reshape(-1, table.shape[-1]), strict=True)
        }

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The tables with their names, as they were given."""
        return [*self.tables.items()]  # type: ignore[list-item]  # leaves, if not always of that class

    def weight_parameters(self) -> list[nn.Parameter]:
        """All parameters of the model except the tables and the mixed operations' own alphas and betas."""
        operations = [op for op in self.model.modules() if isinstance(op, MixedOp)]
        own = {parameter for op in operations for parameter in op.parameters(recurse=False)}
        return [parameter for parameter in self.model.parameters() if parameter not in {*self.parameters(), *own}]

    # The relaxed weights

    def _relaxed(self, relaxation: Relaxation, moment: Moment) -> Tensor:
        # One table, so that what a relaxation draws for "normal" is not drawn again for "reduce".
        tables = [table.reshape(-1, table.shape[-1]) for table in self.tables.values()]
        widest = max(table.shape[-1] for table in tables)
        return relaxed(
            torch.cat([F.pad(table, (0, widest - table.shape[-1]), value=-torch.inf) for table in tables]),
            relaxation,
            moment,
        )

    def _by_table(self, moment: Moment) -> dict[str, Tensor]:
        """Name -> operation weights ``(edges, M)``."""
        shapes = {name: (table.shape[:-1].numel(), table.shape[-1]) for name, table in self.tables.items()}
        parts = self._relaxed(self.relaxation, moment).split([edges for edges, _ in shapes.values()])
        return {name: part[:, :width] for (name, (_, width)), part in zip(shapes.items(), parts, strict=True)}

    def _weights_at(self, moment: Moment) -> dict[str, Tensor]:
        by_table = self._by_table(moment)
        return {
            label: row
            for name, labels in self._labels.items()
            for label, row in zip(labels, by_table[name], strict=True)
        }

    def table_weights(self) -> dict[str, Tensor]:
        """The operation weights under the present relaxation and moment: name -> tensor of the table's shape.

        With these tensors, every operation runs; use :meth:`operation_weights` to skip negligible ones.
        """
        with self._gradients_wanted():
            weights = self._by_table(self.moment)
        return {name: weights[name].reshape(table.shape) for name, table in self.tables.items()}

    def operation_weights(self) -> dict[str, list[Weights]]:
        """The operation weights as rows for ``MixedOp(...)(x, row)`` that decide what runs: name -> one entry per edge.

        Call this once per forward: one transfer to the host decides all tables.
        """
        decided = self._decide()
        return {name: [decided[label]._replace(row=label) for label in labels] for name, labels in self._labels.items()}

    # The read-out

    def indices(self) -> dict[str, list[int]]:
        """The strongest candidate of every row: name -> one index per edge; an exact tie goes to the lower one."""
        return {
            name: table.detach().reshape(-1, table.shape[-1]).argmax(-1).tolist() for name, table in self.tables.items()
        }

    def choices(self) -> dict[str, tuple[str, ...]]:
        """What is chosen of every row that a mixed operation was called with, as :class:`Alphas` says."""
        alphas = self.row_alphas()
        return {label: kept(ops[0].names, alphas[label], self.discretization) for label, ops in self.rows.items()}

    def _copied(self, memo: dict[int, Any], chosen: Mapping[str, tuple[str, ...]]) -> nn.Module:
        found = super()._copied(memo, chosen)
        for owner, attribute in self._places.values():  # the forward of the copy may still read them
            twin = memo[id(owner)]
            table = getattr(twin, attribute)
            if isinstance(table, nn.Parameter):
                delattr(twin, attribute)
                twin.register_buffer(attribute, table.detach(), persistent=False)
        return found


def _places(model: nn.Module, tables: Mapping[str, Tensor]) -> dict[str, tuple[nn.Module, str]]:
    """The modules and attributes that hold the tables, as far as there are any."""
    return {
        name: (module, attribute)
        for name, table in tables.items()
        for module in model.modules()
        for attribute, value in {**vars(module), **dict(module.named_parameters(recurse=False))}.items()
        if value is table
    }
