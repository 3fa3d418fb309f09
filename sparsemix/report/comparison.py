"""Methods compared on one space: one row per method, with mean and standard deviation over the seeds.

The layout is that of Table I of Zhang and Ding (SP-DARTS).
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .records import FinishedRun
from .tables import Table

__all__ = ["Compared", "comparison_table", "draw_comparison", "write_comparison"]

_OF = {"valid": "validation", "test": "test"}


class Compared(NamedTuple):
    """A method and what its runs found.

    Attributes:
        method: its name.
        wanted: number of planned runs, one per seed.
        runs: the finished runs.
        step: costs of a search step, if measured, as returned by :func:`~sparsemix.speed.steps.compare_steps`.
    """

    method: str
    wanted: int
    runs: Sequence[FinishedRun]
    step: Mapping[str, float] = {}


class _Column(NamedTuple):
    name: str
    heading: str
    form: str
    value: Callable[[FinishedRun], float | None]


def _entry(name: str, heading: str, form: str) -> _Column:
    return _Column(name, heading, form, lambda run: run.summary.get(name))


_FOUND = (
    _entry("discretized_accuracy", "discretised accuracy", "{:.1%}"),
    _entry("discretization_gap", "discretisation gap", "{:+.1%}"),
    _entry("entropy", "entropy", "{:.2f}"),
    _entry("skips", "skips", "{:.1f}"),
    _Column("epochs", "epochs run", "{:.4g}", lambda run: len(run.records)),
)
_STEP = {
    "time": ("search time (darts: 1)", "{:.2f}"),
    "dense": ("time against all operations", "{:.2f}"),
    "memory": ("memory (darts: 1)", "{:.2f}"),
    "full": ("operations run", "{:.0%}"),
    "scored": ("scored", "{:.0%}"),
}


def _columns(compared: Sequence[Compared]) -> list[_Column]:
    """The columns for which at least one run has a value."""
    runs = [run for row in compared for run in row.runs]
    known = {
        (dataset, of): None
        for run in runs
        for dataset, accuracies in run.summary.get("true_accuracies", {}).items()
        for of in accuracies
    }
    columns = [*(_true(dataset, of) for dataset, of in known), *_FOUND]
    return [column for column in columns if any(column.value(run) is not None for run in runs)]


def _true(dataset: str, of: str) -> _Column:
    def value(run: FinishedRun) -> float | None:
        return run.summary.get("true_accuracies", {}).get(dataset, {}).get(of)

    return _Column(f"true_{dataset}_{of}", f"{dataset} {_OF[of]}, %", "{:.2f}", value)


class _Statistic(NamedTuple):
    """Count, mean and standard deviation over the runs that have a value."""

    known: int
    mean: float | None
    deviation: float | None

    @classmethod
    def of(cls, column: _Column, runs: Sequence[FinishedRun]) -> _Statistic:
        values = [value for run in runs if (value := column.value(run)) is not None]
        return cls(
            len(values),
            statistics.fmean(values) if values else None,
            statistics.stdev(values) if len(values) > 1 else None,
        )

    def shown(self, form: str, runs: int) -> str:
        if self.mean is None:
            return "-"
        deviation = "-" if self.deviation is None else form.format(self.deviation).lstrip("+")
        fewer = f" (n {self.known})" if self.known < runs else ""
        return f"{form.format(self.mean)} ± {deviation}{fewer}"


def comparison_table(compared: Sequence[Compared]) -> Table:
    """One row per method: mean and standard deviation over the seeds, and the costs of a step if measured.

    A dash stands for a value that no run of the method has, and for the deviation of a single value.
    """
    columns = _columns(compared)
    costs = {name: shown for name, shown in _STEP.items() if any(name in row.step for row in compared)}
    headings = ["method", "n", *(column.heading for column in columns), *(heading for heading, _ in costs.values())]
    rows = []
    for row in compared:
        n = str(len(row.runs)) if len(row.runs) == row.wanted else f"{len(row.runs)} of {row.wanted}"
        found = [_Statistic.of(column, row.runs).shown(column.form, len(row.runs)) for column in columns]
        measured = [form.format(row.step[name]) if name in row.step else "-" for name, (_, form) in costs.items()]
        rows.append([row.method, n, *found, *measured])
    return Table(headings, rows)


def _numbers(compared: Sequence[Compared]) -> Iterator[dict[str, object]]:
    """The values of the table: one dictionary per row."""
    columns = _columns(compared)
    for row in compared:
        numbers: dict[str, object] = {"method": row.method, "n": len(row.runs)}
        for column in columns:
            count, mean, deviation = _Statistic.of(column, row.runs)
            numbers |= {
                f"{column.name}_mean": mean,
                f"{column.name}_deviation": deviation,
                f"{column.name}_n": count,
            }
        yield {**numbers, **{f"step_{name}": row.step.get(name) for name in _STEP}}


def _every_run(compared: Sequence[Compared]) -> Iterator[dict[str, object]]:
    """The values behind the table: one dictionary per run."""
    columns = _columns(compared)
    for row in compared:
        for run in row.runs:
            found = {column.name: column.value(run) for column in columns}
            about = {name: run.summary.get(name) for name in ("seed", "genotype", "seconds")}
            yield {"method": row.method, **about, **found}


def draw_comparison(compared: Sequence[Compared], figure: str | Path) -> None:
    """Accuracy by method: one dot per seed, and a line at the mean.

    The accuracy is the true test accuracy on the data set used to judge cells; without one, the discretised accuracy.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_true = any("true_accuracy" in run.summary for row in compared for run in row.runs)
    name, factor = ("true_accuracy", 1.0) if has_true else ("discretized_accuracy", 100.0)
    sheet = Figure(figsize=(2 + 1.1 * len(compared), 4), layout="constrained")
    FigureCanvasAgg(sheet)
    axis = sheet.subplots()
    for place, row in enumerate(compared):
        values = [factor * run.summary[name] for run in row.runs if name in run.summary]
        if values:
            axis.plot([place] * len(values), values, "o", color="C0", alpha=0.6)
            axis.hlines(statistics.fmean(values), place - 0.25, place + 0.25, color="C1")
    axis.set_xticks(range(len(compared)), [row.method for row in compared], rotation=20)
    axis.set_xlim(-0.5, len(compared) - 0.5)
    axis.set_ylabel("true test accuracy, %" if has_true else "discretised accuracy, %")
    axis.grid(axis="y", alpha=0.3)
    sheet.savefig(figure, dpi=120)


def write_comparison(compared: Sequence[Compared], folder: Path, notes: Sequence[str] = ()) -> Table:
    """Write ``comparison.md``, ``comparison.csv``, ``comparison.png`` and ``runs.csv``, one row per run, into a folder.

    Args:
        compared: the rows.
        folder: the folder to write to.
        notes: paragraphs below the table.

    Returns:
        The table.
    """
    table = comparison_table(compared)
    (folder / "comparison.md").write_text("\n\n".join([table.markdown(), *notes]) + "\n", encoding="utf-8")
    for name, rows in (("comparison", [*_numbers(compared)]), ("runs", [*_every_run(compared)])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]] if rows else ["method"])
            writer.writeheader()
            writer.writerows(rows)
    draw_comparison(compared, folder / "comparison.png")
    return table
