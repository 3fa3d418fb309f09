"""A cell of NAS-Bench-201 as a frozen value, with the benchmark's notation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from ..skips import skip_count

__all__ = ["NB201Genotype"]


@dataclass(frozen=True)
class NB201Genotype:
    """A cell of NAS-Bench-201: one operation on each of the six edges between its four nodes.

    Args:
        operations: names in the order of :attr:`EDGES`.

    Raises:
        ValueError: not six operations, or one that the space does not have.

    Example:
        >>> cell = NB201Genotype.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|")
        >>> cell.operations[0], cell.by_edge()["3<-2"]
        ('nor_conv_3x3', 'avg_pool_3x3')
        >>> str(cell)
        '|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|'

    Source: Dong and Yang, "NAS-Bench-201".
    """

    operations: tuple[str, ...]

    OPERATIONS: ClassVar[tuple[str, ...]] = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    EDGES: ClassVar[tuple[str, ...]] = ("1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2")

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))
        if len(self.operations) != len(self.EDGES):
            raise ValueError(
                f"NB201Genotype: a cell has {len(self.EDGES)} edges ({', '.join(self.EDGES)}), "
                f"got {len(self.operations)} operations: {self.operations}"
            )
        for edge, operation in zip(self.EDGES, self.operations, strict=True):
            if operation not in self.OPERATIONS:
                raise ValueError(
                    f"NB201Genotype: unknown operation {operation!r} on edge {edge}; "
                    f"the space has {', '.join(self.OPERATIONS)}"
                )

    @classmethod
    def parse(cls, text: str) -> NB201Genotype:
        """Read the benchmark's notation, ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``.

        Raises:
            ValueError: says what is malformed and where.
        """
        operations = []
        nodes = text.strip().split("+")
        for node, part in enumerate(nodes, start=1):
            edges = re.fullmatch(r"\|(?:[^|~]+~[0-9]\|)+", part)
            pairs = re.findall(r"([^|~]+)~([0-9])", part)
            if edges is None or [int(source) for _, source in pairs] != list(range(node)):
                expected = "|" + "".join(f"op~{source}|" for source in range(node))
                raise ValueError(f"NB201Genotype: node {node} of {text!r} reads {part!r}, expected {expected!r}")
            operations += [operation for operation, _ in pairs]
        return cls(tuple(operations))

    @classmethod
    def from_edges(cls, choices: Mapping[str, str]) -> NB201Genotype:
        """From edge -> operation, as :meth:`sparsemix.ArchParameterGroup.genotype` reads it out."""
        if set(choices) != set(cls.EDGES):
            raise ValueError(f"NB201Genotype: expected the edges {', '.join(cls.EDGES)}, got {', '.join(choices)}")
        return cls(tuple(choices[edge] for edge in cls.EDGES))

    @classmethod
    def all(cls) -> list[NB201Genotype]:
        """All 15,625 cells of the space."""
        return [cls(operations) for operations in product(cls.OPERATIONS, repeat=len(cls.EDGES))]

    @property
    def skips(self) -> int:
        """How many edges are skip connections."""
        return skip_count(self.by_edge())

    def by_edge(self) -> dict[str, str]:
        """Edge -> operation."""
        return dict(zip(self.EDGES, self.operations, strict=True))

    def __str__(self) -> str:
        remaining = iter(self.operations)
        return "+".join("|" + "".join(f"{next(remaining)}~{s}|" for s in range(node)) for node in (1, 2, 3))
