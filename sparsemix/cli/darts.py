"""``sparsemix search darts``: search the DARTS space."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
from accelerate.utils import set_seed

from .. import models  # noqa: F401  (registers the supernet)
from ..data import open_pairs
from ..runs.config import SearchConfig
from ..runs.launching import make_accelerator
from ..runs.search import Search
from ..runs.training_config import TrainingConfig
from ..spaces import darts
from ..spaces.darts import DartsGenotype
from ..supernet.group import ArchParameterGroup
from .flags import search_config


@dataclass(frozen=True)
class DartsConfig(SearchConfig):
    space: Literal["darts", "darts-none", "s1", "s2", "s3", "s4"] = "darts"
    """Search space, which defines the candidate operations of each edge."""
    read_out: Literal["exact", "authors", "authors-robust"] = "exact"
    """How to rank edges and operations. exact compares exact weights; authors and authors-robust round weights and
    break ties as the published code does for the DARTS space and for S1 to S4."""


def search(config: DartsConfig) -> dict[str, Any]:
    """Search, and return the summary."""
    return make_search(config).run()


def make_search(config: DartsConfig) -> Search:
    """The search of this configuration, ready to run; its run folder has been made.

    Raises:
        ValueError: a table is named, which these spaces do not have.
    """
    if config.measurement.table is not None:
        raise ValueError(
            f"there is no table of the space {config.space!r}: leave --table out, got {config.measurement.table}"
        )
    accelerator = make_accelerator(config.run.device)
    set_seed(config.run.seed)
    pairs = open_pairs(**config.data_options(), device=accelerator.device)
    supernet = timm.create_model(
        "sparsemix_darts_supernet",
        space=config.space,
        num_classes=len(pairs.classes),
        in_chans=pairs.in_chans,
        channels=config.size.channels,
        cells=config.size.cells,
        **config.method.supernet(),
    )
    arch = ArchParameterGroup(supernet, threshold=config.execution.threshold)

    def read_out(arch: ArchParameterGroup, temperature: float) -> DartsGenotype:
        return darts.genotype(arch, temperature, darts.READ_OUTS[config.read_out])

    retrain = partial(retrain_command, config)
    return Search(config, arch, pairs, accelerator, config.space, read_out, retrain=retrain)


def retrain_command(config: DartsConfig, folder: Path) -> str:
    """The command that trains the result of the search in this folder from scratch, by the protocol of its space."""
    preset = "robust" if config.space in darts.robust.SPACES else "cifar"
    preset, data = preset if config.scale == "published" else config.scale, config.data
    flags = ["--genotype", str(folder / "genotype.json"), "--dataset", data.dataset, "--data", str(data.data)]
    flags += ["--preset", preset]
    if data.image_size is not None:
        cutout = TrainingConfig.fitting_cutout(preset, data.dataset, data.image_size)
        flags += ["--image-size", str(data.image_size), "--cutout", str(cutout)]
    if data.dataset == "folder":
        flags += ["--holdout", "0.2"]
    return shlex.join(["sparsemix", "train", *flags])


def configure(args: list[str] | None = None) -> DartsConfig:
    """The configuration of these flags."""
    return search_config(DartsConfig, darts.SETTINGS, args, "sparsemix search darts")


def main(args: list[str]) -> None:
    """The command with these flags."""
    search(configure(args))
