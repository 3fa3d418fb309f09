"""What every long run needs: an Accelerator, and to be stopped without losing anything."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator

from sparsemix import __version__

__all__ = ["Interrupted", "command_line", "make_accelerator", "stop_requests", "surroundings"]


def make_accelerator(device: str = "auto") -> Accelerator:
    """An Accelerator on the device of that name, ``auto`` for what Accelerate finds.

    Args:
        device: its type.

    Raises:
        ValueError: that device is not there.
        RuntimeError: a precision that two optimizers cannot share.
    """
    accelerator = Accelerator(cpu=device == "cpu")
    if accelerator.num_processes == 1 and _several_were_asked_for():
        warnings.warn(
            "this is the only process: on CPUs accelerate launch starts several through MPI alone (--mpirun_hostfile); "
            "torchrun --standalone --nproc-per-node 2 SCRIPT does so without",
            stacklevel=2,
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise RuntimeError(
            f"a run computes in float32 or bf16, got {accelerator.mixed_precision}: it scales one loss, and a "
            f"search has two backward passes and two optimizers; launch it with --mixed_precision bf16"
        )
    if device not in ("auto", accelerator.device.type):
        raise ValueError(f"--device {device} is not available here; found {accelerator.device.type}")
    return accelerator


def _several_were_asked_for() -> bool:
    """accelerate launch --cpu --num_processes 2 says where the processes are to meet, and then starts one."""
    return os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ and "RANK" not in os.environ


def surroundings(accelerator: Accelerator) -> dict[str, str]:
    """What a run's results depend on beside its configuration: the version, and a precision other than float32."""
    precision = {} if accelerator.mixed_precision == "no" else {"precision": accelerator.mixed_precision}
    return {"version": __version__, **precision}


class Interrupted(KeyboardInterrupt):
    """A run was stopped between two steps and has saved where it was; the message says how to go on."""


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a step is finished first; a second Ctrl-C stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def command_line() -> str:
    """The command that goes on with this process's run."""
    arguments = [argument for argument in sys.argv if argument != "--resume"]
    return shlex.join(["accelerate", "launch", *arguments, "--resume"])
