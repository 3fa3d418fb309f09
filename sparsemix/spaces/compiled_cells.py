"""Compiling the cells of a supernet, one graph for each set of operations that runs in them.

A cell's forward is a chain of small operators. Once it is fixed which operations run, it is an ordinary function of the
cell's inputs, its operation weights and its tensors. That function is traced and compiled; what a forward defers to its
end (running statistics, zero gradients) is returned by it, and deferred as usual.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import chain
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from .._utils.torch_private import has_forward_hooks
from ..supernet.compilation import Compilations
from ..supernet.execution import Weights
from ..supernet.forward import apart, in_forward, with_zero_gradients
from ..supernet.mixed_op import MixedOp
from .cells import Cell

__all__ = ["compile_cells"]


def compile_cells(model: nn.Module, backend: str = "inductor", after: int = 10) -> Compilations:
    """Compile the cells of a supernet, in place; each set of operations becomes a graph of its own.

    Compiling a set takes up to minutes, so it pays for sets that run often: all operations in smooth batches, and the
    same few in sparse batches once the alphas have settled. Other forwards run as before: sets that have not recurred
    often enough, evaluation, forwards without gradients or under autocast, cells that are checkpointed, and cells with
    hooks inside. Cells with the same operations and shapes share their graphs.

    Results are equal up to rounding; a drop path and noise draw other numbers than without compilation. A run that is
    resumed counts anew, and so is not repeated bit for bit.

    Args:
        model: contains :class:`~sparsemix.spaces.cells.Cell` modules, such as the supernets of NAS-Bench-201 and of the
            DARTS space. Copies of it (``arch.discretize()``) are not compiled.
        backend: name of a ``torch.compile`` backend.
        after: a cell's set is compiled when it has run this often; 0: at once.

    Returns:
        The counter of compilations.

    Raises:
        ValueError: the model has no cell.

    Example:
        >>> from sparsemix import ArchParameterGroup
        >>> from sparsemix.spaces.nb201 import mixed_cell
        >>> model = nn.Sequential(mixed_cell(channels=4), mixed_cell(channels=4))
        >>> arch = ArchParameterGroup(model)
        >>> compilations = compile_cells(model, backend="eager", after=0)
        >>> model(torch.randn(2, 4, 8, 8, requires_grad=True)).sum().backward()
        >>> compilations.units, compilations.count
        (2, 1)
    """
    cells = [module for module in model.modules() if isinstance(module, Cell)]
    if not cells:
        raise ValueError(
            f"compile_cells: {type(model).__name__} has no cells; use compile_operations, which compiles the "
            f"candidates of any model"
        )
    graphs = _Graphs(Compilations(backend))
    for cell in cells:
        cell.forward = _CompiledForward(cell, graphs, after)
        graphs.compilations.units += 1
    return graphs.compilations


class _Graphs:
    """Compiled graphs, of which cells that compute the same share one."""

    def __init__(self, compilations: Compilations) -> None:
        self.compilations = compilations
        self._compiled: dict[Hashable, Callable[..., Sequence[Tensor]]] = {}

    def compiled(self, graph: GraphModule, key: Hashable) -> Callable[..., Sequence[Tensor]]:
        if any(node.op == "get_attr" for node in graph.graph.nodes):  # holds tensors of its own
            return torch.compile(graph, backend=self.compilations, dynamic=False)
        if (same := (graph.code, key)) not in self._compiled:
            self._compiled[same] = torch.compile(graph, backend=self.compilations, dynamic=False)
        return self._compiled[same]


class _Compiled(NamedTuple):
    """A cell's forward with one set of operations.

    Tensors are numbered in the order: inputs of the cell, operation weights, the cell's own.
    """

    run: Callable[..., Sequence[Tensor]]
    """Returns the cell's output, then the mean and the variance of each batch norm."""
    used: Sequence[int]
    """The tensors that it is called with."""
    without_part: Sequence[int]
    """Those that get zero gradients."""
    norms: Sequence[nn.BatchNorm2d]
    """Those whose running statistics move."""


class _CompiledForward:
    """Stands in for a cell's ``forward``."""

    def __init__(self, cell: Cell, graphs: _Graphs, after: int) -> None:
        self.cell = cell
        self._graphs = graphs
        self._after = after
        self._is_tracing = False
        self._read_structure()

    def _read_structure(self) -> None:
        self._seen: Counter[Hashable] = Counter()
        self._compiled: dict[Hashable, _Compiled] = {}
        self._candidates = self._present_candidates()
        self._modules = [*self.cell.modules()]
        self._owners: dict[str, tuple[nn.Module, str]] = {}  # of all tensors but those of mixed operations
        for path, _ in chain(self.cell.named_parameters(), self.cell.named_buffers()):
            parent, _, name = path.rpartition(".")
            if not isinstance(owner := self.cell.get_submodule(parent), MixedOp):
                self._owners[path] = owner, name

    def _present_candidates(self) -> list[nn.Module]:
        edges = self.cell.edges.values()
        return [op for edge in edges for op in (edge if isinstance(edge, MixedOp) else [edge])]

    def __reduce__(self) -> tuple[Any, ...]:
        return _plain_forward, (self.cell,)  # copies, as of discretize(), are not compiled

    def __call__(self, *inputs: Any, **keywords: Any) -> Tensor:
        if self._is_tracing or not self._applies(*inputs, *keywords.values()):
            return self._plain(*inputs, **keywords)
        if self._candidates != self._present_candidates():  # they have been widened, say
            self._read_structure()
        weights = self.cell.operation_weights()
        if not weights:  # all edges have been replaced by their chosen candidates
            return self._plain(*inputs)
        own = [getattr(module, name) for module, name in self._owners.values()]
        values = [*inputs, *(scalar for row in weights.values() for scalar in row.scalars), *own]
        key = self._set(inputs, weights), tuple(value.requires_grad for value in values)
        if key not in self._compiled:
            self._seen[key] += 1
            if self._seen[key] <= self._after:
                return self._plain(*inputs, weights)
            self._compiled[key] = self._compile(values, len(inputs), weights, key)
        compiled = self._compiled[key]
        out, *statistics = compiled.run(*(values[k] for k in compiled.used))
        with in_forward() as forward:
            forward.move(compiled.norms, statistics[::2], statistics[1::2])
        return with_zero_gradients(out, [values[k] for k in compiled.without_part])

    def _plain(self, *inputs: Any, **keywords: Any) -> Tensor:
        return type(self.cell).forward(self.cell, *inputs, **keywords)

    def _applies(self, x: Tensor, *others: Any) -> bool:
        return (
            all(isinstance(other, Tensor) for other in others)  # no weights, which a cell is given to be checkpointed
            and self.cell.training
            and torch.is_grad_enabled()
            and not torch.is_autocast_enabled(x.device.type)
            and not any(map(has_forward_hooks, self._modules))
        )

    def _set(self, inputs: Sequence[Tensor], weights: Mapping[str, Weights]) -> Hashable:
        """What the traced function depends on besides the values of tensors; notes what runs, as every forward does."""
        ran = []
        for name, row in weights.items():
            op: Any = self.cell.edges[name]
            op.ran, op.row = op.executions(row), row.row
            ran.append((op.is_fixed, *op.ran))
        return tuple((x.shape, x.stride(), x.dtype, x.device) for x in inputs), tuple(ran)

    def _compile(
        self, values: Sequence[Tensor], count: int, weights: Mapping[str, Weights], key: Hashable
    ) -> _Compiled:
        norms: list[nn.BatchNorm2d] = []
        without_part: list[int] = []

        def function(*given: Tensor) -> list[Tensor]:
            rest = iter(given[count:])
            rows = {name: row._replace(scalars=[next(rest) for _ in row.scalars]) for name, row in weights.items()}
            with apart() as forward:
                out = functional_call(self.cell, dict(zip(self._owners, rest, strict=True)), (*given[:count], rows))
            norms[:] = forward.moving
            places = {id(value): k for k, value in enumerate(given)}
            owed = [places.get(id(value)) for value in forward.owed]
            # A node's value that is not read is None here, and whatever it was computed from gets zero gradients.
            without_part[:] = range(len(given)) if None in owed else [k for k in owed if k is not None]
            return [out, *(value for statistics in forward.moving.values() for value in statistics)]

        self._is_tracing = True
        try:
            examples = [value.detach().requires_grad_(value.requires_grad) for value in values]
            graph = make_fx(function, tracing_mode="fake")(*examples)
        finally:
            self._is_tracing = False
        used = []
        for k, placeholder in enumerate([node for node in graph.graph.nodes if node.op == "placeholder"]):
            if placeholder.users:
                used.append(k)
            else:
                graph.graph.erase_node(placeholder)
        graph.recompile()
        return _Compiled(self._graphs.compiled(graph, key), used, without_part, norms)


def _plain_forward(cell: Cell) -> Any:
    return MethodType(type(cell).forward, cell)
