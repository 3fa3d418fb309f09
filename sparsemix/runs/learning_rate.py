"""Learning rates over the epochs of a run, by timm's schedulers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from ..methods.method import Phase

__all__ = ["FLAT_EPOCHS", "PhasedCosine", "linear_rate", "schedule"]

FLAT_EPOCHS = 5
"""Number of last epochs in which a linear learning rate falls more slowly."""


class PhasedCosine:
    """A cosine for each phase of a search; a phase begins with a fresh optimizer state.

    Args:
        optimizer: the weights' optimizer, set to the search's learning rate.
        phases: the phases of the search, in order.
        lowest: learning rate at the end of each cosine; a phase that begins below it keeps it throughout.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, phases: Sequence[Phase], lowest: float) -> None:
        self.optimizer = optimizer
        self.phases = phases
        self.lowest = lowest
        self.begins = [0, *accumulate(phase.epochs for phase in phases)][:-1]
        self.schedules = [self._cosine(phase) for phase in phases]

    def _cosine(self, phase: Phase) -> Any:
        from timm.scheduler import CosineLRScheduler

        length = max(phase.epochs, 2)  # timm warns of a cosine over one epoch, whose rate is the first one
        cosine = CosineLRScheduler(self.optimizer, length, lr_min=self.lowest)
        cosine.base_values = [max(rate * phase.lr, self.lowest) for rate in cosine.base_values]
        return cosine

    def step(self, epoch: int, begins: bool = True) -> None:
        """Set the rate of an epoch; ``begins``: the epoch starts now, rather than being resumed in its middle."""
        phase = max(i for i, first in enumerate(self.begins) if first <= epoch)
        if begins and epoch == self.begins[phase] and phase:
            self.optimizer.state.clear()
        self.schedules[phase].step(epoch - self.begins[phase])


def linear_rate(epoch: int, epochs: int, warmup_epochs: int = 0) -> float:
    """The learning rate of an epoch as a share of the highest rate: a linear decrease with a flatter end.

    ``(epoch + 1) / warmup`` in the warm-up, then ``(epochs - 5 - epoch) / (epochs - 5)``, and in the last five epochs,
    where that would fall by a large factor, ``(epochs - epoch) / (5 (epochs - 5))``.

    Args:
        epoch: from 0.
        epochs: length of the training; more than 5.
        warmup_epochs: epochs of the warm-up.

    Example:
        >>> [round(0.5 * linear_rate(epoch, 250, 5), 5) for epoch in (0, 4, 5, 244, 249)]
        [0.1, 0.5, 0.4898, 0.00204, 0.00041]

    Source: Chen et al., "DrNAS", published code.
    """
    if epoch < warmup_epochs:
        return (epoch + 1) / warmup_epochs
    if epochs - epoch > FLAT_EPOCHS:
        return (epochs - FLAT_EPOCHS - epoch) / (epochs - FLAT_EPOCHS)
    return (epochs - epoch) / (FLAT_EPOCHS * (epochs - FLAT_EPOCHS))


def schedule(optimizer: Any, kind: str, epochs: int, warmup_epochs: int) -> Any:
    """A scheduler of timm's for the optimizer, to be stepped at the start of each epoch.

    Args:
        optimizer: at its highest learning rate.
        kind: ``"cosine"`` or ``"linear"``, see :func:`linear_rate`; both go down to 0.
        epochs: length of the run.
        warmup_epochs: epochs of linear warm-up at its beginning.
    """
    from timm.scheduler.cosine_lr import CosineLRScheduler
    from timm.scheduler.scheduler import Scheduler

    class Linear(Scheduler):
        def _get_lr(self, t: int) -> list[float]:
            return [base * linear_rate(t, epochs, warmup_epochs) for base in self.base_values]

    if kind == "linear":
        return Linear(optimizer, "lr")
    return CosineLRScheduler(
        optimizer,
        max(epochs, 2),  # timm warns of a cosine over one epoch, whose rate is the first one
        warmup_t=warmup_epochs,
        warmup_lr_init=optimizer.param_groups[0]["lr"] / max(warmup_epochs, 1),
    )
