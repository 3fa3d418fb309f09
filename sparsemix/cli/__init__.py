"""The commands: ``sparsemix search nb201 --preset proxy``, ``sparsemix train``, ``sparsemix report``, ...

``python -m sparsemix`` is the same, and ``accelerate launch -m sparsemix`` launches it on several devices.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

from ..runs.launching import run_script

__all__ = ["COMMANDS", "Command", "main"]


class Command(NamedTuple):
    """A command: a module whose function ``main(args)`` runs it, and a summary. The module is imported on use.

    Attributes:
        module: its module in this package.
        summary: what it does, in one line.
        flags: flags that precede the user's flags.
    """

    module: str
    summary: str
    flags: tuple[str, ...] = ()


COMMANDS: dict[str, Command] = {
    "search nb201": Command("nb201", "search the NAS-Bench-201 space"),
    "search darts": Command("darts", "search the DARTS space"),
    **{
        f"search {space}": Command(
            "robust", f"search {space.upper()}, where DARTS ends in skip connections", ("--space", space)
        )
        for space in ("s1", "s2", "s3", "s4")
    },
    "search timm": Command("timm_model", "search the layers of a timm model"),
    "train": Command("train", "train a found or published architecture, or a timm model"),
    "pick": Command("pick", "search several times, train each result briefly, keep the best"),
    "report": Command("report", "show the results of finished runs, as tables and figures"),
    "compare": Command("compare", "compare several methods with several seeds, as a table"),
    "reproduce": Command("reproduce", "reproduce a table or figure of the paper, beside the printed numbers"),
    "speed": Command("speed", "time a search step here, relative to the published formulation"),
    "table": Command("table", "make or read the table of NAS-Bench-201's accuracies"),
}


def main(args: list[str] | None = None) -> None:
    """Run a command.

    Args:
        args: the command line; by default the process's own.

    Raises:
        SystemExit: there is no such command, or it failed or was stopped; the reason has been printed.
    """
    words = sys.argv[1:] if args is None else args
    name = " ".join(words[:2]) if words[:1] == ["search"] else " ".join(words[:1])
    if name not in COMMANDS:
        wanted = ""
        if {*words} - {"search", "-h", "--help"}:
            close = get_close_matches(" ".join(words[:2]), COMMANDS, 1) or get_close_matches(name, COMMANDS, 1)
            wanted = f"there is no command {name!r}{f'; did you mean {close[0]!r}?' if close else ''}\n\n"
        width = max(map(len, COMMANDS))
        listed = "\n".join(f"  sparsemix {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
        print(f"{wanted}commands, each with --help:\n{listed}", file=sys.stderr if wanted else sys.stdout)
        sys.exit(2 if wanted else 0)
    command, flags = COMMANDS[name], words[len(name.split()) :]
    if named := [flag for flag in flags if flag.split("=")[0] in command.flags]:
        print(f"sparsemix {name} sets {' '.join(command.flags)} itself: leave {named[0]} out", file=sys.stderr)
        sys.exit(2)
    run_script(lambda: _imported(command.module)([*command.flags, *flags]))


def _imported(module: str) -> Callable[[list[str]], None]:
    """The ``main`` function of a command's module.

    Raises:
        ImportError: a package that only the commands need is missing; the message says how to install it.
    """
    try:
        return import_module(f"{__name__}.{module}").main
    except ImportError as error:
        if error.name in ("tyro", "sklearn", "scipy", "matplotlib", "jinja2"):
            raise ModuleNotFoundError(
                f"{error.name} is not installed: pip install 'sparsemix[search,plots]'"
            ) from error
        raise
