"""Checkpoints that survive a crash: written beside older ones, and loaded only if their checksum matches."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["Checkpoints", "replace_file"]

_NAME = re.compile(r"checkpoint-(\d+)-(\d+)-([0-9a-f]{16})\.pt")


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a temporary file and move it into place, so that no reader ever sees a partly written file.

    Raises:
        OSError: the file could not be written (no space left, a read-only folder); the old file is unchanged.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, f"{error.strerror}; what was there before is untouched", str(path)) from error


class Checkpoints:
    """The checkpoints of a run, ``checkpoint-EPOCH-STEP-CHECKSUM.pt``: tensors, containers and numbers only.

    A new checkpoint is complete and in place before an old one is deleted. Loading takes the newest checkpoint whose
    content matches its checksum, so a damaged one costs only the time since the previous one.

    Args:
        folder: the folder of the checkpoints.
        keep: number of newest checkpoints to keep, at least 1; the best epoch's checkpoint is kept as well.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep
        self._damaged: list[Path] = []

    def save(self, state: Mapping[str, Any], epoch: int, step: int, best: int | None = None) -> Path:
        """Write the state after ``step`` steps of an epoch, and delete the checkpoints that are not kept.

        Args:
            state: the state that :meth:`load` returns.
            epoch, step: progress of the run.
            best: the epoch at whose start the best checkpoint was taken; that checkpoint is kept.

        Raises:
            OSError: the checkpoint could not be written; all earlier ones remain.
        """
        while self._damaged:  # damaged checkpoints do not count towards those kept
            damaged = self._damaged.pop()
            damaged.replace(damaged.with_suffix(".damaged"))
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getbuffer()
        path = self.folder / f"checkpoint-{epoch:05}-{step:07}-{_checksum(content)}.pt"
        replace_file(path, lambda partial: partial.write_bytes(content))
        for old in self.paths()[self.keep :]:
            if _place(old) != (best, 0):
                old.unlink()
        return path

    def paths(self) -> list[Path]:
        """The files, newest first."""
        found = [path for path in self.folder.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name)]
        return sorted(found, key=_place, reverse=True)

    def load(self) -> dict[str, Any] | None:
        """The newest good state, on the CPU, or None if none was ever written; nothing in it is executed.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        self._damaged, paths = [], self.paths()
        for path in paths:
            if (state := _read(path)) is not None:
                return state
            self._damaged.append(path)
            message = f"{path} is damaged (its content does not fit its checksum); going back to the one before"
            warnings.warn(message, stacklevel=2)
        if paths:
            raise ValueError(f"{self.folder}: all {len(paths)} checkpoints are damaged; start anew in another folder")
        return None

    def load_start_of(self, epoch: int) -> dict[str, Any] | None:
        """The state at the start of an epoch, on the CPU; None if it was not kept or is damaged."""
        return next((_read(path) for path in self.paths() if _place(path) == (epoch, 0)), None)


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint; None if it is damaged."""
    content = path.read_bytes()
    if not path.stem.endswith(_checksum(content)):
        return None
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _place(path: Path) -> tuple[int, int]:
    """Epoch and step of a checkpoint."""
    _, epoch, step, _ = path.stem.split("-")
    return int(epoch), int(step)


def _checksum(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
