"""``sparsemix search nb201``: search the NAS-Bench-201 space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import timm
from accelerate.utils import set_seed

from .. import models  # noqa: F401  (registers the supernet)
from ..data import open_pairs
from ..runs.config import SearchConfig
from ..runs.epoch_table import Columns
from ..runs.launching import make_accelerator
from ..runs.search import Search
from ..spaces import nb201
from ..spaces.nb201 import NB201Genotype, NB201Table
from ..supernet.group import ArchParameterGroup
from .flags import search_config

TRUE: Columns = {"true_accuracy": ("true", "{:.1f}%".format)}


@dataclass(frozen=True)
class NB201Config(SearchConfig):
    without: tuple[Literal["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"], ...] = ()
    """Operations to leave out of the space, such as none."""


def search(config: NB201Config) -> dict[str, Any]:
    """Search, and return the summary."""
    return make_search(config).run()


def make_search(config: NB201Config) -> Search:
    """The search of this configuration, ready to run; its run folder has been made."""
    accelerator = make_accelerator(config.run.device)
    judged: dict[str, Any] = {}
    if (table := config.measurement.table) is not None:
        judged = {"judge": true_accuracy(NB201Table(table), config), "columns": TRUE}
    set_seed(config.run.seed)
    pairs = open_pairs(**config.data_options(), device=accelerator.device)
    supernet = timm.create_model(
        "sparsemix_nb201_supernet",
        num_classes=len(pairs.classes),
        in_chans=pairs.in_chans,
        channels=config.size.channels,
        cells=config.size.cells,
        **config.method.supernet(),
        without=config.without,
    )
    arch = ArchParameterGroup(supernet, threshold=config.execution.threshold)

    def read_out(arch: ArchParameterGroup, temperature: float) -> NB201Genotype:
        return nb201.genotype(arch)  # the same at all temperatures

    return Search(config, arch, pairs, accelerator, "nb201", read_out, **judged)


def true_accuracy(table: NB201Table, config: SearchConfig) -> Any:
    """A function that looks a cell up in the table.

    It returns the test accuracy, its rank and its distance to the best one, all on one data set, by default the data
    set searched on; and the accuracies on every data set of the table.
    """
    dataset = config.measurement.table_dataset or config.data.dataset
    if dataset not in table.DATASETS:
        raise ValueError(
            f"--table has no column for {dataset!r}: name one of {', '.join(table.DATASETS)} by --table-dataset"
        )
    best = table.best(dataset)

    def judge(cell: NB201Genotype) -> dict[str, Any]:
        accuracy = table.accuracy(cell, dataset)
        return {
            "true_accuracy": accuracy,
            "true_accuracies": table.accuracies(cell),
            "true_rank": table.rank(cell, dataset),
            "true_gap": best - accuracy,
            "table_size": len(table),
        }

    return judge


def configure(args: list[str] | None = None) -> NB201Config:
    """The configuration of these flags."""
    return search_config(NB201Config, nb201.SETTINGS, args, "sparsemix search nb201")


def main(args: list[str]) -> None:
    """The command with these flags."""
    search(configure(args))
