"""The paper's tables with what was found here beside what it prints."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..report.figures import draw_runs
from ..report.records import FinishedRun
from ..report.tables import Table
from .experiments import COLUMNS, Experiment

__all__ = ["accuracy_table", "time_table", "write_results"]

_OF = {"valid": "validation", "test": "test"}


def accuracy_table(experiment: Experiment, found: Mapping[str, Sequence[FinishedRun]]) -> Table:
    """A row of the paper each: true accuracies found here, those that the paper prints, and their difference.

    Args:
        experiment: the table.
        found: name of a row's runs -> those that have finished.
    """
    true = [column for column in COLUMNS if any(_values(run, column) for runs in found.values() for run in runs)]
    headings = ["", "n", *(f"{dataset} {_OF[of]}, %: here / paper / difference" for dataset, of in true)]
    headings += ["discretised accuracy", "entropy", "skips"]
    rows = []
    for row in experiment.rows:
        runs = found[row.run]
        printed = dict(zip(COLUMNS, row.printed, strict=True)) if row.printed else {}
        cells = [_beside([v for run in runs for v in _values(run, column)], printed.get(column)) for column in true]
        others = (("discretized_accuracy", 100.0, "{:.1f} %"), ("entropy", 1.0, "{:.2f}"), ("skips", 1.0, "{:.1f}"))
        for field, factor, form in others:
            cells.append(_mean([factor * run.summary[field] for run in runs if field in run.summary], form))
        rows.append([row.name, str(len(runs)), *cells])
    return Table(headings, rows)


def time_table(experiment: Experiment, ratios: Mapping[str, float]) -> Table:
    """A row a method: time of a step here, and of a search in the paper, relative to those of DARTS-V1."""
    reference = next(row.seconds for row in experiment.rows if row.settings["method"] == "darts")
    rows = []
    for row in experiment.rows:
        ours = ratios[row.settings["method"]]
        paper = (row.seconds or 0) / (reference or 1)
        rows.append([row.name, f"{ours:.2f}", f"{paper:.2f}", f"{ours - paper:+.2f}"])
    return Table(["", "here", "paper", "difference"], rows)


def write_results(
    name: str,
    experiment: Experiment,
    table: Table,
    found: Mapping[str, Sequence[FinishedRun]],
    folder: Path,
    notes: Sequence[str],
) -> None:
    """Write ``NAME.md``, ``NAME.csv`` with every run, and ``NAME.png`` with their course."""
    remarks = [experiment.remark] if experiment.remark else []
    parts = [f"## {experiment.title[0].upper()}{experiment.title[1:]}", table.markdown(), *remarks, *notes]
    (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n")
    every = [(row, run) for row in experiment.rows for run in found.get(row.run, ())]
    if not every:
        return
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "run", "seed", "genotype", "discretized_accuracy", "entropy", *_names()])
        for row, run in every:
            summary = run.summary
            values = [summary.get(field) for field in ("seed", "genotype", "discretized_accuracy", "entropy")]
            writer.writerow([row.name, run.name, *values, *("".join(map(str, _values(run, c))) for c in COLUMNS)])
    draw_runs([run for _, run in every], folder / f"{name}.png")


def _names() -> list[str]:
    return [f"{dataset} {_OF[of]}" for dataset, of in COLUMNS]


def _values(run: FinishedRun, column: tuple[str, str]) -> list[float]:
    """The true accuracy of what a run found, or nothing where no table was at hand."""
    dataset, of = column
    value = run.summary.get("true_accuracies", {}).get(dataset, {}).get(of)
    return [] if value is None else [value]


def _mean(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    deviation = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
    return form.format(statistics.fmean(values)) + deviation


def _beside(values: Sequence[float], printed: tuple[float, float] | None) -> str:
    """Ours, the paper's, and the difference of the means."""
    ours = _mean(values, "{:.2f}")
    if printed is None:
        return ours
    mean, deviation = printed
    difference = f"{statistics.fmean(values) - mean:+.2f}" if values else "-"
    return f"{ours} / {mean:.2f} ± {deviation:.2f} / {difference}"
