"""Rows that a search has not decided: the alphas of their best operations are nearly equal."""

from __future__ import annotations

from ..supernet.group import ArchParameterGroup

__all__ = ["UNDECIDED_WITHIN", "undecided"]

UNDECIDED_WITHIN = 2.0
"""Temperatures by which the strongest alpha leads where a row is decided: it then has more than 88 % of the weight of
any two."""


def undecided(
    arch: ArchParameterGroup, temperature: float, within: float = UNDECIDED_WITHIN
) -> dict[str, list[str]] | None:
    """Rows in which other operations come close to the strongest one; each lists all of these, strongest first.

    Args:
        arch: the architecture parameters; operations that are not allowed do not count.
        temperature: t, the method's temperature.
        within: an operation is close if its alpha is less than ``within t`` below the strongest alpha.

    Returns:
        Label -> names. None if operations do not compete for their row, because several may be kept.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sparsemix import MixedOp
        >>> arch = ArchParameterGroup(MixedOp({"skip": nn.Identity(), "tanh": nn.Tanh(), "relu": nn.ReLU()}, "row"))
        >>> with torch.no_grad():
        ...     _ = arch.parameters()[0].copy_(torch.tensor([0.0, 0.003, 0.0015]))
        >>> undecided(arch, temperature=1e-3)
        {'row': ['tanh', 'relu']}
    """
    if not arch.keeps_one:
        return None
    found = {}
    for label, (op, *_) in arch.rows.items():
        alphas, ranked = dict(zip(op.names, op.alpha.tolist(), strict=True)), op.ranked()
        close = [name for name in ranked if alphas[ranked[0]] - alphas[name] < within * temperature]
        if len(close) > 1:
            found[label] = close
    return found
