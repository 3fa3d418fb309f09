"""What a search step, a measure or a cost needs of architecture parameters, whoever holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from ..relaxations import Relaxation
from .mixed_op import MixedOp

__all__ = ["Architecture", "Genotype", "check_architecture", "name_or_names"]

Genotype = Mapping[str, str | Sequence[str]]
"""Label -> the name of what is chosen in that row, or the names of several; ``()`` for nothing."""


def name_or_names(chosen: Sequence[str]) -> str | list[str]:
    """The one name, or a list of several or of none: what is chosen of a row, ready for JSON.

    Example:
        >>> name_or_names(("skip",)), name_or_names(("skip", "conv"))
        ('skip', ['skip', 'conv'])
    """
    return chosen[0] if len(chosen) == 1 else [*chosen]


class Architecture(Protocol):
    """The contract of :class:`~sparsemix.ArchParameterGroup` and of :class:`~sparsemix.supernet.tables.AlphaTables`.

    A *row* is one choice: the logits of the candidates that one label names, shared by one or several mixed operations.
    """

    relaxation: Relaxation
    threshold: float

    @property
    def model(self) -> nn.Module:
        """The supernet."""

    @property
    def has_model(self) -> bool:
        """Whether the model is known, and with it its weights and its mixed operations."""

    @property
    def rows(self) -> Mapping[str, Sequence[MixedOp]]:
        """Label -> the mixed operations that share that row."""

    @property
    def operations(self) -> Sequence[MixedOp]:
        """The mixed operations, row by row."""

    # The two sets of parameters

    def parameters(self) -> list[nn.Parameter]:
        """What alpha's optimizer trains: the alphas and, behind them, the logits of weighed edges, of any shape."""

    def weight_parameters(self) -> list[nn.Parameter]:
        """Every other parameter of the model, disjoint from these and complete."""

    # The relaxed weights

    def weights(self) -> dict[str, Tensor]:
        """Label -> operation weights ``(M,)`` under the present relaxation and moment."""

    def using(self, relaxation: Relaxation) -> AbstractContextManager[None]:
        """Within the context, another relaxation."""

    def discretized(self) -> AbstractContextManager[None]:
        """Within the context, only the chosen operations of each row."""

    def fixed_alphas(self) -> AbstractContextManager[None]:
        """Within the context, relaxed weights are constants."""

    # The read-out

    def choices(self) -> dict[str, tuple[str, ...]]:
        """Label -> the names of what is chosen: one, several, or none."""

    def discretize(self, genotype: Genotype | None = None) -> nn.Module:
        """A copy of the model that has what is chosen in place of its mixed operations."""

    # Guards

    def spend_moment(self) -> None:
        """Note that a search step is made at the present moment."""

    def check_bound(self) -> None:
        """Insist that the model still runs under these parameters."""


_ASKED = ("parameters", "weight_parameters", "weights", "fixed_alphas", "discretize", "spend_moment")


def check_architecture(arch: Any, who: str) -> None:
    """Insist that somebody was given architecture parameters, and not, say, the model itself.

    Args:
        arch: what was given.
        who: needs them, for the message.

    Raises:
        TypeError: it is something else.
    """
    if not all(callable(getattr(type(arch), name, None)) for name in _ASKED):
        raise TypeError(f"{who}: needs the model's ArchParameterGroup first, got a {type(arch).__name__}")
