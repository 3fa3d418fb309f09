"""The folder of a run: its config, one record per epoch, what it found, and the checkpoints to resume from."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from .checkpoints import Checkpoints, replace_file

__all__ = ["RunFolder"]

_CLAIMED: dict[Path, Any] = {}
"""The open files whose locks this process holds; the system releases them when it ends, however it ends."""


class RunFolder:
    """Files of one run: ``config.json``, ``records.jsonl``, checkpoints, and what else is written into it.

    Files are replaced as a whole: neither a reader nor a resumed run ever sees a partly written file.

    Args:
        path: the folder; made if it is not there.
        config: the resolved configuration, ready for JSON.
        resume: continue the run that the folder holds.
        movable: fields of the configuration that a resumed run may change.
        writes: whether this process writes; of several processes, only one writes and the others read checkpoints.

    Raises:
        FileExistsError: the folder holds a run, and ``resume`` is False.
        FileNotFoundError: ``resume`` is True, and the folder holds no run.
        OSError: the folder cannot be written.
        ValueError: the run was configured differently; names the fields with both values.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        resume: bool,
        movable: frozenset[str] = frozenset(),
        writes: bool = True,
    ) -> None:
        self.path = path
        self._config = path / "config.json"
        self._records = path / "records.jsonl"
        self._checkpoints = Checkpoints(path)
        self.records: list[dict[str, Any]] = []
        self._writes = writes
        if not writes:
            return
        if resume:
            self._check_same(config, movable)
            return
        if self._config.exists():
            raise FileExistsError(f"{path} holds a run already: continue it (resume), or name another folder (output)")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self.write("config.json", config)
        except OSError as error:
            raise OSError(f"the run folder {path} cannot be written ({error}); name another (output)") from error

    def _check_same(self, config: Mapping[str, Any], movable: frozenset[str]) -> None:
        if not self._config.exists():
            raise FileNotFoundError(f"{self.path} holds no run to resume: there is no {self._config}")
        try:
            then, now = json.loads(self._config.read_text()), json.loads(json.dumps(config))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self._config} is damaged ({error}); start anew in another folder") from error
        differing = {
            field: (then.get(field), now.get(field))
            for field in sorted((then.keys() | now.keys()) - movable)
            if then.get(field) != now.get(field)
        }
        if differing:
            raise ValueError(
                f"{self.path} holds a run with another configuration: "
                + ", ".join(f"{field} was {old!r} and is now {new!r}" for field, (old, new) in differing.items())
            )

    def claim(self) -> None:
        """Keep other processes from writing to the folder, until :meth:`release` or the end of this process.

        Raises:
            OSError: another process has claimed it.
        """
        lock = (self.path / "lock").resolve()
        if fcntl is None or not self._writes or lock in _CLAIMED:
            return
        file = lock.open("w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # child processes do not inherit it
        except BlockingIOError as error:
            file.close()
            raise OSError(f"another process is running in {self.path}; wait for its end, or stop it") from error
        except OSError:  # a file system without locks
            file.close()
            return
        _CLAIMED[lock] = file

    def release(self) -> None:
        """Let other processes write to the folder again."""
        if (file := _CLAIMED.pop((self.path / "lock").resolve(), None)) is not None:
            file.close()

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        self._replace(name, lambda partial: partial.write_text(json.dumps(content, indent=2) + "\n"))

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write tensors, containers and numbers by ``torch.save``."""
        buffer = io.BytesIO()  # torch.save itself does not say which file could not be written
        torch.save(dict(state), buffer)
        self._replace(name, lambda partial: partial.write_bytes(buffer.getbuffer()))

    def remove(self, name: str) -> None:
        """Delete a file if it exists."""
        if self._writes:
            (self.path / name).unlink(missing_ok=True)

    def append_record(self, record: dict[str, Any]) -> None:
        """Add one line to ``records.jsonl``."""
        self._write_records([*self.records, record])

    def save_checkpoint(self, state: Mapping[str, Any], epoch: int, step: int = 0, best: int | None = None) -> None:
        """Write a checkpoint after ``step`` steps of an epoch, including the records; see :class:`Checkpoints`.

        Args:
            state: tensors, containers and numbers.
            epoch, step: progress of the run.
            best: the epoch at whose start the best checkpoint was taken; that checkpoint is kept.
        """
        if self._writes:
            self._checkpoints.save({**state, "records": json.dumps(self.records)}, epoch, step, best)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest undamaged checkpoint, or None if the run has not come to its first; its records are restored.

        Raises:
            ValueError: all checkpoints are damaged, or there is none although epochs have finished.
        """
        with warnings.catch_warnings():
            if not self._writes:
                warnings.simplefilter("ignore")  # the writing process has already warned
            state = self._checkpoints.load()
        # An epoch's record is written before its checkpoint, so there may be one of an epoch that is not saved.
        if state is None and self._writes and self._records.exists() and self._records.read_text().count("\n") > 1:
            raise ValueError(
                f"{self.path} has no checkpoint to resume from, though its {self._records.name} lists finished epochs; "
                f"start anew in another folder"
            )
        self._write_records([] if state is None else json.loads(state.pop("records")))
        return state

    def model_after(self, epoch: int) -> dict[str, Any] | None:
        """The model's state dict after an epoch; None if no checkpoint of it was kept."""
        state = self._checkpoints.load_start_of(epoch + 1)
        return None if state is None else state["model"]

    def _write_records(self, records: list[dict[str, Any]]) -> None:
        self.records = records
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        self._replace(self._records.name, lambda partial: partial.write_text(lines))

    def _replace(self, name: str, write: Callable[[Path], Any]) -> None:
        if self._writes:
            replace_file(self.path / name, write)
