"""The table of NAS-Bench-201: the accuracy that a cell reached when trained, looked up instead of trained again."""

from __future__ import annotations

import bz2
import csv
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ..._utils.unpickle import load_plain_pickle
from .genotypes import NB201Genotype

__all__ = ["NB201Table", "convert_nats_bench"]


CELLS = 5**6
"""Number of cells of NAS-Bench-201, which have one of five operations on each of six edges."""


class NB201Table:
    """Validation and test accuracies, in percent, of the 15,625 cells of NAS-Bench-201 after 200 epochs.

    Args:
        path: a CSV file with a column ``architecture``, one of test accuracies for each data set (``cifar10_test``,
            ``cifar100_test``, ``imagenet16_120_test``) and, if it has them, as many of validation accuracies
            (``cifar10_valid``, ...). It is read at the first look-up.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file lacks a column or a value, or (at a look-up) a malformed architecture, one that the table
            lacks, an unknown data set, or validation accuracies that the file does not have.

    Source: Dong and Yang, "NAS-Bench-201"; Dong et al., "NATS-Bench".
    """

    DATASETS: ClassVar[Mapping[str, str]] = {
        "cifar10": "cifar10",
        "cifar100": "cifar100",
        "imagenet16-120": "imagenet16_120",
    }
    """Data set -> how its columns begin."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"NB201Table: no file {self.path}; make one with sparsemix table convert")

    @cached_property
    def _rows(self) -> dict[str, dict[tuple[str, str], float]]:
        """Architecture -> (data set, images) -> accuracy."""
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            given = set(reader.fieldnames or ())
            columns = {(name, of): f"{start}_{of}" for of in ("valid", "test") for name, start in self.DATASETS.items()}
            missing = {"architecture", *(column for (_, of), column in columns.items() if of == "test")} - given
            if missing:
                raise ValueError(f"NB201Table: {self.path} lacks the columns {', '.join(sorted(missing))}")
            present = {key: column for key, column in columns.items() if column in given}
            try:
                rows = {row["architecture"]: {key: float(row[c]) for key, c in present.items()} for row in reader}
            except (TypeError, ValueError) as error:
                raise ValueError(f"NB201Table: {self.path}, line {reader.line_num}: {error}") from error
        if not rows:
            raise ValueError(f"NB201Table: {self.path} has no rows")
        return rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def _row(self, architecture: NB201Genotype | str) -> dict[tuple[str, str], float]:
        genotype = NB201Genotype.parse(architecture) if isinstance(architecture, str) else architecture
        try:
            return self._rows[str(genotype)]
        except KeyError:
            raise ValueError(
                f"NB201Table: {self.path} has {len(self)} of {CELLS:,} architectures, but not {genotype}"
            ) from None

    def _check(self, dataset: str, of: str) -> None:
        if dataset not in self.DATASETS:
            raise ValueError(f"NB201Table: unknown data set {dataset!r}, known are {', '.join(self.DATASETS)}")
        if (dataset, of) not in next(iter(self._rows.values())):
            raise ValueError(f"NB201Table: {self.path} has no column {self.DATASETS[dataset]}_{of}")

    def _column(self, dataset: str, of: str) -> list[float]:
        self._check(dataset, of)
        return [row[dataset, of] for row in self._rows.values()]

    def accuracy(self, architecture: NB201Genotype | str, dataset: str, of: str = "test") -> float:
        """Accuracy of an architecture, in percent, on the images for ``"test"`` or for validation, ``"valid"``."""
        row = self._row(architecture)
        self._check(dataset, of)
        return row[dataset, of]

    def accuracies(self, architecture: NB201Genotype | str) -> dict[str, dict[str, float]]:
        """Accuracies of an architecture, in percent: data set -> ``"valid"``, if the table has it, and ``"test"``."""
        row = self._row(architecture)
        return {name: {of: row[name, of] for of in ("valid", "test") if (name, of) in row} for name in self.DATASETS}

    def rank(self, architecture: NB201Genotype | str, dataset: str) -> int:
        """1 for the best test accuracy of the table; equal accuracies share the better rank."""
        own = self.accuracy(architecture, dataset)
        return 1 + sum(other > own for other in self._column(dataset, "test"))

    def best(self, dataset: str) -> float:
        """The highest test accuracy of the table, in percent."""
        return max(self._column(dataset, "test"))


# column -> (name of the trainings in the official file, images on which they are judged). For CIFAR-10 the benchmark
# reports validation accuracies of trainings on half of the training images, judged on the other half.
_OFFICIAL = {
    "cifar10_valid": ("cifar10-valid", "x-valid"),
    "cifar10_test": ("cifar10", "ori-test"),
    "cifar100_valid": ("cifar100", "x-valid"),
    "cifar100_test": ("cifar100", "x-test"),
    "imagenet16_120_valid": ("ImageNet16-120", "x-valid"),
    "imagenet16_120_test": ("ImageNet16-120", "x-test"),
}


def convert_nats_bench(source: str | Path, target: str | Path) -> int:
    """Convert the official topology file of NATS-Bench into the compact CSV; the mean over the trained seeds.

    Args:
        source: the folder ``NATS-tss-v1_0-3ffb9-simple`` (one file an architecture), or the single
            ``NATS-tss-v1_0-3ffb9.pickle.pbz2``.
        target: the CSV to write.

    Returns:
        The number of architectures.

    Raises:
        FileNotFoundError: the source is neither.
        ValueError: a file is damaged or incomplete, or holds more than plain data (nothing in it is executed).
    """
    from tqdm.auto import tqdm

    source = Path(source)
    if source.is_dir():
        architectures = _load(source / "meta.pickle.pbz2")["meta_archs"]
        results: Iterator[Any] = (_load(_architecture_file(source, i)) for i in range(len(architectures)))
    elif source.is_file():
        benchmark = _load(source)
        architectures = benchmark["meta_archs"]
        results = (benchmark["arch2infos"][i] for i in range(len(architectures)))
    else:
        raise FileNotFoundError(f"convert_nats_bench: {source} is neither a folder nor a file")
    partial = Path(f"{target}.partial")
    with partial.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["architecture", *_OFFICIAL])
        for architecture, result in zip(tqdm(architectures, disable=None), results, strict=True):
            try:
                accuracies = [_mean_accuracy(result["200"], *official) for official in _OFFICIAL.values()]
            except KeyError as error:
                raise ValueError(f"{source}: the results of {architecture} lack {error}") from error
            writer.writerow([architecture, *(round(accuracy, 4) for accuracy in accuracies)])
    partial.replace(target)
    return len(architectures)


def _load(path: Path) -> Any:
    with bz2.open(path) as file:
        try:
            return load_plain_pickle(file, path)
        except OSError as error:
            raise ValueError(f"{path}: {error}") from error


def _architecture_file(folder: Path, index: int) -> Path:
    padded = folder / f"{index:06d}.pickle.pbz2"
    return padded if padded.is_file() else folder / f"{index}.pickle.pbz2"


def _mean_accuracy(result: dict[str, Any], dataset: str, images: str) -> float:
    trials = [result["all_results"][dataset, seed] for seed in result["dataset_seed"][dataset]]
    return sum(float(trial["eval_acc1es"][f"{images}@{trial['epochs'] - 1}"]) for trial in trials) / len(trials)
