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
from ..runs.config import METHODS, SearchConfig, config_from_flags
from ..runs.launching import make_accelerator
from ..runs.search import Search
from ..spaces import darts, robust
from ..spaces.genotypes import DartsGenotype
from ..supernet.group import ArchParameterGroup


@dataclass(frozen=True)
class DartsConfig(SearchConfig):
    space: Literal["darts", "darts-none", "s1", "s2", "s3", "s4"] = "darts"
    """Search space: the operations of each edge."""
    read_out: Literal["exact", "authors", "authors-robust"] = "exact"
    """Ranking of edges and operations that tie: by exact weights, or as the published code does it."""


def search(config: DartsConfig) -> dict[str, Any]:
    """Search, and return the summary."""
    if config.table is not None:
        raise ValueError(f"there is no table of the space {config.space!r}: leave --table out, got {config.table}")
    accelerator = make_accelerator(config.device)
    set_seed(config.seed)
    pairs = open_pairs(**config.data_options(), device=accelerator.device)
    supernet = timm.create_model(
        "sparsemix_darts_supernet",
        space=config.space,
        num_classes=len(pairs.classes),
        in_chans=pairs.in_chans,
        channels=config.channels,
        cells=config.cells,
    )
    arch = ArchParameterGroup(supernet, METHODS[config.method](config), threshold=config.threshold)

    def read_out(arch: ArchParameterGroup) -> DartsGenotype:
        relaxation: Any = arch.relaxation  # of the epoch
        return darts.genotype(arch, relaxation.temperature, darts.READ_OUTS[config.read_out])

    retrain = partial(retrain_command, config)
    return Search(config, arch, pairs, accelerator, config.space, read_out, retrain=retrain).run()


def retrain_command(config: DartsConfig, folder: Path) -> str:
    """The command that trains what a search in this folder found from scratch, by the protocol of its space."""
    preset = "robust" if config.space in robust.SPACES else "cifar"
    flags = ["--genotype", str(folder / "genotype.json"), "--dataset", config.dataset, "--data", str(config.data)]
    flags += ["--preset", "proxy" if config.preset == "proxy" else preset]
    if config.image_size is not None:
        flags += ["--image-size", str(config.image_size)]
    if config.dataset == "folder":
        flags += ["--holdout", "0.2"]
    return shlex.join(["sparsemix", "train", *flags])


def main(args: list[str]) -> None:
    """The command with these flags."""
    search(config_from_flags(darts.PRESETS, args, DartsConfig, prog="sparsemix search darts"))
