"""What a search under a budget brings: networks found, drawn at random, uniform, and unchanged, trained alike.

    python benchmarks/timm_budget.py --dataset cifar10 --download
    python benchmarks/timm_budget.py --dataset digits --limit 200 --search-epochs 1 --train-epochs 1 --seeds 0  # a try

The budget is the cost of the model with one candidate in all its layers (the first of --uniform). For every seed the
model is searched within that budget, and a choice of at least 97 % of it is drawn at random; both are trained from
scratch, and so are the uniform models and the model as it is. Runs that have finished are not repeated.
"""

from __future__ import annotations

import json
import random
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import tyro

from sparsemix import ArchParameterGroup
from sparsemix.cli import timm_model, train
from sparsemix.inject import mix_
from sparsemix.measure.cost import CostTable, measure_costs
from sparsemix.report.tables import Table, write_rows


@dataclass(frozen=True)
class Options:
    model: str = "resnet10t"
    """Model of timm's."""
    mix: str = "groups"
    """Family of candidates."""
    uniform: tuple[str, ...] = ("groups4", "groups8")
    """Candidates that all layers have in the uniform models; the multiply-accumulates of the first are the budget."""
    image_size: int = 32
    """Images are resized to this."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of searches, draws and trainings."""
    dataset: str = "cifar10"
    """Images to search and train on."""
    data: Path = Path("data")
    """Folder of the images; of the training images, for --dataset folder."""
    test_data: Path | None = None
    """Folder of the test images, for --dataset folder."""
    download: bool = False
    """Download the images where they are missing."""
    limit: int | None = 6400
    """Training images to use; of a search, half for the weights and half for the alphas."""
    search_epochs: int = 12
    """Length of a search."""
    train_epochs: int = 12
    """Length of a training."""
    output: Path = Path("runs/timm_budget")
    """Folder for all runs, and for budget.csv and budget.md."""


def main(options: Options) -> Table:
    if not options.uniform:
        raise ValueError("--uniform names no candidate: the first one sets the budget, such as groups4")
    costs = _costs(options)
    uniform = {f"uniform ({name})": dict.fromkeys(costs.rows, name) for name in options.uniform}
    budget = costs.of(uniform[f"uniform ({options.uniform[0]})"])
    rows = []
    for seed in options.seeds:
        choices = {
            "as it is": {},
            **uniform,
            "random": drawn(costs, budget, random.Random(seed)),
            "found": _found(options, seed, budget),
        }
        for kind, choice in choices.items():
            trained = _trained(options, kind, seed, choice)
            rows.append(
                {"kind": kind, "seed": seed, **{name: trained[name] for name in ("macs", "parameters", "error")}}
            )
            print(f"seed {seed}, {kind}: error {trained['error']:.2%}, {trained['macs'] / 1e6:.2f} M MACs", flush=True)
    write_rows(options.output / "budget.csv", rows)
    table = summary(rows)
    (options.output / "budget.md").write_text(table.markdown() + "\n")
    print(f"\nbudget {budget / 1e6:.2f} M MACs\n\n{table.markdown()}")
    return table


def drawn(
    costs: CostTable, budget: float, generator: random.Random, least: float = 0.97, tries: int = 100_000
) -> dict[str, str]:
    """A random choice that uses the budget.

    Raises:
        ValueError: no draw did.
    """
    for _ in range(tries):
        choice = {row: generator.choice([*candidates]) for row, candidates in costs.rows.items()}
        if least * budget <= costs.of(choice) <= budget:
            return choice
    raise ValueError(f"none of {tries} random choices costs {least:.0%} to 100% of {budget:.0f}: choose another budget")


def summary(rows: list[dict[str, Any]]) -> Table:
    """Mean and standard deviation over the seeds."""
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = [row for row in rows if row["kind"] == kind]
        columns = [
            [factor * row[name] for row in of_kind]
            for name, factor in (("macs", 1e-6), ("parameters", 1e-6), ("error", 100))
        ]
        lines.append([kind, str(len(of_kind)), *map(_mean, columns)])
    return Table(["layers", "n", "MACs, M", "parameters, M", "test error, %"], lines)


def _mean(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def _costs(options: Options) -> CostTable:
    image = torch.zeros(1, 3, options.image_size, options.image_size)
    model = timm.create_model(options.model, num_classes=10)
    mix_(model, options.mix, example=image)
    return measure_costs(ArchParameterGroup(model), image)


def _found(options: Options, seed: int, budget: float) -> dict[str, str]:
    """What a search within the budget finds."""
    folder = options.output / f"search-seed{seed}"
    if not (folder / "choice.json").exists():
        flags = ["--model", options.model, "--mix", options.mix, "--cost-budget", f"{budget:g}"]
        flags += ["--epochs", str(options.search_epochs)]
        timm_model.search(timm_model.configure([*flags, *_flags(options, folder, seed)]))
    return json.loads((folder / "choice.json").read_text())


def _trained(options: Options, kind: str, seed: int, choice: Mapping[str, str]) -> dict[str, Any]:
    """The summary of a training from scratch."""
    folder = options.output / f"train-{re.sub(r'[^a-z0-9]+', '-', kind).strip('-')}-seed{seed}"
    if (folder / "summary.json").exists():
        return json.loads((folder / "summary.json").read_text())
    flags = ["--model", options.model, "--epochs", str(options.train_epochs), "--cutout", "0"]
    flags += ["--test-data", str(options.test_data)] if options.test_data else []
    if choice:
        flags += ["--mix", options.mix, "--choice", json.dumps(choice)]
    return train.train(train.configure([*flags, *_flags(options, folder, seed)]))


def _flags(options: Options, folder: Path, seed: int) -> list[str]:
    """What searches and trainings have in common."""
    words = ["--dataset", options.dataset, "--data", str(options.data), "--image-size", str(options.image_size)]
    words += ["--download"] if options.download else []
    words += ["--limit", str(options.limit)] if options.limit else []
    words += ["--resume"] if (folder / "config.json").exists() else []
    return [*words, "--seed", str(seed), "--output", str(folder)]


if __name__ == "__main__":
    main(tyro.cli(Options))
