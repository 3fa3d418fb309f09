"""``sparsemix compare``: several methods on one space, each with several seeds, as a table.

sparsemix compare nb201 --methods darts sp-darts gdas --seeds 0 1 2 --output runs/compare -- --preset proxy
sparsemix compare nb201 --methods darts gdas --output runs/c --dry-run -- --dataset cifar10    # commands for a cluster

The flags after -- are those of "sparsemix search SPACE" and apply to all methods. Every run is one such search, in its
own folder. Running the command again resumes interrupted runs, skips finished ones, and rewrites the table.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from .. import compare
from ..data import open_pairs
from ..methods.registry import find_method
from ..runs.config import SearchConfig
from ..runs.several import exit_if_failed, run_processes
from ..speed.steps import check_steps
from . import COMMANDS
from .flags import split_command

__all__ = ["main"]

SPACES = [name.removeprefix("search ") for name in COMMANDS if name.startswith("search ")]
OWN = {"--method": "--methods", "--seed": "--seeds", "--output": "--output", "--resume": "--output"}
"""Flag of a search that the comparison sets -> the comparison's own flag."""


def main(args: list[str] | None = None) -> None:
    """The command with these flags.

    Raises:
        SystemExit: a flag is wrong (2), or a run failed (1); the reason has been printed.
    """
    chosen, flags = split_command(_parser(), args, OWN)
    command = COMMANDS[f"search {chosen.space}"]
    module = import_module(f"{__package__}.{command.module}")
    for method in chosen.methods:
        find_method(method)
    configs = compare.in_folders(
        [module.configure([*command.flags, "--method", method, *flags]) for method in chosen.methods],
        chosen.seeds,
        chosen.output,
    )
    if chosen.time_steps:
        check_steps(chosen.methods, chosen.time_steps)
    commands = {
        str(config.run.output): ["search", chosen.space, *_run_flags(config), *flags]
        for config in compare.unfinished(configs)
    }
    if chosen.dry_run:
        for words in commands.values():
            print(shlex.join([sys.executable, "-m", "sparsemix", *words]))
        return
    chosen.output.mkdir(parents=True, exist_ok=True)
    if configs[0].data.download and chosen.jobs > 1 and commands:
        open_pairs(**configs[0].data_options())  # fetched once, before several runs would do it at the same time
    statuses = run_processes(
        {Path(folder).name: words for folder, words in commands.items()}, chosen.output, chosen.jobs
    )
    _conclude(chosen, flags, configs, module, [name for name, status in statuses.items() if status])


def _conclude(
    chosen: argparse.Namespace, flags: list[str], configs: list[SearchConfig], module: ModuleType, failed: list[str]
) -> None:
    """Print the table, and what failed.

    Raises:
        SystemExit: a run failed.
    """
    own = ["--methods", *chosen.methods, "--seeds", *map(str, chosen.seeds)]
    made_by = shlex.join(["sparsemix", "compare", chosen.space, *own, "--output", str(chosen.output), "--", *flags])
    table = compare.conclude(configs, module.make_search, chosen.time_steps, [f"`{made_by}`"])
    print(f"\n{table.plain() if sys.stdout.isatty() else table.markdown()}\n")
    print(f"written to {chosen.output / 'comparison.md'}, .csv and .png; every run in {chosen.output / 'runs.csv'}")
    exit_if_failed(failed, chosen.output)


def _run_flags(config: SearchConfig) -> list[str]:
    """The flags of a search that are specific to its run: method, seed, output folder and resuming."""
    flags = ["--method", config.method.name, "--seed", str(config.run.seed), "--output", str(config.run.output)]
    return [*flags, "--resume"] if config.run.resume else flags


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsemix compare",
        usage="sparsemix compare SPACE --methods METHOD ... --output FOLDER [flags] [-- flags of the searches]",
        description="Several methods on one space, each with several seeds, as a table.",
        allow_abbrev=False,
    )
    parser.add_argument("space", choices=SPACES, help="search space")
    parser.add_argument("--methods", nargs="+", required=True, metavar="METHOD", help="methods; a+b combines two")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="seeds (default 0 1 2)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder of the runs and the table")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands of the remaining runs")
    parser.add_argument(
        "--time-steps",
        type=int,
        default=0,
        metavar="ROUNDS",
        help="after the runs, time the search steps of all methods in turn, in this many rounds (default 0)",
    )
    return parser
