"""The paper's tables, with the results obtained here beside the printed numbers."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..report.figures import draw_runs
from ..report.records import FinishedRun
from ..report.tables import Table
from .experiments import COLUMNS, Experiment
from .networks import Entry, NetworkTable

__all__ = ["accuracy_table", "network_table", "time_table", "write_networks", "write_results"]

_OF = {"valid": "validation", "test": "test"}


def accuracy_table(experiment: Experiment, found: Mapping[str, Sequence[FinishedRun]]) -> Table:
    """The table, row by row: true accuracies found here, those that the paper prints, and their difference.

    Args:
        experiment: the table.
        found: name of a row's runs -> its finished runs.
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
    """One row per method: step time here and search time in the paper, each relative to DARTS-V1."""
    reference = next(row.seconds for row in experiment.rows if row.settings["method"] == "darts")
    rows = []
    for row in experiment.rows:
        ours = ratios[row.settings["method"]]
        paper = (row.seconds or 0) / (reference or 1)
        rows.append([row.name, f"{ours:.2f}", f"{paper:.2f}", f"{ours - paper:+.2f}"])
    return Table(["", "here", "paper", "difference"], rows)


def network_table(table: NetworkTable, trained: Mapping[str, Sequence[FinishedRun]]) -> Table:
    """The paper's table; each cell shows the number found here, the printed number, and their difference.

    Args:
        table: the table.
        trained: name of a network -> its finished trainings.
    """
    columns, rows = dict.fromkeys(entry.column for entry in table.entries), dict.fromkeys(e.row for e in table.entries)
    cells = {(entry.row, entry.column): _entry(entry, trained.get(entry.network, ())) for entry in table.entries}
    return Table(
        ["here / paper / difference", *columns],
        [[row, *(cells.get((row, column), "") for column in columns)] for row in rows],
    )


def _entry(entry: Entry, runs: Sequence[FinishedRun]) -> str:
    return _beside(
        [entry.factor * run.summary[entry.field] for run in runs if entry.field in run.summary], entry.printed
    )


def write_networks(
    name: str,
    table: NetworkTable,
    made: Table,
    trained: Mapping[str, Sequence[FinishedRun]],
    folder: Path,
    paragraphs: Sequence[str],
) -> None:
    """Write ``NAME.md``, and ``NAME.csv`` with every training."""
    _write_page(name, table.title, made, folder, paragraphs)
    rows = {entry.network: entry.row for entry in table.entries}
    fields = ("seed", "error", "top5_error", "parameters", "macs", "judged_on", "model", "genotype")
    lines = [
        [rows[network], run.name, *map(run.summary.get, fields)] for network in trained for run in trained[network]
    ]
    _write_csv(folder / f"{name}.csv", ["row", "run", *fields], lines)


def write_results(
    name: str,
    experiment: Experiment,
    table: Table,
    found: Mapping[str, Sequence[FinishedRun]],
    folder: Path,
    notes: Sequence[str],
) -> None:
    """Write ``NAME.md``, ``NAME.csv`` with every run, and ``NAME.png`` with their course."""
    _write_page(name, experiment.title, table, folder, [*([experiment.remark] if experiment.remark else []), *notes])
    every = [(row, run) for row in experiment.rows for run in found.get(row.run, ())]
    if not every:
        return
    fields = ("seed", "genotype", "discretized_accuracy", "entropy")
    lines = [
        [row.name, run.name, *map(run.summary.get, fields), *("".join(map(str, _values(run, c))) for c in COLUMNS)]
        for row, run in every
    ]
    _write_csv(folder / f"{name}.csv", ["row", "run", *fields, *_names()], lines)
    draw_runs([run for _, run in every], folder / f"{name}.png", experiment.drawn)


def _write_page(name: str, title: str, table: Table, folder: Path, paragraphs: Sequence[str]) -> None:
    parts = [f"## {title[0].upper()}{title[1:]}", table.markdown(), *paragraphs]
    (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _write_csv(path: Path, headings: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([headings, *lines])


def _names() -> list[str]:
    return [f"{dataset} {_OF[of]}" for dataset, of in COLUMNS]


def _values(run: FinishedRun, column: tuple[str, str]) -> list[float]:
    """The true accuracy of the architecture that a run found; empty if the run had no benchmark table."""
    dataset, of = column
    value = run.summary.get("true_accuracies", {}).get(dataset, {}).get(of)
    return [] if value is None else [value]


def _mean(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    deviation = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
    return form.format(statistics.fmean(values)) + deviation


def _beside(values: Sequence[float], printed: Sequence[float] | None) -> str:
    """Our result, the paper's, and the difference of the means; the paper prints a mean and usually a deviation."""
    ours = _mean(values, "{:.2f}")
    if printed is None:
        return ours
    difference = f"{statistics.fmean(values) - printed[0]:+.2f}" if values else "-"
    return f"{ours} / {' ± '.join(f'{number:.2f}' for number in printed)} / {difference}"
