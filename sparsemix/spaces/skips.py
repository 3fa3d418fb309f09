"""Counting skip connections, of which searches are known to choose too many."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["skip_count"]


def skip_count(genotype: Mapping[str, str], names: frozenset[str] = frozenset({"skip", "skip_connect"})) -> int:
    """How many rows chose a skip connection.

    Example:
        >>> skip_count({"1<-0": "skip_connect", "2<-0": "nor_conv_3x3"})
        1
    """
    return sum(operation in names for operation in genotype.values())
