"""The data sets: one function each, and folders of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from einops import rearrange
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, resize
from tqdm.auto import tqdm

from .._utils.unpickle import load_plain_pickle
from .images import Images

__all__ = ["DATASETS", "Folder", "read_rgb"]


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
            f"{name} is not in {root.resolve()}, or is damaged there: name the folder that holds it, or have it "
            f"fetched (download)"
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
    """Street View House Numbers through torchvision.

    Training mirrors the images, as comparable published code does (Zela et al., RobustDARTS; Chen and Hsieh,
    SmoothDARTS: ``_data_transforms_svhn``), although a mirrored digit may not be a digit.
    """
    data = _torchvision("SVHN", root, download, split="train" if train else "test")
    pixels = rearrange(torch.as_tensor(data.data), "n c h w -> n h w c").contiguous()
    return Images(pixels, torch.as_tensor(data.labels).long(), tuple("0123456789"))


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


@dataclass(frozen=True)
class Folder:
    """The files of an image folder with one folder a class, not yet read."""

    files: list[str]
    labels: Tensor
    classes: tuple[str, ...]

    @classmethod
    def find(cls, root: Path) -> Folder:
        if not root.is_dir():
            raise FileNotFoundError(f"image folder: {root.resolve()} is not a folder")
        try:
            found = torchvision.datasets.ImageFolder(str(root))
        except FileNotFoundError as error:
            raise ValueError(f"image folder {root.resolve()}: {error}") from error
        files, labels = zip(*found.samples, strict=True)
        return cls(list(files), torch.tensor(labels), tuple(found.classes))

    def common_size(self, indices: Tensor) -> int | None:
        """Height and width of these images, if all are square and of one size; only their headers are read."""
        sizes = set()
        for index in indices.tolist():
            with Image.open(self.files[index]) as image:
                sizes.add(image.size)
            if len(sizes) > 1:
                return None
        [(width, height)] = sizes
        return height if height == width else None

    def decode(self, indices: Tensor, size: int) -> Images:
        pixels = torch.empty(len(indices), size, size, 3, dtype=torch.uint8)
        for row, index in enumerate(tqdm(indices.tolist(), "decoding", disable=None, leave=False)):
            image = resize(read_rgb(self.files[index]), [size, size])
            pixels[row] = rearrange(pil_to_tensor(image), "c h w -> h w c")
        return Images(pixels, self.labels[indices], self.classes)


def read_rgb(file: str) -> Image.Image:
    """An image file as RGB, whatever its mode.

    Raises:
        OSError: it cannot be read; the message names it.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except OSError as error:
        raise OSError(f"{file}: {error}") from error
