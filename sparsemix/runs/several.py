"""Several runs as separate processes, a few at a time; one that fails or is killed does not affect the rest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from .launching import Interrupted, stop_requests

__all__ = ["check_once", "exit_if_failed", "run_processes", "threads_each"]

POLL_SECONDS = 0.05


class Process(Protocol):
    """The part of ``subprocess.Popen`` that is used here."""

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...


def threads_each(jobs: int) -> int:
    """CPU threads per run: the cores that this process may use, divided among ``jobs`` runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def check_once(what: str, values: Sequence[str | int]) -> None:
    """Check that there are values and that none is given twice, since the same run would count as two.

    Raises:
        ValueError: there is none, or one is given twice.
    """
    if not values:
        raise ValueError(f"at least one {what} is needed")
    if twice := [str(value) for value in dict.fromkeys(values) if values.count(value) > 1]:
        raise ValueError(f"{what} {', '.join(twice)} is named twice, among {', '.join(map(str, values))}")


def start(command: Sequence[str], log: Path, jobs: int) -> Process:
    """Start a command of ``sparsemix``, whose output is appended to a file."""
    environment = dict(os.environ)
    if jobs > 1:  # otherwise each run uses all cores, and they slow one another down
        environment.setdefault("OMP_NUM_THREADS", str(threads_each(jobs)))
    with log.open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "sparsemix", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which asks each run to stop, once
        )


def run_processes(commands: Mapping[str, Sequence[str]], logs: Path, jobs: int = 1) -> dict[str, int]:
    """Run ``sparsemix`` commands; print when each one starts and ends, and how many are left.

    Args:
        commands: name of a run -> the words of its command.
        logs: folder for the output of each, ``NAME.log``.
        jobs: how many run at a time; with more than one, each gets its share of the CPU's cores.

    Returns:
        Name -> exit status.

    Raises:
        ValueError: ``jobs`` is below 1.
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after every run has saved its state.
    """
    if jobs < 1:
        raise ValueError(f"at least one run goes on at a time, got jobs {jobs}")
    waiting, statuses = deque(commands), dict[str, int]()
    running: dict[str, tuple[Process, float]] = {}
    with stop_requests() as stop:
        try:
            while (waiting and not stop.is_set()) or running:
                while waiting and len(running) < jobs and not stop.is_set():
                    name = waiting.popleft()
                    print(f"{name} begins, {len(waiting)} of {len(commands)} wait", flush=True)
                    running[name] = start(commands[name], logs / f"{name}.log", jobs), time.monotonic()
                for name, (process, began) in [*running.items()]:
                    if (status := process.poll()) is None:
                        continue
                    del running[name]
                    statuses[name] = status
                    outcome = "has finished" if status == 0 else f"ended with status {status}"
                    took, left = time.monotonic() - began, len(commands) - len(statuses)
                    print(f"{name} {outcome} after {took:.0f} s, {left} left", flush=True)
                if stop.is_set():
                    break
                time.sleep(POLL_SECONDS)
        finally:
            _end([process for process, _ in running.values()])
        left = len(commands) - len(statuses)
        if stop.is_set() and left:
            raise Interrupted(f"stopped with {left} of {len(commands)} runs left: the same command goes on with them")
    return statuses


def exit_if_failed(failed: Sequence[str], logs: Path) -> None:
    """Exit with status 1 if any runs failed, and name their log files.

    Raises:
        SystemExit: a run failed.
    """
    for name in failed:
        print(f"{name} failed: {logs / f'{name}.log'} says why", file=sys.stderr)
    if failed:
        sys.exit(1)


def _end(processes: Sequence[Process]) -> None:
    """Ask runs to stop, and wait until they have: each finishes its step and saves."""
    for process in processes:
        process.terminate()
    while any(process.poll() is None for process in processes):
        time.sleep(POLL_SECONDS)
