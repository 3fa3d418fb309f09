"""``sparsemix pick``: search several times, train each result briefly, and pick by validation accuracy.

This is the protocol used on S1 to S4. ``peers``: four seeds; each result is trained for 100 epochs with the settings of
a full training, on half of the training images, and evaluated on the other half. ``paper``: the same with one seed at
each of t_sp 4e-4, 5e-4, 6e-4 and 7e-4. ``proxy``: two seeds and a short training of a small network, to try the
command; not a published protocol.

Every search and every training has its own run folder. Running the command again resumes interrupted runs and skips
finished ones. Results are evaluated on held-out training images: no test images are used, but the searches have seen
the held-out images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..cli import darts as darts_search
from ..cli import train
from ..runs.config import AnyConfig, configured
from ..runs.folder import RunFolder
from ..runs.several import check_once
from ..runs.training_config import TrainingConfig
from ..spaces import darts
from .darts import DartsConfig
from .flags import peek_flags, search_config


@dataclass(frozen=True)
class Selection:
    """The searches, and the trainings that judge what they find."""

    selection: Literal["peers", "paper", "proxy"] = "proxy"
    """Protocol that sets the defaults of the selection's flags."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds to search with, one search per seed (and temperature)."""
    temperatures: tuple[float, ...] = ()
    """Temperatures t_sp to search at, with t_sm keeping its ratio to t_sp; by default that of the preset."""
    train_preset: Literal["proxy", "robust", "cifar"] = "proxy"
    """Preset of the training that judges a result."""
    train_epochs: int | None = None
    """Number of epochs of the training that judges a result; by default that of its preset."""
    train_holdout: float = 0.2
    """Share of the training images held out to judge a result, and not trained on."""


@dataclass(frozen=True)
class PickConfig(DartsConfig):
    selection: Selection = field(default_factory=Selection)


# 100 epochs: Liu et al., "DARTS", section 3.1.2; four runs: Zela et al., Chen and Hsieh ("SmoothDARTS")
_SHORT: dict[str, Any] = {"train_preset": "robust", "train_epochs": 100, "train_holdout": 0.5}
SELECTIONS: dict[str, dict[str, Any]] = {
    "peers": {"seeds": (0, 1, 2, 3), **_SHORT},
    "paper": {"seeds": (0,), "temperatures": (4e-4, 5e-4, 6e-4, 7e-4), **_SHORT},
    "proxy": {},
}


STAND_IN = "DARTS_V2"
"""Placeholder for a genotype not yet found, used to check configurations and time steps."""


def pick(config: PickConfig) -> dict[str, Any]:
    """Search and train, and return all candidates."""
    folder = folder_of(config)
    check_once("seed", config.selection.seeds)
    candidates = []
    for name, _ in searches(config, folder):
        training_of(config, STAND_IN, folder / f"train-{name}")  # errors in its settings show before hours of search
    for name, search in searches(config, folder):
        found = finished(search) or darts_search.search(search)
        training = training_of(config, str(folder / f"search-{name}" / "genotype.json"), folder / f"train-{name}")
        trained = finished(training) or train.train(training)
        candidates.append(
            {
                "name": name,
                "accuracy": 1 - trained["error"],
                "parameters": trained["parameters"],
                "skips": found["skips"],
                "discretization_gap": found.get("discretization_gap"),
                "genotype": found["genotype"],
            }
        )
    picked = max(candidates, key=lambda candidate: candidate["accuracy"])
    result = {"picked": picked["name"], "candidates": candidates}
    (folder / "pick.json").write_text(json.dumps(result, indent=2) + "\n")
    report(candidates, picked, folder, config)
    return result


def searches(config: PickConfig, folder: Path) -> Iterator[tuple[str, DartsConfig]]:
    """(name, search) for every temperature and every seed."""
    method = config.method
    methods = {f"t{t:g}-": method.at_temperature(t) for t in config.selection.temperatures} or {"": method}
    search = DartsConfig(**{each.name: getattr(config, each.name) for each in fields(DartsConfig)})
    for prefix, at_temperature in methods.items():
        for seed in config.selection.seeds:
            name = f"{prefix}seed{seed}"
            yield name, in_folder(replace(search, method=at_temperature), folder / f"search-{name}", seed)


def check_same(config: PickConfig) -> None:
    """Check that the runs of a finished selection had this configuration.

    Raises:
        ValueError: one had another; the message names the fields with both values.
    """
    folder = folder_of(config)
    for name, search in searches(config, folder):
        if finished(search) is not None:  # the folders of a selection may have been deleted since
            finished(training_of(config, str(folder / f"search-{name}" / "genotype.json"), folder / f"train-{name}"))


def folder_of(config: PickConfig) -> Path:
    """The folder of a selection."""
    name = f"pick-{config.space}-{config.data.dataset}-{config.method.name}-{config.preset}"
    return config.run.output or Path("runs") / name


def training_of(config: PickConfig, genotype: str, output: Path) -> TrainingConfig:
    """The training that evaluates a genotype, given as a file or a name; all trainings use the same seed."""
    selection, data = config.selection, config.data
    preset = selection.train_preset
    training = TrainingConfig.of_preset(preset, data.dataset)
    given = {
        "epochs": selection.train_epochs,
        "image_size": data.image_size,
        "genotype": genotype,
        "cutout": TrainingConfig.fitting_cutout(preset, data.dataset, data.image_size),
        "holdout": selection.train_holdout,
        **{name: config.settings[name] for name in ("data", "download", "device", "workers")},
    }
    training = configured(training, {name: value for name, value in given.items() if value is not None})
    return train.resolved(in_folder(training, output, config.run.seed))


def in_folder(config: AnyConfig, output: Path, seed: int) -> AnyConfig:
    """A configuration that starts or resumes the run in a folder."""
    return configured(config, {"output": output, "resume": (output / "config.json").exists(), "seed": seed})


def finished(config: DartsConfig | TrainingConfig) -> dict[str, Any] | None:
    """The summary of a finished run, made by any version, or None; a run with another configuration is an error."""
    folder = config.run.output
    if folder is None or not (folder / "summary.json").exists():
        return None
    RunFolder(folder, config.as_json(), resume=True, movable=config.MOVABLE | {"version"})
    return json.loads((folder / "summary.json").read_text())


def report(candidates: list[dict[str, Any]], picked: dict[str, Any], folder: Path, config: PickConfig) -> None:
    print("\n| search | validation accuracy | parameters | skips | gap |\n|---|---|---|---|---|")
    for c in sorted(candidates, key=lambda candidate: -candidate["accuracy"]):
        gap = "-" if c["discretization_gap"] is None else f"{c['discretization_gap']:+.1%}"  # not measured by then
        print(f"| {c['name']} | {c['accuracy']:.2%} | {c['parameters'] / 1e6:.3f} M | {c['skips']} | {gap} |")
    print(f"picked {picked['name']}: {picked['genotype']}\nwritten to {folder / 'pick.json'}")
    print("to train it in full:", darts_search.retrain_command(config, folder / f"search-{picked['name']}"))


def configure(args: list[str] | None = None) -> PickConfig:
    """The configuration of a command line: the space's preset, the selection's settings, then the flags."""
    prog = "sparsemix pick"
    chosen = peek_flags(args, prog, space=(None, None), selection=([*SELECTIONS], "proxy"))
    space = darts.ROBUST_SETTINGS if chosen["space"] in darts.robust.SPACES else darts.SETTINGS
    overlay = {**SELECTIONS[chosen["selection"]], **{name: value for name, value in chosen.items() if value}}
    return search_config(PickConfig, space, args, prog, overlay)


def main(args: list[str]) -> None:
    """The command with these flags."""
    pick(configure(args))
