"""When a batch is sparse: the schedule of p (Eq. 20) and the draws of phi (Algorithm 1)."""

from __future__ import annotations

import math
import warnings
from typing import Any, Protocol

import torch

from ..relaxations import Moment

__all__ = ["BatchMixedScheduler", "is_sparse", "sparse_probability"]


def sparse_probability(epoch: int, epochs: int, p_low: float = 0.0, p_up: float = 1.0, warmup_epochs: int = 1) -> float:
    """The probability p of a sparse batch in an epoch (Eq. 20).

    0 while ``epoch < warmup_epochs``, then ``p_low + (p_up - p_low) (epoch + 1 - i_wp) / (I - i_wp)``. The paper counts
    epochs from 1 to I; here they count from 0, so the paper's epoch i is ``epoch + 1``. In the last epoch p is p_up.

    Args:
        epoch: from 0; past the end of the search p stays at ``p_up``.
        epochs: I, the length of the search.
        p_low, p_up: p at the end of the warm-up, and in the last epoch. A p_up above 1 reaches p = 1 before the end.
        warmup_epochs: i_wp.

    Example:
        >>> [sparse_probability(epoch, epochs=5) for epoch in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if epoch < warmup_epochs:
        return 0.0
    progress = min(1.0, (epoch + 1 - warmup_epochs) / max(epochs - warmup_epochs, 1))
    return min(1.0, p_low + (p_up - p_low) * progress)


def is_sparse(moment: Moment, p: float) -> bool:
    """phi of one batch: a draw from Bernoulli(p) that is the same in every call and process (Algorithm 1).

    Args:
        moment: the batch's moment.
        p: probability that the batch is sparse.

    Example:
        >>> is_sparse(Moment(seed=0, epoch=3, step=4), p=0.0), is_sparse(Moment(seed=0, epoch=3, step=4), p=1.0)
        (False, True)
    """
    return torch.rand((), generator=moment.generator("phi"), dtype=torch.float64).item() < p


class _HasMoment(Protocol):
    moment: Moment


def _check_bound(arch: _HasMoment) -> None:
    """Raise an error if another group has replaced this one, which then no longer reaches its model."""
    if callable(check := getattr(arch, "check_bound", None)):
        check()


class BatchMixedScheduler:
    """Batch-mixed sparse training (Algorithm 1): draws phi ~ Bernoulli(p) for each batch and sets ``arch.moment``.

    Called like timm's schedulers: ``step(epoch)`` at the start of an epoch, ``step_update(num_updates)`` before each
    batch. Both updates of a step and all edges use the same phi, a pure function of (seed, epoch, step).

    Args:
        arch: an :class:`~sparsemix.ArchParameterGroup`, or any object that has a ``moment``.
        epochs: I, the length of the search.
        steps_per_epoch: batches per epoch.
        p_low: p at the end of the warm-up, in [0, 1].
        p_up: p in the last epoch, at least ``p_low``. With a p_up above 1, as in published code for S1 to S4, p reaches
            1 before the end and stays there.
        warmup_epochs: i_wp, number of initial epochs without sparse batches; less than ``epochs``.
        hold_epoch: from this epoch on, p keeps the value of the epoch before (as in some published runs); None: p
            rises to the end.
        seed: of the draws.

    Attributes:
        p: this epoch's probability of a sparse batch.
        phi: whether the coming batch is sparse.

    Raises:
        ValueError: an argument outside the ranges above, a negative epoch or update, or a state of another schedule.
        TypeError: ``arch`` has no ``moment``, for instance because it is a model and not its group; a number of epochs
            or steps that is not whole.
        RuntimeError: the group has been released, for instance by a second group on the same model.

    Example:
        >>> from types import SimpleNamespace
        >>> schedule = BatchMixedScheduler(SimpleNamespace(moment=None), epochs=5, steps_per_epoch=10)
        >>> schedule.step(3)
        >>> schedule.p
        0.75
        >>> schedule.step_update(3 * 10 + 4)
        >>> schedule.phi == schedule.draw(epoch=3, step=4)
        True

    Source: Zhang and Ding, Eq. 20 and Algorithm 1.
    """

    def __init__(
        self,
        arch: _HasMoment,
        epochs: int,
        steps_per_epoch: int,
        *,
        p_low: float = 0.0,
        p_up: float = 1.0,
        warmup_epochs: int = 1,
        hold_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        if not hasattr(arch, "moment"):
            raise TypeError(
                f"BatchMixedScheduler: {type(arch).__name__} has no moment to set; give the model's ArchParameterGroup"
            )
        if not (hasattr(epochs, "__index__") and hasattr(steps_per_epoch, "__index__")):
            raise TypeError(
                f"BatchMixedScheduler: epochs and steps_per_epoch must be whole numbers, got {epochs!r} and "
                f"{steps_per_epoch!r}"
            )
        if epochs < 1 or steps_per_epoch < 1:
            raise ValueError(
                f"BatchMixedScheduler: epochs and steps_per_epoch must be at least 1, "
                f"got {epochs} and {steps_per_epoch}"
            )
        if not (0 <= p_low <= 1 and p_low <= p_up < math.inf):
            raise ValueError(
                f"BatchMixedScheduler: need p_low in [0, 1] and p_up >= p_low, got p_low={p_low}, p_up={p_up}"
            )
        if not 0 <= warmup_epochs < epochs:
            raise ValueError(
                f"BatchMixedScheduler: the warm-up must be shorter than the search, got warmup_epochs={warmup_epochs} "
                f"of epochs={epochs}; warmup_epochs=0 switches it off"
            )
        if hold_epoch is not None and hold_epoch < 1:
            raise ValueError(f"BatchMixedScheduler: hold_epoch needs an epoch before it, got {hold_epoch}")
        self.arch = arch
        self.settings: dict[str, Any] = {
            "epochs": epochs,
            "steps_per_epoch": steps_per_epoch,
            "p_low": p_low,
            "p_up": p_up,
            "warmup_epochs": warmup_epochs,
            "hold_epoch": hold_epoch,
            "seed": seed,
        }
        self._begun: int | None = None  # the epoch that a loop has announced
        self._end_was_passed = False
        self.step_update(0)

    @property
    def phi(self) -> bool:
        return self.arch.moment.phi

    def probability(self, epoch: int) -> float:
        """p of an epoch (Eq. 20)."""
        s = self.settings
        held = epoch if s["hold_epoch"] is None else min(epoch, s["hold_epoch"] - 1)
        return sparse_probability(held, s["epochs"], s["p_low"], s["p_up"], s["warmup_epochs"])

    def draw(self, epoch: int, step: int) -> bool:
        """phi of one batch, see :func:`is_sparse`."""
        return is_sparse(Moment(self.settings["seed"], epoch, step), self.probability(epoch))

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Begin an epoch; ``metric``, which timm's loops pass, is ignored."""
        self._begun = epoch
        self.step_update(epoch * self._steps)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Prepare the batch that follows ``num_updates`` finished ones, counted from the start of the search."""
        if num_updates < 0:
            raise ValueError(f"BatchMixedScheduler: updates count from 0, got {num_updates}")
        _check_bound(self.arch)
        epoch, step = divmod(num_updates, self._steps)
        self._check_epoch(epoch, step)
        self.num_updates = num_updates
        self.p = self.probability(epoch)
        self.arch.moment = Moment(self.settings["seed"], epoch, step, self.draw(epoch, step))

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"BatchMixedScheduler({settings}; p={self.p:.3g}, phi={self.phi})"

    def _check_epoch(self, epoch: int, step: int) -> None:
        """Warn once if the loop and the schedule count epochs or updates differently; p would rise at a wrong rate."""
        end = self.settings["epochs"] * self._steps
        if epoch * self._steps + step > end and not self._end_was_passed:
            self._end_was_passed = True
            warnings.warn(
                f"BatchMixedScheduler: update {epoch * self._steps + step} is past the end of the search, "
                f"{self.settings['epochs']} epochs of {self._steps} steps; p stays {self.probability(epoch):g}",
                stacklevel=3,
            )
        begun = self._begun
        if begun is None or epoch == begun or (epoch, step) == (begun + 1, 0):  # how timm's loops end an epoch
            return
        self._begun = None
        warnings.warn(
            f"BatchMixedScheduler: step({begun}) began epoch {begun}, but update {epoch * self._steps + step} is in "
            f"epoch {epoch} by steps_per_epoch={self._steps}; count updates from the start of the search, and give the "
            f"number of updates of an epoch",
            stacklevel=3,
        )

    @property
    def _steps(self) -> int:
        return self.settings["steps_per_epoch"]

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, **self.settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        differing = {k: (state.get(k), v) for k, v in self.settings.items() if state.get(k) != v}
        if differing:
            raise ValueError(
                "BatchMixedScheduler: the state is of another schedule: "
                + ", ".join(f"{name} was {then!r} and is {now!r}" for name, (then, now) in differing.items())
            )
        self.step_update(state["num_updates"])
