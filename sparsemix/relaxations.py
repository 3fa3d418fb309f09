"""From architecture parameters to operation weights: pure functions, and small modules that hold their temperatures.

A relaxation maps a row of alphas, one for each candidate operation of an edge, to as many weights. It acts on the
last dimension; rows shorter than the widest are padded with ``-inf`` and must receive weight 0 there. A relaxation is
stateless: its :class:`Moment` argument says whether the batch is sparse, and determines everything that it draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._utils.streams import seeded_generator

__all__ = [
    "NEVER",
    "Argmax",
    "Moment",
    "OfSoftmax",
    "Relaxation",
    "Softmax",
    "SparseSmoothSoftmax",
    "SparsemaxSmoothSoftmax",
    "StraightThrough",
    "entropy",
    "softmax",
    "sparse_smooth_softmax",
    "sparsemax",
]


@dataclass(frozen=True)
class Moment:
    """The point in a search at which a relaxation is evaluated: everything that its draws may depend on.

    Both updates of a step, all processes and a resumed run see the same moment, and so the same draws.

    Attributes:
        seed: the search's seed.
        epoch, step: both counted from 0; ``step`` counts within the epoch.
        phi: whether the batch is a sparse one (Eq. 15).

    Example:
        >>> moment = Moment(seed=0, epoch=3, step=7)
        >>> first, second = (torch.rand(1, generator=moment.generator("noise")) for _ in range(2))
        >>> bool(first == second)
        True
    """

    seed: int = 0
    epoch: int = 0
    step: int = 0
    phi: bool = False

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator for the draws of that name at this moment."""
        return seeded_generator(name, self.seed, self.epoch, self.step)


NEVER = Moment()
"""The moment of a relaxation that is evaluated outside a search."""

Relaxation = Callable[[Tensor, Moment], Tensor]
"""(alphas ``(rows, M)``, moment) -> operation weights of the same shape."""


def softmax(alpha: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax over the candidates at a temperature: ``exp(alpha_m / t) / sum_n exp(alpha_n / t)`` (Eq. 9).

    Args:
        alpha: architecture parameters, shape ``(..., M)``.
        temperature: t, positive. 1 is DARTS (Eq. 1); towards 0 the result becomes one-hot.

    Returns:
        Operation weights of the same shape, each row summing to 1.

    Example:
        >>> softmax(torch.tensor([0.0, 0.001]), temperature=1e-3)
        tensor([0.2689, 0.7311])

    Source: Zhang and Ding, "Robustifying DARTS by Eliminating Information Bypass Leakage", Eq. 9.
    """
    return F.softmax(alpha / temperature, dim=-1)


def sparse_smooth_softmax(alpha: Tensor, phi: bool, sparse: float, smooth: float) -> Tensor:
    """The relaxation of SP-DARTS: softmax at ``sparse`` where phi = 1, at ``smooth`` where phi = 0 (Eq. 15).

    Args:
        alpha: architecture parameters, shape ``(..., M)``.
        phi: whether the batch is a sparse one.
        sparse: t_sp, the small temperature of Eq. 14.
        smooth: t_sm, much larger than t_sp.

    Example:
        >>> alpha = torch.tensor([0.0, 0.01])
        >>> sparse_smooth_softmax(alpha, True, sparse=1e-3, smooth=1e-2)
        tensor([4.5398e-05, 9.9995e-01])
        >>> sparse_smooth_softmax(alpha, False, sparse=1e-3, smooth=1e-2)
        tensor([0.2689, 0.7311])
    """
    return softmax(alpha, sparse if phi else smooth)


def entropy(weights: Tensor) -> Tensor:
    """Information entropy summation, ``-sum_e sum_m a_em log a_em`` in nats (Eq. 21); ``0 log 0`` is 0.

    Args:
        weights: operation weights, shape ``(..., M)``; all leading dimensions are summed over.

    Returns:
        A scalar, at most ``E log M``: 6 log 5 = 9.66 on NAS-Bench-201.

    Example:
        >>> entropy(torch.full((6, 5), 0.2))
        tensor(9.6566)
    """
    return torch.special.entr(weights).sum()


class Softmax(nn.Module):
    """The relaxation of DARTS: softmax at one temperature, always (Eq. 1 at temperature 1, Eq. 9 otherwise)."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"Softmax: the temperature must be positive and finite, got {temperature}")
        self.temperature = temperature

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        return softmax(alpha, self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}"


class SparseSmoothSoftmax(nn.Module):
    """The relaxation of SP-DARTS: a sparse softmax for batches with phi = 1, a smooth one for the rest (Eq. 15).

    Args:
        sparse: t_sp, positive; about 1e-3 for alphas that Adam moves at 3e-4.
        smooth: t_sm, larger than ``sparse``; by default 10 t_sp, as in the paper.

    Raises:
        ValueError: a temperature is not positive, or ``sparse`` is not below ``smooth``.

    Example:
        >>> relax = SparseSmoothSoftmax(sparse=1e-3, smooth=1e-2)
        >>> relax(torch.tensor([0.0, 0.01]), Moment(phi=False))
        tensor([0.2689, 0.7311])

    Source: Zhang and Ding, Eq. 14 and 15.
    """

    def __init__(self, sparse: float = 1e-3, smooth: float | None = None) -> None:
        super().__init__()
        smooth = 10 * sparse if smooth is None else smooth
        if not (0 < sparse < math.inf and 0 < smooth < math.inf):
            raise ValueError(
                f"SparseSmoothSoftmax: temperatures must be positive and finite, got sparse={sparse}, smooth={smooth}"
            )
        if not sparse < smooth:
            raise ValueError(f"SparseSmoothSoftmax: sparse must be below smooth, got sparse={sparse}, smooth={smooth}")
        self.sparse = sparse
        self.smooth = smooth

    @property
    def temperature(self) -> float:
        """t_sp, the temperature of the method's sparse batches, at which rows are compared and read out."""
        return self.sparse

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        return sparse_smooth_softmax(alpha, moment.phi, self.sparse, self.smooth)

    def extra_repr(self) -> str:
        return f"sparse={self.sparse:g}, smooth={self.smooth:g}"


def sparsemax(alpha: Tensor, temperature: float = 1.0) -> Tensor:
    """The point of the simplex nearest to alpha / t: ``max(alpha / t - tau, 0)``, with tau such that the row sums to 1.

    Weak candidates have weight exactly 0, so that they do not run.

    Args:
        alpha: architecture parameters, shape ``(..., M)``, padded with ``-inf``.
        temperature: t, positive; towards 0 the result becomes one-hot.

    Example:
        >>> sparsemax(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.2500, 0.7500])

    Source: Martins and Astudillo, "From Softmax to Sparsemax".
    """
    scores = alpha / temperature
    ordered = scores.sort(-1, descending=True).values
    place = torch.arange(1, alpha.shape[-1] + 1, device=alpha.device, dtype=alpha.dtype)
    sums = ordered.masked_fill(ordered == -math.inf, 0).cumsum(-1)
    support = (1 + place * ordered > sums).sum(-1, keepdim=True)
    tau = (sums.gather(-1, support - 1) - 1) / support
    return (scores - tau).clamp_min(0)


class SparsemaxSmoothSoftmax(SparseSmoothSoftmax):
    """Like :class:`SparseSmoothSoftmax`, with :func:`sparsemax` for batches with phi = 1.

    Example:
        >>> relax = SparsemaxSmoothSoftmax(sparse=1e-3, smooth=1e-2)
        >>> relax(torch.tensor([0.0, 0.01]), Moment(phi=True))
        tensor([0., 1.])
    """

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        return sparsemax(alpha, self.sparse) if moment.phi else softmax(alpha, self.smooth)


class OfSoftmax(nn.Module):
    """A relaxation of ``softmax(alpha)`` in place of alpha.

    While alphas are small, ``softmax(alpha)`` is about ``1 / M + (alpha - mean) / M``: this relaxes M candidates at
    about M times the temperature. Published SP-DARTS code for the spaces S1 to S4 does so in the weights update.

    Args:
        relaxation: the relaxation to apply, such as :class:`SparseSmoothSoftmax`.

    Example:
        >>> relax = OfSoftmax(SparseSmoothSoftmax(sparse=1e-3, smooth=1e-2))
        >>> relax(torch.tensor([0.0, 0.001]), Moment(phi=True))
        tensor([0.3775, 0.6225])
    """

    def __init__(self, relaxation: Relaxation) -> None:
        super().__init__()
        self.relaxation = relaxation

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        absent = alpha == -math.inf  # padding gets weight 0 in the inner softmax, and must in the relaxation, too
        return self.relaxation(softmax(alpha).masked_fill(absent, -math.inf), moment)


class StraightThrough(nn.Module):
    """Hard forward, soft gradient: one-hot weights whose gradient is that of the softmax at a temperature.

    ``one_hot(argmax alpha) + a - stopgrad(a)`` with ``a = softmax(alpha / t)``. All weights except the strongest
    candidate's are exactly 0: only this candidate runs, and the alphas learn from it alone.

    Example:
        >>> StraightThrough()(torch.tensor([0.1, 0.3]))
        tensor([0., 1.])

    Source: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons".
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.soft = Softmax(temperature)

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        soft = self.soft(alpha)
        return Argmax()(alpha) + (soft - soft.detach())


class Argmax(nn.Module):
    """Discretisation as a relaxation: weight 1 for the strongest candidate of a row, 0 for the rest (Eq. 4).

    An exact tie goes to the lower index. There is no gradient; use it to evaluate, not to train.

    Attributes:
        keeps_one: whether the candidates of a row compete and exactly one is chosen.

    Example:
        >>> Argmax()(torch.tensor([[0.1, 0.3, 0.3]]))
        tensor([[0., 1., 0.]])
    """

    keeps_one = True

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        return F.one_hot(alpha.argmax(-1), alpha.shape[-1]).to(alpha.dtype)
