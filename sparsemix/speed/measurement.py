"""Measuring a comparison: all its variants in turn, their times as ratios within a round, memory, and dispatches.

Every ratio is to the first variant of its comparison: the median of the ratios of all rounds, so that a machine that is
slow for a while is slow for both. For a search step (both updates), the first variant is the dense formulation of the
published codes, in their memory format; for a search step with one operation per edge, it is two training steps of the
network of those operations.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ..runs.config import at_least
from . import variants
from .autodl import check_autodl
from .dispatch import count_dispatched
from .schedule import whole_schedule
from .variants import Size, Variants

__all__ = ["Comparison", "Options", "Row", "comparisons", "measure", "measure_speed"]


@dataclass(frozen=True)
class Options(Size):
    """Time search steps in turn with what they replace, and print the ratios."""

    only: str = ""
    """Run only comparisons whose name matches this regular expression; if none matches, their names are listed."""
    cells: tuple[int, ...] = (1, 5)
    """Cells per stage (N) of the NAS-Bench-201 supernets."""
    darts_cells: int = 8
    """Cells of the supernet of the DARTS space, which is timed at half the batch size."""
    models: tuple[str, ...] = ("resnet18", "mobilenetv3_small_100")
    """Models whose kernels are mixed, named as in sparsemix.speed.models; timed at twice the image size."""
    candidates: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Number of candidates per edge in the chains of mixed convolutions."""
    rounds: int = 9
    """Rounds in which every variant is timed once, after one uncounted round; ten times as many where a run takes
    milliseconds."""
    schedule_cells: int = 5
    """Cells per stage (N) of the supernet in the search from beginning to end."""
    schedule_epochs: int = 10
    """Epochs of the search from beginning to end."""
    schedule_images: int = 768
    """Number of embedded digits in the search from beginning to end, half for the weights and half for the alphas."""
    autodl: Path | None = None
    """Checkout of AutoDL-Projects, whose supernets are then measured as well."""
    compile_cells: bool = False
    """Also measure the steps of the NAS-Bench-201 supernets with compiled cells; compiling takes minutes."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    json: Path | None = None
    """Write the rows to this file."""

    def __post_init__(self) -> None:
        at_least(self, 1, ["rounds", "schedule_epochs", *([] if self.threads is None else ["threads"])])
        if self.json is not None and not self.json.parent.is_dir():
            raise ValueError(f"{self.json} cannot be written: there is no folder {self.json.parent}")
        try:
            re.compile(self.only)
        except re.error as error:
            raise ValueError(f"only={self.only!r} is not a regular expression: {error}") from error


@dataclass(frozen=True)
class Row:
    """A variant of a comparison."""

    comparison: str
    variant: str
    operations: str
    """Operations run in full, and scored, in a forward of the weights update and in one of the alpha update."""
    milliseconds: float
    ratio: float
    """To the first variant of the comparison, the median over rounds."""
    peak_memory: float
    """Most bytes allocated at once, above those before, in MiB."""
    memory_ratio: float
    dispatched: int
    """Operators dispatched, views not counted; on a GPU, their launches often dominate the time."""
    dispatched_ratio: float
    synchronizations: int
    """How often values are brought to the host."""


def measure_speed(options: Options) -> list[dict[str, Any]]:
    """Measure and print the comparisons that are asked for.

    Returns:
        The rows, ready for JSON.

    Raises:
        ValueError: none is asked for, or ``autodl`` is no checkout of AutoDL-Projects.
    """
    if options.autodl is not None:
        check_autodl(options.autodl)
    chosen = [c for c in comparisons(options) if re.search(options.only, c.name)]
    schedule = f"N {options.schedule_cells}: whole schedule"
    if not chosen and not re.search(options.only, schedule):
        names = ", ".join(repr(name) for name in (*(c.name for c in comparisons(options)), schedule))
        raise ValueError(f"{options.only!r} is found in none of {names}")
    torch.set_num_threads(options.threads or torch.get_num_threads())
    print(f"{torch.get_num_threads()} threads, {options.device}, torch {torch.__version__}")
    if chosen:
        print(
            "| comparison | variant | operations | ms | ms ratio | MiB | MiB ratio | dispatched | dispatched ratio "
            "| syncs |\n|---|---|---|---|---|---|---|---|---|---|"
        )
    rows: list[Any] = []
    for comparison in chosen:
        rows += measure(comparison, options)
    if re.search(options.only, schedule):
        rows += whole_schedule(options, options.schedule_cells, options.schedule_epochs, options.schedule_images)
    found = [asdict(row) for row in rows]
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return found


class Comparison(NamedTuple):
    """Variants that are measured in turn."""

    name: str
    build: Callable[[], Variants]
    often: int = 1
    """Factor on the number of rounds in the options, for runs that take only milliseconds."""


def comparisons(options: Options) -> list[Comparison]:
    """All comparisons."""
    found = []
    for n in options.cells:
        found += [
            Comparison(f"NAS-Bench-201, N {n}: step", partial(variants.nb201_steps, options, n, options.compile_cells)),
            Comparison(f"N {n}: weights update", partial(variants.nb201_weights_updates, options, n)),
            Comparison(f"N {n}: one operation", partial(variants.nb201_single_operations, options, n)),
        ]
        if options.autodl is not None:
            steps = partial(variants.autodl_steps, options, n, options.autodl)
            found.append(Comparison(f"AutoDL-Projects, N {n}: step", steps))
    found += [
        Comparison("DARTS space: step", partial(variants.darts_steps, options, options.darts_cells)),
        Comparison(
            "DARTS space: weights update", partial(variants.darts_weights_updates, options, options.darts_cells)
        ),
        Comparison("DARTS space: one operation", partial(variants.darts_discrete, options, options.darts_cells)),
        Comparison("plain modules: step", partial(variants.user_steps, options)),
        Comparison("dense weights update", partial(variants.dense_growth, options, options.candidates)),
        Comparison("sparse weights update", partial(variants.sparse_growth, options, options.candidates), often=10),
    ]
    for model in options.models:
        found.append(Comparison(f"{model}: training step", partial(variants.timm_training_steps, options, model)))
    found += [
        Comparison("one candidate", partial(variants.one_candidate, options), often=10),
        Comparison("loader", partial(variants.loaders, options)),
    ]
    return found


def measure(comparison: Comparison, options: Options) -> list[Row]:
    """Measure one, and print its rows."""
    torch.manual_seed(0)
    compared = comparison.build()
    times: dict[str, list[float]] = {name: [] for name in compared}
    for _ in tqdm(range(comparison.often * options.rounds + 1), comparison.name, leave=False, disable=None):
        for name, variant in compared.items():
            times[name].append(timed(variant.run, options.device))
    memory = {name: peak_memory(variant.run, options.device) for name, variant in compared.items()}
    dispatched = {name: count_dispatched(variant.run, options.device) for name, variant in compared.items()}
    first = next(iter(compared))
    rows = [
        Row(
            comparison.name,
            name,
            variant.operations,
            milliseconds=1e3 * statistics.median(times[name][1:]),
            ratio=statistics.median(a / b for a, b in zip(times[name][1:], times[first][1:], strict=True)),
            peak_memory=memory[name] / 2**20,
            memory_ratio=memory[name] / memory[first] if memory[first] else float("nan"),
            dispatched=dispatched[name].total,
            dispatched_ratio=dispatched[name].total / max(dispatched[first].total, 1),
            synchronizations=dispatched[name].synchronizations,
        )
        for name, variant in compared.items()
    ]
    for r in rows:
        print(
            f"| {r.comparison} | {r.variant} | {r.operations} | {r.milliseconds:.1f} | {r.ratio:.3f} "
            f"| {r.peak_memory:.0f} | {r.memory_ratio:.2f} | {r.dispatched:,} | {r.dispatched_ratio:.2f} "
            f"| {r.synchronizations} |"
        )
    return rows


def timed(run: Callable[[], Any], device: str) -> float:
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory(run: Callable[[], Any], device: str) -> float:
    """On CUDA the allocator's own figure; on a CPU the running sum of the allocations that the profiler saw."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    results = profile.profiler.kineto_results
    allocations = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    live = peak = 0
    for _, size in allocations:
        live += size
        peak = max(peak, live)
    return peak
