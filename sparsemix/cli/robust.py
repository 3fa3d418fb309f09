"""``sparsemix search s1`` to ``s4``: search a space on which DARTS ends in skip connections.

The paper searches with t_sp of 4e-4 to 7e-4 and keeps the best: ``sparsemix pick`` does that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..spaces import darts
from .darts import DartsConfig, make_search
from .flags import peek_flags, search_config

__all__ = ["RobustConfig", "configure", "main", "make_search"]


@dataclass(frozen=True)
class RobustConfig(DartsConfig):
    """Settings of a search of S1 to S4."""

    space: Literal["s1", "s2", "s3", "s4"] = "s1"
    """Search space, which defines the candidate operations of each edge."""


def configure(args: list[str] | None = None) -> RobustConfig:
    """The configuration of these flags."""
    space = peek_flags(args, "sparsemix search", space=(["s1", "s2", "s3", "s4"], RobustConfig.space))
    return search_config(RobustConfig, darts.ROBUST_SETTINGS, args, f"sparsemix search {space['space']}", space)


def main(args: list[str]) -> None:
    """The command with these flags."""
    make_search(configure(args)).run()
