"""``sparsemix table``: make or read the table of NAS-Bench-201's accuracies.

sparsemix table convert NATS-tss-v1_0-3ffb9-simple nb201.csv   # from the official file
sparsemix table show nb201.csv "|nor_conv_3x3~0|+|...|"        # look an architecture up
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..spaces.nb201 import NB201Table, convert_nats_bench

__all__ = ["main"]


def main(args: list[str] | None = None) -> None:
    """The command with these flags."""
    parser = argparse.ArgumentParser(prog="sparsemix table", description="Benchmark tables.")
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="make the compact table from the official NATS-Bench file")
    convert.add_argument("source", type=Path, help="NATS-Bench's folder NATS-tss-v1_0-3ffb9-simple, or its single file")
    convert.add_argument("target", type=Path, help="CSV file to write")
    show = commands.add_parser("show", help="look an architecture up")
    show.add_argument("table", type=Path, help="CSV file made by convert")
    show.add_argument("architecture", help="cell, such as '|nor_conv_3x3~0|+...'; quote it for the shell")
    chosen = parser.parse_args(args)
    if chosen.command == "convert":
        print(f"{convert_nats_bench(chosen.source, chosen.target)} architectures written to {chosen.target}")
        return
    table = NB201Table(chosen.table)
    for dataset, accuracies in table.accuracies(chosen.architecture).items():
        valid = f"validation {accuracies['valid']:6.2f} %  " if "valid" in accuracies else ""
        rank, best = table.rank(chosen.architecture, dataset), table.best(dataset)
        print(f"{dataset:15} {valid}test {accuracies['test']:6.2f} %  rank {rank} of {len(table)}, best {best:.2f} %")
