"""A cell that was found, drawn as a graph: its nodes in a row, its edges as arcs that carry their operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..spaces.darts import DartsGenotype
from ..spaces.nb201 import NB201Genotype
from .drawing import COLOURS, ON_PAPER, Ink, sheet

__all__ = ["Cell", "cells_of", "draw_cell"]

KINDS = {"skip": 0, "none": 6, "pool": 2, "noise": 3, "conv": 1}
"""Part of an operation's name -> index of its colour; the first match applies."""


class Cell(NamedTuple):
    """A cell as a graph.

    Attributes:
        name: such as "normal cell"; empty where there is only one.
        nodes: name of each node, in order; edges lead to the right.
        edges: (source, target, operation), by the places of the nodes.
    """

    name: str
    nodes: tuple[str, ...]
    edges: tuple[tuple[int, int, str], ...]


def cells_of(genotype: str) -> list[Cell]:
    """The cells of a genotype in the notation of its space; none where it is not one of cells.

    Example:
        >>> cells_of("|skip_connect~0|+|none~0|none~1|+|none~0|none~1|avg_pool_3x3~2|")[0].edges[0]
        (0, 1, 'skip_connect')
    """
    if genotype.startswith("|"):
        edges = [(*_ends(edge), operation) for edge, operation in NB201Genotype.parse(genotype).by_edge().items()]
        return [Cell("", ("input", "1", "2", "output"), tuple(edges))]
    if genotype.startswith("Genotype("):
        found = DartsGenotype.parse(genotype)
        return [_darts_cell(kind, found.edges(kind), getattr(found, f"{kind}_concat")) for kind in found.CELLS]
    return []


def _ends(edge: str) -> tuple[int, int]:
    target, source = edge.rstrip("'").split("<-")
    return int(source), int(target)


def _darts_cell(kind: str, edges: Mapping[str, str], concat: tuple[int, ...]) -> Cell:
    last = max([3, *(_ends(edge)[1] for edge in edges)])
    nodes = ("c[k-2]", "c[k-1]", *(str(node - 2) for node in range(2, last + 1)), "output")
    found = [(*_ends(edge), operation) for edge, operation in edges.items()]
    found += [(node, last + 1, "") for node in concat]
    return Cell("normal cell" if kind == "normal" else "reduction cell", nodes, tuple(found))


def draw_cell(cell: Cell, ink: Ink = ON_PAPER) -> Any:
    """The graph; all edges lead to the right. Those of the same length bow up and down in turn."""
    figure, axis = sheet(
        2.2 + 1.55 * len(cell.nodes), 0.8 + 1.0 * max(target - source for source, target, _ in cell.edges)
    )
    axis.set_axis_off()
    taken, bows = dict[int, int](), [0.3, -0.3]
    for source, target, operation in sorted(cell.edges, key=lambda edge: (edge[1] - edge[0], edge[0])):
        span = target - source
        taken[span] = taken.get(span, -1) + 1
        side = -1 if taken[span] % 2 or not operation else 1
        is_straight = span == 1 and sum(edge[:2] == (source, target) for edge in cell.edges) == 1
        bows.append(0.0 if is_straight else side * (0.4 * span + 0.1 * (source % 3)))
        _arc(axis, (source, target), bows[-1], operation, ink)
    for place, name in enumerate(cell.nodes):
        box = {"boxstyle": "round,pad=0.35", "facecolor": "#f2c94c", "edgecolor": "none"}
        axis.text(place, 0, name, ha="center", va="center", fontsize=10, color="#1a1a1a", bbox=box, zorder=4)
    axis.set_xlim(-0.5, len(cell.nodes) - 0.5)
    axis.set_ylim(min(bows) - 0.15, max(bows) + 0.15)
    return figure


def _arc(axis: Any, ends: tuple[int, int], bow: float, operation: str, ink: Ink) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    middle = sum(ends) / 2
    line = Path([(ends[0], 0), (middle, 2 * bow), (ends[1], 0)], [Path.MOVETO, Path.CURVE3, Path.CURVE3])
    colour = COLOURS[next((place for part, place in KINDS.items() if part in operation), 6)]
    dashes = ":" if operation in ("none", "") else "-"
    axis.add_patch(PathPatch(line, facecolor="none", edgecolor=colour, lw=1.8, linestyle=dashes, zorder=2))
    box = {"boxstyle": "round,pad=0.15", "facecolor": ink.ground, "edgecolor": "none"}
    if operation:
        axis.text(middle, bow, operation, ha="center", va="center", fontsize=8.5, bbox=box, zorder=3)
