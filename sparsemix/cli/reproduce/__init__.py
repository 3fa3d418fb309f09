"""``sparsemix reproduce``: reproduce a table or figure of the paper, beside the numbers that the paper prints.

sparsemix reproduce --list
sparsemix reproduce table1 --scale smoke                                         # minutes, on the embedded digits
sparsemix reproduce table1 --scale reduced -- --data data --download --table nb201.csv
sparsemix reproduce table5 --only "S4, cifar10" -- --data data --download

The flags after -- are those of the searches and, if networks are trained, of the trainings. Each run has its own
folder. Running the command again resumes interrupted runs and skips finished ones, even those of another table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ...reproduction.experiments import EXPERIMENTS, SCALES, Experiment
from ...reproduction.networks import NETWORK_TABLES, NetworkTable
from ...runs.several import check_once, exit_if_failed
from ..flags import split_command
from .networks import reproduce_networks
from .searches import reproduce_searches, reproduce_times

__all__ = ["main"]

TABLES: dict[str, Experiment | NetworkTable] = {**EXPERIMENTS, **NETWORK_TABLES}
OWN = {
    "--method": "NAME",
    "--preset": "NAME",
    "--genotype": "NAME",
    "--model": "NAME",
    "--seed": "--seeds",
    "--output": "--output",
    "--resume": "--output",
}
"""Flag of a run that a table row or this command sets -> this command's own flag."""


def main(args: list[str] | None = None) -> None:
    """The command with these flags.

    Raises:
        SystemExit: a flag is wrong (2), or a run failed (1); the reason has been printed.
    """
    chosen, flags = split_command(_parser(), args, OWN)
    if chosen.list or chosen.name is None:
        width = max(map(len, TABLES))
        print("\n".join(f"{name:{width}}  {table.title}" for name, table in TABLES.items()))
        return
    check_once("seed", chosen.seeds)
    folder = chosen.output / chosen.scale
    if chosen.name in NETWORK_TABLES:
        failed = reproduce_networks(chosen, NETWORK_TABLES[chosen.name], flags, folder)
    elif EXPERIMENTS[chosen.name].is_timed:
        failed = reproduce_times(chosen, EXPERIMENTS[chosen.name], flags, folder)
    else:
        failed = reproduce_searches(chosen, EXPERIMENTS[chosen.name], flags, folder)
    exit_if_failed(failed, folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsemix reproduce",
        usage="sparsemix reproduce NAME [flags] [-- flags of the runs]",
        description="Reproduce a table or figure of the paper, beside the numbers that the paper prints.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", choices=[*TABLES], metavar="NAME", help="table or figure; --list shows them")
    parser.add_argument("--list", action="store_true", help="list the tables and figures")
    parser.add_argument(
        "--scale",
        choices=[*SCALES],
        default="reduced",
        help="paper: the paper's size; reduced: the whole schedule on 16x16 images with one cell per stage (default); "
        "proxy: the same with fewer images and epochs, minutes per search; smoke: minutes in all, on the embedded "
        "digits. For tables of trained networks, reduced and proxy are the same",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="seeds (default 0 1 2)")
    parser.add_argument(
        "--only",
        metavar="TEXT",
        help="only the row of this name, or all rows whose name contains it, such as 'SP-DARTS'",
    )
    parser.add_argument(
        "--imagenet",
        nargs=2,
        type=Path,
        metavar=("TRAIN", "VAL"),
        help="folders of ImageNet's training and validation images, for the transfer in table3",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce"), metavar="FOLDER", help="folder of runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="only print what would run, and for how long")
    parser.add_argument("--yes", action="store_true", help="allow runs at the paper's scale on a CPU")
    return parser
