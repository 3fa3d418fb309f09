"""Data sets, their split into a half for the weights and a half for the alphas, and loaders of (train, val) pairs.

Small images are decoded once, kept as uint8 on the device and augmented there a batch at a time
(:class:`ResidentPairs`); larger ones are read from disk through timm's loader (:class:`StreamedPairs`). Order and
augmentation of resident images are pure functions of (seed, epoch, step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
import torchvision
from einops import rearrange
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, resize
from tqdm.auto import tqdm

from .schedule import seeded_generator
from .unpickle import load_plain_pickle

__all__ = ["DATASETS", "Images", "Pairs", "ResidentPairs", "StreamedPairs", "halves", "open_pairs", "stratified_subset"]

RESIDENT_SIZE = 64  # images up to this height are kept in memory
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Images:
    """Labelled images in memory.

    Attributes:
        pixels: uint8, shape ``(N, H, W, C)``.
        labels: int64, shape ``(N,)``.
        classes: their names.
        mirror: whether a horizontally flipped image is still of its class.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mirror: bool = True

    def __post_init__(self) -> None:
        counts = torch.bincount(self.labels, minlength=len(self.classes))
        empty = [name for name, count in zip(self.classes, counts.tolist(), strict=True) if count == 0]
        if empty:
            raise ValueError(
                f"no images of {', '.join(empty)} among {len(self.labels)} images of {len(counts)} classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> Images:
        return Images(self.pixels[indices], self.labels[indices], self.classes, self.mirror)

    def resized(self, size: int) -> Images:
        """To ``size`` x ``size``, bilinear with antialiasing."""
        if self.pixels.shape[1:3] == (size, size):
            return self
        parts = [
            F.interpolate(
                rearrange(part, "n h w c -> n c h w").float(), (size, size), mode="bilinear", antialias=True
            ).round()
            for part in self.pixels.split(1000)
        ]
        pixels = rearrange(torch.cat(parts).to(torch.uint8), "n c h w -> n h w c").contiguous()
        return Images(pixels, self.labels, self.classes, self.mirror)


# Subsets and halves


def _class_ranks(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Each image's place in a random order of its class, and the size of its class."""
    order = torch.randperm(len(labels), generator=seeded_generator("split", seed))
    by_class = order[labels[order].argsort(stable=True)]
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    ranks = torch.empty_like(labels)
    ranks[by_class] = torch.arange(len(labels)) - starts[labels[by_class]]
    return ranks, counts[labels]


def stratified_subset(labels: Tensor, limit: int | None, seed: int) -> Tensor:
    """Indices of ``limit`` images in which every class keeps its share, drawn with a seed; all of them for None."""
    if limit is None or limit >= len(labels):
        return torch.arange(len(labels))
    if limit < 1:
        raise ValueError(f"the limit must be at least 1 image, got {limit}")
    ranks, counts = _class_ranks(labels, seed)
    return ((ranks + 0.5) / counts).argsort(stable=True)[:limit].sort().values


def halves(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a weights half and an alpha half, drawn with a seed; the classes are split evenly to one image.

    Raises:
        ValueError: a class has fewer than two images.
    """
    ranks, counts = _class_ranks(labels, seed)
    if int(counts.min()) < 2:
        short = labels[counts < 2].unique().tolist()
        raise ValueError(
            f"classes {short} have fewer than 2 images: none is left for one of the halves; raise the limit"
        )
    return (ranks % 2 == 0).nonzero().squeeze(1), (ranks % 2 == 1).nonzero().squeeze(1)


# Data sets: one function each, (root, train, download) -> Images


def digits(root: Path, train: bool, download: bool) -> Images:
    """Handwritten digits, 8x8 with one channel, shipped with scikit-learn; every sixth image is for testing."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    chosen = (torch.arange(len(labels)) % 6 != 5) == train
    grey = (torch.tensor(pixels) * (255 / 16)).round().to(torch.uint8)
    images = rearrange(grey, "n (h w) -> n h w 1", h=8)
    return Images(images[chosen], torch.tensor(labels).long()[chosen], tuple("0123456789"), mirror=False)


def _torchvision(name: str, root: Path, download: bool, **split: Any) -> Any:
    try:
        return getattr(torchvision.datasets, name)(root, download=download, **split)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"{name} is not in {root.resolve()}: {error} (on the command line: --download)"
        ) from error


def cifar10(root: Path, train: bool, download: bool) -> Images:
    """CIFAR-10 through torchvision."""
    data = _torchvision("CIFAR10", root, download, train=train)
    return Images(torch.as_tensor(data.data), torch.tensor(data.targets), tuple(data.classes))


def cifar100(root: Path, train: bool, download: bool) -> Images:
    """CIFAR-100 through torchvision."""
    data = _torchvision("CIFAR100", root, download, train=train)
    return Images(torch.as_tensor(data.data), torch.tensor(data.targets), tuple(data.classes))


def svhn(root: Path, train: bool, download: bool) -> Images:
    """Street View House Numbers through torchvision."""
    data = _torchvision("SVHN", root, download, split="train" if train else "test")
    pixels = rearrange(torch.as_tensor(data.data), "n c h w -> n h w c").contiguous()
    return Images(pixels, torch.as_tensor(data.labels).long(), tuple("0123456789"), mirror=False)


def imagenet16_120(root: Path, train: bool, download: bool) -> Images:
    """ImageNet16-120, the first 120 classes of the 16x16 ImageNet, from its batch files.

    Source: Chrabaszcz et al., "A Downsampled Variant of ImageNet"; the 120 classes are NAS-Bench-201's.
    """
    names = [f"train_data_batch_{i}" for i in range(1, 11)] if train else ["val_data"]
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"ImageNet16-120: {root.resolve()} lacks {', '.join(missing)}; the files come from the downsampled ImageNet"
        )
    pixels, labels = [], []
    for name in names:
        with (root / name).open("rb") as file:
            batch = load_plain_pickle(file, root / name)
        target = torch.as_tensor(batch["labels"])
        kept = target <= 120
        pixels.append(rearrange(torch.as_tensor(batch["data"])[kept], "n (c h w) -> n h w c", c=3, h=16))
        labels.append(target[kept].long() - 1)
    return Images(torch.cat(pixels).contiguous(), torch.cat(labels), tuple(str(i) for i in range(1, 121)))


DATASETS: dict[str, Callable[[Path, bool, bool], Images]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "imagenet16-120": imagenet16_120,
}


# Image folders


@dataclass(frozen=True)
class _Folder:
    """The files of an image folder with one folder a class, not yet read."""

    files: list[str]
    labels: Tensor
    classes: tuple[str, ...]

    @classmethod
    def find(cls, root: Path) -> _Folder:
        if not root.is_dir():
            raise FileNotFoundError(f"image folder: {root.resolve()} is not a folder")
        try:
            found = torchvision.datasets.ImageFolder(str(root))
        except FileNotFoundError as error:
            raise ValueError(f"image folder {root.resolve()}: {error}") from error
        files, labels = zip(*found.samples, strict=True)
        return cls(list(files), torch.tensor(labels), tuple(found.classes))

    def height(self) -> int:
        with Image.open(self.files[0]) as image:
            return image.height

    def decode(self, indices: Tensor, size: int) -> Images:
        pixels = torch.empty(len(indices), size, size, 3, dtype=torch.uint8)
        for row, index in enumerate(tqdm(indices.tolist(), "decoding", disable=None, leave=False)):
            image = resize(_read_rgb(self.files[index]), [size, size])
            pixels[row] = rearrange(pil_to_tensor(image), "c h w -> h w c")
        return Images(pixels, self.labels[indices], self.classes)


def _read_rgb(file: str) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


# Loaders of pairs


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
        ValueError: the batch size is not positive, or the halves disagree in image size or classes.
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
        if weights.pixels.shape[1:] != alphas.pixels.shape[1:] or weights.classes != alphas.classes:
            raise ValueError(
                f"the halves disagree: images of {tuple(weights.pixels.shape[1:])} in {len(weights.classes)} classes, "
                f"and of {tuple(alphas.pixels.shape[1:])} in {len(alphas.classes)} classes"
            )
        self.classes = weights.classes
        self.image_size, self.in_chans = weights.pixels.shape[2:]
        self.batch_size = batch_size
        self.seed = seed
        self.replacement = replacement
        self.mirror = weights.mirror
        self.padding = self.image_size // 8  # 4 for 32x32, as for CIFAR-10
        channels = weights.pixels.flatten(0, 2).double()
        self._mean = channels.mean(0).float().to(device)
        self._std = channels.std(0).clamp(min=1).float().to(device)
        self._weights = self._resident(weights, device)
        self._alphas = self._resident(alphas, device)

    def _resident(self, images: Images, device: torch.device | str) -> Batch:
        pad = self.padding
        return F.pad(images.pixels, (0, 0, pad, pad, pad, pad)).to(device), images.labels.to(device)

    def __len__(self) -> int:
        return -(-min(len(self._weights[1]), len(self._alphas[1])) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, Batch]]:
        generator = seeded_generator("order", self.seed, epoch)
        size = min(len(self._weights[1]), len(self._alphas[1]))
        train = torch.randperm(len(self._weights[1]), generator=generator)[:size]
        if self.replacement:
            val = torch.randint(len(self._alphas[1]), (size,), generator=generator)
        else:
            val = torch.randperm(len(self._alphas[1]), generator=generator)[:size]
        for step in range(start, len(self)):
            rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
            generator = seeded_generator("augment", self.seed, epoch, step)
            yield (
                self._augmented(self._weights, train[rows], generator),
                self._augmented(self._alphas, val[rows], generator),
            )

    def validation(self) -> Iterator[Batch]:
        pixels, labels = self._alphas
        inner = slice(self.padding, self.padding + self.image_size)
        for part, target in zip(pixels.split(4 * self.batch_size), labels.split(4 * self.batch_size), strict=True):
            yield self._normalized(part[:, inner, inner]), target

    def _augmented(self, images: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
        """A random crop of the padded images, mirrored or not: one gather for the whole batch."""
        n, size = len(indices), self.image_size
        shifts = torch.randint(2 * self.padding + 1, (2, n, 1), generator=generator)
        rows, columns = shifts + torch.arange(size)  # each (n, size)
        if self.mirror:
            flip = torch.rand(n, 1, generator=generator) < 0.5
            columns = torch.where(flip, columns.flip(1), columns)
        pixels, labels = images
        indices, rows, columns = (t.to(labels.device) for t in (indices, rows, columns))
        return self._normalized(pixels[indices[:, None, None], rows[:, :, None], columns[:, None, :]]), labels[indices]

    def _normalized(self, pixels: Tensor) -> Tensor:
        x = pixels.float().sub_(self._mean).div_(self._std)
        return rearrange(x, "n h w c -> n c h w")  # a view: channels stay last in memory


class StreamedPairs:
    """Pairs of batches of larger images, read from disk and augmented by timm's loader.

    Order and augmentation are drawn by that loader's workers and differ from run to run.

    Args:
        folder: files and labels.
        weights, alphas: indices of the two halves.
        image_size: height and width after cropping.
        batch_size: images a batch; an incomplete last batch is dropped.
        device: where the batches go.
        workers: processes that decode, for each half.

    Raises:
        ValueError: a half is smaller than a batch.
    """

    in_chans = 3

    def __init__(
        self,
        folder: _Folder,
        weights: Tensor,
        alphas: Tensor,
        image_size: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        workers: int = 2,
    ) -> None:
        if min(len(weights), len(alphas)) < batch_size:
            raise ValueError(
                f"batches of {batch_size} cannot be cut from halves of {len(weights)} and {len(alphas)} images"
            )
        self.classes = folder.classes
        self.image_size = image_size
        self.device = torch.device(device)
        options = {"input_size": (3, image_size, image_size), "use_prefetcher": False, "num_workers": workers}
        training = options | {"batch_size": batch_size, "is_training": True, "persistent_workers": workers > 0}
        self._train = self._loader(folder, weights, **training)
        self._val = self._loader(folder, alphas, **training)
        self._validation = self._loader(folder, alphas, **options, batch_size=4 * batch_size, persistent_workers=False)

    @staticmethod
    def _loader(folder: _Folder, indices: Tensor, **options: Any) -> Any:
        from timm.data import create_loader

        dataset: Any = _FolderSubset(folder, indices)
        return create_loader(dataset, **options)

    def __len__(self) -> int:
        return min(len(self._train), len(self._val))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, Batch]]:
        pairs = islice(zip(self._train, self._val, strict=False), start, len(self))
        return ((self._moved(train), self._moved(val)) for train, val in pairs)

    def validation(self) -> Iterator[Batch]:
        return map(self._moved, self._validation)

    def _moved(self, batch: Batch) -> Batch:
        x, y = batch
        return x.to(self.device, memory_format=torch.channels_last), y.to(self.device)


class _FolderSubset(torch.utils.data.Dataset):
    """Files of an image folder with the transform that timm's loader installs."""

    transform: Callable[[Any], Tensor]

    def __init__(self, folder: _Folder, indices: Tensor) -> None:
        self.files = [folder.files[i] for i in indices.tolist()]
        self.labels = folder.labels[indices].tolist()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(_read_rgb(self.files[index])), self.labels[index]


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
        image_size: resize to this height and width; None: as the images are (224 for a folder of large ones).
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
    if image_size is not None and image_size < 4:
        raise ValueError(f"the image size must be at least 4, got {image_size}")
    root = Path(root)
    if dataset != "folder":
        images = DATASETS[dataset](root, True, download)
        images = images[stratified_subset(images.labels, limit, seed)]
        images = images.resized(image_size or images.pixels.shape[1])
    else:
        folder = _Folder.find(root)
        subset = stratified_subset(folder.labels, limit, seed)
        size = image_size or min(folder.height(), 224)
        if size > RESIDENT_SIZE:
            weights, alphas = (subset[half] for half in halves(folder.labels[subset], seed))
            return StreamedPairs(folder, weights, alphas, size, batch_size, device, workers)
        images = folder.decode(subset, size)
    weights, alphas = halves(images.labels, seed)
    return ResidentPairs(images[weights], images[alphas], batch_size, seed, device, replacement)
