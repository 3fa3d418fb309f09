"""Several processes on one run: shards of the same batches, gradients averaged once, and a check against drift.

Batches and phi are functions of (seed, epoch, step), so that all processes see the same phi, run the same operations
and cut the same batches. All that is exchanged is one flat list of gradients per update. No process waits for
individual parameters, so operations that do not run cannot cause a wait.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

__all__ = ["Parallel", "Shard", "cut", "sums"]

Shard = tuple[Tensor, Tensor, float]
"""Images, labels, and what the mean of their losses counts."""


def cut(shard: Shard, parts: int) -> Iterator[Shard]:
    """A shard in so many parts for gradient accumulation, or fewer if it is small; each counts by its images."""
    x, y, share = shard
    for images, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
        yield images, labels, share * len(labels) / len(y)


def sums(tensor: Tensor) -> Tensor:
    """Two numbers by which a drift of large tensors shows."""
    return torch.stack([tensor.sum(), tensor.abs().sum()])


class Parallel:
    """The processes of a run, through Accelerate; with one process nothing is exchanged.

    Args:
        accelerator: knows the processes and their device.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.processes = accelerator.num_processes
        self.rank = accelerator.process_index

    def seed(self, seed: int, epoch: int, step: int) -> None:
        """Give each of several processes random numbers of its own (dropout), that a resumed run draws again."""
        if self.processes > 1:
            torch.manual_seed(random.Random(f"{seed} {epoch} {step} {self.rank}").getrandbits(63))

    def check_batch_size(self, size: int) -> None:
        """Insist that a batch has an image for every process.

        Raises:
            ValueError: it has fewer.
        """
        if size < self.processes:
            raise ValueError(f"a batch of {size} images cannot be shared by {self.processes} processes; launch fewer")

    def shard(self, batch: tuple[Tensor, Tensor]) -> Shard:
        """This process's images of a batch, and the factor by which the mean of their losses is to be multiplied.

        The factors make the average over processes the mean over the batch, also where the shards differ in size. Where
        a last batch has fewer images than there are processes, spare processes reuse an image with weight 0.
        """
        x, y = batch
        if self.processes == 1:
            return x, y, 1.0
        if self.rank >= len(y):
            return x[:1], y[:1], 0.0
        mine = slice(self.rank, None, self.processes)
        return x[mine], y[mine], self.processes * len(y[mine]) / len(y)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place; one exchange for each type of number."""
        if self.processes == 1:
            return
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in same])
            parts = self.accelerator.reduce(flat, "mean").split([tensor.numel() for tensor in same])
            for tensor, part in zip(same, parts, strict=True):
                tensor.detach().copy_(part.view(tensor.shape))

    def any(self, flag: bool) -> bool:
        """Whether it holds in some process."""
        if self.processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum"))

    def check_same(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Insist that tensors are the same in all processes, to the last bit.

        Raises:
            RuntimeError: one is not; names it, and the processes that differ from the first.
        """
        if self.processes == 1:
            return
        named = [*tensors]
        flat = torch.cat([tensor.detach().reshape(-1).double() for _, tensor in named])
        everyone = self.accelerator.gather(flat).view(self.processes, -1)
        sizes = [tensor.numel() for _, tensor in named]
        for (name, _), values in zip(named, everyone.split(sizes, dim=1), strict=True):
            differing = [rank for rank in range(1, self.processes) if not torch.equal(values[rank], values[0])]
            if differing:
                raise RuntimeError(
                    f"{name} is no longer the same in all processes: process {differing[0]} has "
                    f"{values[differing[0]][:5].tolist()}, process 0 has {values[0][:5].tolist()}"
                )
