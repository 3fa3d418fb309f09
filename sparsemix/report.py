"""What finished runs found, as their folders hold it.

python -m sparsemix.report runs/a runs/b runs/c                  # Markdown tables, means by method
python -m sparsemix.report runs/a runs/b --figure search.png     # and the course of the searches
python -m sparsemix.report runs/a --audit-figure audit.png       # what thresholds would have changed along it
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .figures import draw_audits, draw_runs
from .run_records import FinishedRun, group_names, load_run, middle_and_high

__all__ = ["audit_table", "steadiness_table", "table"]

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
_STEADINESS: Columns = {
    "late_changes": ("changes in the last 5 epochs", "{:.2g}"),
    "lead": ("smallest lead / t", "{:.1f}"),
    "early_drift": ("drift an epoch / t, first half", "{:.2f}"),
    "drift": ("drift an epoch / t, last 5 epochs", "{:.2f}"),
    "true_accuracy": ("true accuracy, last epoch", "{:.2f} %"),
    "averaged_true_accuracy": ("true accuracy, mean alphas", "{:.2f} %"),
}
_WITH_WORST = frozenset({"true_accuracy", "averaged_true_accuracy"})
_ERRORS = {"loss": "loss", "output": "output", "gradient": "alpha's gradient", "update": "alpha's step"}


def table(runs: Sequence[FinishedRun]) -> str:
    """A Markdown table of runs, and mean and standard deviation over those that differ only in their seed."""
    cells = [run.summary["genotype"].replace("|", "\\|") for run in runs]
    return _table(runs, _OUTCOME, "cell", cells)


def steadiness_table(runs: Sequence[FinishedRun]) -> str:
    """How steady the end of each search was, and what the mean of its last alphas would have chosen.

    Empty where a run was too short to tell.
    """
    if not all("late_changes" in run.summary for run in runs):
        return ""
    same = ["yes" if run.summary.get("averaged_genotype") == run.summary["genotype"] else "no" for run in runs]
    return _table(runs, _STEADINESS, "same cell", same)


def _table(runs: Sequence[FinishedRun], columns: Columns, last: str, last_values: Sequence[str]) -> str:
    """A line a run, then one a group; columns that some run lacks are left out."""
    columns = {name: column for name, column in columns.items() if all(name in run.summary for run in runs)}
    lines = [_line(["run", *(heading for heading, _ in columns.values()), last]), "|" + "---|" * (len(columns) + 2)]
    for run, value in zip(runs, last_values, strict=True):
        lines.append(_line([run.name, *(form.format(run.summary[n]) for n, (_, form) in columns.items()), value]))
    groups = group_names(runs)
    for group in dict.fromkeys(groups):
        members = [run for run, name in zip(runs, groups, strict=True) if name == group]
        if len(members) > 1:
            values = [_spread([m.summary[n] for m in members], form, n) for n, (_, form) in columns.items()]
            lines.append(_line([f"**{group}**, {len(members)} runs", *values, ""]))
    return "\n".join(lines)


def audit_table(runs: Sequence[FinishedRun]) -> str:
    """A Markdown table of the audits that runs recorded: median and 95th percentile of each error.

    Empty where no run recorded any.
    """
    audits = [audit for run in runs for record in run.records for audit in record.get("audits", [])]
    if not audits:
        return ""
    headings = ["batch", "threshold", "audits", "executed", *_ERRORS.values(), "1 - cosine"]
    lines = [_line(headings), "|" + "---|" * len(headings)]
    for phi, threshold in sorted({(audit["phi"], audit["threshold"]) for audit in audits}):
        group = [audit for audit in audits if (audit["phi"], audit["threshold"]) == (phi, threshold)]
        executed = statistics.median(audit["executed"] for audit in group)
        lines.append(
            _line(
                ["sparse" if phi else "smooth", f"{threshold:g}", str(len(group)), f"{executed:.0%}"]
                + [_median_and_percentile([audit[error] for audit in group], "{:.2%}") for error in _ERRORS]
                + [_median_and_percentile([max(0.0, 1 - audit["cosine"]) for audit in group], "{:.1e}")]
            )
        )
    return "\n".join(lines)


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def _median_and_percentile(values: Sequence[float], form: str) -> str:
    return ", ".join(form.format(value) for value in middle_and_high(values))


def _spread(values: Sequence[float], form: str, column: str) -> str:
    spread = f"{form.format(statistics.mean(values))} ± {form.format(statistics.stdev(values)).lstrip('+')}"
    return f"{spread}, worst {form.format(min(values))}" if column in _WITH_WORST else spread


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sparsemix.report", description="What finished runs found.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--figure", type=Path, help="also draw the course of the searches into this file")
    parser.add_argument("--audit-figure", type=Path, help="also draw the audits that they recorded into this file")
    args = parser.parse_args()
    runs = []
    for folder in args.folders:
        try:
            runs.append(load_run(folder))
        except (FileNotFoundError, ValueError) as error:
            print(f"left out: {error}", file=sys.stderr)
    if not runs:
        parser.error("none of these folders holds a finished search")
    tables = table(runs), steadiness_table(runs), audit_table(runs)
    print("\n\n".join(part for part in tables if part))
    if args.figure is not None:
        draw_runs(runs, args.figure)
    if args.audit_figure is not None:
        draw_audits(runs, args.audit_figure)


if __name__ == "__main__":
    main()
