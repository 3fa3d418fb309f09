"""Candidates that share work: what a candidate defines to run together with others that read the same node."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from .._utils.torch_private import is_compiled, is_watched

__all__ = ["Contribution", "SharesWork", "Source", "adds_nothing", "sharing_key"]

Contribution = tuple[Tensor | None, Tensor | None]
"""What a candidate adds to its edge: a value, and the weight that is still to be applied.

A weight of None says that the value has it already, a value of None that there is nothing to add.
"""


class Source:
    """A node's value, and what the edges that leave it have in common, computed once."""

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

    Why: in a cell, many edges read one node, and most of their candidates begin alike. A candidate with a sharing key
    is not called; the first candidate of each key runs all of them at once. Its ``forward`` still computes it alone:
    whoever calls it by itself (a hook, a compiled candidate, the network that is found) gets the same value.

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
        """Equal for candidates that may run together; None: not now (a layer inside was replaced, say)."""

    def contributions(self, ops: Any, source: Source, weights: Sequence[Tensor]) -> Iterable[Contribution] | Tensor:
        """Run candidates of this key on one source: for each of ``ops``, this one the first, a contribution.

        Or all of them in one new tensor, side by side along dimension 1, with their weights applied.

        Args:
            ops: the candidates, each of this class.
            source: the node that they read.
            weights: for each of them its weight, a scalar.
        """


def sharing_key(candidate: nn.Module) -> Hashable | None:
    """A candidate's key, None where it is to be called by itself.

    A candidate with hooks is called, so that they see it run; a compiled one, so that it runs compiled.
    """
    key = getattr(candidate, "sharing_key", None)
    if key is None or is_compiled(candidate) or is_watched(candidate):
        return None
    return key


def adds_nothing(candidate: nn.Module) -> bool:
    """Whether the output is always zero (``none``), which a class says by ``adds_nothing = True``.

    Its weight passes nothing on, and its output shows the shape of nothing.
    """
    return getattr(type(candidate), "adds_nothing", False)
