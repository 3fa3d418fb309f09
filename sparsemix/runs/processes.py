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
"""Images, labels, and the weight of their mean loss."""


def cut(shard: Shard, parts: int) -> Iterator[Shard]:
    """Split a shard into parts for gradient accumulation, fewer if it is small; weights follow the image counts."""
    x, y, share = shard
    for images, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
        yield images, labels, share * len(labels) / len(y)


def sums(tensor: Tensor) -> Tensor:
    """The sum and the sum of absolute values: two numbers that reveal whether copies of a large tensor have drifted."""
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
        """If there are several processes, seed each differently (for dropout); a resumed run draws the same numbers."""
        if self.processes > 1:
            torch.manual_seed(random.Random(f"{seed} {epoch} {step} {self.rank}").getrandbits(63))

    def check_batch_size(self, size: int) -> None:
        """Check that a batch has an image for every process.

        Raises:
            ValueError: a batch has fewer images than there are processes.
        """
        if size < self.processes:
            raise ValueError(f"a batch of {size} images cannot be shared by {self.processes} processes; launch fewer")

    def shard(self, batch: tuple[Tensor, Tensor]) -> Shard:
        """This process's images and labels of a batch, and the factor for their mean loss.

        With these factors the average over processes is the mean over the batch, even if shards differ in size. If the
        last batch has fewer images than there are processes, the remaining processes reuse an image with weight 0.
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
        """Whether the flag is true in any process."""
        if self.processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum"))

    def check_same(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Check that tensors are bitwise equal in all processes.

        Raises:
            RuntimeError: a tensor differs; names it, and the first process that differs from process 0.
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
