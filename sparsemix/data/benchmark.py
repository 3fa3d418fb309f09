"""The split of NAS-Bench-201's own searches: which images train the weights, and which the alphas.

The benchmark's test accuracies are measured on images that no search with this split has seen.
"""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from .datasets import DATASETS
from .images import Images

__all__ = ["BENCHMARK_SPLITS", "benchmark_split"]

BENCHMARK_SPLITS: tuple[str, ...] = ("cifar10", "cifar100", "imagenet16-120")


def benchmark_split(dataset: str, root: Path, download: bool = False) -> tuple[Images, Images]:
    """The images for the weights and those for the alphas, as NAS-Bench-201 searches.

    CIFAR-10: the two halves of the training images by the benchmark's list, its ``train`` and ``valid``. CIFAR-100 and
    ImageNet16-120: all training images, and the half of the test images that the benchmark calls ``x-valid``. Its test
    accuracies are measured on the other half, ``x-test``.

    Args:
        dataset: one of :data:`BENCHMARK_SPLITS`.
        root: where the data set is.
        download: fetch the data set if it is missing.

    Raises:
        ValueError: the benchmark has no split of the data set, or the number of images differs from that of its list.
        FileNotFoundError: the data set is missing.

    Source: Dong and Yang, "NAS-Bench-201", section 2.2; the lists are those of the authors' AutoDL-Projects.
    """
    if dataset not in BENCHMARK_SPLITS:
        raise ValueError(
            f"NAS-Bench-201 splits {', '.join(BENCHMARK_SPLITS)}, not {dataset!r}: use halves of the training images"
        )
    split = json.loads((files(__package__) / "nb201_splits.json").read_text())[dataset]
    is_alpha, load = _unpacked(split["alphas"]), DATASETS[dataset]
    train, from_train = load(root, True, download), split["alphas_from"] == "train"
    divided = train if from_train else load(root, False, download)
    if len(divided) != len(is_alpha):
        raise ValueError(
            f"NAS-Bench-201 splits the {len(is_alpha)} {split['alphas_from']} images of {dataset}; "
            f"{root.resolve()} has {len(divided)}"
        )
    weights = train[(~is_alpha).nonzero().squeeze(1)] if from_train else train
    return weights, divided[is_alpha.nonzero().squeeze(1)]


def _unpacked(bits: str) -> Tensor:
    """A mask of images unpacked from bits, eight per byte, the first image in the highest bit."""
    packed = torch.frombuffer(bytearray(base64.b64decode(bits)), dtype=torch.uint8)
    return (packed[:, None] >> torch.arange(7, -1, -1) & 1).flatten().bool()
