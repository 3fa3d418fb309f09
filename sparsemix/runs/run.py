"""The skeleton of a run: setup, resuming, epochs, records, checkpoints, stopping, and the summary."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from .config import Config
from .display import Display
from .epoch_table import EpochTable
from .epochs import Batches, Progress, Steps
from .folder import RunFolder
from .launching import command_line, rng_state, say, set_rng_state, stop_requests, surroundings
from .processes import Parallel, sums
from .trackers import check_tracker, tracking

__all__ = ["Run"]


class Run(ABC):
    """A run from its configuration to ``summary.json`` in its run folder.

    A subclass defines what is trained and what an epoch consists of. Its constructor ends by calling :meth:`open`, once
    all checks have passed; this makes the run folder or restores the run that the folder holds.

    Args:
        config: the configuration.
        accelerator: device, processes and precision.
        model: the model to train.
        data: the batches.

    Attributes:
        epoch: the running or next epoch, from 0.
        epochs: number of epochs.
        table: formats the printed lines of epochs.
        progress: progress within ``epoch``.
        folder: the run folder.
    """

    config: Config
    folder: RunFolder
    epochs: int
    table: EpochTable

    def __init__(self, config: Config, accelerator: Accelerator, model: nn.Module, data: Batches) -> None:
        check_tracker(config.run.log_with)
        self.accelerator = accelerator
        self.parallel = Parallel(accelerator)
        self.model = model
        self.data = data
        self.epoch = 0
        self.progress = Progress()

    # What a subclass defines

    @abstractmethod
    def begin_epoch(self) -> None:
        """Prepare the epoch; called at its start, and again when a run resumes in the middle of it."""

    @abstractmethod
    def step(self, batch: Any) -> None:
        """Take one step on a batch; every process receives the whole batch."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """The record of the epoch, ready for JSON, without the time it took."""

    @abstractmethod
    def summarize(self) -> dict[str, Any]:
        """Write the results of the run and return its summary."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that the next step depends on; order, augmentation and draws depend on (seed, epoch, step) alone."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""

    @abstractmethod
    def check_finite(self) -> None:
        """Check, before anything is saved, that the loss or the architecture parameters are finite.

        Raises:
            FloatingPointError: they are not.
        """

    @abstractmethod
    def best_epoch(self) -> int | None:
        """The epoch after the best record so far, whose starting checkpoint is kept; None if there is no record."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Named tensors that trackers show as histograms."""
        return {}

    def same_everywhere(self) -> Iterable[tuple[str, Tensor]]:
        """Named tensors that must be the same in all processes; of large ones, two sums."""
        return ((name, sums(weight)) for name, weight in self.model.named_parameters())

    @abstractmethod
    def running(self) -> dict[str, Any]:
        """What is known about the epoch while it runs, under the names used in its record."""

    def shown(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record as a row of the printed table."""
        return {**record}

    def commands(self) -> dict[str, str]:
        """Task that a reader of the run folder may have -> the command for it."""
        resume = command_line(self.accelerator)
        return {"make it again": resume.removesuffix(" --resume"), "resume it": resume}

    def stops(self) -> bool:
        """Whether the run is over before its last epoch."""
        return False

    # The run

    def open(self, output: Path, settings: Mapping[str, Any]) -> None:
        """Create the run folder, or restore the run that it holds.

        Args:
            output: the folder.
            settings: settings for ``config.json``; the version and the precision are added.
        """
        self.settings = {**settings, **surroundings(self.accelerator)}
        config, main = self.config, self.accelerator.is_main_process
        self.folder = RunFolder(output, self.settings, config.run.resume, config.MOVABLE, writes=main)
        self.folder.claim()
        if main:
            self.folder.write("commands.json", self.commands())
        self.accelerator.wait_for_everyone()
        state = self.folder.load_checkpoint() if config.run.resume else None
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.load_state(state)
            set_rng_state(state["rng"])
            self.epoch, self.progress = state["epoch"], Progress(**state["progress"])

    def run(self) -> dict[str, Any]:
        """Run the remaining epochs.

        Returns:
            The summary.

        Raises:
            Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after the running step, whose state has been saved.
            FloatingPointError: the loss or an alpha is not finite; the last checkpoint is from before that epoch.
        """
        self.folder.claim()  # again, if an earlier call was interrupted
        try:
            self._run_epochs()
            return self.summarize()
        finally:
            self.folder.release()

    def _run_epochs(self) -> None:
        with (
            stop_requests() as stop,
            tracking(self.accelerator, self.config.run.log_with, self.folder.path, self.settings) as log,
            Display(self.accelerator.is_main_process, self.table.heading()) as display,
        ):
            steps = Steps(self.parallel, self.save, stop, self.epochs, self.config.run, display)
            while self.epoch < self.epochs and not self.stops():
                self.begin_epoch()
                for batch in steps.epoch(self.data, self.epoch, self.progress, self._running_line):
                    self.step(batch)
                self.check_finite()
                self.parallel.check_same(self.same_everywhere())
                self._finish_epoch(log)

    def _finish_epoch(self, log: Callable[..., None]) -> None:
        started, trained = time.perf_counter(), self.progress.seconds
        record = self.record()
        record["seconds"] = trained + time.perf_counter() - started
        self.folder.append_record(record)
        line = self.table.line({**self.shown(record), **self._times(record["seconds"])})
        self.epoch, self.progress = self.epoch + 1, Progress()
        self.save()
        log(record, self.tensors())
        self.say(line)

    def _running_line(self) -> str:
        return self.table.line({"epoch": self.epoch, **self.running(), **self._times(self.progress.seconds)})

    def _times(self, seconds: float) -> dict[str, float]:
        """Speed so far and the time that is left, when the epoch has taken so many seconds."""
        progress, steps = self.progress, len(self.data)
        recent = [record["seconds"] for record in self.folder.records[-5:]]
        an_epoch = sum(recent) / len(recent) if recent else progress.seconds * steps / progress.step
        return {
            "seconds": seconds,
            "images_per_second": progress.totals["images"] / progress.seconds,
            "left": an_epoch * (self.epochs - self.epoch - progress.step / steps),
        }

    def save(self) -> None:
        """Write a checkpoint of the current state."""
        self.check_finite()
        state = {
            "epoch": self.epoch,
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "rng": rng_state(),
            **self.state(),
        }
        self.folder.save_checkpoint(state, self.epoch, self.progress.step, self.best_epoch())

    def say(self, text: str) -> None:
        """Print, in the main process."""
        say(self.accelerator, text)
