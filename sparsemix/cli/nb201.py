"""``sparsemix search nb201``: search the NAS-Bench-201 space."""

from __future__ import annotations

from typing import Any

import timm
from accelerate.utils import set_seed

from .. import models  # noqa: F401  (registers the supernet)
from ..data import open_pairs
from ..runs.config import METHODS, SearchConfig, config_from_flags
from ..runs.epoch_table import Columns
from ..runs.launching import make_accelerator
from ..runs.search import Search
from ..spaces import nb201
from ..spaces.genotypes import NB201Genotype
from ..spaces.nb201_table import NB201Table
from ..supernet.group import ArchParameterGroup

TRUE: Columns = {"true_accuracy": ("true", "{:.1f}%".format), "true_rank": ("rank", str)}


def search(config: SearchConfig) -> dict[str, Any]:
    """Search, and return the summary."""
    accelerator = make_accelerator(config.device)
    judged: dict[str, Any] = {}
    if config.table is not None:
        judged = {"judge": true_accuracy(NB201Table(config.table), config), "columns": TRUE}
    set_seed(config.seed)
    pairs = open_pairs(**config.data_options(), device=accelerator.device)
    supernet = timm.create_model(
        "sparsemix_nb201_supernet",
        num_classes=len(pairs.classes),
        in_chans=pairs.in_chans,
        channels=config.channels,
        cells=config.cells,
    )
    arch = ArchParameterGroup(supernet, METHODS[config.method](config), threshold=config.threshold)
    return Search(config, arch, pairs, accelerator, "nb201", nb201.genotype, **judged).run()


def true_accuracy(table: NB201Table, config: SearchConfig) -> Any:
    """A judge of cells: test accuracy and rank in the table and the distance to its best, for the data set searched on,
    and the accuracies on every data set of the table.
    """
    dataset = config.table_dataset or config.dataset
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


def main(args: list[str]) -> None:
    """The command with these flags."""
    search(config_from_flags(nb201.PRESETS, args, prog="sparsemix search nb201"))
