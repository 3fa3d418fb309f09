"""Compare methods: each searches the same space with several seeds, and a table shows what they found.

``sparsemix compare`` compares on the command line's search spaces, :func:`compare` on your own supernet.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import __version__
from .data import Pairs
from .methods.method import Method
from .report.comparison import Compared, write_comparison
from .report.records import load_run
from .report.tables import Table
from .runs.choice import Choice
from .runs.config import SearchConfig, configured
from .runs.custom import custom_config, custom_search
from .runs.folder import RunFolder
from .runs.launching import Interrupted
from .runs.search import Search
from .runs.several import check_once
from .speed.steps import REFERENCE, STEPS, check_steps, compare_steps
from .supernet.group import ArchParameterGroup

__all__ = ["compare", "conclude", "in_folders", "unfinished"]


def compare(
    build: Callable[..., nn.Module],
    pairs: Pairs | Callable[[int], Pairs],
    methods: Sequence[str | Method],
    seeds: Sequence[int] = (0, 1, 2),
    *,
    output: str | Path,
    settings: Mapping[str, Any] | None = None,
    read_out: Callable[[ArchParameterGroup, float], Any] = Choice,
    time_steps: int = 0,
) -> Table:
    """Search your own supernet with several methods and seeds, and compare the results.

    Every search has its own run folder, ``OUTPUT/METHOD-seedN``. A second call resumes interrupted searches and skips
    finished ones. ``OUTPUT/comparison.md``, ``.csv`` and ``.png`` hold the comparison.

    Args:
        build: makes the supernet, a model that contains mixed operations; called after the seed has been set, with the
            method's supernet options (PC-DARTS: its share of channels) as keyword arguments.
        pairs: the images, in the same order for all seeds; or a function that opens them for a seed.
        methods: names, or methods of your own.
        seeds: every method searches once with each seed.
        output: folder for all runs and the comparison.
        settings: name -> value of a :class:`~sparsemix.runs.config.SearchConfig`, the same for all methods.
        read_out: (arch, temperature) -> the architecture found; by default one candidate for each row.
        time_steps: number of rounds in which the search steps of all methods are timed in turn; 0: no timing.

    Returns:
        The table; ``.markdown()`` and ``.plain()`` print it.

    Raises:
        ValueError: before anything runs: an unknown method or setting, the same method or seed twice, a run folder
            that holds another search, or timing without ``darts``, to which times are relative.
        RuntimeError: some runs failed. Raised at the end, after the table has been written; names their log files.
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP; the running search has saved its state.

    Example:
        See ``docs/compare.md``.
    """
    some = pairs(seeds[0]) if callable(pairs) and seeds else pairs
    device = "auto" if callable(some) else next(iter(some.validation()))[0].device.type
    given = {"device": device, **(settings or {})}
    configs = in_folders([custom_config(method, given) for method in methods], seeds, Path(output))
    if time_steps:
        check_steps([config.method.name for config in configs], time_steps)

    def make(config: SearchConfig) -> Search:
        return custom_search(build, pairs, config, read_out)

    failed = []
    waiting = unfinished(configs)
    for place, config in enumerate(waiting, 1):
        name, folder = _name(config), _folder(config)
        print(f"{name} begins, {len(waiting) - place} of {len(waiting)} wait", flush=True)
        try:
            make(config).run()
        except Interrupted as stopped:
            raise Interrupted(
                f"stopped with {len(waiting) - place + 1} of {len(waiting)} runs left: call compare again to go on"
            ) from stopped
        except Exception as error:  # the other runs do not depend on this one
            log = folder.with_name(f"{name}.log")
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc())
            failed.append(f"{name} ({type(error).__name__}: {error}; {log})")
    table = conclude(configs, make, time_steps)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(waiting)} runs failed: {', '.join(failed)}")
    return table


def in_folders(configs: Sequence[SearchConfig], seeds: Sequence[int], output: Path) -> list[SearchConfig]:
    """The runs of a comparison, one for each method and seed, each in its own folder; a run that has begun is resumed.

    Args:
        configs: one per method.
        seeds: every method searches once with each seed.
        output: folder of the comparison.

    Raises:
        ValueError: no method or no seed, one named twice, or methods set to different spaces or data sets.
    """
    check_once("method", [config.method.name for config in configs])
    check_once("seed", seeds)
    for setting in ("space", "dataset"):
        named = {config.method.name: config.settings[setting] for config in configs if setting in config.settings}
        if len({*named.values()}) > 1:
            each = ", ".join(f"{method} {value}" for method, value in named.items())
            raise ValueError(
                f"methods are compared on one {setting}, and here it is {each}: give all of them one by --{setting}"
            )
    runs = []
    for config in configs:
        for seed in seeds:
            folder = output / f"{config.method.name}-seed{seed}"
            begun = (folder / "config.json").exists()
            runs.append(configured(config, {"seed": seed, "output": folder, "resume": begun}))
    return runs


def unfinished(configs: Sequence[SearchConfig]) -> list[SearchConfig]:
    """The runs that have not finished.

    Raises:
        ValueError: a folder holds a run with another configuration; names the settings with both values.
    """
    left = []
    for config in configs:
        folder = _folder(config)
        if config.run.resume:  # any version may have made it; the search adds entries that a configuration lacks
            movable = config.MOVABLE | {"version", "precision"} | ({"space"} - config.settings.keys())
            RunFolder(folder, config.as_json(), resume=True, movable=movable)
        if not (folder / "summary.json").exists():
            left.append(config)
    return left


def conclude(
    configs: Sequence[SearchConfig],
    make: Callable[[SearchConfig], Search],
    time_steps: int = 0,
    notes: Sequence[str] = (),
) -> Table:
    """Write the comparison of all finished runs into the parent of their run folders.

    Args:
        configs: all runs, as returned by :func:`in_folders`.
        make: makes the search of a configuration, to time its steps.
        time_steps: number of rounds in which steps are timed; 0: no timing.
        notes: paragraphs below the table, before this function's own notes on the runs.

    Returns:
        The table.
    """
    by_method: dict[str, list[SearchConfig]] = {}
    for config in configs:
        by_method.setdefault(config.method.name, []).append(config)
    finished = {
        method: [load_run(_folder(config)) for config in of_method if (_folder(config) / "summary.json").exists()]
        for method, of_method in by_method.items()
    }
    costs: Mapping[str, Mapping[str, float]] = {}
    notes = [*notes, _about(by_method)]
    if time_steps:
        print(f"{time_steps} rounds of 2 x {STEPS} steps of each method", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            costs = compare_steps(
                {
                    method: _in_the_middle(make, of_method[0], Path(folder), [run.records for run in finished[method]])
                    for method, of_method in by_method.items()
                },
                time_steps,
            )
        notes.append(_about_times(time_steps, configs[0]))
    compared = [
        Compared(method, len(of_method), finished[method], costs.get(method, {}))
        for method, of_method in by_method.items()
    ]
    output = _folder(configs[0]).parent
    output.mkdir(parents=True, exist_ok=True)
    return write_comparison(compared, output, notes)


def _in_the_middle(
    make: Callable[[SearchConfig], Search], config: SearchConfig, folder: Path, runs: Sequence[Sequence[dict[str, Any]]]
) -> Callable[[], Search]:
    """A function that makes the search, with a finished run's alphas, betas and decisions before its middle epoch."""

    def made() -> Search:
        search = make(configured(config, {"output": folder / _name(config), "resume": False, "log_with": None}))
        before = config.size.epochs // 2
        if runs and before:  # the alphas decide which operations run, and fresh alphas are all alike
            record = runs[0][min(before, len(runs[0])) - 1]
            learnt = {"alphas": search.arch.named_parameters(), "betas": search.arch.named_betas()}
            with torch.no_grad():
                for kind, parameters in learnt.items():
                    for label, parameter in parameters:
                        parameter.copy_(torch.tensor(record[kind][label]))
            for label, names in record.get("allowed", {}).items():
                search.arch.restrict(label, names)
        return search

    return made


def _about(by_method: Mapping[str, Sequence[SearchConfig]]) -> str:
    """A note on what the runs share, and on the settings, other than their own, in which the methods differ."""
    firsts = [configs[0] for configs in by_method.values()]
    own = {name for config in firsts for name in config.method.settings} | {"method", "seed", "output", "resume"}
    differing: dict[str, dict[str, list[str]]] = {}  # setting -> value -> methods
    for name in (name for name in firsts[0].settings if name not in own):
        by_value: dict[str, list[str]] = {}
        for config in firsts:
            by_value.setdefault(_shown(config.settings[name]), []).append(config.method.name)
        if len(by_value) > 1:
            differing[name] = by_value
    seeds = ", ".join(str(config.run.seed) for config in next(iter(by_method.values())))
    text = f"Mean ± standard deviation over the seeds {seeds}; sparsemix {__version__}."
    if not differing:
        return f"{text} Apart from their own settings, all methods use the same settings."
    each = []
    for name, by_value in differing.items():
        usual = max(by_value, key=lambda value: len(by_value[value]))
        others = [f"{value} ({', '.join(methods)})" for value, methods in by_value.items() if value != usual]
        each.append(f"{name} {usual}, but {', '.join(others)}")
    return f"{text} The methods' presets differ: {'; '.join(each)}."


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _about_times(rounds: int, config: SearchConfig) -> str:
    on_gpu = torch.cuda.is_available() and config.run.device in ("auto", "cuda")
    device = torch.cuda.get_device_name() if on_gpu else f"a CPU (threads: {torch.get_num_threads()})"
    return (
        f"Time and memory are those of a search step, relative to {REFERENCE}: {rounds} rounds of {STEPS} steps of "
        f"each method in turn, on {device}, in the middle epoch of the search; times are the median over the rounds. "
        f"'Time against all operations' is relative to the same method with every operation run."
    )


def _folder(config: SearchConfig) -> Path:
    if config.run.output is None:
        raise ValueError("a run of a comparison needs a folder (output)")
    return config.run.output


def _name(config: SearchConfig) -> str:
    return _folder(config).name
