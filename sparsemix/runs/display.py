"""What a run prints: lines that stay and, on a terminal, the running epoch beneath them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

__all__ = ["Display"]

_REDRAW_EVERY = 0.25
"""Minimum seconds between two updates of the running epoch; an update may have to wait for the device."""


class Display:
    """The running epoch at the foot of a terminal. Printed lines appear above it, warnings included.

    Used as a context manager, it controls the last lines of the terminal. If the output is not a terminal, and in all
    processes but the main one, it shows nothing, so that logs contain only whole lines.

    Args:
        shows: whether this process may show something.
        heading: of the line of the running epoch.
        console: where it is drawn; None: standard output.
    """

    def __init__(self, shows: bool, heading: str, console: Console | None = None) -> None:
        console = console or Console()
        self.heading = heading
        self._live: Live | None = None
        self._drawn = float("-inf")
        if shows and console.is_terminal and not (console.is_dumb_terminal or console.is_jupyter):
            self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            with suppress(OSError):  # the terminal may have been closed
                self._live.stop()

    def show(self, line: Callable[[], str], done: int, total: int) -> None:
        """Show how far a run is.

        Args:
            line: the running epoch; called only if it is drawn.
            done: steps of the run that are done.
            total: steps of the whole run.
        """
        if self._live is None or time.monotonic() - self._drawn < _REDRAW_EVERY:
            return
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_row(ProgressBar(total, done), Text(f"{done / total:.0%}, step {done} of {total}", justify="right"))
        foot = Group(Text(self.heading, style="bold", no_wrap=True), Text(line(), style="cyan", no_wrap=True), bar)
        self._live.update(foot, refresh=True)
        self._drawn = time.monotonic()
