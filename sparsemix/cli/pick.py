"""``sparsemix pick``: search several times, train each result briefly, and pick by validation accuracy.

As is done on S1 to S4. ``peers``: four seeds; each result is trained for 100 epochs as it would be in full, on half of
the training images, and judged on the other half. ``paper``: the same with one seed at each of t_sp 4e-4, 5e-4, 6e-4
and 7e-4. ``proxy``: two seeds and a short training of a small network, which is a way to try the command and no
published protocol.

Every search and every training keeps its own run folder; what is finished is not done again, what was interrupted goes
on when the command is given again. The images that judge are held out of the training images; none is a test image,
but the searches have seen them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..cli import darts as darts_search
from ..cli import train
from ..runs.config import config_from_flags, peek_flags
from ..runs.folder import RunFolder
from ..runs.training import PRESETS, RetrainConfig
from ..spaces import darts, robust
from .darts import DartsConfig


@dataclass(frozen=True)
class PickConfig(DartsConfig):
    selection: Literal["peers", "paper", "proxy"] = "proxy"
    """The protocol that the flags of the selection start from."""
    seeds: tuple[int, ...] = (0, 1)
    """A search is made with each of these seeds."""
    temperatures: tuple[float, ...] = ()
    """A search is made at each of these t_sp, t_sm keeping its ratio; by default at the preset's alone."""
    train_preset: Literal["proxy", "robust", "cifar"] = "proxy"
    """Preset of the training that judges a result."""
    train_epochs: int | None = None
    """Length of that training; by default the preset's."""
    train_holdout: float = 0.2
    """Share of the training images that judge, and are not trained on."""


# 100 epochs: Liu et al., "DARTS", section 3.1.2; four runs: Zela et al., Chen and Hsieh ("SmoothDARTS")
_SHORT: dict[str, Any] = {"train_preset": "robust", "train_epochs": 100, "train_holdout": 0.5}
SELECTIONS: dict[str, dict[str, Any]] = {
    "peers": {"seeds": (0, 1, 2, 3), **_SHORT},
    "paper": {"seeds": (0,), "temperatures": (4e-4, 5e-4, 6e-4, 7e-4), **_SHORT},
    "proxy": {},
}


def pick(config: PickConfig) -> dict[str, Any]:
    """Search and train, and return all candidates."""
    folder = config.output or Path("runs") / f"pick-{config.space}-{config.dataset}-{config.method}-{config.preset}"
    candidates = []
    for temperature in config.temperatures or (config.sparse,):
        for seed in config.seeds:
            name = f"t{temperature:g}-seed{seed}"
            search = search_config(config, temperature, seed, folder / f"search-{name}")
            found = finished(search) or darts_search.search(search)
            training = train_config(config, folder / f"search-{name}" / "genotype.json", folder / f"train-{name}")
            trained = finished(training) or train.train(training)
            candidates.append(
                {
                    "name": name,
                    "accuracy": 1 - trained["error"],
                    "parameters": trained["parameters"],
                    "skips": found["skips"],
                    "discretization_gap": found["discretization_gap"],
                    "genotype": found["genotype"],
                }
            )
    picked = max(candidates, key=lambda candidate: candidate["accuracy"])
    result = {"picked": picked["name"], "candidates": candidates}
    (folder / "pick.json").write_text(json.dumps(result, indent=2) + "\n")
    report(candidates, picked, folder, config)
    return result


def search_config(config: PickConfig, temperature: float, seed: int, output: Path) -> DartsConfig:
    settings = {field.name: getattr(config, field.name) for field in fields(DartsConfig)}
    search = DartsConfig(**settings)
    smooth = config.smooth / config.sparse * temperature
    scale = temperature / config.sparse if config.method == "sp-darts" else 1.0
    return replace(
        search,
        seed=seed,
        sparse=temperature,
        smooth=smooth,
        eval_temperature=config.eval_temperature * scale,
        output=output,
        resume=(output / "config.json").exists(),
    )


def train_config(config: PickConfig, genotype: Path, output: Path) -> RetrainConfig:
    preset = PRESETS[config.train_preset]
    settings = {**preset["*"], **preset.get(config.dataset, {})}
    if config.train_epochs is not None:
        settings["epochs"] = config.train_epochs
    settings |= {name: getattr(config, name) for name in ("dataset", "data", "download", "device", "workers")}
    if config.image_size is not None:
        settings["image_size"] = config.image_size
    training = RetrainConfig(
        **{
            **settings,
            "genotype": str(genotype),
            "preset": config.train_preset,
            "seed": config.seed,  # one and the same for all
            "holdout": config.train_holdout,
            "output": output,
            "resume": (output / "config.json").exists(),
        }
    )
    return train.resolved(training)


def finished(config: DartsConfig | RetrainConfig) -> dict[str, Any] | None:
    """The summary of a run that has been made already, by whatever version; another configuration is an error."""
    assert config.output is not None
    summary = config.output / "summary.json"
    if not summary.exists():
        return None
    RunFolder(config.output, config.as_json(), resume=True, movable=config.MOVABLE | {"version"})
    return json.loads(summary.read_text())


def report(candidates: list[dict[str, Any]], picked: dict[str, Any], folder: Path, config: PickConfig) -> None:
    print("\n| search | validation accuracy | parameters | skips | gap |\n|---|---|---|---|---|")
    for c in sorted(candidates, key=lambda candidate: -candidate["accuracy"]):
        print(
            f"| {c['name']} | {c['accuracy']:.2%} | {c['parameters'] / 1e6:.3f} M | {c['skips']} "
            f"| {c['discretization_gap']:+.1%} |"
        )
    print(f"picked {picked['name']}: {picked['genotype']}\nwritten to {folder / 'pick.json'}")
    print("to train it in full:", darts_search.retrain_command(config, folder / f"search-{picked['name']}"))


def config(args: list[str] | None = None) -> PickConfig:
    """The configuration of a command line: the space's preset, the selection's settings, then the flags."""
    chosen = peek_flags(args, space=(None, None), selection=([*SELECTIONS], "proxy"))
    of_space = robust.PRESETS if chosen["space"] in robust.SPACES else darts.PRESETS
    selection = {**SELECTIONS[chosen["selection"]], **{name: value for name, value in chosen.items() if value}}
    presets = {
        method: {name: {**preset, "*": {**preset["*"], **selection}} for name, preset in named.items()}
        for method, named in of_space.items()
    }
    return config_from_flags(presets, args, PickConfig, prog="sparsemix pick")


def main(args: list[str]) -> None:
    """The command with these flags."""
    pick(config(args))
