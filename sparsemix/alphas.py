"""What every set of architecture parameters can do, whoever owns them; and tables of alphas that other code owns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from .mixed_op import Execution, MixedOp, Weights
from .relaxation import Argmax, Softmax, SparseSmoothSoftmax, entropy

__all__ = ["AlphaTables", "Alphas", "Relaxation"]

Relaxation = Callable[[Tensor, bool], Tensor]


class Alphas:
    """Architecture parameters with their relaxation, phi, and the decision which operations run.

    Subclasses say where the alphas are (:meth:`named_parameters`).

    Attributes:
        phi: whether the coming batch is a sparse one (Eq. 15); :class:`~sparsemix.BatchMixedScheduler` sets it.
        relaxation: ``(alpha, phi) -> weights``.
        threshold: see :class:`~sparsemix.ArchParameterGroup`.
    """

    def __init__(self, relaxation: Relaxation | None, threshold: float) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"{type(self).__name__}: the threshold must be in [0, 1), got {threshold}")
        self.threshold = threshold
        self.relaxation: Relaxation = SparseSmoothSoftmax() if relaxation is None else relaxation
        self.phi = False
        self._alphas_fixed = False

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

    def _decide(self, rows: Mapping[str, Tensor], always_run: frozenset[str] = frozenset()) -> dict[str, Weights]:
        """Which operations run for these relaxed weights: decided for all rows by one transfer to the host."""
        flat = torch.cat([row.detach() for row in rows.values()]).tolist()
        if not all(map(math.isfinite, flat)):
            self.check_finite()
            raise FloatingPointError(f"the relaxation gave weights that are not finite: {flat}")
        values, decided = iter(flat), {}
        for label, row in rows.items():
            sizes = [abs(next(values)) for _ in range(len(row))]
            decided[label] = Weights(row.unbind(), self._executions(sizes, label in always_run))
        return decided

    def _executions(self, sizes: list[float], always_run: bool) -> list[Execution]:
        if always_run:
            return [Execution.FULL] * len(sizes)
        strongest = max(sizes)
        weak = Execution.SKIPPED if self._alphas_fixed else Execution.SCORED
        threshold = self.threshold if torch.is_grad_enabled() else 0.0
        return [
            Execution.SKIPPED if size == 0 else weak if size < threshold and size < strongest else Execution.FULL
            for size in sizes
        ]


class AlphaTables(Alphas):
    """Alphas that other code owns, as tables of one row an edge; made by ``ArchParameterGroup.from_parameters``.

    The other code goes on owning them and asks here for the operation weights, wherever it called ``softmax``.

    Args:
        tables: name -> parameter ``(edges, M)``, or ``(M,)``.
        relaxation, threshold: as for :class:`~sparsemix.ArchParameterGroup`.
        model: the module whose weights are searched with them, for :meth:`weight_parameters`.

    Raises:
        ValueError: no tables, or one that is no leaf with gradients, of one or two dimensions.

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
        self.tables = dict(tables)
        self._model = model

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
        alphas = {*self.parameters(), *(op.alpha for op in self.model.modules() if isinstance(op, MixedOp))}
        return [parameter for parameter in self.model.parameters() if parameter not in alphas]

    def weights(self) -> dict[str, Tensor]:
        """The operation weights under the present relaxation and phi: name -> tensor of the table's shape."""
        with self._gradients_wanted():
            return {name: self.relaxation(table, self.phi) for name, table in self.tables.items()}

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
        with torch.no_grad():
            return sum(float(entropy(relaxation(table, True))) for table in self.tables.values())

    def genotype(self) -> dict[str, list[int]]:
        """The strongest candidate of every row: name -> one index an edge; an exact tie goes to the lower one."""
        return {
            name: table.detach().reshape(-1, table.shape[-1]).argmax(-1).tolist() for name, table in self.tables.items()
        }
