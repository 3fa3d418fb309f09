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

__all__ = ["draw", "load_run", "table"]

# column -> (heading, format)
_COLUMNS = {
    "discretized_accuracy": ("discretised", "{:.1%}"),
    "supernet_accuracy": ("supernet", "{:.1%}"),
    "discretization_gap": ("gap", "{:+.1%}"),
    "entropy_sparse": ("entropy at t_sp", "{:.2f}"),
    "leakage": ("output leakage", "{:.2f}"),
    "skips": ("skips", "{:.2g}"),
    "true_accuracy": ("true accuracy", "{:.2f} %"),
    "true_rank": ("rank", "{:.0f}"),
    "seconds": ("seconds", "{:.0f}"),
}


def load_run(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the records of a finished run; runs whose names differ in the seed at the end are one group.

    Raises:
        FileNotFoundError: the folder holds no finished run.
    """
    folder = Path(folder)
    if not (folder / "summary.json").is_file():
        raise FileNotFoundError(f"{folder} holds no finished run: there is no {folder / 'summary.json'}")
    summary = json.loads((folder / "summary.json").read_text())
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for entry in (summary, *records):
        entry["leakage"] = statistics.mean(entry["output_leakage"].values())
    return {"name": folder.name, "group": folder.name.rpartition("-")[0], **summary}, records


def table(folders: Iterable[str | Path]) -> str:
    """A Markdown table of runs, and under them mean and standard deviation over the runs of each group."""
    summaries = [load_run(folder)[0] for folder in folders]
    columns = [column for column in _COLUMNS if all(column in summary for summary in summaries)]
    lines = [
        "| run | " + " | ".join(_COLUMNS[column][0] for column in columns) + " | cell |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for summary in summaries:
        values = [_COLUMNS[column][1].format(summary[column]) for column in columns]
        cell = summary["genotype"].replace("|", "\\|")
        lines.append(f"| {summary['name']} | " + " | ".join(values) + f" | {cell} |")
    for name in dict.fromkeys(summary["group"] for summary in summaries):
        group = [summary for summary in summaries if summary["group"] == name]
        if len(group) > 1:
            values = [_mean_and_deviation([summary[column] for summary in group], column) for column in columns]
            lines.append(f"| **{name}**, {len(group)} runs | " + " | ".join(values) + " | |")
    return "\n".join(lines)


def _mean_and_deviation(values: Sequence[float], column: str) -> str:
    form = _COLUMNS[column][1]
    return f"{form.format(statistics.mean(values))} ± {form.format(statistics.stdev(values)).lstrip('+')}"


def draw(folders: Iterable[str | Path], figure: str | Path) -> None:
    """Accuracy, entropy and leakage over the epochs: a line for each run, a colour for each group."""
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
    colours = {group: f"C{i}" for i, group in enumerate(dict.fromkeys(summary["group"] for summary, _ in runs))}
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        for summary, records in runs:
            epochs = [record["epoch"] + 1 for record in records]
            axis.plot(epochs, [record[column] for record in records], color=colours[summary["group"]])
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    sheet.axes[0].legend([Line2D([], [], color=colour) for colour in colours.values()], colours)
    for axis in sheet.axes[2:]:
        axis.set_xlabel("epoch")
    sheet.savefig(figure, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sparsemix.report", description="What finished runs found.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--figure", type=Path, help="also draw the course of the searches into this file")
    args = parser.parse_args()
    print(table(args.folders))
    if args.figure is not None:
        draw(args.folders, args.figure)


if __name__ == "__main__":
    main()
