"""Candidates that share work: what a candidate defines to run together with others that read the same node."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from .._utils.torch_private import is_compiled, is_watched

__all__ = ["Contribution", "SharesWork", "Source", "adds_nothing", "sharing_key"]

Contribution = tuple[Tensor | None, Tensor | None]
"""What a candidate adds to its edge, as a value and the weight still to be applied to it.

The weight is None if it has already been applied; the value is None if there is nothing to add.
"""


class Source:
    """A node's value, with a cache of results that several of the edges leaving it need."""

    def __init__(self, x: Tensor, keywords: Mapping[str, Any] | None = None) -> None:
        self.x = x
        self.keywords = keywords or {}  # further arguments of every candidate
        self._computed: dict[Hashable, Tensor] = {}

    def once(self, key: Hashable, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """``compute(x)``, remembered under the key."""
        if key not in self._computed:
            self._computed[key] = compute(self.x)
        return self._computed[key]

    @property
    def relu(self) -> Tensor:
        return self.once("relu", F.relu)


class SharesWork(Protocol):
    """A candidate that can run together with others, of the same edge or of other edges of the same source.

    In a cell, many edges read the same node, and most of their candidates begin with the same computation. Candidates
    with equal sharing keys are not called one by one; the first of them runs them all at once. ``forward`` must still
    compute a candidate alone, with the same result: it is called if the candidate has hooks or is compiled, and in the
    final network.

    Any class that defines these two members qualifies; nothing needs to be inherited or registered.

    Example:
        >>> class Doubled(nn.Module):
        ...     sharing_key = ("doubled",)
        ...     def forward(self, x):
        ...         return 2 * x
        ...     def contributions(self, ops, source, weights):
        ...         doubled = source.once("doubled", lambda x: 2 * x)  # one multiplication for all edges
        ...         return [(doubled, weight) for weight in weights]
        >>> sharing_key(Doubled())
        ('doubled',)
        >>> sharing_key(nn.Identity()) is None
        True
    """

    @property
    def sharing_key(self) -> Hashable | None:
        """A key that is equal for candidates that may run together; None if this one may not, at present."""

    def contributions(self, ops: Any, source: Source, weights: Sequence[Tensor]) -> Iterable[Contribution] | Tensor:
        """Run candidates with this key on one source.

        Args:
            ops: the candidates, all of this class; this one is the first.
            source: the node that they read.
            weights: the weight of each candidate, a scalar.

        Returns:
            One contribution per candidate; or a single new tensor, in which their outputs, with the weights applied,
            are concatenated along dimension 1.
        """


def sharing_key(candidate: nn.Module) -> Hashable | None:
    """A candidate's sharing key; None if it must be called by itself.

    Candidates with hooks are called so that the hooks run, compiled ones so that the compiled code runs.
    """
    key = getattr(candidate, "sharing_key", None)
    if key is None or is_compiled(candidate) or is_watched(candidate):
        return None
    return key


def adds_nothing(candidate: nn.Module) -> bool:
    """Whether the output is always zero, as for ``none``; a class declares this by ``adds_nothing = True``.

    Such a candidate contributes nothing to its edge; its output only gives zeros their shape.
    """
    return getattr(type(candidate), "adds_nothing", False)
