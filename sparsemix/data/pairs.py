"""Loaders of (train, val) pairs of batches: of images that stay on the device, or that are streamed from disk.

Order and augmentation of resident images are pure functions of (seed, epoch, step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..schedule import seeded_generator
from .datasets import DATASETS, Folder, read_rgb
from .images import Images, check_alike, halves, stratified_subset
from .resident import Batch, Normalization, ResidentImages

__all__ = ["Pairs", "ResidentPairs", "StreamedPairs", "open_pairs"]

RESIDENT_SIZE = 64  # images up to this size are kept in memory
LARGE_SIZE = 224  # of images on disk that have no size in common


class Pairs(Protocol):
    """What a search needs of its data: pairs of batches for the two updates, and the alpha half for validation."""

    classes: tuple[str, ...]
    in_chans: int
    image_size: int

    def __len__(self) -> int:
        """Pairs an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, Batch]]:
        """The pairs ((x, y), (x_val, y_val)) of an epoch, from the ``start``-th on; x is ``(B, C, H, W)``."""

    def validation(self) -> Iterator[Batch]:
        """The alpha half in order, without augmentation."""


class ResidentPairs:
    """Pairs of batches cut from images that stay on the device, shifted and mirrored there.

    Args:
        weights, alphas: the two halves.
        batch_size: images a batch; an incomplete last batch is kept.
        seed: of order and augmentation.
        device: where the images stay.
        replacement: draw the alpha batches with replacement, as published NAS-Bench-201 code does.

    Raises:
        ValueError: the batch size is not positive, the images are not square, or the halves disagree in their size or
            classes.
    """

    def __init__(
        self,
        weights: Images,
        alphas: Images,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        replacement: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, got {batch_size}")
        check_alike(weights, alphas, "the halves")
        normalization = Normalization(weights, device)
        self.weights = ResidentImages(weights, normalization, device)
        self.alphas = ResidentImages(alphas, normalization, device)
        self.classes = weights.classes
        self.image_size = self.weights.size
        self.in_chans = self.weights.channels
        self.batch_size = batch_size
        self.seed = seed
        self.replacement = replacement

    def __len__(self) -> int:
        return -(-min(len(self.weights), len(self.alphas)) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, Batch]]:
        generator = seeded_generator("order", self.seed, epoch)
        size = min(len(self.weights), len(self.alphas))
        train = torch.randperm(len(self.weights), generator=generator)[:size]
        if self.replacement:
            val = torch.randint(len(self.alphas), (size,), generator=generator)
        else:
            val = torch.randperm(len(self.alphas), generator=generator)[:size]
        for step in range(start, len(self)):
            rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
            generator = seeded_generator("augment", self.seed, epoch, step)
            yield (
                self.weights.augmented(train[rows], generator),
                self.alphas.augmented(val[rows], generator),
            )

    def validation(self) -> Iterator[Batch]:
        return self.alphas.plain(4 * self.batch_size)


class StreamedPairs:
    """Pairs of batches of larger images, read from disk and augmented by timm's loader.

    The order is a function of (seed, epoch); the augmentation is drawn by that loader's workers.

    Args:
        folder: files and labels.
        weights, alphas: indices of the two halves.
        image_size: height and width after cropping.
        batch_size: images a batch; an incomplete last batch is dropped.
        seed: of the order.
        device: where the batches go.
        workers: processes that decode, for each half.

    Raises:
        ValueError: a half is smaller than a batch.
    """

    in_chans = 3

    def __init__(
        self,
        folder: Folder,
        weights: Tensor,
        alphas: Tensor,
        image_size: int,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        workers: int = 2,
    ) -> None:
        if min(len(weights), len(alphas)) < batch_size:
            raise ValueError(
                f"batches of {batch_size} cannot be cut from halves of {len(weights)} and {len(alphas)} images"
            )
        self.classes = folder.classes
        self.image_size = image_size
        self.seed = seed
        self.device = torch.device(device)
        options = {"input_size": (3, image_size, image_size), "use_prefetcher": False, "num_workers": workers}
        training = options | {"batch_size": batch_size, "is_training": True, "persistent_workers": workers > 0}
        self._train = self._loader(folder, weights, **training)
        self._val = self._loader(folder, alphas, **training)
        self._validation = self._loader(folder, alphas, **options, batch_size=4 * batch_size, persistent_workers=False)

    @staticmethod
    def _loader(folder: Folder, indices: Tensor, **options: Any) -> Any:
        from timm.data import create_loader

        dataset: Any = FolderSubset(folder, indices)
        return create_loader(dataset, **options)

    def __len__(self) -> int:
        return min(len(self._train), len(self._val))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, Batch]]:
        for name, loader in (("weights", self._train), ("alphas", self._val)):
            loader.sampler.generator = seeded_generator("order", self.seed, epoch, name)
        pairs = islice(zip(self._train, self._val, strict=False), start, len(self))
        return ((self._moved(train), self._moved(val)) for train, val in pairs)

    def validation(self) -> Iterator[Batch]:
        return map(self._moved, self._validation)

    def _moved(self, batch: Batch) -> Batch:
        x, y = batch
        return x.to(self.device, memory_format=torch.channels_last), y.to(self.device)


class FolderSubset(torch.utils.data.Dataset):
    """Files of an image folder with the transform that timm's loader installs."""

    transform: Callable[[Any], Tensor]

    def __init__(self, folder: Folder, indices: Tensor) -> None:
        self.files = [folder.files[i] for i in indices.tolist()]
        self.labels = folder.labels[indices].tolist()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(read_rgb(self.files[index])), self.labels[index]


def check_image_size(image_size: int | None) -> None:
    """Insist on a size that can be worked with.

    Raises:
        ValueError: it is below 4.
    """
    if image_size is not None and image_size < 4:
        raise ValueError(f"the image size must be at least 4, got {image_size}")


def open_pairs(
    dataset: str,
    *,
    root: str | Path = "data",
    batch_size: int = 64,
    image_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    download: bool = False,
    replacement: bool = False,
    workers: int = 2,
) -> Pairs:
    """The training images of a data set, split into halves and loaded as pairs.

    Args:
        dataset: a name of :data:`DATASETS`, or ``"folder"`` for a folder of images with one folder a class.
        root: where the data is, or goes when downloaded; for ``"folder"`` the folder itself.
        batch_size: images a batch, of each half.
        image_size: resize to this height and width; None: as the images are, and 224 for a folder whose images differ
            in size.
        limit: use this many images in all, every class keeping its share; None: all.
        seed: of the subset, the split, the order and the augmentation.
        device: where batches are wanted.
        download: fetch the data if it is not there (torchvision's data sets).
        replacement: see :class:`ResidentPairs`.
        workers: see :class:`StreamedPairs`.

    Raises:
        ValueError: an unknown data set, a folder without images, a class without images, a limit or size too small.
        FileNotFoundError: the data is not there.

    Example:
        >>> pairs = open_pairs("digits", batch_size=32, limit=640)
        >>> len(pairs), pairs.in_chans, pairs.image_size
        (10, 1, 8)
        >>> (x, y), (x_val, y_val) = next(pairs.epoch(0))
        >>> x.shape, y_val.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """
    if dataset not in DATASETS and dataset != "folder":
        raise ValueError(f"unknown data set {dataset!r}; known are {', '.join(DATASETS)} and folder")
    check_image_size(image_size)
    root = Path(root)
    if dataset != "folder":
        images = DATASETS[dataset](root, True, download)
        images = images[stratified_subset(images.labels, limit, seed)]
        images = images.resized(image_size or images.pixels.shape[1])
    else:
        folder = Folder.find(root)
        subset = stratified_subset(folder.labels, limit, seed)
        size = image_size or folder.common_size(subset) or LARGE_SIZE
        if size > RESIDENT_SIZE:
            if replacement:
                raise ValueError(f"images of {size}x{size} are streamed, which draws without replacement")
            weights, alphas = (subset[half] for half in halves(folder.labels[subset], seed))
            return StreamedPairs(folder, weights, alphas, size, batch_size, seed, device, workers)
        images = folder.decode(subset, size)
    weights, alphas = halves(images.labels, seed)
    return ResidentPairs(images[weights], images[alphas], batch_size, seed, device, replacement)
