"""The course of a search in figures: each shows one quantity over the epochs, from the records of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .drawing import COLOURS, over_epochs, sheet
from .records import FinishedRun

__all__ = ["COURSE", "Drawing"]

Record = Mapping[str, Any]
DASHES = ("-", "--", ":", "-.")


class Drawing(NamedTuple):
    """A figure of a run; by default lines over the epochs.

    Attributes:
        name: its file name, without the suffix.
        title: what it shows.
        caption: how to read it.
        field: record field that it needs; the figure is left out if no record has this field.
        label: label of the vertical axis, with the unit.
        factor: converts the records' unit to the label's.
        lines: record fields to draw as lines -> their names; if empty, ``field`` alone.
        lowest: lower end of the vertical axis; None: chosen from the values.
        draw: draws the figure if it is not made of lines.
    """

    name: str
    title: str
    caption: str
    field: str
    label: str = ""
    factor: float = 1.0
    lines: Mapping[str, str] = {}
    lowest: float | None = 0.0
    draw: Callable[[FinishedRun], Any] | None = None

    def of(self, run: FinishedRun) -> Any:
        """The figure."""
        return _lines(self, run) if self.draw is None else self.draw(run)


def _epochs(records: Sequence[Record]) -> list[int]:
    return [record["epoch"] + 1 for record in records]


def _lines(drawing: Drawing, run: FinishedRun) -> Any:
    figure, axis = sheet()
    fields = drawing.lines or {drawing.field: ""}
    for (field, name), colour, dashes in zip(fields.items(), COLOURS, DASHES, strict=False):
        having = [record for record in run.records if record.get(field) is not None]
        values = [drawing.factor * record[field] for record in having]
        marker = "o" if len(having) < 30 else None
        axis.plot(_epochs(having), values, color=colour, linestyle=dashes, marker=marker, markersize=3, label=name)
    over_epochs(axis)
    axis.set_ylabel(drawing.label)
    axis.set_ylim(bottom=drawing.lowest)
    if len(fields) > 1:
        axis.legend()
    return figure


def _alphas(run: FinishedRun) -> Any:
    """A small plot for each row of alphas."""
    from matplotlib.lines import Line2D

    rows = [*run.records[-1]["alphas"]]
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = sheet(11, 0.9 + 1.6 * lines, lines, columns, sharex=True, sharey=True, squeeze=False)
    for axis, row in zip(axes.flat, rows, strict=False):
        for place, values in enumerate(zip(*(record["alphas"][row] for record in run.records), strict=True)):
            colour, dashes = _look(place)
            axis.plot(_epochs(run.records), values, color=colour, linestyle=dashes, lw=1.2)
        axis.set_title(row, fontsize=8)
    for axis in axes.flat[len(rows) :]:
        axis.set_axis_off()
    for axis in axes[-1]:
        over_epochs(axis)
    for axis in axes[:, 0]:
        axis.set_ylabel("alpha")
    sets = {tuple(names) for names in run.summary.get("candidates", {}).values()}
    if len(sets) == 1:  # all rows have the same candidates, and so one legend
        names = [*sets.pop()]
        handles = [Line2D([], [], color=_look(i)[0], linestyle=_look(i)[1]) for i in range(len(names))]
        figure.legend(handles, names, loc="outside upper left", ncols=min(8, len(names)))
    return figure


def _look(place: int) -> tuple[str, Any]:
    """Colour and dashes of a candidate."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def _weights(run: FinishedRun) -> Any:
    """Softmax of the alphas at the temperature at which rows are read, a line an operation."""
    rows = [*run.records[-1]["alphas"]]
    columns = []
    for record in run.records:
        alphas = [torch.tensor(record["alphas"][row], dtype=torch.float64) for row in rows]
        columns.append(torch.cat([torch.softmax(alpha / record["temperature"], 0) for alpha in alphas]))
    sizes = [len(run.records[-1]["alphas"][row]) for row in rows]
    names = run.summary.get("candidates", {})
    labels = [f"{row}  {name}" for row in rows for name in names.get(row, ())]
    if not 0 < len(labels) == len(columns[0]) <= 42:  # more labels would be illegible: one label per row instead
        labels = rows
    return _heat(torch.stack(columns, 1), labels, sizes, _epochs(run.records), "operation weight")


def _leakage(run: FinishedRun) -> Any:
    having = [record for record in run.records if "output_leakage" in record]
    rows = [*having[-1]["output_leakage"]]
    values = torch.tensor([[record["output_leakage"][row] for record in having] for row in rows])
    return _heat(values, rows, [1] * len(rows), _epochs(having), "output leakage")


def _heat(values: Tensor, labels: Sequence[str], sizes: Sequence[int], epochs: Sequence[int], label: str) -> Any:
    """Bands of ``sizes`` lines from top to bottom, epochs from left to right; a label for each line or each band."""
    figure, axis = sheet(5.2, min(9.0, max(2.2, 1.0 + 0.13 * len(values))))
    half = (epochs[1] - epochs[0]) / 2 if len(epochs) > 1 else 0.5
    extent = (epochs[0] - half, epochs[-1] + half, len(values), 0)
    image = axis.imshow(
        values.numpy(), aspect="auto", cmap="cividis", vmin=0, vmax=1, extent=extent, interpolation="nearest"
    )
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    if len(labels) == len(values):
        places = [line + 0.5 for line in range(len(values))]
    else:
        places = [(start + end) / 2 for start, end in pairwise(ends)]
    axis.set_yticks(places, labels, fontsize=7 if len(labels) < 20 else 5.5)
    axis.grid(visible=False)
    for end in ends[1:-1]:
        axis.axhline(end, color="white", lw=0.8)
    over_epochs(axis)
    figure.colorbar(image, label=label)
    return figure


def _seconds(run: FinishedRun) -> Any:
    """Stacked: updates by kind of batch, evaluation, and the rest."""
    figure, axis = sheet()
    updates = dict.fromkeys(name for record in run.records for name in record.get("update_seconds", {}))
    parts = {f"{name}": [record.get("update_seconds", {}).get(name, 0.0) for record in run.records] for name in updates}
    parts["evaluation"] = [record.get("evaluation_seconds", 0.0) for record in run.records]
    known = [sum(values) for values in zip(*parts.values(), strict=True)]
    parts["data, all else"] = [max(0.0, r["seconds"] - k) for r, k in zip(run.records, known, strict=True)]
    bottoms = [0.0] * len(run.records)
    for (name, values), colour in zip(parts.items(), COLOURS, strict=False):
        axis.bar(_epochs(run.records), values, bottom=bottoms, width=0.9, color=colour, label=name)
        bottoms = [bottom + value for bottom, value in zip(bottoms, values, strict=True)]
    over_epochs(axis)
    axis.set_ylabel("seconds")
    figure.legend(loc="outside upper left", ncols=3)
    return figure


COURSE = (
    Drawing(
        "accuracy", "Supernet and discretised accuracy",
        "Fig. 3b of the paper. The gap between the lines is what cutting the architecture out costs.",
        "discretized_accuracy", "validation accuracy, %", 100,
        {"supernet_accuracy": "supernet", "discretized_accuracy": "discretised"},
    ),
    Drawing(
        "entropy", "Entropy", "Fig. 3a of the paper, at the training temperature. 0: every edge has decided.",
        "entropy", "entropy, nats, summed over edges",
    ),
    Drawing(
        "true-accuracy", "True accuracy", "The benchmark's accuracy of the architecture that each epoch would give.",
        "true_accuracy", "test accuracy, %", lowest=None,
    ),
    Drawing("cost", "Cost", "Of the network that each epoch would give.", "cost", "cost"),
    Drawing(
        "losses", "Losses", "Of the training images for the weights, of the validation images for the alphas.",
        "train_loss", "loss", lines={"train_loss": "weights", "val_loss": "alphas"}, lowest=None,
    ),
    Drawing(
        "sparse-share", "Sparse batches", "Planned by Eq. 20, and drawn.", "p", "share of batches",
        lines={"p": "p, planned", "sparse_share": "drawn"},
    ),
    Drawing(
        "edges", "Skips and undecided edges",
        "An edge is undecided while its strongest alpha leads by less than a few temperatures.",
        "skips", "edges", lines={"skips": "with a skip connection", "open": "undecided"},
    ),
    Drawing("seconds", "Time of an epoch", "By kind of batch and update, on the host.", "seconds", draw=_seconds),
    Drawing(
        "weights", "Operation weights", "Softmax at the training temperature. A band is an edge, a line an operation.",
        "alphas", draw=_weights,
    ),
    Drawing(
        "leakage", "Leakage", "Share of an edge's output that comes from operations to be cut away.",
        "output_leakage", draw=_leakage,
    ),
    Drawing(
        "mean-leakage", "Mean leakage", "Of an edge's output, the share that comes from operations to be cut away.",
        "leakage", "output leakage, %", 100,
    ),
    Drawing("alphas", "Alphas", "A panel for each row of alphas.", "alphas", draw=_alphas),
)  # fmt: skip
"""The figures of a search, in the order of the page."""
