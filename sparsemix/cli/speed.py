"""``sparsemix speed``: how long a search step takes, as ratios within one run.

sparsemix speed                            # the table, and a whole schedule at the end
sparsemix speed --json speed.json          # also write its rows
sparsemix speed --only "N 1|one candidate" # some of the comparisons

Run nothing else at the same time.
"""

from __future__ import annotations

import tyro

from ..speed.measurement import Options, measure_speed

__all__ = ["main"]


def main(args: list[str] | None = None) -> None:
    """The command with these flags."""
    measure_speed(tyro.cli(Options, prog="sparsemix speed", args=args))
