"""Tables of networks that are searched, picked by a short training, and trained: the DARTS space, and S1 to S4."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...report.records import load_run
from ...reproduction.networks import NETWORK_SCALES, Network, NetworkTable
from ...reproduction.results import network_table, write_networks
from ...runs.config import configured
from ...runs.several import run_processes
from ...runs.training_config import TrainingConfig
from ...speed.steps import seconds_a_step
from .. import darts, pick, train
from ..pick import STAND_IN
from .common import as_words, check_time, chosen_rows, duration, has_finished, notes, show

__all__ = ["reproduce_networks"]


def reproduce_networks(
    chosen: argparse.Namespace, table: NetworkTable, flags: Sequence[str], folder: Path
) -> list[str]:
    """Search and pick, then train, and make the table.

    Returns:
        The names of the runs that failed.
    """
    table = _only(chosen, table)
    picks = {
        name: _pick_words(settings, chosen.scale, folder / name, flags) for name, settings in table.searches.items()
    }
    for name, words in picks.items():
        if (folder / name / "pick.json").exists():
            pick.check_same(pick.configure(words))
    _announce(chosen, table, picks, flags, folder)
    if chosen.dry_run:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    waiting = {name: ["pick", *words] for name, words in picks.items() if not (folder / name / "pick.json").exists()}
    failed = _failed(run_processes(waiting, folder, chosen.jobs))
    found = {name: _picked(folder / name) for name in picks if name not in failed}
    trainings = {}
    for name, network in table.networks.items():
        genotype = None if network.search is None else found.get(network.search)
        if network.search is not None and genotype is None:
            continue  # its selection failed
        for seed in chosen.seeds:
            output = _folder(folder, name, seed)
            words = _train_words(network, genotype, chosen, seed, output, flags)
            if pick.finished(train.resolved(train.configure(words))) is None:
                trainings[output.name] = ["train", *words]
    failed += _failed(run_processes(trainings, folder, chosen.jobs))
    trained = {
        name: [load_run(path) for seed in chosen.seeds if has_finished(path := _folder(folder, name, seed))]
        for name in table.networks
    }
    made = network_table(table, trained)
    paragraphs = [table.remark, *notes(chosen, flags, NETWORK_SCALES[chosen.scale].search.remark)]
    write_networks(chosen.name, table, made, trained, folder, paragraphs)
    show(made, folder / chosen.name)
    return failed


def _only(chosen: argparse.Namespace, table: NetworkTable) -> NetworkTable:
    """The table reduced to the requested rows and to the trainings and searches they need.

    Transfers are left out if no ImageNet is given.
    """
    by_row: dict[str, list[Any]] = {}
    for entry in table.entries:
        by_row.setdefault(entry.row, []).append(entry)
    has_transfer = chosen.imagenet is not None or NETWORK_SCALES[chosen.scale].transfer is not None
    entries = [entry for row in chosen_rows(by_row, chosen.only) for entry in row]
    networks = {
        entry.network: table.networks[entry.network]
        for entry in entries
        if has_transfer or not table.networks[entry.network].is_transfer
    }
    searches = {network.search: table.searches[network.search] for network in networks.values() if network.search}
    return table._replace(searches=searches, networks=networks, entries=tuple(entries))


def _folder(folder: Path, name: str, seed: int) -> Path:
    return folder / f"train-{name}-seed{seed}"


def _picked(folder: Path) -> str:
    """The genotype that a finished selection picked."""
    result = json.loads((folder / "pick.json").read_text())
    return next(each["genotype"] for each in result["candidates"] if each["name"] == result["picked"])


def _failed(statuses: Mapping[str, int]) -> list[str]:
    return [name for name, status in statuses.items() if status]


def _pick_words(settings: Mapping[str, Any], scale: str, output: Path, flags: Sequence[str]) -> list[str]:
    """The flags of a selection: the table's, then those of the scale, then the user's."""
    return [*as_words(NETWORK_SCALES[scale].search.of(settings)), *flags, "--output", str(output)]


def _train_words(
    network: Network,
    genotype: str | None,
    chosen: argparse.Namespace,
    seed: int,
    output: Path,
    flags: Sequence[str],
) -> list[str]:
    """The flags of a training: its architecture, the table's, those of the scale, and the user's."""
    scale = NETWORK_SCALES[chosen.scale]
    architecture = {} if genotype is None else {"genotype": genotype}
    if not network.is_transfer:
        settings = {**network.settings, **scale.training}
    elif scale.transfer is not None:
        settings = {**network.settings, **scale.transfer}
    else:
        train_folder, test_folder = chosen.imagenet
        settings, flags = {**network.settings, "data": train_folder, "test-data": test_folder}, ()
    resumed = ["--resume"] if (output / "config.json").exists() else []
    return [*as_words({**settings, **architecture}), *flags, "--seed", str(seed), "--output", str(output), *resumed]


def _announce(
    chosen: argparse.Namespace,
    table: NetworkTable,
    picks: Mapping[str, Sequence[str]],
    flags: Sequence[str],
    folder: Path,
) -> None:
    """Say what will run and for how long, from a few timed steps of each kind.

    Raises:
        ValueError: the paper's scale on a CPU, without ``--yes``.
    """
    clock, seconds = _Clock(), 0.0
    left = [name for name in picks if not (folder / name / "pick.json").exists()]
    unfinished = {
        name: [seed for seed in chosen.seeds if not has_finished(_folder(folder, name, seed))]
        for name in table.networks
    }
    waiting, all_of_them = sum(map(len, unfinished.values())), len(table.networks) * len(chosen.seeds)
    print(
        f"{chosen.name}: {table.title}, scale {chosen.scale}\n"
        f"{len(left)} selections, {len(picks) - len(left)} have finished; "
        f"{waiting} trainings, {all_of_them - waiting} have finished"
    )
    for name in left:
        each = clock.selection(pick.configure([*picks[name]]), folder / name)
        seconds += each
        print(f"  {name}, selection: {duration(each)}", flush=True)
    for name, seeds in ((name, seeds) for name, seeds in unfinished.items() if seeds):
        network, output = table.networks[name], _folder(folder, name, seeds[0])
        genotype = STAND_IN if network.search else None
        each = clock.training(train.configure(_train_words(network, genotype, chosen, seeds[0], output, flags)))
        seconds += each * len(seeds)
        print(f"  {name}, training: {len(seeds)} x {duration(each)}", flush=True)
    if seconds:
        print(f"about {duration(seconds)} in all if run one after another here, plus time for measurements", flush=True)
    check_time(chosen, seconds)


class _Clock:
    """How long runs take. A step is timed once for each method, and once for each kind of network."""

    def __init__(self) -> None:
        self.steps: dict[Any, float] = {}

    def selection(self, config: pick.PickConfig, folder: Path) -> float:
        """Seconds of the searches and the trainings of a selection."""
        searches = [search for _, search in pick.searches(config, folder)]
        search = searches[0]
        with tempfile.TemporaryDirectory() as scratch:
            run = darts.make_search(configured(search, {"output": Path(scratch) / "run", "resume": False}))
            key = (search.method, search.size.batch_size, search.size.channels)
            if key not in self.steps:
                self.steps[key] = seconds_a_step(run, search.size.epochs // 2)
            seconds = self.steps[key] * len(run.pairs) * run.epochs
        return len(searches) * (seconds + self.training(pick.training_of(config, STAND_IN, folder / "train")))

    def training(self, config: TrainingConfig) -> float:
        """Seconds of a training."""
        with tempfile.TemporaryDirectory() as scratch:
            run = train.make_training(configured(config, {"output": Path(scratch) / "run", "resume": False}))
            key = (config.network.model, config.preset, config.data.dataset, config.size.channels)
            if key not in self.steps:
                self.steps[key] = seconds_a_step(run, config.size.epochs // 2)
            return self.steps[key] * len(run.data) * run.epochs
