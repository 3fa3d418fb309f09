"""Labelled images in memory, and how they are divided: stratified subsets, and halves for weights and alphas."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .._utils.streams import seeded_generator

__all__ = ["Images", "check_alike", "halves", "stratified_subset"]


@dataclass(frozen=True)
class Images:
    """Labelled images in memory.

    Attributes:
        pixels: uint8, shape ``(N, H, W, C)``.
        labels: int64, shape ``(N,)``.
        classes: names of the classes.
        mirror: whether a horizontally flipped image still belongs to its class.
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


def check_alike(first: Images, second: Images, what: str) -> None:
    """Check that two sets of images agree in size, channels and classes.

    Raises:
        ValueError: they differ; the message says how.
    """
    if first.pixels.shape[1:] != second.pixels.shape[1:] or first.classes != second.classes:
        raise ValueError(
            f"{what} disagree: images of {tuple(first.pixels.shape[1:])} in {len(first.classes)} classes, "
            f"and of {tuple(second.pixels.shape[1:])} in {len(second.classes)} classes"
        )


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
    """Indices of ``limit`` images, drawn with a seed so that every class keeps its share; None: all images."""
    if limit is None or limit >= len(labels):
        return torch.arange(len(labels))
    if limit < 1:
        raise ValueError(f"the limit must be at least 1 image, got {limit}")
    ranks, counts = _class_ranks(labels, seed)
    return ((ranks + 0.5) / counts).argsort(stable=True)[:limit].sort().values


def halves(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a weights half and an alpha half, drawn with a seed; sizes differ by at most one, also in each class.

    Raises:
        ValueError: a class has fewer than two images.
    """
    ranks, counts = _class_ranks(labels, seed)
    if int(counts.min()) < 2:
        short = labels[counts < 2].unique().tolist()
        raise ValueError(
            f"classes {short} have fewer than 2 images: none is left for one of the halves; raise the limit"
        )
    odd = torch.bincount(labels) % 2
    first = (odd.cumsum(0) - odd)[labels] % 2  # classes of an odd size give their extra image to each half in turn
    return ((ranks + first) % 2 == 0).nonzero().squeeze(1), ((ranks + first) % 2 == 1).nonzero().squeeze(1)
