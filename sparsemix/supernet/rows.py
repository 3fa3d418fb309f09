"""Rows of logits of different lengths, as one table that is relaxed at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..relaxations import NEVER, Moment, Relaxation

__all__ = ["kept", "padded", "relaxed"]


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows as a table ``(rows, widest)``: padded with ``-inf``, or with False if they say what is allowed.

    Example:
        >>> padded([torch.tensor([1.0]), torch.tensor([2.0, 3.0])])
        tensor([[1., -inf],
                [2., 3.]])
    """
    if len({len(row) for row in rows}) == 1:
        return torch.stack([*rows])
    return pad_sequence([*rows], batch_first=True, padding_value=0 if rows[0].dtype == torch.bool else -torch.inf)


def relaxed(table: Tensor, relaxation: Relaxation, moment: Moment, allowed: Tensor | None = None) -> Tensor:
    """``relaxation(table, moment)`` among what is allowed; the rest has weight 0, and no gradient.

    The relaxation sees a forbidden entry as ``-inf``, like padding, so it distributes a row's weight among the
    remaining entries. A row in which nothing is allowed is passed unmasked, since no relaxation can handle a row of
    only ``-inf`` (a softmax gives NaN, whose gradient is NaN in every row); its weights are set to 0 afterwards.

    Args:
        table: logits ``(rows, M)``, padded with ``-inf``.
        relaxation: see :data:`~sparsemix.relaxations.Relaxation`.
        moment: of the batch.
        allowed: bool, of the table's shape; None: all.

    Example:
        >>> from sparsemix.relaxations import NEVER, Softmax
        >>> allowed = torch.tensor([[True, False, True], [False, False, False]])
        >>> relaxed(torch.zeros(2, 3), Softmax(), NEVER, allowed)
        tensor([[0.5000, 0.0000, 0.5000],
                [0.0000, 0.0000, 0.0000]])
    """
    if allowed is None:
        return relaxation(table, moment)
    forbidden = ~allowed & allowed.any(-1, keepdim=True)
    return relaxation(table.masked_fill(forbidden, -torch.inf), moment).masked_fill(~allowed, 0)


def kept(
    names: Sequence[str], alpha: Tensor, discretization: Relaxation, allowed: Tensor | None = None
) -> tuple[str, ...]:
    """The candidates of one row that a discretisation gives a weight, the strongest first; of equal ones the earlier.

    Args:
        names: of the candidates.
        alpha: logits ``(M,)``.
        discretization: a relaxation without gradient, such as :class:`~sparsemix.relaxations.Argmax`.
        allowed: bool ``(M,)``; None: all.

    Example:
        >>> from sparsemix.relaxations import Argmax
        >>> kept(["skip", "conv", "pool"], torch.tensor([0.1, 0.3, 0.3]), Argmax())
        ('conv',)
    """
    weights = relaxed(alpha.detach(), discretization, NEVER, allowed).tolist()
    chosen = [k for k, weight in enumerate(weights) if weight]
    return tuple(names[k] for k in sorted(chosen, key=alpha.tolist().__getitem__, reverse=True))
