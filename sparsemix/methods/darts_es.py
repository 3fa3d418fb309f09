"""DARTS-ES: a search ends when the loss's curvature in the alphas grows, and returns an earlier architecture.

Source: Zela et al., "Understanding and Robustifying Differentiable Architecture Search", section 4.3. Settings are
their published code's. The curvature is the largest eigenvalue of the validation loss's Hessian in the alphas, on one
batch at the end of every epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._utils.modes import having, restoring
from .._utils.torch_private import is_compiled
from ..measure.hessian import dominant_eigenvalue
from ..supernet.group import ArchParameterGroup
from .darts import PLAIN
from .method import Method, Part, Plan, Records, Step

__all__ = ["METHODS", "EarlyStopping", "local_averages"]


def local_averages(values: list[float], window: int) -> list[float]:
    """The mean of every value and up to ``window - 1`` before it.

    Example:
        >>> local_averages([1.0, 3.0, 5.0], window=2)
        [1.0, 2.0, 4.0]
    """
    recent = (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))
    return [sum(values) / len(values) for values in recent]


@dataclass(frozen=True)
class EarlyStopping(Part):
    """The search ends once the averaged eigenvalue has grown by a factor within some epochs."""

    window: int = 5
    """Epochs over which the eigenvalue is averaged."""
    back: int = 4
    """Epochs between the two averages that are compared."""
    factor: float = 1.3
    """Growth of the averaged eigenvalue that ends the search."""
    watch_from: int = 10
    """First epoch, counted from 0, that can be the result of a search that ends early."""
    products: int = 20
    """Hessian-vector products for an eigenvalue, at most."""

    needs_mixtures: ClassVar[str | None] = "needs second derivatives of a mixture"

    def __post_init__(self) -> None:
        if min(self.window, self.back, self.products) < 1 or self.watch_from < 0 or not self.factor > 0:
            raise ValueError(
                f"EarlyStopping: window, back and products must be at least 1, watch_from must not be negative, and "
                f"factor must be positive, got {self.window}, {self.back}, {self.products}, {self.watch_from} and "
                f"{self.factor}"
            )

    def check(self, arch: ArchParameterGroup, epochs: int) -> None:
        if arch.threshold:
            raise ValueError(
                f"EarlyStopping: the Hessian needs every operation's graph, got threshold={arch.threshold}; set it to 0"
            )
        if any(is_compiled(module) for module in arch.model.modules()):
            raise ValueError("EarlyStopping: compiled operations have no second derivatives; search without compiling")

    def measure(self, step: Step, batch: Any, plan: Plan) -> Plan:
        arch = step.arch
        # Fused attention has no second derivative.
        with restoring(arch.model), having(arch, threshold=0.0), sdpa_kernel(SDPBackend.MATH):
            loss = torch.stack([step.loss(part) for part in step.split(batch)]).sum()
            value = dominant_eigenvalue(loss, arch.parameters(), self.products, reduce=step.reduce)
        return {"eigenvalue": value}

    def stops(self, records: Records) -> bool:
        return self._stopped_by(records) is not None

    def result(self, records: Records) -> int:
        """The record in the middle of the window before the growth."""
        last = self._stopped_by(records)
        return len(records) - 1 if last is None else last - self._delay

    def _stopped_by(self, records: Records) -> int | None:
        averages = local_averages([record["eigenvalue"] for record in records], self.window)
        for epoch in range(self.watch_from + self._delay, len(averages)):
            before = averages[epoch - self.back]
            if before > 0 and averages[epoch] / before > self.factor:
                return epoch
        return None

    @property
    def _delay(self) -> int:
        """Epochs from the middle of the window before the growth to the epoch that shows the growth."""
        return self.back + self.window // 2


_SUMMARY = "DARTS that stops when the loss's curvature in the alphas grows"

METHODS = (Method("darts-es", (EarlyStopping(),), _SUMMARY, PLAIN),)
