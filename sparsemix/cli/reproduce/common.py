"""What all tables have in common: rows, flags, durations, and how the result is shown."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ... import __version__
from ...report.tables import Table

__all__ = ["as_words", "check_time", "chosen_rows", "duration", "has_finished", "names", "notes", "show"]

Row = TypeVar("Row")


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the words of a command line: ``{"seeds": (0, 1), "fixed": True}`` is ``--seeds 0 1 --fixed``."""
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        words += [f"--{name}", *map(str, values)]
    return words


def names(flags: Sequence[str], name: str) -> bool:
    """Whether a flag is among those of the runs."""
    return any(flag.split("=")[0] == name for flag in flags)


def chosen_rows(rows: Mapping[str, Row], only: str | None) -> list[Row]:
    """The row named ``only``, or else the rows whose name contains it; None: all rows.

    Raises:
        ValueError: no row matches.
    """
    if only is not None and only in rows:  # "S4, cifar10" is not "S4, cifar100"
        return [rows[only]]
    found = [row for name, row in rows.items() if only is None or only in name]
    if not found:
        raise ValueError(f"no row contains {only!r}: the rows are {', '.join(rows)}")
    return found


def has_finished(folder: Path) -> bool:
    """Whether a run folder holds a run that has come to its end."""
    return (folder / "summary.json").exists()


def duration(seconds: float) -> str:
    """A duration in readable units.

    Example:
        >>> duration(30), duration(600), duration(9000)
        ('30 s', '10.0 min', '2.5 h')
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 100 * length / 60:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def check_time(chosen: argparse.Namespace, seconds: float) -> None:
    """Refuse runs at the paper's scale on a CPU, which would take days, unless ``--yes`` was given.

    Raises:
        ValueError: runs remain at the paper's scale on a CPU, without ``--yes``.
    """
    allowed = torch.cuda.is_available() or chosen.yes or chosen.dry_run
    if seconds and chosen.scale == "paper" and not allowed:
        raise ValueError(
            f"the paper's scale takes about {duration(seconds)} on this CPU: give --yes if you mean it, or "
            f"--scale reduced"
        )


def notes(chosen: argparse.Namespace, flags: Sequence[str], remark: str) -> list[str]:
    """The paragraphs below a table: the scale, the command and the versions."""
    own = [chosen.name, "--scale", chosen.scale, "--seeds", *map(str, chosen.seeds)]
    own += ["--only", chosen.only] if chosen.only else []
    own += ["--imagenet", *map(str, chosen.imagenet)] if chosen.imagenet else []
    command = shlex.join(["sparsemix", "reproduce", *own, *(["--", *flags] if flags else [])])
    return [remark, f"`{command}`, sparsemix {__version__}, torch {torch.__version__}"]


def show(table: Table, written: Path) -> None:
    """Print a table, and where it has been written."""
    print(f"\n{table.plain() if sys.stdout.isatty() else table.markdown()}\n\nwritten to {written}.md")
