"""What the method does to leakage, gap and outcomes: the figures and tables of docs/evidence.md, from committed data.

    python benchmarks/evidence.py                                           # from docs/data
    python benchmarks/evidence.py --courses runs/evidence/sp-darts-seed*/   # from finished searches, read first
    python benchmarks/evidence.py --s4 runs/s4/*seed?/                      # likewise, searches of S4,
    python benchmarks/evidence.py --whole runs/whole/reduced/*/             # of the whole schedule,
    python benchmarks/evidence.py --sensitivity runs/sensitivity/proxy/*/   # and at several t_sp and p_up
    python benchmarks/evidence.py --table nb201.csv                         # accuracies of the whole schedule's cells

Folders that are given are read into docs/data/NAME.csv, a row for each epoch of each run (sensitivity: a row for each
run); rows of other runs stay there. All tables are printed, and docs/evidence-*.png drawn.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from sparsemix.measure import best_epoch
from sparsemix.report.drawing import COLOURS, over_epochs, save, sheet, style
from sparsemix.report.records import load_run
from sparsemix.report.tables import Table, write_rows
from sparsemix.spaces.nb201 import NB201Genotype
from sparsemix.spaces.nb201.table import NB201Table

Row = Mapping[str, str]
FIELDS = ("supernet_accuracy", "discretized_accuracy", "entropy", "leakage", "true_accuracy")
GOOD = 90.0
"""True accuracy in percent below which a search counts as failed; the best cell has 94.37."""


NOISE_EPOCHS = (8, 16, 24, 32)
WHOLE_SHARES = (20, 40, 60, 80, 100)


@dataclass(frozen=True)
class Options:
    courses: tuple[Path, ...] = ()
    """Folders of finished searches, to be read into docs/data/courses.csv."""
    s4: tuple[Path, ...] = ()
    """Folders of finished searches of S4, to be read into docs/data/s4.csv."""
    whole: tuple[Path, ...] = ()
    """Folders of finished searches of a whole schedule on all images, to be read into docs/data/whole-schedule.csv."""
    sensitivity: tuple[Path, ...] = ()
    """Folders of finished searches with several t_sp and p_up, to be read into docs/data/sensitivity.csv."""
    table: Path | None = None
    """CSV file with the benchmark's accuracies, to look up the last cells of docs/data/whole-schedule.csv."""
    docs: Path = Path("docs")
    """Folder of the documentation."""


def main(options: Options) -> None:
    data = options.docs / "data"
    for name, folders in (("courses", options.courses), ("s4", options.s4)):
        add_runs(data / f"{name}.csv", [line for folder in folders for line in course(folder)])
    add_runs(
        data / "whole-schedule.csv", [line for folder in options.whole for line in course(folder, is_preset_named=True)]
    )
    add_runs(data / "sensitivity.csv", [ending(folder) for folder in options.sensitivity])
    if options.table is not None:
        write_rows(data / "whole-schedule-cells.csv", last_cells(read(data / "whole-schedule.csv"), options.table))
    with style():
        for name, (file, field, factor, label) in CURVES.items():
            save(curves(read(data / f"{file}.csv"), field, factor, label), options.docs / f"evidence-{name}.png")
        save(outcomes(read(data / "courses.csv")), options.docs / "evidence-outcomes.png")
    for name, table in TABLES:
        print(f"{table(read(data / f'{name}.csv')).markdown()}\n")


def course(folder: Path, is_preset_named: bool = False) -> Iterable[dict[str, Any]]:
    """A row for each epoch of a finished search; its preset is named where a method was searched with several."""
    run = load_run(folder)
    method = f"{run.what} ({run.settings['preset']})" if is_preset_named else run.what
    for record in run.records:
        measured = {field: record.get(field) for field in FIELDS}
        yield {"method": method, "seed": run.summary["seed"], "epoch": record["epoch"] + 1, **measured} | {
            "genotype": record["genotype"]
        }


def ending(folder: Path) -> dict[str, Any]:
    """What a finished search of SP-DARTS ends with, and its t_sp and p_up."""
    run = load_run(folder)
    [*_, last] = course(folder)
    return {"t_sp": run.settings["sparse"], "p_up": run.settings["p_up"], **last}


def last_cells(rows: Sequence[Row], table: Path) -> list[dict[str, Any]]:
    """For each run the cell of its last epoch, and its test accuracies on all data sets of the benchmark."""
    benchmark = NB201Table(table)
    lasts = {(row["method"], row["seed"]): row for row in rows}
    return [
        {name: row[name] for name in ("method", "seed", "genotype")}
        | {dataset: benchmark.accuracy(row["genotype"], dataset) for dataset in NB201Table.DATASETS}
        for row in lasts.values()
    ]


def add_runs(path: Path, rows: Sequence[Row]) -> None:
    """Add the rows of runs to a file, in place of those of the same runs; seeds of one setting are in order."""
    if rows:
        kept = [row for row in read(path) if _run(row) not in set(map(_run, rows))] if path.exists() else []
        settings = list(dict.fromkeys(_run(row)[:-1] for row in (*kept, *rows)))
        write_rows(path, sorted((*kept, *rows), key=lambda row: (settings.index(_run(row)[:-1]), int(row["seed"]))))


def _run(row: Row) -> tuple[str, ...]:
    """What a row's run is known by, its seed last."""
    return *(str(row[name]) for name in ("t_sp", "p_up", "method") if name in row), str(row["seed"])


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def idle_edges(genotype: str) -> int:
    """How many of the six edges are skip connections or none."""
    return sum(operation in ("skip_connect", "none") for operation in NB201Genotype.parse(genotype).operations)


def _fallen(cells: Sequence[tuple[str, float]]) -> list[str]:
    """Of cells and their true accuracies: how many are half idle, how many below 90 %, and the lowest."""
    half = sum(idle_edges(genotype) >= 3 for genotype, _ in cells)
    below = sum(true < GOOD for _, true in cells)
    return [str(half), str(below), f"{min(true for _, true in cells):.2f}"]


_FALLEN = ["half or more skip or none", "below 90 %", "worst, %"]
_ENDINGS = [
    "n",
    "discretised accuracy, %",
    "gap, points",
    "output leakage, %",
    "output leakage without none edges, %",
    "entropy, nats",
    "true accuracy, %",
    *_FALLEN,
]


# Tables


def last_epochs(rows: Sequence[Row]) -> Table:
    """A line a method: what its searches end with."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        last = [*{row["seed"]: row for row in rows if row["method"] == method}.values()]  # the last row of each seed
        lines.append([method, *_endings(last)])
    return Table(["method", *_ENDINGS], lines)


def sensitivity(rows: Sequence[Row]) -> Table:
    """A line a temperature and share of sparse batches: what SP-DARTS's searches end with."""
    lines = []
    for t_sp, p_up in sorted({(float(row["t_sp"]), float(row["p_up"])) for row in rows}):
        last = [row for row in rows if (float(row["t_sp"]), float(row["p_up"])) == (t_sp, p_up)]
        lines.append([f"{1e3 * t_sp:g}", f"{p_up:g}", *_endings(last)])
    return Table(["t_sp, 1e-3", "p_up", *_ENDINGS], lines)


def _endings(last: Sequence[Row]) -> list[str]:
    """Of the last epochs of several searches."""

    def column(field: str, factor: float = 1.0) -> list[float]:
        return [factor * float(row[field]) for row in last]

    discretised = column("discretized_accuracy", 100)
    gaps = [dense - own for dense, own in zip(column("supernet_accuracy", 100), discretised, strict=True)]
    true = column("true_accuracy")
    columns = discretised, gaps, column("leakage", 100), [100 * _leakage_of_others(row) for row in last]
    shown = [_mean(values) for values in (*columns, column("entropy"), true)]
    return [str(len(last)), *shown, *_fallen([*zip((row["genotype"] for row in last), true, strict=True)])]


def _leakage_of_others(row: Row) -> float:
    """The mean over the edges that are not none: an edge that is has a leakage of 1 by definition."""
    operations = NB201Genotype.parse(row["genotype"]).operations
    idle = operations.count("none")
    return (len(operations) * float(row["leakage"]) - idle) / (len(operations) - idle)


def collapses(runs: Sequence[Row]) -> Table:
    """A line a method: how many of its searches collapsed."""
    lines = []
    for method in dict.fromkeys(run["method"] for run in runs):
        cells = [(run["genotype"], float(run["true_cifar10_test"])) for run in runs if run["method"] == method]
        lines.append([method, str(len(cells)), *_fallen(cells)])
    return Table(["method", "n", *_FALLEN], lines)


def noise(rows: Sequence[Row]) -> Table:
    """A line a search of S4: on how many of the edges that it would keep noise is, after some of its epochs."""
    lines = []
    for method, seed in dict.fromkeys((row["method"], row["seed"]) for row in rows):
        own = {int(row["epoch"]): row for row in rows if (row["method"], row["seed"]) == (method, seed)}
        counts = [str(own[epoch]["genotype"].count("'noise'")) for epoch in NOISE_EPOCHS]
        accuracy = 100 * float(own[NOISE_EPOCHS[-1]]["discretized_accuracy"])
        lines.append([method, seed, *counts, f"{accuracy:.1f}"])
    headings = [f"noise after epoch {epoch}" for epoch in NOISE_EPOCHS]
    return Table(["method", "seed", *headings, "discretised accuracy, %"], lines)


def paths(rows: Sequence[Row]) -> Table:
    """A line a search of the whole schedule: the true accuracy of its cell, and its idle edges, after parts of it."""
    lines = []
    for method, seed in dict.fromkeys((row["method"], row["seed"]) for row in rows):
        own = [row for row in rows if (row["method"], row["seed"]) == (method, seed)]
        places = [0, *(len(own) * share // 100 - 1 for share in WHOLE_SHARES)]
        shown = [(float(own[k]["true_accuracy"]), idle_edges(own[k]["genotype"])) for k in places]
        lines.append([method, seed, str(len(own)), *(f"{true:.2f} ({idle})" for true, idle in shown)])
    headings = ["method", "seed", "epochs", "after one epoch", *(f"{share} %" for share in WHOLE_SHARES)]
    return Table(headings, lines)


def found_cells(rows: Sequence[Row]) -> Table:
    """A line a method: the test accuracies of the cells that its searches of the whole schedule end with."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        means = (_mean([float(row[dataset]) for row in own]) for dataset in NB201Table.DATASETS)
        lines.append([method, str(len(own)), *means])
    return Table(["method", "n", *(f"{dataset} test, %" for dataset in NB201Table.DATASETS)], lines)


def best_epochs(rows: Sequence[Row]) -> Table:
    """A line a search of the whole schedule: its last epoch, and the most accurate one of its second half."""
    lines = []
    for method, seed in dict.fromkeys((row["method"], row["seed"]) for row in rows):
        own = [row for row in rows if (row["method"], row["seed"]) == (method, seed)]
        late = own[len(own) // 2 :]
        accuracies = [{"discretized_accuracy": float(row["discretized_accuracy"])} for row in own]
        index = best_epoch(accuracies, range(len(own) // 2, len(own)))
        best = own[-1 if index is None else index]
        measured, true = ([float(row[field]) for row in late] for field in ("discretized_accuracy", "true_accuracy"))
        correlation = f"{spearmanr(measured, true).statistic:.2f}" if len({*true}) > 1 else "-"
        shown = [f"{float(row['true_accuracy']):.2f}" for row in (own[-1], best)]
        cells = len({row["genotype"] for row in late})
        lines.append([method, seed, str(cells), best["epoch"], *shown, correlation])
    headings = ["method", "seed", "cells in the second half", "best epoch", "true accuracy of the last epoch, %"]
    return Table([*headings, "of the best epoch, %", "rank correlation"], lines)


TABLES: Sequence[tuple[str, Callable[[Sequence[Row]], Table]]] = (
    ("courses", last_epochs),
    ("all-methods", collapses),
    ("s4", noise),
    ("whole-schedule", paths),
    ("whole-schedule-cells", found_cells),
    ("whole-schedule", best_epochs),
    ("sensitivity", sensitivity),
)
"""File of docs/data, and a table of it."""


def _mean(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


# Figures

CURVES = {
    "gap": ("courses", "discretized_accuracy", 100.0, "accuracy of the discretised supernet, %"),
    "leakage": ("courses", "leakage", 100.0, "output leakage, %, mean over edges"),
    "fig3a": ("whole-schedule", "entropy", 1.0, "entropy, nats"),
    "fig3b": ("whole-schedule", "discretized_accuracy", 100.0, "accuracy of the discretised supernet, %"),
}
"""Name of the figure -> file of docs/data, its field, factor and label."""


def coloured(rows: Sequence[Row]) -> dict[str, str]:
    """The methods, each with its colour."""
    return dict(zip(sorted({row["method"] for row in rows}), COLOURS, strict=False))


def curves(rows: Sequence[Row], field: str, factor: float, label: str) -> Any:
    """The mean over the seeds of each method, and in a band the lowest and the highest.

    Over the epochs; if methods run for different numbers of epochs, over the share of the search.
    """
    figure, axis = sheet(6.4, 3.6)
    lengths = {method: max(int(row["epoch"]) for row in rows if row["method"] == method) for method in coloured(rows)}
    is_same = len({*lengths.values()}) == 1
    for method, colour in coloured(rows).items():
        by_epoch: dict[float, list[float]] = {}
        for row in rows:
            if row["method"] == method and row[field]:
                place = int(row["epoch"]) * (1 if is_same else 100 / lengths[method])
                by_epoch.setdefault(place, []).append(factor * float(row[field]))
        epochs = sorted(by_epoch)
        axis.plot(epochs, [statistics.fmean(by_epoch[e]) for e in epochs], color=colour, label=method)
        low, high = ([choose(by_epoch[e]) for e in epochs] for choose in (min, max))
        axis.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    if is_same:
        over_epochs(axis)
    else:
        axis.set_xlabel("share of the search, %")
    axis.set_ylabel(label)
    axis.set_ylim(bottom=0)
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def outcomes(rows: Sequence[Row]) -> Any:
    """Every search's true accuracy, a line a method; crosses are cells with three or more skip or none edges."""
    methods = coloured(rows)
    figure, axis = sheet(6.4, 1.2 + 0.45 * len(methods))
    for place, (method, colour) in enumerate(methods.items()):
        last = {row["seed"]: row for row in rows if row["method"] == method}.values()
        for row in last:
            true = float(row["true_accuracy"])
            marker = "x" if idle_edges(row["genotype"]) >= 3 else "o"
            axis.plot([true], [place], marker=marker, color=colour, alpha=0.7)
    axis.set_yticks(range(len(methods)), [*methods])
    axis.set_ylim(len(methods) - 0.5, -0.5)
    axis.set_xlabel("true test accuracy on CIFAR-10, %")
    return figure


if __name__ == "__main__":
    main(tyro.cli(Options))
