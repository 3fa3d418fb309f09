"""The result of a search on any supernet: the candidate, or candidates, kept for each row."""

from __future__ import annotations

from typing import ClassVar

from ..supernet.group import ArchParameterGroup

__all__ = ["Choice"]


class Choice(dict[str, str]):
    """Row -> candidate, as shown in records and tables: ``"skip + conv"`` if several are kept, ``"-"`` if none is.

    Args:
        arch: architecture parameters of the supernet.
        temperature: ignored, since the choice is the same at every temperature.

    Example:
        >>> from torch import nn
        >>> from sparsemix import MixedOp
        >>> arch = ArchParameterGroup(nn.Sequential(MixedOp({"skip": nn.Identity()})))
        >>> str(Choice(arch)), Choice(arch).skips
        ('0: skip', 1)
    """

    SKIPS: ClassVar[frozenset[str]] = frozenset({"skip", "identity"})

    def __init__(self, arch: ArchParameterGroup, temperature: float = 1.0) -> None:
        self.names = arch.choices()
        super().__init__({row: " + ".join(names) or "-" for row, names in self.names.items()})
        self.has_skips = any(self.SKIPS & {*ops[0].names} for ops in arch.rows.values())

    @property
    def skips(self) -> int | None:
        return sum(bool(self.SKIPS & {*names}) for names in self.names.values()) if self.has_skips else None

    def __str__(self) -> str:
        return ", ".join(f"{row}: {name}" for row, name in self.items())
