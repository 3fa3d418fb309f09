"""What a run prints: one line per epoch under a heading, then what a search found and what to do next."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..methods.method import Columns

__all__ = ["Columns", "EpochTable", "changed_rows", "closing_lines", "compact", "search_columns", "training_columns"]

_LOSSES: Columns = {
    "train_loss": ("loss", "{:.3f}".format),
    "val_loss": ("val loss", "{:.3f}".format),
}
_MEASURED: Columns = {
    "entropy": ("entropy", "{:.2f}".format),
    "discretized_accuracy": ("discretised", "{:.1%}".format),
    "discretization_gap": ("gap", lambda gap: f"{100 * gap:+.1f}"),
    "open": ("open", str),
    "skips": ("skips", str),
}
_CHANGED: Columns = {"changed": ("moved", str)}
_TRAINING: Columns = {
    "lr": ("    lr", "{:.4f}".format),
    "loss": ("loss", "{:.3f}".format),
    "error": (" error", "{:.2%}".format),
    "top5_error": (" top-5", "{:.2%}".format),
    "ema_error": ("error of the average", "{:.2%}".format),
}


def compact(value: float) -> str:
    """A number in short form, such as ``2.20M``; numbers below a thousand have no suffix.

    Example:
        >>> compact(2.2e6), compact(0.0125)
        ('2.20M', '0.0125')
    """
    return tqdm.format_sizeof(value) if value >= 1000 else f"{value:.4g}"


def search_columns(planned: Columns, judged: Columns, has_skips: bool) -> Columns:
    """Columns of a search.

    Args:
        planned: columns for values that the method plans per epoch, such as p.
        judged: columns for the evaluation of the genotype, such as its true accuracy.
        has_skips: whether the space has skip connections to count.
    """
    columns = {**_LOSSES, **planned, **_MEASURED, **judged, **_CHANGED}
    if not has_skips:
        del columns["skips"]
    return columns


def training_columns(has_top5: bool, has_ema: bool) -> Columns:
    """Columns of a training.

    Args:
        has_top5: whether top-5 errors are measured.
        has_ema: whether the moving average of the weights is measured, too.
    """
    left_out = {"top5_error": not has_top5, "ema_error": not has_ema}
    return {field: column for field, column in _TRAINING.items() if not left_out.get(field)}


class EpochTable:
    """The epochs of a run as a table that is printed line by line.

    Args:
        epochs: length of the run.
        columns: field of a row -> (heading, how its value is written).
    """

    def __init__(self, epochs: int, columns: Columns) -> None:
        counter: Columns = {"epoch": (f"{'epoch':>{2 * len(str(epochs)) + 1}}", lambda epoch: f"{epoch + 1}/{epochs}")}
        self.columns = {**counter, **columns, **_TIMES}

    def heading(self) -> str:
        return "  ".join(heading.rjust(_width(heading)) for heading, _ in self.columns.values())

    def line(self, row: Mapping[str, Any]) -> str:
        """The line of one epoch, with ``-`` for missing values."""
        return "  ".join(
            (write(row[field]) if field in row else "-").rjust(_width(heading))
            for field, (heading, write) in self.columns.items()
        )


def _width(heading: str) -> int:
    return max(len(heading), 5)


def changed_rows(alphas: Mapping[str, list[float]], before: Mapping[str, list[float]]) -> int:
    """The number of rows whose strongest operation has changed."""
    return sum(row.index(max(row)) != before[label].index(max(before[label])) for label, row in alphas.items())


def _duration(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 10 else tqdm.format_interval(seconds)


_TIMES: Columns = {
    "images_per_second": ("img/s", compact),
    "seconds": ("time", _duration),
    "left": ("    left", _duration),
}


def closing_lines(summary: Mapping[str, Any], rows: int, folder: Path, following: str) -> str:
    """A search's result, how many of its rows are decided, and the next commands.

    Args:
        summary: of the search.
        rows: number of rows of alphas searched.
        folder: the run folder.
        following: lines with the next commands.
    """
    lines = [_accuracies(summary)]
    if "best_from" in summary:
        share = f"{1 - summary['best_from']:.0%}"
        lines.append(
            f"taken from epoch {summary['result_epoch'] + 1}, the most accurate in the last {share} of the search"
        )
    undecided = summary.get("undecided")
    if undecided:
        pairs = ", ".join(f"{label} ({' or '.join(names)})" for label, names in [*undecided.items()][:4])
        others = f" and {len(undecided) - 4} more" if len(undecided) > 4 else ""
        best = (
            "" if "best_from" in summary else ", or take the most accurate epoch instead of the last: --best-from 0.5"
        )
        lines.append(
            f"undecided: {len(undecided)} of {rows} rows, whose best operations are within two temperatures: "
            f"{pairs}{others}; search longer, or at a lower temperature{best}"
        )
    elif undecided is not None:
        lines.append(f"all {rows} rows are decided: the best operation leads by two temperatures or more")
    if "true_accuracy" in summary:
        lines.append(
            f"true accuracy {summary['true_accuracy']:.2f} %, rank {summary['true_rank']} of {summary['table_size']}, "
            f"{summary['true_gap']:.2f} points below the best"
        )
        for dataset, accuracies in summary["true_accuracies"].items():
            names = {"valid": "validation", "test": "test"}
            lines.append(
                f"  {dataset:15}" + "".join(f"  {names[of]} {value:.2f} %" for of, value in accuracies.items())
            )
    if summary["averaged_genotype"] != summary["genotype"]:
        lines.append("the mean of the last epochs' alphas gives another result: see averaged_genotype in summary.json")
    if "compilations" in summary:
        lines.append(f"{summary['compilations']} graphs were compiled")
    lines.append(f"{summary['seconds']:.0f} s; written to {folder}")
    wrapped = [textwrap.fill(line, 120, break_long_words=False) for line in lines]
    return "\n".join(["", f"found {summary['genotype']}", *wrapped, following])


def _accuracies(summary: Mapping[str, Any]) -> str:
    """The accuracy that is lost by cutting the architecture out of the supernet."""
    if "discretized_accuracy" not in summary:
        return f"accuracies were not measured in epoch {summary['result_epoch'] + 1}, whose architecture is the result"
    supernet, discretised = summary["supernet_accuracy"], summary["discretized_accuracy"]
    lost = f"{100 * summary['discretization_gap']:.1f} points"
    cutting = "nothing" if supernet - discretised < 0.005 else lost
    return f"discretised accuracy {discretised:.1%}, of the supernet {supernet:.1%}: cutting it out costs {cutting}"
