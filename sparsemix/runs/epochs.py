"""The steps of an epoch, for searches and trainings: seeding, display, periodic checkpoints, and stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from .config import RunSettings
from .display import Display
from .launching import Interrupted, command_line
from .processes import Parallel

__all__ = ["Batches", "Progress", "Steps"]


class Batches(Protocol):
    """Data whose epochs are reproducible and may be entered at any step."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


@dataclass
class Progress:
    """How far an epoch is; a checkpoint within the epoch holds it.

    Attributes:
        step: number of finished steps.
        seconds: time that these steps took.
        plan: values fixed at the start of the epoch; empty: the epoch has not begun.
        totals: name -> sum over the steps.
        audits: audits made during the epoch.
    """

    step: int = 0
    seconds: float = 0.0
    plan: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    audits: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **values: float) -> None:
        """Add to the totals."""
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def mean(self, name: str) -> float:
        """A total over the number of steps."""
        return self.totals[name] / self.step


class Steps:
    """Iterates over epochs of batches; between steps, saves the run when that is due and stops it when requested.

    Args:
        parallel: the processes; they stop after the same step.
        save: writes a checkpoint of the current state.
        stop: event that is set to request a stop.
        epochs: number of epochs of the run.
        settings: the run's settings.
        display: shows how far the run is.
    """

    def __init__(
        self,
        parallel: Parallel,
        save: Callable[[], None],
        stop: threading.Event,
        epochs: int,
        settings: RunSettings,
        display: Display,
    ) -> None:
        self.parallel = parallel
        self.save = save
        self.stop = stop
        self.epochs = epochs
        self.settings = settings
        self.display = display

    def epoch(self, data: Batches, epoch: int, progress: Progress, line: Callable[[], str]) -> Iterator[Any]:
        """The remaining batches of an epoch. A step counts as done when the next batch is requested.

        Args:
            data: the batches.
            epoch: which epoch.
            progress: how far it is; advanced by every step.
            line: the running epoch as the display shows it.

        Raises:
            Interrupted: a stop was requested; the checkpoint was taken after the step that was running.
        """
        accelerator, steps = self.parallel.accelerator, len(data)
        started = time.perf_counter() - progress.seconds
        for batch in data.epoch(epoch, progress.step):
            self.parallel.seed(self.settings.seed, epoch, progress.step)
            yield batch
            progress.step += 1
            progress.seconds = time.perf_counter() - started
            self.display.show(line, epoch * steps + progress.step, self.epochs * steps)
            stopping = self.parallel.any(self.stop.is_set())
            save_every = self.settings.save_every
            due = save_every and progress.step % save_every == 0 and progress.step < steps
            if due or stopping:
                self.save()
            if stopping:
                raise Interrupted(
                    f"stopped in epoch {epoch + 1} of {self.epochs} after step {progress.step} of {steps}; "
                    f"to go on: {command_line(accelerator)}"
                )
