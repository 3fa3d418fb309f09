"""Images that stay on the device and are augmented there (shifts, flips, cutout) with a given random generator."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .images import Images

__all__ = ["Batch", "Normalization", "ResidentImages"]

Batch = tuple[Tensor, Tensor]


class Normalization:
    """Normalises pixels by the channel means and standard deviations of a set of images."""

    def __init__(self, images: Images, device: torch.device | str) -> None:
        channels = images.pixels.flatten(0, 2).double()
        self.mean = channels.mean(0).float().to(device)
        self.std = channels.std(0).clamp(min=1).float().to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 ``(N, H, W, C)`` -> float ``(N, C, H, W)``, channels last in memory."""
        x = pixels.float().sub_(self.mean).div_(self.std)
        return rearrange(x, "n h w c -> n c h w")


class ResidentImages:
    """Images padded by an eighth of their size, on the device.

    Args:
        images: square images.
        normalization: that of the training images.
        device: where the images stay.

    Raises:
        ValueError: the images are not square.
    """

    def __init__(self, images: Images, normalization: Normalization, device: torch.device | str) -> None:
        height, width, self.channels = images.pixels.shape[1:]
        if height != width:
            raise ValueError(f"images must be square, got {height}x{width}: resize them, Images.resized(size)")
        self.size = height
        self.padding = pad = height // 8  # 4 for 32x32, as for CIFAR-10
        self.mirror = images.mirror
        self.pixels = F.pad(images.pixels, (0, 0, pad, pad, pad, pad)).to(device)
        self.labels = images.labels.to(device)
        self.normalization = normalization

    def __len__(self) -> int:
        return len(self.labels)

    def augmented(
        self, indices: Tensor, generator: torch.Generator, cutout: int = 0, probability: float = 1.0
    ) -> Batch:
        """A random crop of the padded images, mirrored or not: one gather for the whole batch.

        Args:
            indices: which images.
            generator: of the draws, on the CPU.
            cutout: side of a square around a random pixel that is blanked after normalisation; 0: none.
            probability: probability of blanking the square in an image.
        """
        n = len(indices)
        shifts = torch.randint(2 * self.padding + 1, (2, n, 1), generator=generator)
        rows, columns = shifts + torch.arange(self.size)  # each (n, size)
        if self.mirror:
            flip = torch.rand(n, 1, generator=generator) < 0.5
            columns = torch.where(flip, columns.flip(1), columns)
        indices, rows, columns = (t.to(self.labels.device) for t in (indices, rows, columns))
        x = self.normalization(self.pixels[indices[:, None, None], rows[:, :, None], columns[:, None, :]])
        if cutout:
            centres = torch.randint(self.size, (2, n, 1), generator=generator)
            offsets = torch.arange(self.size) - centres
            inside = (offsets >= -(cutout // 2)) & (offsets < cutout - cutout // 2)
            square = inside[0, :, :, None] & inside[1, :, None, :]
            if probability < 1:
                square &= torch.rand(n, 1, 1, generator=generator) < probability
            x = x.masked_fill(square[:, None].to(x.device), 0.0)
        return x, self.labels[indices]

    def plain(self, batch_size: int, indices: Tensor | None = None) -> Iterator[Batch]:
        """Images in order, without augmentation: all of them, or those of these indices."""
        inner = slice(self.padding, self.padding + self.size)
        chosen = torch.arange(len(self)) if indices is None else indices
        for rows in chosen.to(self.labels.device).split(batch_size):
            yield self.normalization(self.pixels[rows, inner, inner]), self.labels[rows]
