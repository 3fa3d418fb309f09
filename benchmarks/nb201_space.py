"""Search the NAS-Bench-201 space.

    accelerate launch benchmarks/nb201_space.py --preset proxy                                 # embedded digits
    accelerate launch benchmarks/nb201_space.py --preset fast --dataset cifar10 --download     # what we recommend
    accelerate launch benchmarks/nb201_space.py --preset paper --dataset cifar10 --download    # to the letter
    accelerate launch benchmarks/nb201_space.py --dataset cifar10 --method darts --order second
    accelerate launch benchmarks/nb201_space.py --preset proxy --dataset folder --data DIR \
        --table nb201.csv --table-dataset cifar10                                     # images from a folder, judged

Every flag: --help. An interrupted run goes on with --resume.
"""

from __future__ import annotations

from typing import Any

import timm
from accelerate.utils import set_seed

import sparsemix.models  # noqa: F401  (registers the supernet)
from sparsemix import ArchParameterGroup
from sparsemix.config import METHODS, SearchConfig, config_from_flags
from sparsemix.data import open_pairs
from sparsemix.genotype import NB201Genotype
from sparsemix.running import make_accelerator, run_script
from sparsemix.search import Search
from sparsemix.spaces import nb201
from sparsemix.tables import NB201Table


def main(config: SearchConfig) -> dict[str, Any]:
    accelerator = make_accelerator(config.device)
    judge = {} if config.table is None else {"judge": true_accuracy(NB201Table(config.table), config)}
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
    return Search(config, arch, pairs, accelerator, "nb201", nb201.genotype, **judge).run()


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


if __name__ == "__main__":
    run_script(lambda: main(config_from_flags(nb201.PRESETS)))
