"""The records of a run, epoch by epoch, for the trackers that Accelerate knows (TensorBoard, Weights & Biases, ...)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers, get_available_trackers
from torch import Tensor

__all__ = ["Log", "check_tracker", "tracking"]

Log = Callable[[Mapping[str, Any], Mapping[str, Tensor]], None]
"""(the record of an epoch, named tensors to be shown as histograms)"""


def check_tracker(name: str | None) -> None:
    """Check that a tracker can be used here.

    Raises:
        ValueError: Accelerate does not know it, or it is not installed.
    """
    if name is None:
        return
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"Accelerate knows no tracker {name!r}; it knows {', '.join(LOGGER_TYPE_TO_CLASS)}")
    installed = [str(tracker) for tracker in get_available_trackers()]
    if name not in installed:
        raise ValueError(f"the tracker {name} is not installed here; installed: {', '.join(installed) or 'none'}")


@contextmanager
def tracking(accelerator: Accelerator, name: str | None, folder: Path, config: Mapping[str, Any]) -> Iterator[Log]:
    """Context manager: a function that logs an epoch to the named tracker, in the main process only.

    Args:
        accelerator: starts the tracker and logs to it.
        name: the tracker's name in Accelerate; None: nothing is logged.
        folder: the folder for trackers that write files.
        config: the run's configuration, logged at the start.
    """
    check_tracker(name)
    if name is None:
        yield lambda record, tensors: None
        return
    accelerator.project_configuration.set_directories(str(folder))
    accelerator.log_with = filter_trackers(name, folder)
    plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in config.items()}
    accelerator.init_trackers("sparsemix", plain)

    def log(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        step = record["epoch"]
        accelerator.log({key: value for key, value in _numbers(record) if key != "epoch"}, step)
        if accelerator.is_main_process and name in _HISTOGRAMS:
            _HISTOGRAMS[name](accelerator.get_tracker(name, unwrap=True), tensors, step)

    try:
        yield log
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers.clear()


def _numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a record; those of a mapping, such as the leakage of each edge, as ``output_leakage/EDGE``.

    Alphas are shown as histograms, and audits are tables.
    """
    for key, value in record.items():
        if isinstance(value, int | float):
            yield key, value
        elif isinstance(value, Mapping) and key != "alphas":
            yield from ((f"{key}/{name}", number) for name, number in _numbers(value))


def _tensorboard(run: Any, tensors: Mapping[str, Tensor], step: int) -> None:
    for name, tensor in tensors.items():
        run.add_histogram(name, tensor.detach(), step)


def _wandb(run: Any, tensors: Mapping[str, Tensor], step: int) -> None:
    import wandb  # type: ignore[import-not-found, unused-ignore]

    run.log({name: wandb.Histogram(tensor.tolist()) for name, tensor in tensors.items()}, step)


_HISTOGRAMS: dict[str, Callable[[Any, Mapping[str, Tensor], int], None]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
