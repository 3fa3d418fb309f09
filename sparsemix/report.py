"""What finished runs found, as a table and a figure, from the records in their folders.

python -m sparsemix.report runs/a runs/b runs/c                  # a Markdown table, means by method
python -m sparsemix.report runs/a runs/b --figure search.png     # and the course of the searches
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["audit_table", "draw", "load_run", "table"]

# column -> (heading, format)
_COLUMNS = {
    "discretized_accuracy": ("discretised", "{:.1%}"),
    "recalibrated_accuracy": ("recalibrated", "{:.1%}"),
    "supernet_accuracy": ("supernet", "{:.1%}"),
    "discretization_gap": ("gap", "{:+.1%}"),
    "entropy_sparse": ("entropy at t_sp", "{:.2f}"),
    "leakage": ("output leakage", "{:.2f}"),
    "skips": ("skips", "{:.2g}"),
    "true_accuracy": ("true accuracy", "{:.2f} %"),
    "true_rank": ("rank", "{:.0f}"),
    "seconds": ("seconds", "{:.0f}"),
}


# fields of a configuration in which runs of one group may differ
_PER_RUN = frozenset(
    {"seed", "output", "resume", "device", "data", "download", "workers", "table", "table_dataset"}
    | {"audit_every", "audit_thresholds"}
)


def load_run(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of a finished run, with its name and configuration added, and its records.

    Raises:
        FileNotFoundError: the folder holds no finished run.
    """
    folder = Path(folder)
    if not (folder / "summary.json").is_file():
        raise FileNotFoundError(f"{folder} holds no finished run: there is no {folder / 'summary.json'}")
    summary = json.loads((folder / "summary.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for entry in (summary, *records):
        entry["leakage"] = statistics.mean(entry["output_leakage"].values())
    settings = {field: value for field, value in config.items() if field not in _PER_RUN}
    return {"name": folder.name, "settings": settings, **summary}, records


def _groups(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """For each run the name of its group: the method, and the settings that tell it from others of that method."""
    names = []
    for summary in summaries:
        settings, method = summary["settings"], summary["method"]
        others = [other["settings"] for other in summaries if other["method"] == method]
        telling = [field for field in settings if any(other.get(field) != settings[field] for other in others)]
        names.append(", ".join([method, *(f"{field} {settings[field]}" for field in telling)]))
    return names


def table(folders: Iterable[str | Path]) -> str:
    """A Markdown table of runs, and mean and standard deviation over those that differ only in their seed."""
    summaries = [load_run(folder)[0] for folder in folders]
    groups = _groups(summaries)
    columns = [column for column in _COLUMNS if all(column in summary for summary in summaries)]
    lines = [
        "| run | " + " | ".join(_COLUMNS[column][0] for column in columns) + " | cell |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for summary in summaries:
        values = [_COLUMNS[column][1].format(summary[column]) for column in columns]
        cell = summary["genotype"].replace("|", "\\|")
        lines.append(f"| {summary['name']} | " + " | ".join(values) + f" | {cell} |")
    for name in dict.fromkeys(groups):
        members = [summary for summary, group in zip(summaries, groups, strict=True) if group == name]
        if len(members) > 1:
            values = [_mean_and_deviation([summary[column] for summary in members], column) for column in columns]
            lines.append(f"| **{name}**, {len(members)} runs | " + " | ".join(values) + " | |")
    return "\n".join(lines)


def audit_table(folders: Iterable[str | Path]) -> str:
    """A Markdown table of the audits that runs recorded: median and 95th percentile of each relative error.

    Empty where no run recorded any.
    """
    audits = [audit for folder in folders for record in load_run(folder)[1] for audit in record.get("audits", [])]
    if not audits:
        return ""
    errors = {
        "loss": "loss",
        "output": "output",
        "gradient": "alpha's gradient",
        "update": "alpha's step",
    }
    lines = [
        "| batch | threshold | audits | executed | " + " | ".join(errors.values()) + " |",
        "|" + "---|" * (len(errors) + 4),
    ]
    for phi, threshold in sorted({(audit["phi"], audit["threshold"]) for audit in audits}):
        group = [audit for audit in audits if (audit["phi"], audit["threshold"]) == (phi, threshold)]
        values = [_median_and_percentile([audit[error] for audit in group]) for error in errors]
        executed = statistics.median(audit["executed"] for audit in group)
        lines.append(
            f"| {'sparse' if phi else 'smooth'} | {threshold:g} | {len(group)} | {executed:.0%} | "
            + " | ".join(values)
            + " |"
        )
    return "\n".join(lines)


def _median_and_percentile(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):.2%}, {ordered[int(0.95 * (len(ordered) - 1))]:.2%}"


def _mean_and_deviation(values: Sequence[float], column: str) -> str:
    form = _COLUMNS[column][1]
    return f"{form.format(statistics.mean(values))} ± {form.format(statistics.stdev(values)).lstrip('+')}"


def draw(folders: Iterable[str | Path], figure: str | Path) -> None:
    """Accuracy, entropy and leakage over the epochs: a line a run, one colour for those that differ in their seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = {
        "supernet_accuracy": "supernet accuracy",
        "discretized_accuracy": "discretised accuracy",
        "entropy_sparse": "entropy at t_sp (nats)",
        "leakage": "output leakage",
    }
    sheet = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(sheet)
    axes = sheet.subplots(2, 2, sharex=True).flat
    runs = [load_run(folder) for folder in folders]
    groups = _groups([summary for summary, _ in runs])
    colours = {group: f"C{i}" for i, group in enumerate(dict.fromkeys(groups))}
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        for (_, records), group in zip(runs, groups, strict=True):
            epochs = [record["epoch"] + 1 for record in records]
            axis.plot(epochs, [record[column] for record in records], color=colours[group])
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    lines = [Line2D([], [], color=colour) for colour in colours.values()]
    sheet.legend(lines, colours, loc="outside upper center", ncols=1)
    for axis in sheet.axes[2:]:
        axis.set_xlabel("epoch")
    sheet.savefig(figure, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sparsemix.report", description="What finished runs found.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--figure", type=Path, help="also draw the course of the searches into this file")
    args = parser.parse_args()
    print("\n\n".join(part for part in (table(args.folders), audit_table(args.folders)) if part))
    if args.figure is not None:
        draw(args.folders, args.figure)


if __name__ == "__main__":
    main()
