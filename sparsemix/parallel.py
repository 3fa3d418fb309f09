"""Several processes on one search: shards of the same batches, gradients averaged once, and a check against drift.

Every draw of a search is a function of (seed, epoch, step), so that all processes see the same phi, run the same
operations and cut the same batches. What is left to exchange is one flat list of gradients a step. Nothing waits for
single parameters, so that operations that do not run cannot make anybody wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

__all__ = ["Parallel"]


class Parallel:
    """The processes of a run, through Accelerate; with one process nothing is exchanged.

    Args:
        accelerator: knows the processes and their device.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.processes = accelerator.num_processes
        self.rank = accelerator.process_index

    def shard(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, float]:
        """This process's images of a batch, and the factor with which the mean of their losses is to be weighed.

        The factors make the average over processes the mean over the batch, also where the shards differ in size.

        Raises:
            ValueError: the batch has fewer images than there are processes.
        """
        x, y = batch
        if self.processes == 1:
            return x, y, 1.0
        if len(y) < self.processes:
            raise ValueError(f"a batch of {len(y)} images cannot be shared by {self.processes} processes; launch fewer")
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
