"""Loaders of (train, val) pairs of batches: of images that stay on the device, or that are streamed from disk.

Order and augmentation of resident images are pure functions of (seed, epoch, step).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from .._utils.streams import seeded_generator
from .benchmark import benchmark_split
from .datasets import DATASETS, Folder
from .images import Images, check_alike, halves, stratified_subset
from .resident import Batch, Normalization, ResidentImages
from .streamed import FolderSubset, image_loader, moved

__all__ = ["Pairs", "ResidentPairs", "Sampling", "Split", "StreamedPairs", "open_pairs"]

RESIDENT_SIZE = 64  # images up to this size are kept in memory
LARGE_SIZE = 224  # of images on disk that have no size in common

Sampling = Literal["shuffled", "replacement", "anew"]
Split = Literal["halves", "benchmark", "whole"]


class Pairs(Protocol):
    """What a search needs of its data: pairs of batches for the two updates, and images to evaluate on."""

    classes: tuple[str, ...]
    in_chans: int
    image_size: int

    def __len__(self) -> int:
        """Number of pairs per epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, Batch]]:
        """The pairs ((x, y), (x_val, y_val)) of an epoch, from the ``start``-th on; x is ``(B, C, H, W)``."""

    def validation(self) -> Iterator[Batch]:
        """Images of the alphas in order, without augmentation."""

    def cut_out(self, side: int, probability: float) -> None:
        """From now on, blank a square of ``side`` pixels in each of the weights' images with this probability."""

    def statistics(self, images: int) -> Iterator[Batch]:
        """Batches with about ``images`` of the weights' images, always the same, for renewing batch-norm statistics."""


class ResidentPairs:
    """Pairs of batches cut from images that stay on the device, shifted and mirrored there.

    An epoch goes once through the images of the weights.

    Args:
        weights, alphas: images for the two updates.
        batch_size: images a batch; an incomplete last batch is kept, unless it is a single image, for which a batch
            norm may have no statistics.
        seed: of order and augmentation.
        device: where the images stay.
        sampling: how alpha batches are drawn. ``"shuffled"``: every image once before any image repeats;
            ``"replacement"``: with replacement, as in published NAS-Bench-201 code; ``"anew"``: from a new shuffle for
            every batch, as in published DARTS code.
        validation_limit: evaluate on this many alpha images, every class keeping its share; None: on all.

    Raises:
        ValueError: the batch size is not positive or exceeds the number of images, the sampling is unknown, the images
            are not square, or the images for the two updates differ in size or classes.
    """

    def __init__(
        self,
        weights: Images,
        alphas: Images,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        sampling: Sampling = "shuffled",
        validation_limit: int | None = None,
    ) -> None:
        _check_batch_size(batch_size, len(weights), len(alphas))
        if sampling not in get_args(Sampling):
            raise ValueError(f"alpha batches are sampled {', '.join(get_args(Sampling))}; got {sampling!r}")
        check_alike(weights, alphas, "the images for weights and alphas")
        normalization = Normalization(weights, device)
        self.weights = ResidentImages(weights, normalization, device)
        self.alphas = ResidentImages(alphas, normalization, device)
        self.classes = weights.classes
        self.image_size = self.weights.size
        self.in_chans = self.weights.channels
        self.batch_size = batch_size
        self.seed = seed
        self.sampling = sampling
        self._validation = stratified_subset(alphas.labels, validation_limit, seed)
        self._cutout, self._cutout_probability = 0, 1.0

    def __len__(self) -> int:
        full, left = divmod(len(self.weights), self.batch_size)
        return full + (left > 1)

    def __repr__(self) -> str:
        size = f"{self.image_size}x{self.image_size}"
        return (
            f"ResidentPairs({len(self)} pairs an epoch of {self.batch_size} images {size}, {len(self.classes)} classes)"
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, Batch]]:
        generator = seeded_generator("order", self.seed, epoch)
        train = torch.randperm(len(self.weights), generator=generator)
        size, count = len(self.weights), len(self.alphas)
        if self.sampling == "replacement":
            val = torch.randint(count, (size,), generator=generator)
        else:
            val = torch.cat([torch.randperm(count, generator=generator) for _ in range(-(-size // count))])[:size]
        for step in range(start, len(self)):
            rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
            generator = seeded_generator("augment", self.seed, epoch, step)
            chosen = val[rows]
            if self.sampling == "anew":
                chosen = torch.randperm(count, generator=generator)[: self.batch_size]
            cutout = (self._cutout, self._cutout_probability)
            yield self.weights.augmented(train[rows], generator, *cutout), self.alphas.augmented(chosen, generator)

    def cut_out(self, side: int, probability: float) -> None:
        if probability and side >= self.image_size:
            raise ValueError(
                f"a cutout of {side} leaves nothing of images of size {self.image_size}; choose a smaller one"
            )
        self._cutout, self._cutout_probability = (side, probability) if probability else (0, 1.0)

    def validation(self) -> Iterator[Batch]:
        return self.alphas.plain(4 * self.batch_size, self._validation)

    def statistics(self, images: int) -> Iterator[Batch]:
        generator = seeded_generator("statistics", self.seed)
        for rows in torch.randperm(len(self.weights), generator=generator)[:images].split(self.batch_size):
            if len(rows) > 1 or self.batch_size == 1:
                yield self.weights.augmented(rows, generator)


class StreamedPairs:
    """Pairs of batches of larger images, read from disk and augmented by timm's transforms.

    The order is a function of (seed, epoch); the augmentation is drawn by the loader's workers.

    Args:
        folder: files and labels.
        weights, alphas: indices of the images for the two updates.
        image_size: height and width after cropping.
        batch_size: images a batch.
        seed: of the order.
        device: where the batches go.
        workers: decoding processes for each of the two loaders.
        validation_limit: as for :class:`ResidentPairs`.

    Raises:
        ValueError: one of the two has fewer images than a batch.
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
        validation_limit: int | None = None,
    ) -> None:
        _check_batch_size(batch_size, len(weights), len(alphas))
        self.classes = folder.classes
        self.image_size = image_size
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.workers = workers
        self._folder, self._weights = folder, weights
        self._train, self._val = (
            image_loader(FolderSubset(folder, i), image_size, batch_size, workers, training=True, persistent=True)
            for i in (weights, alphas)
        )
        judged = alphas[stratified_subset(folder.labels[alphas], validation_limit, seed)]
        self._validation = image_loader(FolderSubset(folder, judged), image_size, 4 * batch_size, workers)

    def __len__(self) -> int:
        return min(len(self._train), len(self._val))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, Batch]]:
        for name, loader in (("weights", self._train), ("alphas", self._val)):
            loader.sampler.generator = seeded_generator("order", self.seed, epoch, name)
        pairs = islice(zip(self._train, self._val, strict=False), start, len(self))
        return ((moved(train, self.device), moved(val, self.device)) for train, val in pairs)

    def validation(self) -> Iterator[Batch]:
        return (moved(batch, self.device) for batch in self._validation)

    def cut_out(self, side: int, probability: float) -> None:
        if side and probability:
            raise ValueError(f"images of {self.image_size}x{self.image_size} are streamed and not cut out, got {side}")

    def statistics(self, images: int) -> Iterator[Batch]:
        generator = seeded_generator("statistics", self.seed)
        chosen = self._weights[torch.randperm(len(self._weights), generator=generator)[:images]]
        subset = FolderSubset(self._folder, chosen)
        return (moved(b, self.device) for b in image_loader(subset, self.image_size, self.batch_size, self.workers))


def _check_batch_size(size: int, weights: int, alphas: int) -> None:
    """Check that each update has a full batch; a single smaller step per epoch is hardly intended."""
    if size < 1:
        raise ValueError(f"the batch size must be at least 1, got {size}")
    if min(weights, alphas) < size:
        raise ValueError(
            f"batches of {size} cannot be cut from {weights} images for the weights and {alphas} for the alphas; the "
            f"batch size can be {min(weights, alphas)} at most"
        )


def check_image_size(image_size: int | None) -> None:
    """Check that the image size is usable.

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
    split: Split = "halves",
    sampling: Sampling = "shuffled",
    validation_limit: int | None = None,
    workers: int = 2,
) -> Pairs:
    """The images of a data set, split for weights and alphas and loaded as pairs.

    Args:
        dataset: a name of :data:`DATASETS`, or ``"folder"`` for a folder of images with one subfolder per class.
        root: where the data is, or where to download it; for ``"folder"`` the folder itself.
        batch_size: images per batch, for each of the two updates.
        image_size: resize to this height and width; None: keep the images' size, or use 224 for a folder whose images
            differ in size.
        limit: use this many images in all, every class keeping its share (for the split ``"benchmark"``: this many for
            the weights); None: all.
        seed: of the subset, the split, the order and the augmentation.
        device: device of the batches.
        download: fetch the data if it is missing (torchvision's data sets).
        split: ``"halves"``: two halves of the training images, drawn with the seed; ``"benchmark"``: the split of
            NAS-Bench-201, see :func:`~sparsemix.data.benchmark_split`; ``"whole"``: all training images for both
            updates, so that accuracies on the alpha images are training accuracies.
        sampling, validation_limit: see :class:`ResidentPairs`; streamed images are always shuffled.
        workers: see :class:`StreamedPairs`.

    Raises:
        ValueError: an unknown data set, a folder without images, a class without images, a limit or size too small; a
            split or sampling that these images do not support.
        FileNotFoundError: the data is missing.

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
    if split == "benchmark":
        weights, alphas = benchmark_split(dataset, Path(root), download)
        weights = weights[stratified_subset(weights.labels, limit, seed)]
    elif dataset != "folder":
        images = DATASETS[dataset](Path(root), True, download)
        weights, alphas = _parts(images[stratified_subset(images.labels, limit, seed)], split, seed)
    else:
        folder = Folder.find(Path(root))
        subset = stratified_subset(folder.labels, limit, seed)
        size = image_size or folder.common_size(subset) or LARGE_SIZE
        if size > RESIDENT_SIZE:
            if sampling != "shuffled":
                raise ValueError(f"images of {size}x{size} are streamed, which knows no sampling {sampling!r}")
            parts = [slice(None)] * 2 if split == "whole" else halves(folder.labels[subset], seed)
            first, second = (subset[part] for part in parts)
            return StreamedPairs(folder, first, second, size, batch_size, seed, device, workers, validation_limit)
        weights, alphas = _parts(folder.decode(subset, size), split, seed)
    size = image_size or weights.pixels.shape[1]
    return ResidentPairs(
        weights.resized(size), alphas.resized(size), batch_size, seed, device, sampling, validation_limit
    )


def _parts(images: Images, split: Split, seed: int) -> tuple[Images, Images]:
    """The images of the weights and those of the alphas."""
    if split == "whole":
        return images, images
    weights, alphas = halves(images.labels, seed)
    return images[weights], images[alphas]
