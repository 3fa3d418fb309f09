"""Search the DARTS space.

    accelerate launch benchmarks/darts_space.py --preset proxy                                 # embedded digits
    accelerate launch benchmarks/darts_space.py --preset fast --dataset cifar10 --download     # what we recommend
    accelerate launch benchmarks/darts_space.py --preset paper --dataset cifar10 --download    # to the letter
    accelerate launch benchmarks/darts_space.py --dataset cifar10 --method darts --space darts-none

Every flag: --help. An interrupted run goes on with --resume. At the end the search prints the command that trains what
it found from scratch (benchmarks/evaluate.py). The spaces S1 to S4 have a script of their own, robust_spaces.py.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
from accelerate.utils import set_seed

import sparsemix.models  # noqa: F401  (registers the supernet)
from sparsemix import ArchParameterGroup
from sparsemix.config import METHODS, SearchConfig, config_from_flags
from sparsemix.data import open_pairs
from sparsemix.genotype import DartsGenotype
from sparsemix.running import make_accelerator, run_script
from sparsemix.search import Search
from sparsemix.spaces import darts, robust


@dataclass(frozen=True)
class DartsConfig(SearchConfig):
    space: Literal["darts", "darts-none", "s1", "s2", "s3", "s4"] = "darts"
    """The operations of each edge."""
    read_out: Literal["exact", "authors", "authors-robust"] = "exact"
    """How edges and operations that tie are ranked: by exact weights, or as published code does it."""


def main(config: DartsConfig) -> dict[str, Any]:
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
    return shlex.join(["accelerate", "launch", "benchmarks/evaluate.py", *flags])


if __name__ == "__main__":
    run_script(lambda: main(config_from_flags(darts.PRESETS, kind=DartsConfig)))
