"""``sparsemix reproduce``: a table or a figure of the paper, searched again and set beside what the paper prints.

sparsemix reproduce --list
sparsemix reproduce table1 --scale smoke                                         # minutes, on the embedded digits
sparsemix reproduce table1 --scale reduced -- --data data --download --table nb201.csv

What comes after -- are flags of "sparsemix search nb201", the same for all searches. Each search has its own folder.
Given again, the command goes on with what was interrupted, and repeats nothing that has finished, not even for another
table.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import __version__
from ..compare import unfinished
from ..report.records import load_run
from ..reproduction.experiments import EXPERIMENTS, SCALES, Experiment, Row
from ..reproduction.results import accuracy_table, time_table, write_results
from ..runs.config import configured
from ..runs.search import Search
from ..runs.several import run_processes
from ..speed.steps import compare_steps, seconds_a_step
from . import nb201
from .flags import split_command

__all__ = ["main"]

OWN = {"--method": "NAME", "--preset": "NAME", "--seed": "--seeds", "--output": "--output", "--resume": "--output"}
"""Flag of a search that a row of a table has -> the command's own."""
ROUNDS = 9
"""Rounds in which steps are timed, of the table of search times."""


def main(args: list[str] | None = None) -> None:
    """The command with these flags.

    Raises:
        SystemExit: a flag is wrong (2), or a run failed (1); the reason has been printed.
    """
    chosen, flags = split_command(_parser(), args, OWN)
    if chosen.list or chosen.name is None:
        width = max(map(len, EXPERIMENTS))
        print("\n".join(f"{name:{width}}  {experiment.title}" for name, experiment in EXPERIMENTS.items()))
        return
    experiment = EXPERIMENTS[chosen.name]
    folder = chosen.output / chosen.scale
    if experiment.is_timed:
        _time(chosen, experiment, flags, folder)
        return
    if not _names(flags, "--table") and chosen.scale != "smoke":
        raise ValueError(
            f"{chosen.name} is a table of true accuracies: name the file that has them by -- --table FILE "
            f"(docs/nb201.md says how to get it)"
        )
    commands = {
        folder / f"{row.run}-seed{seed}": _flags(row, chosen.scale, seed, folder / f"{row.run}-seed{seed}", flags)
        for row in experiment.rows
        for seed in chosen.seeds
    }
    left = unfinished([nb201.configure(words) for words in commands.values()])
    _announce(chosen, experiment, len(commands) - len(left), left)
    if chosen.dry_run:
        return
    folder.mkdir(parents=True, exist_ok=True)
    statuses = run_processes(
        {path.name: ["search", "nb201", *commands[path]] for path in commands if not _has_finished(path)},
        folder,
        chosen.jobs,
    )
    found = {
        row.run: [load_run(path) for seed in chosen.seeds if _has_finished(path := folder / f"{row.run}-seed{seed}")]
        for row in experiment.rows
    }
    table = accuracy_table(experiment, found)
    write_results(chosen.name, experiment, table, found, folder, _notes(chosen, flags))
    _show(table, folder / chosen.name)
    failed = [name for name, status in statuses.items() if status]
    for name in failed:
        print(f"{name} failed: {folder / f'{name}.log'} says why", file=sys.stderr)
    if failed:
        sys.exit(1)


def _time(chosen: argparse.Namespace, experiment: Experiment, flags: Sequence[str], folder: Path) -> None:
    """The table of search times."""
    print(f"{ROUNDS} rounds of steps of {len(experiment.rows)} methods in turn", flush=True)
    with tempfile.TemporaryDirectory() as scratch:

        def make(row: Row) -> Search:
            output = Path(scratch) / row.settings["method"]
            return nb201.make_search(nb201.configure(_flags(row, chosen.scale, 0, output, flags)))

        costs = compare_steps({row.settings["method"]: partial(make, row) for row in experiment.rows}, ROUNDS)
    folder.mkdir(parents=True, exist_ok=True)
    table = time_table(experiment, {method: cost["time"] for method, cost in costs.items()})
    write_results(chosen.name, experiment, table, {}, folder, _notes(chosen, flags))
    _show(table, folder / chosen.name)


def _flags(row: Row, scale: str, seed: int, output: Path, flags: Sequence[str]) -> list[str]:
    """Of one search: the row's, then those of the scale, then the user's."""
    settings = dict(row.settings)
    if settings["method"].startswith("sp-darts"):  # what the paper says, or the same with a threshold
        settings.setdefault("preset", "paper" if scale == "paper" else "fast")
    settings |= SCALES[scale].settings
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    if _names(flags, "--table") and not _names(flags, "--table-dataset"):
        words += ["--table-dataset", row.settings["dataset"]]
    resumed = ["--resume"] if (output / "config.json").exists() else []
    return [*words, *flags, "--seed", str(seed), "--output", str(output), *resumed]


def _names(flags: Sequence[str], name: str) -> bool:
    return any(flag.split("=")[0] == name for flag in flags)


def _announce(chosen: argparse.Namespace, experiment: Experiment, finished: int, waiting: list[Any]) -> None:
    """Say what will run and for how long; refuse what would take days where nobody said yes.

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
            each = seconds_a_step(search) * len(search.pairs) * search.epochs
        seconds += each * len(configs)
        size = f"{search.epochs} epochs of {len(search.pairs)} steps"
        print(f"  {run}: {len(configs)} x {size}, {_duration(each)} each")
    if waiting:
        print(f"about {_duration(seconds)} in all, one after another on this machine, and what is measured", flush=True)
    if waiting and chosen.scale == "paper" and not (torch.cuda.is_available() or chosen.yes or chosen.dry_run):
        raise ValueError(
            f"the paper's scale takes about {_duration(seconds)} on this CPU: give --yes if you mean it, or "
            f"--scale reduced"
        )


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 100 * length / 60:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _has_finished(folder: Path) -> bool:
    return (folder / "summary.json").exists()


def _notes(chosen: argparse.Namespace, flags: Sequence[str]) -> list[str]:
    own = [chosen.name, "--scale", chosen.scale, "--seeds", *map(str, chosen.seeds)]
    command = shlex.join(["sparsemix", "reproduce", *own, *(["--", *flags] if flags else [])])
    return [SCALES[chosen.scale].remark, f"`{command}`, sparsemix {__version__}, torch {torch.__version__}"]


def _show(table: Any, written: Path) -> None:
    print(f"\n{table.plain() if sys.stdout.isatty() else table.markdown()}\n\nwritten to {written}.md")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsemix reproduce",
        usage="sparsemix reproduce NAME [flags] [-- flags of the searches]",
        description="A table or a figure of the paper, searched again and set beside what the paper prints.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", choices=[*EXPERIMENTS], metavar="NAME", help="of a table; --list shows them")
    parser.add_argument("--list", action="store_true", help="list the tables and figures")
    parser.add_argument(
        "--scale",
        choices=[*SCALES],
        default="reduced",
        help="paper: as printed; reduced: the whole schedule on 16x16 images with one cell a stage (default); smoke: "
        "minutes, on the embedded digits",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="by default 0 1 2")
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce"), metavar="FOLDER", help="for the runs")
    parser.add_argument("--jobs", type=int, default=1, help="searches at a time; they share the cores (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and for how long")
    parser.add_argument("--yes", action="store_true", help="search at the paper's scale on a CPU")
    return parser
