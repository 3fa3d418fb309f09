"""Rows that a search has not decided: the alphas of their best operations are nearly equal."""

from __future__ import annotations

from ..supernet.alphas import Alphas

__all__ = ["UNDECIDED_WITHIN", "undecided"]

UNDECIDED_WITHIN = 2.0
"""A row is decided if its strongest alpha leads by at least this many temperatures. The softmax of the two strongest
alphas then gives the first more than 88 %."""


def undecided(arch: Alphas, temperature: float, within: float = UNDECIDED_WITHIN) -> dict[str, list[str]] | None:
    """Rows in which other operations come close to the strongest one, each with the close operations, strongest first.

    Args:
        arch: the architecture parameters, a group or tables; operations that are not allowed do not count.
        temperature: t, the method's temperature.
        within: an operation is close if its alpha is less than ``within t`` below the strongest alpha.

    Returns:
        Label -> names. None if several operations of a row may be kept, so that they do not compete.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sparsemix import ArchParameterGroup, MixedOp
        >>> arch = ArchParameterGroup(MixedOp({"skip": nn.Identity(), "tanh": nn.Tanh(), "relu": nn.ReLU()}, "row"))
        >>> with torch.no_grad():
        ...     _ = arch.parameters()[0].copy_(torch.tensor([0.0, 0.003, 0.0015]))
        >>> undecided(arch, temperature=1e-3)
        {'row': ['tanh', 'relu']}
    """
    if not arch.keeps_one:
        return None
    found = {}
    rows = arch.row_alphas()
    for label, (op, *_) in arch.rows.items():
        alphas = dict(zip(op.names, rows[label].tolist(), strict=True))
        ranked = sorted(op.allowed_names, key=alphas.__getitem__, reverse=True)
        close = [name for name in ranked if alphas[ranked[0]] - alphas[name] < within * temperature]
        if len(close) > 1:
            found[label] = close
    return found
