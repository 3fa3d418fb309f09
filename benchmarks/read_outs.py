"""Which cell to take from a finished search of NAS-Bench-201: rules compared by true accuracy.

    python benchmarks/read_outs.py --runs runs/settle/* --table nb201.csv --output read_outs

Rules of one search: the last epoch's alphas (the paper's), the mean of the last 3, 5 and 10 epochs' alphas, and the
epoch of the second half with the best discretised accuracy (--best-from 0.5). A run of METHOD+settle with the seed of
a run of METHOD adds the rule "settled". OUTPUT.csv has a row for each run and rule, OUTPUT-cells.csv one for each cell
that settling measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from sparsemix.measure import best_epoch
from sparsemix.report.records import FinishedRun, load_run
from sparsemix.report.tables import Table, write_rows
from sparsemix.spaces.nb201 import NB201Genotype
from sparsemix.spaces.nb201.table import NB201Table

Records = Sequence[Mapping[str, Any]]
LAST = "last epoch"
SETTLED = "settled"


@dataclass(frozen=True)
class Options:
    runs: tuple[Path, ...]
    """Folders of finished searches."""
    table: Path
    """CSV file with the benchmark's accuracies."""
    dataset: str = "cifar10"
    """Data set of the true accuracies."""
    output: Path = Path("read_outs")
    """Start of the names of the files written."""


def main(options: Options) -> Table:
    table = NB201Table(options.table)

    def true(cell: NB201Genotype | str) -> float:
        return table.accuracy(cell, options.dataset)

    runs = [load_run(folder) for folder in options.runs if (folder / "summary.json").exists()]
    plain = [run for run in runs if not run.what.endswith("+settle")]
    settled = {(run.what.removesuffix("+settle"), run.summary["seed"]): run for run in runs if run not in plain}
    rows = []
    for run in plain:
        found = {rule: read(run.records) for rule, read in RULES.items()}
        if other := settled.get((run.what, run.summary["seed"])):
            found[SETTLED] = NB201Genotype.parse(other.summary["genotype"])
        base = {"method": run.what, "seed": run.summary["seed"], "run": run.name}
        rows += [{**base, "rule": rule, "cell": cell, "true_accuracy": true(cell)} for rule, cell in found.items()]
    cells = [cell for run in settled.values() for cell in cells_in_question(run, true)]
    for name, lines in (("", rows), ("-cells", cells)):
        if lines:
            write_rows(options.output.with_name(f"{options.output.name}{name}.csv"), lines)
    made = compared(rows)
    print(made.markdown())
    if cells:
        print(f"\n{verdict(cells)}")
    return made


# Rules


def last(records: Records) -> NB201Genotype:
    return NB201Genotype.parse(records[-1]["genotype"])


def mean_of(epochs: int) -> Callable[[Records], NB201Genotype]:
    """The strongest operations by the mean of the last epochs' alphas."""

    def read(records: Records) -> NB201Genotype:
        rows = {}
        for row in NB201Genotype.EDGES:
            alphas = zip(*(record["alphas"][row] for record in records[-epochs:]), strict=True)
            means = [statistics.fmean(values) for values in alphas]
            rows[row] = NB201Genotype.OPERATIONS[means.index(max(means))]
        return NB201Genotype.from_edges(rows)

    return read


def best(records: Records) -> NB201Genotype:
    """As with --best-from 0.5."""
    index = best_epoch(records, range((len(records) + 1) // 2, len(records)))
    return NB201Genotype.parse(records[-1 if index is None else index]["genotype"])


RULES: Mapping[str, Callable[[Records], NB201Genotype]] = {
    LAST: last,
    **{f"mean of the last {epochs}": mean_of(epochs) for epochs in (3, 5, 10)},
    "best epoch": best,
}


# Settling


def cells_in_question(run: FinishedRun, true: Callable[[NB201Genotype], float]) -> Iterable[dict[str, Any]]:
    """Each cell that a search measured when it settled its undecided rows, with its measured and its true accuracy."""
    before = next((r for r in run.records if r.get("settled_among")), None)
    if before is None:
        return
    decided = NB201Genotype.parse(before["genotype"]).by_edge()
    for each in before["settled_among"]:
        cell = NB201Genotype.from_edges({**decided, **each["cell"]})
        yield {
            "method": run.what,
            "seed": run.summary["seed"],
            "cell": cell,
            "measured_accuracy": each["accuracy"],
            "true_accuracy": true(cell),
            "taken": each["cell"] == before["settled"],
        }


def verdict(cells: Sequence[Mapping[str, Any]]) -> str:
    """What the measurement knew of the true accuracies of the cells in question."""
    by_seed: dict[Any, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_seed.setdefault(cell["seed"], []).append(cell)
    gains, correlations = [], []
    for among in by_seed.values():
        accuracies = [cell["true_accuracy"] for cell in among]
        gains.append(next(cell["true_accuracy"] for cell in among if cell["taken"]) - statistics.fmean(accuracies))
        if len({*accuracies}) > 2:
            correlations.append(spearmanr([cell["measured_accuracy"] for cell in among], accuracies).statistic)
    better = sum(gain > 0 for gain in gains)
    return (
        f"{len(by_seed)} searches had undecided rows, {len(cells) / len(by_seed):.1f} cells in question on average. "
        f"The cell taken is {_mean(gains, '+.2f')} points from their mean, and above it in {better} of {len(gains)}. "
        f"Rank correlation of measured and true accuracy: {_mean(correlations)} ({len(correlations)} searches)."
    )


# The table


def compared(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each method and rule: its true accuracies, and their differences from the last epoch's, by run."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        by_last = _by_run(rows, method, LAST)
        for rule in (*RULES, SETTLED):
            found = _by_run(rows, method, rule)
            if not found:
                continue
            accuracies, gains = [*found.values()], [accuracy - by_last[run] for run, accuracy in found.items()]
            counts = [sum(gain > 0 for gain in gains), gains.count(0), sum(gain < 0 for gain in gains)]
            shown = [_mean(accuracies), f"{min(accuracies):.2f}", _mean(gains, "+.2f"), " / ".join(map(str, counts))]
            lines.append([method, rule, str(len(found)), *shown])
    headings = ["method", "read-out", "n", "true accuracy, %", "worst, %", "difference from the last epoch, points"]
    return Table([*headings, "better / same / worse"], lines)


def _by_run(rows: Sequence[Mapping[str, Any]], method: str, rule: str) -> dict[str, float]:
    return {row["run"]: row["true_accuracy"] for row in rows if (row["method"], row["rule"]) == (method, rule)}


def _mean(values: Sequence[float], form: str = ".2f") -> str:
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{deviation}"


if __name__ == "__main__":
    main(tyro.cli(Options))
