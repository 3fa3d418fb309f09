"""Any supernet in the dense formulation: every candidate runs by itself, and its output is multiplied by its weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.modes import having
from ..supernet.execution import Weights
from ..supernet.mixed_op import MixedOp, call_arguments

__all__ = ["dense"]


class _Dense(MixedOp):
    """``sum_m a_m o_m(x)`` as it is written."""

    def forward(self, *args: Any, **given: Any) -> Tensor:
        x, weights, keywords = call_arguments(*args, **given)
        weights = self.operation_weights() if weights is None else weights
        row = weights.scalars if isinstance(weights, Weights) else weights
        outputs = [w * candidate(x, **keywords) for w, candidate in zip(row, self.candidates.values(), strict=True)]
        return torch.as_tensor(sum(outputs))


@contextmanager
def dense(model: nn.Module) -> Iterator[None]:
    """Within the context, a supernet runs every candidate, whatever its weight, and shares no work between them.

    The result is the same except for three things: what a threshold leaves out, running statistics of operations that
    otherwise do not run, and, in straight-through estimators (GDAS), the gradients of alphas whose operation has weight
    0. Weights updates still compute no alpha gradient.

    Example:
        >>> model = nn.Sequential(MixedOp({"skip": nn.Identity(), "tanh": nn.Tanh()}, has_alpha=False))
        >>> with dense(model):
        ...     print(model[0](torch.tensor([2.0]), torch.tensor([1.0, 0.0])))
        tensor([2.])
        >>> type(model[0]).__name__
        'MixedOp'
    """
    with ExitStack() as stack:
        for op in [module for module in model.modules() if isinstance(module, MixedOp)]:
            stack.enter_context(having(op, __class__=_Dense, always_run=True))
        yield
