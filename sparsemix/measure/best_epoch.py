"""The epoch of a search whose discretised supernet was most accurate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["best_epoch"]


def best_epoch(records: Sequence[Mapping[str, Any]], among: Iterable[int]) -> int | None:
    """The epoch with the highest ``discretized_accuracy``, and the last of several with the same.

    If two operations of an edge help each other, their alphas stay tied at any temperature, and the last epoch takes
    one of them by chance. Earlier epochs took the others, and their discretised supernets have been measured anyway.

    Args:
        records: the records of a search's epochs.
        among: indices of the records to choose from; epochs that were not evaluated are left out.

    Returns:
        Index of a record. None if none of them was evaluated.

    Example:
        >>> records = [{"discretized_accuracy": accuracy} for accuracy in (0.9, 0.2, 0.4, 0.3)]
        >>> best_epoch(records, among=range(2, 4))
        2
    """
    evaluated = [index for index in among if "discretized_accuracy" in records[index]]
    return max(evaluated, key=lambda index: (records[index]["discretized_accuracy"], index), default=None)
