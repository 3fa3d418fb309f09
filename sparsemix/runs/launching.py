"""Support for long runs: an Accelerator, stopping without loss, random states, and the command that resumes."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from .. import __version__

__all__ = [
    "Interrupted",
    "command_line",
    "make_accelerator",
    "rng_state",
    "run_script",
    "say",
    "set_rng_state",
    "stop_requests",
    "surroundings",
]


def make_accelerator(device: str = "auto") -> Accelerator:
    """An Accelerator on a device.

    Args:
        device: the device's type; ``"auto"``: the device that Accelerate finds.

    Raises:
        ValueError: the device is not available.
        RuntimeError: a mixed precision other than bf16; a search cannot share one loss scaling between two optimizers.
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
        raise ValueError(f"the device {device} is not available here; found {accelerator.device.type}")
    return accelerator


def _several_were_asked_for() -> bool:
    """Whether ``accelerate launch --cpu`` was asked for several processes: it sets MASTER_ADDR but starts only one."""
    return os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ and "RANK" not in os.environ


def surroundings(accelerator: Accelerator) -> dict[str, str]:
    """What a run's results depend on besides its configuration: the version, and the precision if not float32."""
    precision = {} if accelerator.mixed_precision == "no" else {"precision": accelerator.mixed_precision}
    return {"version": __version__, **precision}


class Interrupted(KeyboardInterrupt):
    """A run was stopped between two steps and has saved its state; the message says how to resume."""


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Context manager: an event set by a stop signal, to stop after the running step; a second stops at once.

    Stop signals are Ctrl-C, SIGTERM, and SIGHUP, which a closed terminal or connection sends.
    """
    stop, hang_up = threading.Event(), getattr(signal, "SIGHUP", None)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: Any) -> None:
        if stop.is_set() and number != hang_up:  # a terminal that closes may send several
            raise KeyboardInterrupt
        stop.set()

    signals = [signal.SIGINT, signal.SIGTERM]
    if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN:  # which nohup sets
        signals.append(hang_up)
    previous = {number: signal.signal(number, request) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def say(accelerator: Accelerator, text: str) -> None:
    """Print in the main process."""
    if accelerator.is_main_process:
        print(text, flush=True)


def run_script(main: Callable[[], Any]) -> None:
    """Run a script's main function: a stopped run prints how to continue, and a user error prints a single line.

    If the environment variable ``SPARSEMIX_TRACEBACK`` is set, an error is shown with its traceback.
    """
    rank = os.environ.get("RANK", "0")
    try:
        main()
    except Interrupted as stopped:
        if rank == "0":
            print(stopped)
        sys.exit(130)
    except KeyboardInterrupt:  # before the first step, or the second one in a row
        sys.exit(130)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, ArithmeticError) as error:
        if os.environ.get("SPARSEMIX_TRACEBACK"):
            raise
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(1)
        print(f"error: {error}" if rank == "0" else f"error in process {rank}: {error}", file=sys.stderr)
        sys.exit(2)


def _nobody_reads() -> bool:
    """Whether the reader of the output, such as ``head``, has ended; what is printed from then on is discarded."""
    try:
        print(flush=True)  # what could not be written may no longer be in the buffer, so flushing alone tells nothing
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def command_line(accelerator: Accelerator) -> str:
    """The command that resumes this run, with the same launcher, number of processes and precision."""
    program, *arguments = [argument for argument in sys.argv if argument != "--resume"]
    is_command = Path(program).name in ("sparsemix", "__main__.py")
    arguments = [*(["-m", "sparsemix"] if is_command else [program]), *arguments]
    processes, precision = str(accelerator.num_processes), accelerator.mixed_precision
    if "ACCELERATE_MIXED_PRECISION" not in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        launcher = ["python"]
        if Path(program).name == "sparsemix":
            launcher, arguments = ["sparsemix"], arguments[2:]
    elif "TORCHELASTIC_RUN_ID" in os.environ and accelerator.device.type == "cpu":
        set_precision = [] if precision == "no" else [f"ACCELERATE_MIXED_PRECISION={precision}"]
        launcher = [*set_precision, "torchrun", "--standalone", "--nproc-per-node", processes]
    else:
        set_precision = [] if precision == "no" else ["--mixed_precision", precision]
        launcher = [
            "accelerate",
            "launch",
            "--quiet",
            *(["--num_processes", processes] if processes != "1" else []),
            *set_precision,
        ]
    return shlex.join([*launcher, *arguments, "--resume"])


def rng_state() -> dict[str, Any]:
    """The state of PyTorch's generators, of all devices."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore the generators from :func:`rng_state`, on those of its devices that exist here."""
    torch.set_rng_state(state["cpu"])
    for device, of_device in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(of_device, device)
