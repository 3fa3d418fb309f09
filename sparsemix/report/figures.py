"""Figures of finished runs; needs matplotlib (the ``plots`` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .records import FinishedRun, group_names, middle_and_high

__all__ = ["draw_audits", "draw_runs"]

_COURSE = {
    "supernet_accuracy": "supernet accuracy",
    "discretized_accuracy": "discretised accuracy (Fig. 3b)",
    "entropy": "entropy at the training temperature, nats (Fig. 3a)",
    "leakage": "output leakage",
}
_FLOAT32 = 1e-7  # lower bound of the errors shown: the resolution of float32
_AUDIT = {
    "loss": "loss of a weights update, relative error",
    "gradient": "alpha's gradient, relative error",
    "cosine": "alpha's gradient, 1 - cosine",
    "update": "alpha's step, relative error",
}


def draw_runs(runs: Sequence[FinishedRun], figure: str | Path, fields: Sequence[str] = ()) -> None:
    """Accuracy, entropy and leakage over the epochs: one line per run, one colour for runs that differ only in seed.

    Args:
        runs: finished searches.
        figure: file to write.
        fields: of the records, one panel for each; by default all four.

    Raises:
        ValueError: a field that cannot be drawn.
    """
    if unknown := {*fields} - _COURSE.keys():
        raise ValueError(f"cannot draw {', '.join(sorted(unknown))}: the fields are {', '.join(_COURSE)}")
    course = {field: _COURSE[field] for field in fields} or _COURSE
    sheet, axes = _sheet(len(course))
    groups = group_names(runs)
    colours = {group: f"C{i}" for i, group in enumerate(dict.fromkeys(groups))}
    for axis, (column, title) in zip(axes, course.items(), strict=True):
        for run, group in zip(runs, groups, strict=True):
            measured = [record for record in run.records if column in record]
            epochs = [record["epoch"] + 1 for record in measured]
            axis.plot(epochs, [record[column] for record in measured], color=colours[group])
        axis.set_title(title)
        axis.set_ylim(bottom=0)
    _finish(sheet, colours, figure)


def draw_audits(runs: Sequence[FinishedRun], figure: str | Path) -> None:
    """The errors caused by thresholds in each epoch: the median as a line, and a band up to the 95th percentile.

    If the runs have sparse batches, only these are shown, since thresholds skip most operations there.

    Raises:
        ValueError: no run recorded an audit.
    """
    every = [
        {**audit, "epoch": record["epoch"] + 1, "cosine": 1 - audit["cosine"]}
        for run in runs
        for record in run.records
        for audit in record.get("audits", [])
    ]
    audits = [audit for audit in every if audit["phi"]] or every
    if not audits:
        raise ValueError("no run recorded an audit: search with --audit-every")
    sheet, axes = _sheet(len(_AUDIT))
    colours = {f"threshold {t:g}": f"C{i}" for i, t in enumerate(sorted({audit["threshold"] for audit in audits}))}
    for axis, (column, title) in zip(axes, _AUDIT.items(), strict=True):
        for name, colour in colours.items():
            group = [audit for audit in audits if f"threshold {audit['threshold']:g}" == name]
            epochs = sorted({audit["epoch"] for audit in group})
            values = [[max(audit[column], _FLOAT32) for audit in group if audit["epoch"] == e] for e in epochs]
            middle, high = zip(*map(middle_and_high, values), strict=True)
            axis.plot(epochs, middle, color=colour)
            axis.fill_between(epochs, middle, high, color=colour, alpha=0.2)
        axis.set_title(title)
        axis.set_yscale("log")
    _finish(sheet, colours, figure)


def _sheet(panels: int) -> tuple[Any, Any]:
    """One panel, or pairs of panels one below another."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns, rows = min(panels, 2), (panels + 1) // 2
    sheet = Figure(figsize=(5.5 * columns, 0.5 + 3 * rows), layout="constrained")
    FigureCanvasAgg(sheet)
    axes = [*sheet.subplots(rows, columns, sharex=True, squeeze=False).flat]
    for axis in axes[panels:]:
        axis.remove()
    return sheet, axes[:panels]


def _finish(sheet: Any, colours: dict[str, str], figure: str | Path) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour) for colour in colours.values()]
    sheet.legend(lines, colours, loc="outside upper center", ncols=1)
    for axis in sheet.axes:
        axis.grid(alpha=0.3)
    for axis in sheet.axes[-2:]:
        axis.set_xlabel("epoch")
    sheet.savefig(figure, dpi=120)
