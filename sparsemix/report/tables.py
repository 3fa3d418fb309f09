"""Finished runs as tables: outcomes, how steady the end of a search was, and what thresholds would have changed."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .records import FinishedRun, group_names, middle_and_high

__all__ = ["Table", "audit_table", "steadiness_table", "table", "write_rows"]

# column -> (heading, format)
Columns = Mapping[str, tuple[str, str]]
_OUTCOME: Columns = {
    "supernet_accuracy": ("supernet", "{:.1%}"),
    "discretized_accuracy": ("discretised", "{:.1%}"),
    "discretization_gap": ("gap", "{:+.1%}"),
    "raw_discretized_accuracy": ("discretised, raw statistics", "{:.1%}"),
    "entropy": ("entropy", "{:.2f}"),
    "leakage": ("output leakage", "{:.2f}"),
    "skips": ("skips", "{:.2g}"),
    "true_accuracy": ("true accuracy", "{:.2f} %"),
    "true_rank": ("rank", "{:.0f}"),
    "seconds": ("seconds", "{:.0f}"),
}
_TRAINING: Columns = {
    "error": ("error", "{:.2%}"),
    "top5_error": ("top-5 error", "{:.2%}"),
    "best_error": ("lowest error", "{:.2%}"),
    "ema_error": ("error of the average", "{:.2%}"),
    "parameters": ("parameters", "{:,.0f}"),
    "macs": ("MACs", "{:,.0f}"),
    "seconds": ("seconds", "{:.0f}"),
}
_STEADINESS: Columns = {
    "late_changes": ("changes in the last 5 epochs", "{:.2g}"),
    "lead": ("smallest lead / t", "{:.1f}"),
    "early_drift": ("drift per epoch / t, first half", "{:.2f}"),
    "drift": ("drift per epoch / t, last 5 epochs", "{:.2f}"),
    "true_accuracy": ("true accuracy, last epoch", "{:.2f} %"),
    "averaged_true_accuracy": ("true accuracy, mean alphas", "{:.2f} %"),
}
_WITH_WORST = frozenset({"true_accuracy", "averaged_true_accuracy"})
_ERRORS = {"loss": "loss", "output": "output", "gradient": "alpha's gradient", "update": "alpha's step"}


class Table(NamedTuple):
    """A table to be printed.

    Attributes:
        headings: of the columns.
        rows: as many cells each.
    """

    headings: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As Markdown."""
        rule = "|" + "---|" * len(self.headings)
        return "\n".join([_line(self.headings), rule, *map(_line, self.rows)])

    def plain(self) -> str:
        """In aligned columns; a last column of long cells, such as genotypes, follows as a list."""
        is_long = any(len(row[-1]) > 40 for row in self.rows)
        shown = [row[:-1] if is_long else row for row in [self.headings, *self.rows]]
        first, *others = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = [
            "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))])
            for name, *cells in shown
        ]
        if is_long:
            lines += ["", *(f"{row[0].ljust(first)}  {row[-1]}" for row in self.rows if row[-1])]
        return "\n".join(lines)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file: a line for each row, a column for each of their names."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


def table(runs: Sequence[FinishedRun]) -> Table:
    """A table of runs of one kind, with mean and standard deviation over runs that differ only in their seed."""
    if runs[0].kind == "training":
        return _table(runs, _TRAINING, "network", [run.what for run in runs])
    return _table(runs, _OUTCOME, "found", [run.summary["genotype"] for run in runs])


def steadiness_table(runs: Sequence[FinishedRun]) -> Table | None:
    """How steady the end of each search was, and what the mean of its last alphas would have chosen.

    None where a run was too short to tell.
    """
    if not all("late_changes" in run.summary for run in runs):
        return None
    same = ["yes" if run.summary.get("averaged_genotype") == run.summary["genotype"] else "no" for run in runs]
    return _table(runs, _STEADINESS, "same architecture", same)


def _table(runs: Sequence[FinishedRun], columns: Columns, last: str, last_values: Sequence[str]) -> Table:
    """One row per run, then one per group of several runs; a column that any run lacks is left out."""
    columns = {name: column for name, column in columns.items() if all(name in run.summary for run in runs)}
    named = ["run", "data"] if runs[0].kind == "training" else ["run", "method", "data"]
    rows = []
    for run, value in zip(runs, last_values, strict=True):
        names = [run.name, run.data] if run.kind == "training" else [run.name, run.what, run.data]
        rows.append([*names, *(form.format(run.summary[n]) for n, (_, form) in columns.items()), value])
    groups = group_names(runs)
    for group in dict.fromkeys(groups):
        members = [run for run, name in zip(runs, groups, strict=True) if name == group]
        if len(members) > 1:
            values = [_spread([m.summary[n] for m in members], form, n) for n, (_, form) in columns.items()]
            rows.append([f"{group}, {len(members)} runs", *[""] * (len(named) - 1), *values, ""])
    return Table([*named, *(heading for heading, _ in columns.values()), last], rows)


def audit_table(runs: Sequence[FinishedRun]) -> Table | None:
    """The audits that runs recorded: median and 95th percentile of each error. None where no run recorded any."""
    audits = [audit for run in runs for record in run.records for audit in record.get("audits", [])]
    if not audits:
        return None
    rows = []
    for phi, threshold in sorted({(audit["phi"], audit["threshold"]) for audit in audits}):
        group = [audit for audit in audits if (audit["phi"], audit["threshold"]) == (phi, threshold)]
        executed = statistics.median(audit["executed"] for audit in group)
        rows.append(
            ["sparse" if phi else "smooth", f"{threshold:g}", str(len(group)), f"{executed:.0%}"]
            + [_median_and_percentile([audit[error] for audit in group], "{:.2%}") for error in _ERRORS]
            + [_median_and_percentile([max(0.0, 1 - audit["cosine"]) for audit in group], "{:.1e}")]
        )
    return Table(["batch", "threshold", "audits", "executed", *_ERRORS.values(), "1 - cosine"], rows)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _median_and_percentile(values: Sequence[float], form: str) -> str:
    return ", ".join(form.format(value) for value in middle_and_high(values))


def _spread(values: Sequence[float], form: str, column: str) -> str:
    spread = f"{form.format(statistics.mean(values))} ± {form.format(statistics.stdev(values)).lstrip('+')}"
    return f"{spread}, worst {form.format(min(values))}" if column in _WITH_WORST else spread
