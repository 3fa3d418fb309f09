"""Data for training a network from scratch: training batches, and the images that it is judged on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .._utils.streams import seeded_generator
from .datasets import DATASETS, Folder
from .images import Images, check_alike, stratified_subset
from .pairs import LARGE_SIZE, RESIDENT_SIZE, check_image_size
from .resident import Batch, Normalization, ResidentImages
from .streamed import FolderSubset, image_loader, moved

__all__ = ["ResidentTraining", "StreamedTraining", "TrainingData", "open_training"]


class TrainingData(Protocol):
    """What training needs of its data."""

    classes: tuple[str, ...]
    in_chans: int
    image_size: int

    def __len__(self) -> int:
        """Number of batches per epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The augmented training batches of an epoch, from the ``start``-th on."""

    def test(self) -> Iterator[Batch]:
        """The images that the network is judged on, in order, without augmentation."""


class ResidentTraining:
    """Images that stay on the device; order and augmentation are pure functions of (seed, epoch, step).

    Args:
        train, test: images to train on and to evaluate on.
        batch_size: images per batch; an incomplete last batch is kept, unless it is a single image, for which a batch
            norm may have no statistics.
        seed: of order and augmentation.
        device: where the images stay.
        cutout: side of the square that is blanked in each training image.

    Raises:
        ValueError: the two disagree in size or classes; fewer training images than a batch; a cutout of the images'
            size or more.
    """

    def __init__(
        self,
        train: Images,
        test: Images,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        cutout: int = 0,
    ) -> None:
        check_alike(train, test, "training and test images")
        if len(train) < batch_size:
            raise ValueError(f"batches of {batch_size} cannot be cut from {len(train)} training images")
        if cutout >= train.pixels.shape[1]:
            raise ValueError(
                f"a cutout of {cutout} leaves nothing of images of size {train.pixels.shape[1]}; choose a smaller one"
            )
        normalization = Normalization(train, device)
        self._train = ResidentImages(train, normalization, device)
        self._test = ResidentImages(test, normalization, device)
        self.classes = train.classes
        self.image_size = self._train.size
        self.in_chans = self._train.channels
        self.batch_size = batch_size
        self.seed = seed
        self.cutout = cutout

    def __len__(self) -> int:
        full, left = divmod(len(self._train), self.batch_size)
        return full + (left > 1)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = torch.randperm(len(self._train), generator=seeded_generator("training order", self.seed, epoch))
        for step in range(start, len(self)):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            generator = seeded_generator("training augment", self.seed, epoch, step)
            yield self._train.augmented(rows, generator, self.cutout)

    def test(self) -> Iterator[Batch]:
        return self._test.plain(4 * self.batch_size)


class StreamedTraining:
    """Larger images, read from disk and augmented by timm's transforms: random crops, flips, colour jitter.

    The order is a function of (seed, epoch); the augmentation is drawn by the loader's workers.
    """

    in_chans = 3

    def __init__(
        self,
        train: FolderSubset,
        test: FolderSubset,
        classes: tuple[str, ...],
        image_size: int,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        workers: int = 2,
    ) -> None:
        if len(train) < batch_size:
            raise ValueError(f"batches of {batch_size} cannot be cut from {len(train)} training images")
        self.classes = classes
        self.image_size = image_size
        self.seed = seed
        self.device = torch.device(device)
        options: dict[str, Any] = {"training": True, "color_jitter": (0.4, 0.4, 0.4, 0.2)}
        self._train = image_loader(train, image_size, batch_size, workers, persistent=True, **options)
        self._test = image_loader(test, image_size, batch_size, workers, persistent=True)

    def __len__(self) -> int:
        return len(self._train)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        self._train.sampler.generator = seeded_generator("training order", self.seed, epoch)
        for step, batch in enumerate(self._train):
            if step >= start:
                yield moved(batch, self.device)

    def test(self) -> Iterator[Batch]:
        return (moved(batch, self.device) for batch in self._test)


def open_training(
    dataset: str,
    *,
    root: str | Path = "data",
    test_root: str | Path | None = None,
    holdout: float = 0.0,
    batch_size: int = 64,
    image_size: int | None = None,
    limit: int | None = None,
    cutout: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    download: bool = False,
    workers: int = 2,
) -> TrainingData:
    """A data set to train on, with images to evaluate on.

    Args:
        dataset: a name of :data:`DATASETS`, or ``"folder"`` for a folder of images with one subfolder per class.
        root: where the data is, or where to download it; for ``"folder"`` the folder of training images.
        test_root: for ``"folder"``, the folder of test images.
        holdout: in [0, 1): evaluate on this share of the training images, which are then not trained on; 0: evaluate on
            the test images.
        batch_size: images per batch.
        image_size: resize to this height and width; None: keep the images' size, or use 224 for a folder whose images
            differ in size.
        limit: use this many training images in all, the held-out ones included; None: all.
        cutout: see :class:`ResidentTraining`; not applied to larger images, which are streamed.
        seed: of the subset, the held-out images, the order and the augmentation.
        device: device of the batches.
        download: fetch the data if it is missing (torchvision's data sets).
        workers: processes that decode larger images.

    Raises:
        ValueError: an unknown data set; a holdout outside [0, 1); a folder with neither test images nor a holdout, or
            whose classes differ from those of the test images; test images that would not be used.
        FileNotFoundError: the data is missing.

    Example:
        >>> data = open_training("digits", holdout=0.2, batch_size=100)
        >>> len(data), sum(len(y) for _, y in data.test())
        (12, 300)
    """
    if dataset not in DATASETS and dataset != "folder":
        raise ValueError(f"unknown data set {dataset!r}; known are {', '.join(DATASETS)} and folder")
    check_image_size(image_size)
    if not 0 <= holdout < 1:
        raise ValueError(f"the holdout must be in [0, 1), got {holdout}")
    if test_root is not None and (holdout or dataset != "folder"):
        reason = f"a holdout of {holdout:g}; set it to 0" if holdout else f"the test images of {dataset}"
        raise ValueError(f"the test images in {test_root} would not be used: the network is evaluated on {reason}")
    root = Path(root)
    if dataset == "folder":
        return _open_folder(root, test_root, holdout, batch_size, image_size, limit, cutout, seed, device, workers)
    images = DATASETS[dataset](root, True, download)
    images = images[stratified_subset(images.labels, limit, seed)]
    if holdout:
        kept, held = _held_out(images.labels, holdout, seed)
        images, test = images[kept], images[held]
    else:
        test = DATASETS[dataset](root, False, download)
    size = image_size or images.pixels.shape[1]
    return ResidentTraining(images.resized(size), test.resized(size), batch_size, seed, device, cutout)


def _open_folder(
    root: Path,
    test_root: str | Path | None,
    holdout: float,
    batch_size: int,
    image_size: int | None,
    limit: int | None,
    cutout: int,
    seed: int,
    device: torch.device | str,
    workers: int,
) -> TrainingData:
    folder = Folder.find(root)
    subset = stratified_subset(folder.labels, limit, seed)
    if holdout:
        kept, held = (subset[part] for part in _held_out(folder.labels[subset], holdout, seed))
        test_folder = folder
    elif test_root is not None:
        test_folder = Folder.find(Path(test_root))
        kept, held = subset, torch.arange(len(test_folder.labels))
        if test_folder.classes != folder.classes:
            raise ValueError(f"{test_root} has the classes {test_folder.classes}, {root} has {folder.classes}")
    else:
        raise ValueError(f"what is a network trained on {root} judged on? Give a folder of test images, or a holdout")
    size = image_size or folder.common_size(subset) or LARGE_SIZE
    if size > RESIDENT_SIZE:
        train, test = FolderSubset(folder, kept), FolderSubset(test_folder, held)
        return StreamedTraining(train, test, folder.classes, size, batch_size, seed, device, workers)
    decoded = folder.decode(kept, size), test_folder.decode(held, size)
    return ResidentTraining(*decoded, batch_size, seed, device, cutout)


def _held_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the images to train on and of those held out, every class in proportion."""
    held = stratified_subset(labels, max(1, round(share * len(labels))), seed)
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[held] = False
    return mask.nonzero().squeeze(1), held
