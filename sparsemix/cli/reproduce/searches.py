"""Tables and figures of NAS-Bench-201 searches, with true accuracies from a file; and the table of search times."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...compare import unfinished
from ...report.records import load_run
from ...reproduction.experiments import SCALES, Experiment, Row
from ...reproduction.results import accuracy_table, time_table, write_results
from ...runs.config import configured
from ...runs.search import Search
from ...runs.several import run_processes
from ...speed.steps import compare_steps, seconds_a_step
from .. import nb201
from .common import as_words, check_time, chosen_rows, duration, has_finished, names, notes, show

__all__ = ["reproduce_searches", "reproduce_times"]

ROUNDS = 9
"""Number of timing rounds for the table of search times."""


def reproduce_searches(
    chosen: argparse.Namespace, experiment: Experiment, flags: Sequence[str], folder: Path
) -> list[str]:
    """Make the searches of a table, and the table.

    Returns:
        The names of the runs that failed.
    """
    if not names(flags, "--table") and chosen.scale != "smoke":
        raise ValueError(
            f"{chosen.name} is a table of true accuracies: name the file that has them by -- --table FILE "
            f"(docs/nb201.md says how to get it)"
        )
    experiment = _only(chosen, experiment)
    commands = {
        folder / f"{row.run}-seed{seed}": search_words(row, chosen.scale, seed, folder / f"{row.run}-seed{seed}", flags)
        for row in experiment.rows
        for seed in chosen.seeds
    }
    left = unfinished([nb201.configure(words) for words in commands.values()])
    _announce(chosen, experiment, len(commands) - len(left), left)
    if chosen.dry_run:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    statuses = run_processes(
        {path.name: ["search", "nb201", *commands[path]] for path in commands if not has_finished(path)},
        folder,
        chosen.jobs,
    )
    found = {
        row.run: [load_run(path) for seed in chosen.seeds if has_finished(path := folder / f"{row.run}-seed{seed}")]
        for row in experiment.rows
    }
    table = accuracy_table(experiment, found)
    remark = SCALES[chosen.scale].remark
    write_results(chosen.name, experiment, table, found, folder, notes(chosen, flags, remark))
    show(table, folder / chosen.name)
    return [name for name, status in statuses.items() if status]


def reproduce_times(
    chosen: argparse.Namespace, experiment: Experiment, flags: Sequence[str], folder: Path
) -> list[str]:
    """Time search steps, and make the table; there are no separate runs that could fail."""
    print(f"{ROUNDS} rounds of steps of {len(experiment.rows)} methods in turn", flush=True)
    with tempfile.TemporaryDirectory() as scratch:

        def make(row: Row) -> Search:
            output = Path(scratch) / row.settings["method"]
            return nb201.make_search(nb201.configure(search_words(row, chosen.scale, 0, output, flags)))

        costs = compare_steps({row.settings["method"]: partial(make, row) for row in experiment.rows}, ROUNDS)
    folder.mkdir(parents=True, exist_ok=True)
    table = time_table(experiment, {method: cost["time"] for method, cost in costs.items()})
    write_results(chosen.name, experiment, table, {}, folder, notes(chosen, flags, SCALES[chosen.scale].remark))
    show(table, folder / chosen.name)
    return []


def search_words(row: Row, scale: str, seed: int, output: Path, flags: Sequence[str]) -> list[str]:
    """The flags of one search: the row's, then those of the scale, then the user's."""
    words = as_words(SCALES[scale].of(row.settings))
    if names(flags, "--table") and not names(flags, "--table-dataset"):
        words += ["--table-dataset", row.settings["dataset"]]
    resumed = ["--resume"] if (output / "config.json").exists() else []
    return [*words, *flags, "--seed", str(seed), "--output", str(output), *resumed]


def _only(chosen: argparse.Namespace, experiment: Experiment) -> Experiment:
    return experiment._replace(rows=tuple(chosen_rows({row.name: row for row in experiment.rows}, chosen.only)))


def _announce(chosen: argparse.Namespace, experiment: Experiment, finished: int, waiting: list[Any]) -> None:
    """Say what will run and for how long.

    Raises:
        ValueError: the paper's scale on a CPU, without ``--yes``.
    """
    print(f"{chosen.name}: {experiment.title}, scale {chosen.scale}\n{len(waiting)} searches, {finished} have finished")
    seconds = 0.0
    by_run: dict[str, list[Any]] = {}
    for config in waiting:
        by_run.setdefault(config.run.output.name.rpartition("-seed")[0], []).append(config)
    for run, configs in tqdm(by_run.items(), desc="timing a few steps of each", leave=False, disable=None):
        with tempfile.TemporaryDirectory() as scratch:
            search = nb201.make_search(configured(configs[0], {"output": Path(scratch) / run, "resume": False}))
            each = seconds_a_step(search, search.config.size.epochs // 2) * len(search.pairs) * search.epochs
        seconds += each * len(configs)
        size = f"{search.epochs} epochs of {len(search.pairs)} steps"
        print(f"  {run}: {len(configs)} x {size}, {duration(each)} each")
    if waiting:
        print(f"about {duration(seconds)} in all if run one after another here, plus time for measurements", flush=True)
    check_time(chosen, seconds)
