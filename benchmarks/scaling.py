"""How a search scales from one process to two: images a second, and the share of time spent in communication.

    python benchmarks/scaling.py                        # on this machine's CPU, one thread a process
    python benchmarks/scaling.py --processes 1 2 4 --batch-size 256 --json scaling.json

The search is that of nb201_space.py on embedded digits, launched by torchrun; the batch is the same for every number of
processes, which share it. Communication is all the time that the first process spends in exchanges with the others,
waiting for them included. Let nothing else run beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm.auto import tqdm

RESULT = "SPARSEMIX_SCALING"


@dataclass(frozen=True)
class Options:
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes to compare."""
    cells: int = 1
    """N of the supernet."""
    channels: int = 16
    """Its C."""
    image_size: int = 32
    """Images are resized to this."""
    batch_size: int = 64
    """Images a batch, of each half, shared by the processes."""
    epochs: int = 3
    """Epochs that are timed, after one that is not."""
    rounds: int = 3
    """How often each is launched; the median counts."""
    json: Path | None = None
    """Write the rows to this file."""


@dataclass(frozen=True)
class Row:
    processes: int
    images: float
    """Images a second, of both halves."""
    speedup: float
    communication: float
    """Share of the time."""


def main(options: Options) -> list[dict[str, Any]]:
    rows: list[Row] = []
    runs = {
        processes: sorted(launched(options, processes) for _ in range(options.rounds))
        for processes in tqdm(options.processes, "scaling", leave=False, disable=None)
    }
    print("| processes | images/s | speed-up | communication |\n|---|---|---|---|")
    for processes, measured in runs.items():
        images, communication = measured[len(measured) // 2]
        row = Row(processes, images, images / rows[0].images if rows else 1.0, communication)
        print(f"| {row.processes} | {row.images:.0f} | {row.speedup:.2f} | {row.communication:.1%} |")
        rows.append(row)
    result = [asdict(row) for row in rows]
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return result


def launched(options: Options, processes: int) -> tuple[float, float]:
    """Images a second, and the share of the time spent in communication."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        names = ("cells", "channels", "image_size", "batch_size", "epochs")
        flags = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
        environment = {**os.environ, RESULT: str(result), "OMP_NUM_THREADS": "1"}
        shown = subprocess.run(
            [*command, __file__, *flags], env=environment, check=False, capture_output=True, text=True
        )
        if shown.returncode != 0:
            raise RuntimeError(f"a search ended with {shown.returncode}:\n{shown.stdout}\n{shown.stderr}")
        images, communication = json.loads(result.read_text())
    return images, communication


def search(options: Options) -> None:
    """In a process of the run: the search, with clocks in it."""
    from sparsemix.cli import nb201 as nb201_cli
    from sparsemix.runs.config import configured
    from sparsemix.runs.processes import Parallel
    from sparsemix.runs.search import Search

    begun: list[float] = []
    exchanges: list[float] = []
    epochs: list[tuple[int, float, float]] = []  # images, seconds, seconds in communication

    def average(self: Any, tensors: Any, original: Any = Parallel.average) -> None:
        started = time.perf_counter()
        original(self, tensors)
        exchanges.append(time.perf_counter() - started)

    def begin_epoch(self: Any, original: Any = Search.begin_epoch) -> None:
        exchanges.clear()
        begun.append(time.perf_counter())
        original(self)

    def record(self: Any, original: Any = Search.record) -> Any:
        images = 2 * self.config.size.batch_size * len(self.pairs)
        epochs.append((images, time.perf_counter() - begun[-1], sum(exchanges)))
        return original(self)

    Parallel.average = average  # type: ignore[method-assign]
    Search.begin_epoch, Search.record = begin_epoch, record  # type: ignore[method-assign]
    result = Path(os.environ[RESULT])
    settings = {
        "device": "cpu",
        "channels": options.channels,
        "cells": options.cells,
        "image_size": options.image_size,
        "batch_size": options.batch_size,
        "epochs": 1 + options.epochs,
        "threshold": 1e-3,
        "output": result.parent / "run",
    }
    nb201_cli.search(configured(nb201_cli.NB201Config(), settings))
    images, seconds, communication = map(sum, zip(*epochs[1:], strict=True))
    if os.environ["RANK"] == "0":
        result.write_text(json.dumps([images / seconds, communication / seconds]))


if __name__ == "__main__":
    if RESULT in os.environ:
        search(tyro.cli(Options))
    else:
        main(tyro.cli(Options))
