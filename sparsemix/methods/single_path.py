"""Single path, a control: weights are shared by architectures drawn at random, of which the best one is kept.

Source: Li and Talwalkar, "Random Search and Reproducibility for Neural Architecture Search"; Guo et al., "Single Path
One-Shot Neural Architecture Search with Uniform Sampling". Presets are those of DARTS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..relaxations import NEVER, Argmax, Moment, Relaxation
from ..supernet.group import ArchParameterGroup
from .darts import PLAIN
from .method import Evidence, Method, Part, Plan
from .random_search import choose_at_random_

__all__ = ["METHODS", "SinglePath", "UniformChoice"]


class UniformChoice(nn.Module):
    """Weight 1 for one candidate of each row, drawn uniformly whatever the alphas; the moment determines the draw.

    Example:
        >>> UniformChoice()(torch.tensor([[9.0, 0.0, -torch.inf]]), Moment(step=2)).sum()
        tensor(1.)
    """

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        scores = torch.rand(alpha.shape, generator=moment.generator("path"), dtype=torch.float64).to(alpha)
        return Argmax()(scores.masked_fill(alpha == -torch.inf, -1.0))


@dataclass(frozen=True)
class SinglePath(Part):
    """Every batch trains one architecture, drawn uniformly; before the last epoch the best of many samples is chosen.

    The last epoch trains the chosen architecture.
    """

    samples: int = 100
    """Number of architectures drawn and measured with the shared weights; the most accurate is chosen."""

    mixes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"SinglePath: samples must be at least 1, got {self.samples}")

    def trains_alphas(self, epoch: int, epochs: int) -> bool:
        return False

    def plan(self, arch: ArchParameterGroup, epoch: int, epochs: int) -> Plan:
        return {"samples_paths": epoch < epochs - 1}

    def decide(self, arch: ArchParameterGroup, evidence: Evidence) -> Plan:
        if evidence.moment.epoch < evidence.epochs - 1:
            return {}
        accuracies = []
        with arch.using(Argmax()):
            for i in range(self.samples):
                choose_at_random_(arch, evidence.moment, f"sample {i}")
                accuracies.append(evidence.accuracy())
        best = max(range(self.samples), key=accuracies.__getitem__)
        choose_at_random_(arch, evidence.moment, f"sample {best}")
        return {"sampled_accuracy": accuracies[best]}

    def relaxation(self, plan: Plan) -> Relaxation:
        return UniformChoice() if plan["samples_paths"] else Argmax()

    def evaluation(self, plan: Plan) -> Argmax:
        """Before an architecture is chosen, evaluate an arbitrary one: the one the alphas happen to select."""
        return Argmax()


METHODS = (
    Method(
        "single-path",
        (SinglePath(),),
        "weights shared by architectures drawn at random, the best of which is kept (a control)",
        PLAIN,
    ),
)
