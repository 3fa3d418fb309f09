"""DARTS+PT: operations are chosen by the accuracy that the supernet loses without them, not by their alphas.

Source: Wang et al., "Rethinking Architecture Selection in Differentiable NAS", Algorithm 1. Presets are their published
code. Differences: that code measures in training mode, where batch norms use each batch's statistics (here statistics
are renewed before each measurement); on NAS-Bench-201 it decides the last edge an epoch earlier, at a constant rate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..relaxations import NEVER, Moment, Relaxation
from ..supernet.group import ArchParameterGroup
from .darts import SETTINGS
from .method import Evidence, Method, Part, Phase, Plan

__all__ = ["METHODS", "PT", "Without", "by_kind", "needed"]

T = TypeVar("T")


class Without(nn.Module):
    """A relaxation with some weights set to 0; the other weights do not change and are not renormalised.

    Args:
        relaxation: the relaxation of all rows.
        row: index of the row.
        candidate: index of the candidate in this row; None: all candidates.

    Example:
        >>> from sparsemix.relaxations import Softmax
        >>> Without(Softmax(), row=0, candidate=1)(torch.zeros(2, 2))
        tensor([[0.5000, 0.0000],
                [0.5000, 0.5000]])
    """

    def __init__(self, relaxation: Relaxation, row: int, candidate: int | None = None) -> None:
        super().__init__()
        self.relaxation = relaxation
        self.row = row
        self.candidate = candidate

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        mask = torch.ones_like(alpha)
        mask[self.row, slice(None) if self.candidate is None else self.candidate] = 0
        return self.relaxation(alpha, moment) * mask


@dataclass(frozen=True)
class PT(Part):
    """After the search, choose for each edge the operation whose removal lowers accuracy most; then each node's edges.

    One edge of every kind of cell is decided at a time, in random order, and the supernet is tuned in between.
    """

    tuning_epochs: int = 5
    """Epochs of tuning between two decisions."""
    tuning_lr: float = 0.1
    """First learning rate of the tuning, as a share of the search's."""
    edges_per_node: int | None = None
    """Edges that each node keeps; by default all."""
    fixed_alphas: bool = False
    """Never train the alphas, so that operations are mixed evenly throughout."""

    needs_mixtures: ClassVar[str | None] = "measures a mixture without one of its operations"

    def __post_init__(self) -> None:
        if self.tuning_epochs < 1:
            raise ValueError(f"PT: tuning_epochs must be at least 1, got {self.tuning_epochs}")
        if not self.tuning_lr > 0:
            raise ValueError(f"PT: tuning_lr must be positive, got {self.tuning_lr}")
        if self.edges_per_node is not None and self.edges_per_node < 1:
            raise ValueError(f"PT: edges_per_node must be at least 1, got {self.edges_per_node}")

    def phases(self, arch: ArchParameterGroup, epochs: int) -> Sequence[Phase]:
        edges = max(len(rows) for rows in by_kind(row for row in arch.rows if len(arch.rows[row][0]) > 1).values())
        nodes = max((len(nodes) for nodes in self._crowded_nodes(arch).values()), default=0)
        return [Phase(epochs), Phase(self.tuning_epochs * (edges + nodes - 1) + 1, self.tuning_lr)]

    def trains_alphas(self, epoch: int, epochs: int) -> bool:
        return not self.fixed_alphas

    def decide(self, arch: ArchParameterGroup, evidence: Evidence) -> Plan:
        moment, accuracy = evidence.moment, evidence.accuracy
        tuned = moment.epoch - evidence.epochs
        if tuned < 0 or tuned % self.tuning_epochs:
            return {}
        undecided = by_kind(row for row in arch.rows if len(arch.rows[row][0].allowed_names) > 1)
        if undecided:
            for kind, rows in undecided.items():
                row = _drawn(rows, moment, f"edge {kind}")
                arch.restrict(row, [needed(arch, row, accuracy)])
        else:
            for kind, nodes in self._crowded_nodes(arch).items():
                self._thin_out(arch, nodes[_drawn([*nodes], moment, f"node {kind}")], accuracy)
        left = {row: op.allowed_names for row, (op, *_) in arch.rows.items()}
        return {"decided": {row: [*names] for row, names in left.items() if len(names) < 2}}

    def _thin_out(self, arch: ArchParameterGroup, rows: Sequence[str], accuracy: Callable[[], float]) -> None:
        """Remove edges of a node: those whose removal lowers the supernet's accuracy least."""
        without = {}
        for row in rows:
            with arch.using(Without(arch.relaxation, [*arch.rows].index(row))):
                without[row] = accuracy()
        for row in sorted(rows, key=without.__getitem__)[self.edges_per_node :]:
            arch.restrict(row, ())

    def _crowded_nodes(self, arch: ArchParameterGroup) -> dict[str, dict[str, list[str]]]:
        """Kind of cell -> node -> rows that lead to it, for nodes with more such rows than they may keep."""
        leading: dict[str, list[str]] = {}
        for row, (op, *_) in arch.rows.items():
            if op.node is not None and op.allowed_names:
                leading.setdefault(str(op.node), []).append(row)
        crowded = {n: rows for n, rows in leading.items() if len(rows) > (self.edges_per_node or len(rows))}
        return {kind: {node: crowded[node] for node in nodes} for kind, nodes in by_kind(crowded).items()}


def needed(
    arch: ArchParameterGroup, row: str, accuracy: Callable[[], float], among: Sequence[str] | None = None
) -> str:
    """The candidate whose removal lowers the supernet's accuracy most, among ``among`` or all allowed candidates."""
    position, names = [*arch.rows].index(row), arch.rows[row][0].names
    without = {}
    for name in arch.rows[row][0].allowed_names if among is None else among:
        with arch.using(Without(arch.relaxation, position, names.index(name))):
            without[name] = accuracy()
    return min(without, key=without.__getitem__)


_EDGE_OR_NODE = re.compile(r"(.+) \d+(<-\d+)?")


def by_kind(labels: Iterable[str]) -> dict[str, list[str]]:
    """Kind of cell -> labels: ``normal`` of ``normal 3<-1``. Labels of other forms make one group."""
    kinds: dict[str, list[str]] = {}
    for label in labels:
        match = _EDGE_OR_NODE.fullmatch(label)
        kinds.setdefault(match[1] if match else "", []).append(label)
    return kinds


def _drawn(choices: Sequence[T], moment: Moment, name: str) -> T:
    return choices[int(torch.randint(len(choices), (), generator=moment.generator(name)))]


_STEP: dict[str, Any] = {**SETTINGS, "weights_first": False, "sampling": "anew"}
_NB201: dict[str, Any] = {**_STEP, "epochs": 100, "weight_decay": 3e-4, "nesterov": False}
_DARTS: dict[str, Any] = {**_STEP, "edges_per_node": 2}

METHODS = (
    Method(
        "pt",
        (PT(),),
        "operations chosen after the search by the accuracy that is lost without them",
        {
            "nb201": {"original": {"*": _NB201}},
            "darts": {"original": {"*": _DARTS}},
            "robust": {"original": {"*": _DARTS}},
            "timm": {"default": {"*": SETTINGS}},
        },
    ),
)
