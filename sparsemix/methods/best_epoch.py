"""The result is the epoch whose discretised supernet was most accurate, instead of the last epoch.

If two operations of an edge help each other, their alphas stay tied at any temperature, and the last epoch takes one of
them by chance. Earlier epochs took the others, and their discretised supernets have been measured anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

from .darts import PLAIN
from .method import Method, Part, Records

__all__ = ["METHODS", "BestEpoch"]


@dataclass(frozen=True)
class BestEpoch(Part):
    """The result is the epoch with the best discretised accuracy; the last one if epochs were not evaluated.

    Example:
        >>> accuracies = (0.9, 0.2, 0.4, 0.3)
        >>> BestEpoch(best_from=0.5).result([{"discretized_accuracy": accuracy} for accuracy in accuracies])
        2
    """

    best_from: float = 0.5
    """Share of the search after which an epoch can be the result; before, the weights are hardly trained."""

    def __post_init__(self) -> None:
        if not 0 <= self.best_from < 1:
            raise ValueError(f"BestEpoch: best_from must be in [0, 1), got {self.best_from}")

    def result(self, records: Records) -> int:
        """The most accurate one; of equals the last."""
        evaluated = [
            (record["discretized_accuracy"], index)
            for index, record in enumerate(records)
            if index >= self.best_from * len(records) and "discretized_accuracy" in record
        ]
        return max(evaluated)[1] if evaluated else len(records) - 1


METHODS = (Method("best-epoch", (BestEpoch(),), "the result is the epoch with the best discretised accuracy", PLAIN),)
