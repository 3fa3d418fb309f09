"""Several runs in one figure: every single value of an outcome, and the courses of all runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .drawing import COLOURS, over_epochs, sheet
from .records import FinishedRun

__all__ = ["COMPARED", "draw_courses", "draw_values"]

COMPARED: Mapping[str, tuple[str, float, str]] = {
    "true_accuracy": ("true accuracy", 1.0, "%"),
    "discretized_accuracy": ("discretised accuracy", 100.0, "%"),
    "discretization_gap": ("discretisation gap", 100.0, "points"),
    "entropy": ("entropy", 1.0, "nats"),
    "leakage": ("output leakage", 100.0, "%"),
    "skips": ("skip connections", 1.0, "edges"),
    "error": ("error", 100.0, "%"),
    "cost": ("cost", 1.0, "units"),
    "seconds": ("time", 1.0, "s"),
}
"""Field of a summary -> title, factor, and unit."""


def draw_values(runs: Sequence[FinishedRun], groups: Sequence[str], field: str, factor: float, unit: str) -> Any:
    """One line per group, one dot per run."""
    names = [*dict.fromkeys(groups)]
    figure, axis = sheet(5.2, 1.0 + 0.32 * len(names))
    for place, name in enumerate(names):
        values = [
            factor * run.summary[field]
            for run, group in zip(runs, groups, strict=True)
            if group == name and run.summary.get(field) is not None
        ]
        colour = COLOURS[place % len(COLOURS)]
        if len(values) > 1:
            middle, deviation = statistics.fmean(values), statistics.stdev(values)
            axis.plot([middle - deviation, middle + deviation], [place, place], color=colour, lw=1.2)
            axis.plot([middle], [place], marker="|", markersize=14, markeredgewidth=2, color=colour)
        axis.plot(values, [place] * len(values), "o", color=colour, alpha=0.6, markersize=5, markeredgewidth=0)
    axis.set_yticks(range(len(names)), [_short(name) for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(unit)
    return figure


def draw_courses(runs: Sequence[FinishedRun], groups: Sequence[str], field: str, factor: float, label: str) -> Any:
    """One curve per run; each group has its colour and line style."""
    from matplotlib.lines import Line2D

    names = [*dict.fromkeys(groups)]
    looks: dict[str, Any] = {
        name: {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":", "-.")[i % 4]}
        for i, name in enumerate(names)
    }
    figure, axis = sheet()
    for run, group in zip(runs, groups, strict=True):
        having = [record for record in run.records if record.get(field) is not None]
        values = [factor * record[field] for record in having]
        axis.plot([record["epoch"] + 1 for record in having], values, **looks[group], lw=1, alpha=0.8)
    over_epochs(axis)
    axis.set_ylabel(label)
    handles = [Line2D([], [], **look) for look in looks.values()]
    figure.legend(handles, [_short(name) for name in names], loc="outside upper left", ncols=2)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:39]}…"
