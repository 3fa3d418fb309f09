"""The cost of a search step, compared between methods that are timed in turn in one process."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..runs.run import Run
from ..runs.search import Search
from ..supernet.mixed_op import Execution
from .dense import dense
from .measurement import peak_memory, timed

__all__ = ["REFERENCE", "STEPS", "check_steps", "compare_steps", "seconds_a_step"]

REFERENCE = "darts"
STEPS = 4
"""Steps per round. Where batches are randomly sparse or smooth, a single step would show only one kind."""


def compare_steps(searches: Mapping[str, Callable[[], Search]], rounds: int) -> dict[str, dict[str, float]]:
    """Time, memory and executed operations of the search steps of several methods.

    All steps are taken in the middle epoch of the search, on the same pair of batches. In a round, every method in turn
    takes four steps as usual and four in the dense formulation. Times are ratios within a round, and the median over
    the rounds, so that a temporary slowdown of the machine affects all methods alike.

    Args:
        searches: method -> function that makes its search; must include ``darts``.
        rounds: number of rounds that count; one warm-up round precedes them.

    Returns:
        Method -> ``time`` and ``memory`` relative to those of DARTS; ``dense``, the time relative to that of the same
        method where every operation runs (:func:`~sparsemix.speed.dense.dense`); and ``full`` and ``scored``: the
        shares of operations that a forward of the supernet runs in full, and that it scores without a graph.

    Raises:
        ValueError: as :func:`check_steps` says.
    """
    check_steps([*searches], rounds)
    steppers = {name: _SearchStepper(make()) for name, make in searches.items()}
    times: dict[str, list[float]] = {name: [] for name in steppers}
    dense_times: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(rounds + 1):
        for name, stepper in steppers.items():
            times[name].append(timed(stepper.steps, stepper.device))
            dense_times[name].append(timed(stepper.dense_steps, stepper.device))
    memory = {name: peak_memory(stepper.steps, stepper.device) for name, stepper in steppers.items()}
    return {
        name: {
            "time": _ratio(times[name], times[REFERENCE]),
            "dense": _ratio(times[name], dense_times[name]),
            "memory": memory[name] / memory[REFERENCE],
            **stepper.executed(),
        }
        for name, stepper in steppers.items()
    }


def seconds_a_step(run: Run, epoch: int) -> float:
    """Seconds per step of a search or a training in an epoch, after a warm-up step. The run is unusable afterwards.

    Args:
        run: freshly made.
        epoch: from 0.
    """
    stepper = _Stepper(run, epoch)
    run.step(stepper.batch)
    return timed(stepper.steps, stepper.device) / STEPS


def _ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Median over the rounds but the first."""
    return statistics.median(a / b for a, b in zip(times[1:], others[1:], strict=True))


def check_steps(methods: Sequence[str], rounds: int) -> None:
    """Check that steps can be compared.

    Raises:
        ValueError: there is no round, or DARTS is not among the methods.
    """
    if rounds < 1:
        raise ValueError(f"steps are timed in at least one round, got {rounds}")
    if REFERENCE not in methods:
        raise ValueError(
            f"step times are relative to {REFERENCE}, which is not among the methods {', '.join(methods)}: add it, or "
            f"leave the timing (time_steps) out"
        )


class _Stepper:
    """Takes steps of a run in one of its epochs, all on the same batch."""

    def __init__(self, run: Run, epoch: int) -> None:
        self.run = run
        self.device = run.accelerator.device.type
        self.batch = next(run.data.epoch(0))
        run.epoch = epoch
        run.begin_epoch()

    def steps(self) -> None:
        for _ in range(STEPS):
            self.run.step(self.batch)
            self.run.progress.step += 1  # the next moment, which draws anew


class _SearchStepper(_Stepper):
    """Steps in the middle epoch of a search."""

    def __init__(self, search: Search) -> None:
        super().__init__(search, search.config.size.epochs // 2)
        self.search = search

    def dense_steps(self) -> None:
        with dense(self.search.model):
            self.steps()

    def executed(self) -> dict[str, float]:
        """Shares over all forwards of some steps, those of both updates."""
        counts: Counter[Execution] = Counter()

        def count(*ran: Any) -> None:
            for op in self.search.arch.operations:
                counts.update(op.ran)

        hook = self.search.model.register_forward_hook(count)
        self.steps()
        hook.remove()
        return {
            "full": counts[Execution.FULL] / counts.total(),
            "scored": counts[Execution.SCORED] / counts.total(),
        }
