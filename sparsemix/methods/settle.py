"""Undecided rows are settled by measurement: the most accurate of the few cells in question is kept.

If two operations of an edge help each other, their alphas stay tied at any temperature, and the last epoch takes one of
them by chance. The cells in question, which differ only in such rows, are taken from the supernet and measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, ClassVar

from ..measure.undecided import UNDECIDED_WITHIN, undecided
from ..supernet.group import ArchParameterGroup
from .darts import PLAIN
from .method import Evidence, Method, Part, Plan

__all__ = ["METHODS", "Settle", "in_question"]


def in_question(close: Mapping[str, Sequence[str]], most: int) -> list[dict[str, str]]:
    """The cells that undecided rows leave open, each as row -> operation; the cell of strongest operations comes first.

    Rows with the fewest close operations are taken first; a row that would make more than ``most`` cells is left out.

    Example:
        >>> in_question({"a": ["skip", "conv"], "b": ["conv", "pool", "none"]}, most=3)
        [{'a': 'skip'}, {'a': 'conv'}]
    """
    rows: list[str] = []
    for row in sorted(close, key=lambda row: len(close[row])):
        if prod(len(close[each]) for each in (*rows, row)) <= most:
            rows.append(row)
    return [dict(zip(rows, names, strict=True)) for names in product(*(close[row] for row in rows))]


@dataclass(frozen=True)
class Settle(Part):
    """Before the last epochs, the most accurate of the cells in question decides the undecided rows.

    Each cell is measured without training, on the alphas' images, with its own batch-norm statistics.
    """

    settle_epochs: int = 1
    """Epochs at the end of the search that train the settled rows."""
    settle_within: float = UNDECIDED_WITHIN
    """A row is undecided if its strongest alpha leads by less than this many temperatures."""
    settle_cells: int = 32
    """Maximum number of cells to measure; rows that would make more are not settled."""

    needs_mixtures: ClassVar[str | None] = "settles rows whose alphas have been trained"

    def __post_init__(self) -> None:
        if self.settle_epochs < 1 or not self.settle_within > 0 or self.settle_cells < 2:
            raise ValueError(
                f"Settle: need settle_epochs >= 1, settle_within > 0 and settle_cells >= 2, got {self.settle_epochs}, "
                f"{self.settle_within} and {self.settle_cells}"
            )

    def check(self, arch: ArchParameterGroup, epochs: int) -> None:
        if self.settle_epochs >= epochs:
            raise ValueError(
                f"Settle: settle_epochs={self.settle_epochs} leaves nothing of a search of {epochs} epochs"
            )

    def decide(self, arch: ArchParameterGroup, evidence: Evidence) -> Plan:
        if evidence.moment.epoch != evidence.epochs - self.settle_epochs:
            return {}
        close = undecided(arch, evidence.temperature, self.settle_within) or {}
        cells = in_question(close, self.settle_cells)
        if len(cells) < 2:
            return {"settled": {}}
        measured = [(self._accuracy(arch, cell, evidence), cell) for cell in cells]
        accuracy, best = max(measured, key=lambda each: each[0])
        for row, name in best.items():
            arch.restrict(row, [name])
        others: list[dict[str, Any]] = [{"accuracy": value, "cell": cell} for value, cell in measured]
        return {"settled": best, "settled_accuracy": accuracy, "settled_among": others}

    def _accuracy(self, arch: ArchParameterGroup, cell: Mapping[str, str], evidence: Evidence) -> float:
        """Accuracy of the supernet with this cell alone."""
        allowed = {row: arch.rows[row][0].allowed_names for row in cell}
        try:
            for row, name in cell.items():
                arch.restrict(row, [name])
            with arch.discretized():
                return evidence.accuracy()
        finally:
            for row, names in allowed.items():
                arch.restrict(row, names)


METHODS = (Method("settle", (Settle(),), "undecided edges are settled by measuring the cells in question", PLAIN),)
