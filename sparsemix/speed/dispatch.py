"""What a step asks of the device, counted: operators dispatched, and synchronisations.

On a GPU small kernels wait for their launches, and a transfer of values to the host waits for all kernels before it.
Operators are counted on any device. On a CPU every transfer counts; on a GPU, transfers from tensors on the CPU do not,
such as those of Adam's step counters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._utils.torch_private import DispatchMode, is_view

__all__ = ["Dispatched", "count_dispatched"]

_TO_THE_HOST = frozenset(
    {
        Tensor.item,
        Tensor.tolist,
        Tensor.cpu,
        Tensor.numpy,
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.__index__,
        Tensor.nonzero,
        torch.nonzero,
        torch.equal,
    }
)


class Dispatched:
    """Counts of a run.

    Attributes:
        operators: name -> how often it was dispatched, forward and backward, views not counted.
        synchronizations: how often Python asked for values of a tensor.
    """

    def __init__(self) -> None:
        self.operators: Counter[str] = Counter()
        self.synchronizations = 0

    @property
    def total(self) -> int:
        """All operators."""
        return self.operators.total()


def count_dispatched(run: Callable[[], Any], device: str = "cpu") -> Dispatched:
    """Run once and count.

    Args:
        run: what is counted; a compiled graph counts as the few operators that call it.
        device: where it runs; synchronisations are of tensors on such a device.

    Example:
        >>> x = torch.ones(2, 2)
        >>> counts = count_dispatched(lambda: (x.t() + x).sum().item())
        >>> counts.operators["aten.add.Tensor"], counts.total, counts.synchronizations
        (1, 3, 1)
    """
    counts = Dispatched()
    with _Operators(counts), _Synchronizations(counts, torch.device(device).type):
        run()
    return counts


class _Operators(DispatchMode):
    def __init__(self, counts: Dispatched) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_view(func):
            self.counts.operators[str(func)] += 1
        return func(*args, **(kwargs or {}))


class _Synchronizations(TorchFunctionMode):
    def __init__(self, counts: Dispatched, device_type: str) -> None:
        super().__init__()
        self.counts = counts
        self.device_type = device_type

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts.synchronizations += func in _TO_THE_HOST and args[0].device.type == self.device_type
        return func(*args, **(kwargs or {}))
