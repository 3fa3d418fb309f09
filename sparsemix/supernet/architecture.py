"""The interface that search steps, measures and costs need of architecture parameters."""

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
        """The parameters that alpha's optimizer trains: the alphas, then the edge logits (betas), of any shape."""

    def weight_parameters(self) -> list[nn.Parameter]:
        """All other parameters of the model."""

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
        """A copy of the model with each mixed operation replaced by its chosen candidates."""

    # Guards

    def spend_moment(self) -> None:
        """Record that a search step uses the present moment."""

    def check_bound(self) -> None:
        """Check that the model still uses these parameters."""


_ASKED = ("parameters", "weight_parameters", "weights", "fixed_alphas", "discretize", "spend_moment")


def check_architecture(arch: Any, who: str) -> None:
    """Check that an argument holds architecture parameters, and is not, for example, the model itself.

    Args:
        arch: the argument.
        who: name of the function or class that needs it, for the error message.

    Raises:
        TypeError: the argument is something else.
    """
    if not all(callable(getattr(type(arch), name, None)) for name in _ASKED):
        raise TypeError(f"{who}: needs the model's ArchParameterGroup first, got a {type(arch).__name__}")
