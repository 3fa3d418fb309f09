"""What operations cost, measured by running them, and the expected cost of an architecture as a term of the loss."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .._utils.modes import evaluating
from .._utils.tensors import fitting
from ..relaxations import Softmax
from ..supernet.architecture import Architecture, Genotype, check_architecture
from ..supernet.mixed_op import MixedOp, call_arguments

__all__ = [
    "CostTable",
    "CostTerm",
    "NetworkCost",
    "Unit",
    "macs",
    "measure_costs",
    "network_cost",
    "parameters",
    "seconds",
]

Unit = Literal["parameters", "macs", "seconds"]


def parameters(module: nn.Module, x: Tensor | None = None, **keywords: Any) -> int:
    """The number of parameters, including architecture parameters (``alpha``)."""
    return sum(parameter.numel() for parameter in module.parameters())


def macs(module: nn.Module, x: Tensor, **keywords: Any) -> float:
    """Multiply-accumulates of a forward on ``x``, counted while the module runs.

    Convolutions and matrix products count, whatever layer computes them, except fused recurrent ones (``nn.LSTM``).
    """
    counter = FlopCounterMode(display=False)
    # Compute attention as matrix products, since the counter supports only some of the fused kernels.
    with evaluating(module), _frozen(module), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _unfused(), counter:
        module(x, **keywords)
    return counter.get_total_flops() / 2


@contextmanager
def _unfused() -> Iterator[None]:
    """A context in which ``nn.MultiheadAttention`` runs as single operators: the counter counts a fused layer as 0."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """A context in which no parameter requires gradients: the counter fails on views of parameters that do."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def seconds(module: nn.Module, x: Tensor, repeats: int = 10, **keywords: Any) -> float:
    """Median duration in seconds of a forward on ``x``, in evaluation mode and on the module's device."""
    times = []
    with evaluating(module), torch.no_grad():
        for _ in range(repeats + 1):  # the first one warms up
            _synchronize(x)
            started = time.perf_counter()
            module(x, **keywords)
            _synchronize(x)
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


@dataclass(frozen=True)
class NetworkCost:
    """What a network costs: its parameters, and the multiply-accumulates of one image."""

    parameters: int
    macs: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.3f} M parameters, {self.macs / 1e6:.1f} M MACs"


def network_cost(model: nn.Module, x: Tensor) -> NetworkCost:
    """Run the network on a batch ``x``; count multiply-accumulates per image, and the parameters used.

    An auxiliary classifier does not run in evaluation and is not counted.

    Example:
        >>> network_cost(nn.Conv2d(2, 3, 1, bias=False), torch.zeros(1, 2, 4, 4))
        NetworkCost(parameters=6, macs=96)
    """
    auxiliary = getattr(model, "auxiliary", None)
    left_out = {id(p) for p in auxiliary.parameters()} if isinstance(auxiliary, nn.Module) else set()
    count = sum(p.numel() for p in model.parameters() if id(p) not in left_out)
    return NetworkCost(count, round(macs(model, x) / len(x)))


def _synchronize(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


_MEASURES = {"parameters": parameters, "macs": macs, "seconds": seconds}


@dataclass(frozen=True)
class CostTable:
    """The cost of every candidate, and of the parts of the model that do not depend on the choice.

    Attributes:
        unit: the unit of all costs.
        fixed: the cost of the model without its mixed operations.
        rows: label -> candidate -> its cost, summed over the operations that share the row.
    """

    unit: Unit
    fixed: float
    rows: Mapping[str, Mapping[str, float]]

    def of(self, genotype: Genotype) -> float:
        """The cost of a choice: label -> candidate, or label -> candidates as returned by ``arch.choices()``.

        Rows that were removed, which ``arch.genotype()`` leaves out, cost nothing.

        Raises:
            ValueError: the choice names a row that is not in the table.
        """
        if others := [label for label in genotype if label not in self.rows]:
            raise ValueError(f"CostTable: no row is called {', '.join(others)}; there are {', '.join(self.rows)}")
        chosen = {label: (names,) if isinstance(names, str) else names for label, names in genotype.items()}
        return self.fixed + sum(self.rows[label][name] for label, names in chosen.items() for name in names)

    @property
    def cheapest(self) -> float:
        return self.fixed + sum(min(row.values()) for row in self.rows.values())

    @property
    def most_expensive(self) -> float:
        return self.fixed + sum(max(row.values()) for row in self.rows.values())


def measure_costs(arch: Architecture, example: Tensor, unit: Unit = "macs") -> CostTable:
    """Measure every candidate once, on the input that it receives when the model runs on ``example``.

    Args:
        arch: architecture parameters of the model.
        example: an input of the model, at the image size of interest.
        unit: ``"parameters"``, ``"macs"`` or ``"seconds"``, the latter two per image.

    Raises:
        ValueError: an unknown unit, or a mixed operation within a candidate of another one, whose cost would depend on
            both choices; rows that share parameters, if these are counted.

    Example:
        >>> from sparsemix import ArchParameterGroup
        >>> model = nn.Sequential(MixedOp({"skip": nn.Identity(), "conv": nn.Conv2d(2, 2, 1, bias=False)}))
        >>> measure_costs(ArchParameterGroup(model), torch.zeros(1, 2, 4, 4))
        CostTable(unit='macs', fixed=0.0, rows={'0': {'skip': 0.0, 'conv': 64.0}})
    """
    if unit not in _MEASURES:
        raise ValueError(f"measure_costs: the unit must be one of {', '.join(_MEASURES)}, got {unit!r}")
    check_architecture(arch, "measure_costs")
    for label, ops in arch.rows.items():
        for name, candidate in ops[0].candidates.items():
            if any(isinstance(module, MixedOp) for module in candidate.modules()):
                raise ValueError(
                    f"measure_costs: candidate {name!r} of row {label!r} holds a mixed operation; a table has no costs "
                    f"of nested choices"
                )
    if unit == "parameters":
        _check_unshared(arch)
    example = fitting(example, arch.model)
    images = 1 if unit == "parameters" else len(example)  # of the model; a candidate may see windows or patches
    calls: dict[MixedOp, list[tuple[Tensor | None, dict[str, Any]]]] = {op: [] for op in arch.operations}

    def record(op: Any, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
        x, _, keywords = call_arguments(*inputs, **given)
        calls[op].append((x, keywords))

    hooks = [op.register_forward_pre_hook(record, with_kwargs=True) for op in arch.operations]
    try:
        with evaluating(arch.model), torch.no_grad(), arch.using(Softmax()):
            arch.model(example)
    finally:
        for hook in hooks:
            hook.remove()
    measure: Any = _MEASURES[unit]
    rows: dict[str, dict[str, float]] = {label: {} for label in arch.rows}
    for label, ops in arch.rows.items():
        for name in ops[0].names:
            if unit == "parameters":  # each counts once, however many operations of the row use it
                rows[label][name] = parameters(nn.ModuleList(op.candidates[name] for op in ops))
            else:
                uses = [(op.candidates[name], x, keywords) for op in ops for x, keywords in calls[op]]
                rows[label][name] = sum(measure(module, x, **keywords) for module, x, keywords in uses) / images
    measured = CostTable(unit, 0.0, rows)
    firsts = {label: ops[0].names[0] for label, ops in arch.rows.items()}  # the group's own choice may be empty
    fixed = measure(arch.discretize(firsts), example) / images - measured.of(firsts)
    return CostTable(unit, max(float(fixed), 0.0), rows)


def _check_unshared(arch: Architecture) -> None:
    """Check that no two rows share parameters, which are there if either of two choices is made."""
    users: dict[nn.Parameter, str] = {}
    for label, ops in arch.rows.items():
        for name in ops[0].names:
            for parameter in nn.ModuleList(op.candidates[name] for op in ops).parameters():
                if users.setdefault(parameter, label) != label:
                    raise ValueError(
                        f"measure_costs: candidate {name!r} of row {label!r} shares parameters with one of row "
                        f"{users[parameter]!r}; a table cannot count them once. Measure macs or seconds"
                    )


class CostTerm:
    """The expected cost of the architecture under its present weights, to be added to the loss of the alphas.

    ``E[cost] = fixed + sum_rows sum_m a_m c_m``. Without a budget the term is ``weight E[cost] / max_cost``, where
    max_cost is the cost of the most expensive choice; with one, ``weight max(0, E[cost] / budget - 1)``, which is zero
    within the budget. In a weights update it is a constant. If edges are weighted, ``a_m`` is the weight used in the
    forward, ``beta_e a_em``.

    Args:
        arch: architecture parameters of the model.
        table: what the candidates cost.
        weight: of the term, relative to the loss.
        budget: the cost that the result should not exceed, in the table's unit.

    Raises:
        ValueError: a negative weight, a budget that no choice keeps, or a table of other rows or candidates.

    Example:
        >>> from sparsemix import ArchParameterGroup
        >>> model = nn.Sequential(MixedOp({"skip": nn.Identity(), "conv": nn.Conv2d(2, 2, 1, bias=False)}))
        >>> arch = ArchParameterGroup(model, Softmax())
        >>> term = CostTerm(arch, measure_costs(arch, torch.zeros(1, 2, 4, 4)), weight=0.1)
        >>> 0.04 < term().item() < 0.06  # half of the most expensive, times 0.1
        True

    Source: Cai et al., "ProxylessNAS", Eq. 7 and 8 (expected latency).
    """

    def __init__(self, arch: Architecture, table: CostTable, weight: float = 1.0, budget: float | None = None) -> None:
        if not 0 <= weight < math.inf:
            raise ValueError(f"CostTerm: the weight must not be negative, nor infinite, got {weight}")
        searched = {label: ops[0].names for label, ops in arch.rows.items()}
        for label in {**searched, **table.rows}:
            names, priced = searched.get(label, ()), table.rows.get(label, {})
            if {*names} != {*priced}:
                raise ValueError(
                    f"CostTerm: the table is of another model: in row {label!r} it prices "
                    f"{', '.join(priced) or 'nothing'}, the candidates are {', '.join(names) or 'none'}; "
                    f"use measure_costs() of this model"
                )
        if budget is not None and not budget >= table.cheapest:
            raise ValueError(
                f"CostTerm: no choice keeps a budget of {budget:.4g} {table.unit}; the cheapest costs "
                f"{table.cheapest:.4g}, the most expensive {table.most_expensive:.4g}"
            )
        self.arch = arch
        self.table = table
        self.weight = weight
        self.budget = budget
        self._costs = {label: [table.rows[label][name] for name in names] for label, names in searched.items()}

    def expected(self) -> Tensor:
        """The expected cost under the present relaxed weights, a scalar."""
        weights = self.arch.weights()
        parts = [weights[label] @ weights[label].new_tensor(costs) for label, costs in self._costs.items()]
        return self.table.fixed + torch.stack(parts).sum()

    def __call__(self) -> Tensor:
        expected = self.expected()
        if self.budget is None:
            return self.weight * expected / (self.table.most_expensive or 1.0)
        return self.weight * (expected / self.budget - 1).clamp_min(0)
