"""DARTS+: a search ends when the cell has two skip connections, or when ranks have not changed for many epochs.

Source: Liang et al., "DARTS+: Improved Differentiable Architecture Search with Early Stopping", criteria 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .darts import PLAIN
from .method import Method, Part, Records

__all__ = ["METHODS", "SkipStopping"]


@dataclass(frozen=True)
class SkipStopping(Part):
    """The search ends at two skip connections in the normal cell, or when operations' ranks no longer change."""

    max_skips: int = 2
    """Skip connections in the normal cell that end the search."""
    stable_epochs: int = 10
    """Number of epochs without a change in any edge's operation ranks that ends the search."""

    def __post_init__(self) -> None:
        if self.max_skips < 1 or self.stable_epochs < 1:
            raise ValueError(
                f"SkipStopping: max_skips and stable_epochs must be at least 1, got {self.max_skips} and "
                f"{self.stable_epochs}"
            )

    def stops(self, records: Records) -> bool:
        if not records:
            return False
        skips = records[-1].get("skips")
        if skips is not None and skips >= self.max_skips:
            return True
        recent = [_ranks(record["alphas"]) for record in records[-self.stable_epochs - 1 :]]
        return len(recent) > self.stable_epochs and all(ranks == recent[0] for ranks in recent)


def _ranks(alphas: Mapping[str, list[float]]) -> Any:
    """The candidates of every row, the strongest first."""
    return [sorted(range(len(row)), key=lambda i: -row[i]) for row in alphas.values()]


METHODS = (
    Method(
        "darts-plus",
        (SkipStopping(),),
        "DARTS that stops at two skip connections, or when ranks no longer change",
        PLAIN,
    ),
)
