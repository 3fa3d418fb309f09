"""Which temperature: a rule of thumb for t_sp, and a t_sp that follows the entropy of the alphas."""

from __future__ import annotations

import math

from torch import Tensor

from ..relaxations import SparseSmoothSoftmax, entropy, softmax
from ..supernet.alphas import Alphas
from ..supernet.rows import padded

__all__ = ["EntropySchedule", "suggest", "temperature_of_entropy"]


def suggest(
    arch: Alphas, *, steps: int, lr: float = 3e-4, leftover: float = 0.01, ratio: float = 10.0
) -> SparseSmoothSoftmax:
    """Suggest temperatures from how far Adam moves an alpha in a search with this number of steps.

    A step of Adam moves an alpha by about its learning rate, whatever the gradient's size. Gradients of single batches
    change sign, so in n steps an alpha moves about ``lr sqrt(n)``. A row of M candidates is decided when the winner
    leads by ``t ln((M - 1)(1 - leftover) / leftover)``, which leaves ``leftover`` for the others. A third of that
    distance should suffice for this lead, so that a choice can be made, reversed and made again:

        ``t_sp = lr sqrt(n) / (3 ln((M - 1)(1 - leftover) / leftover))``

    NAS-Bench-201 as in the paper (50 epochs of 98 steps, M = 5) gives 1.2e-3, where the paper uses 1.1e-3; the DARTS
    space (50 epochs of 313 steps, M = 7) gives 2.0e-3, where the paper uses 1e-3. The result is a starting point.

    Args:
        arch: a group, or tables; its widest row gives M.
        steps: updates of the alphas in the whole search.
        lr: learning rate of alpha's Adam.
        leftover: weight, in (0, 0.5), that all losers of a decided row share.
        ratio: t_sm / t_sp.

    Example:
        >>> from torch import nn
        >>> from sparsemix import ArchParameterGroup, MixedOp
        >>> arch = ArchParameterGroup(MixedOp({name: nn.Identity() for name in "abcde"}))
        >>> f"{suggest(arch, steps=50 * 98).sparse:.1e}"
        '1.2e-03'
    """
    if steps < 1 or not lr > 0 or not 0 < leftover < 0.5:
        raise ValueError(
            f"suggest: need steps >= 1, lr > 0 and 0 < leftover < 0.5; got steps={steps}, lr={lr}, leftover={leftover}"
        )
    rivals = max(len(alpha) for alpha in arch.row_alphas().values()) - 1
    lead = math.log(max(rivals, 1) * (1 - leftover) / leftover)
    sparse = lr * math.sqrt(steps) / (3 * lead)
    return SparseSmoothSoftmax(sparse, ratio * sparse)


def temperature_of_entropy(alphas: Tensor, share: float) -> float | None:
    """The temperature at which the rows' entropy is this share of the greatest possible one, ``sum_e log M_e``.

    Entropy grows with the temperature, so that bisection finds it.

    Args:
        alphas: rows padded with ``-inf``, ``(rows, widest row)``.
        share: in (0, 1).

    Returns:
        The temperature; None if no row has a leader (all alphas equal).

    Example:
        >>> import torch
        >>> f"{temperature_of_entropy(torch.tensor([[0.0, 1.0]]), share=0.5):.4f}"
        '0.4784'
    """
    alphas = alphas.detach().double().cpu()
    exist = alphas.isfinite()
    greatest = float(exist.sum(-1).double().log().sum())
    spread = float((alphas.amax(-1) - alphas.masked_fill(~exist, math.inf).amin(-1)).max())
    if spread == 0 or greatest == 0:
        return None
    low, high = math.log(1e-15 * spread), math.log(1e6 * spread)  # two alphas may differ by next to nothing
    for _ in range(60):
        middle = (low + high) / 2
        if float(entropy(softmax(alphas, math.exp(middle)))) > share * greatest:
            high = middle
        else:
            low = middle
    return math.exp((low + high) / 2)


class EntropySchedule:
    """Temperatures chosen automatically: t_sp is set each epoch so that the alphas' entropy at t_sp falls as planned.

    With a fixed t_sp, rows are decided once their alphas have moved far enough; here t_sp follows the alphas. Call
    ``step(epoch)`` at the start of each epoch, beside :class:`~sparsemix.BatchMixedScheduler`.

    Args:
        arch: a group, or tables; its relaxation is replaced by a :class:`~sparsemix.SparseSmoothSoftmax` of the
            temperature found.
        epochs: length of the search.
        start, end: share of the greatest possible entropy in the first epoch and in the last, linear in between.
        ratio: t_sm / t_sp.

    Raises:
        ValueError: need ``0 < end <= start < 1``, ``epochs >= 1`` and ``ratio > 1``.

    Example:
        >>> from torch import nn
        >>> from sparsemix import ArchParameterGroup, MixedOp
        >>> arch = ArchParameterGroup(MixedOp({"skip": nn.Identity(), "pool": nn.AvgPool2d(3, 1, 1)}))
        >>> schedule = EntropySchedule(arch, epochs=10)
        >>> schedule.step(9)
        >>> round(arch.entropy(arch.relaxation.sparse) / math.log(2), 2)
        0.05
    """

    def __init__(self, arch: Alphas, epochs: int, start: float = 0.5, end: float = 0.05, ratio: float = 10.0) -> None:
        if not (0 < end <= start < 1 and epochs >= 1 and ratio > 1):
            raise ValueError(
                f"EntropySchedule: need 0 < end <= start < 1, epochs >= 1 and ratio > 1; "
                f"got start={start}, end={end}, epochs={epochs}, ratio={ratio}"
            )
        self.arch = arch
        self.epochs = epochs
        self.start = start
        self.end = end
        self.ratio = ratio

    def share(self, epoch: int) -> float:
        """The entropy planned for an epoch, as a share of the greatest possible."""
        return self.start + (self.end - self.start) * min(1.0, epoch / max(self.epochs - 1, 1))

    def temperature(self, epoch: int) -> float | None:
        """The t_sp at which the present alphas have the epoch's planned entropy; None while no row has a leader."""
        rows = [alphas for alphas in self.arch.row_alphas().values() if alphas.isfinite().any()]
        return temperature_of_entropy(padded(rows), self.share(epoch)) if rows else None

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Begin an epoch; while no row has a leader, the relaxation does not change."""
        sparse = self.temperature(epoch)
        if sparse is not None:
            self.arch.relaxation = SparseSmoothSoftmax(sparse, self.ratio * sparse)
