"""Random search, a control: architectures drawn at random are each trained for a while, and the best one is kept.

Source: Li and Talwalkar, "Random Search and Reproducibility for Neural Architecture Search".
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..measure.best_epoch import best_epoch
from ..relaxations import Argmax, Moment
from ..supernet.group import ArchParameterGroup
from .darts import PLAIN
from .method import Evidence, Method, Part, Phase, Plan, Records

__all__ = ["METHODS", "RandomSearch", "choose_at_random_"]


def choose_at_random_(arch: ArchParameterGroup, moment: Moment, name: str = "architecture") -> None:
    """Set the alphas to a randomly drawn architecture: 1 for one allowed candidate of each row, 0 for the others.

    Args:
        arch: the architecture parameters.
        moment: determines the draw.
        name: name of the draw; another name gives another architecture at the same moment.
    """
    generator = moment.generator(name)
    with torch.no_grad():
        for _, (op, *_) in arch.rows.items():
            names = op.allowed_names
            chosen = names[int(torch.randint(len(names), (), generator=generator))]
            op.alpha.copy_(torch.tensor([float(name == chosen) for name in op.names]))


@dataclass(frozen=True)
class RandomSearch(Part):
    """Every few epochs another architecture, drawn at random, is trained from scratch; the most accurate is the result.

    The architectures are as large as the supernet; the search's epochs are divided among them.
    """

    epochs_each: int = 1
    """Epochs for which every architecture is trained."""

    mixes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.epochs_each < 1:
            raise ValueError(f"RandomSearch: epochs_each must be at least 1, got {self.epochs_each}")

    def check(self, arch: ArchParameterGroup, epochs: int) -> None:
        if epochs % self.epochs_each:
            raise ValueError(
                f"RandomSearch: {epochs} epochs do not divide into architectures of {self.epochs_each} epochs each"
            )
        alphas = {id(alpha) for alpha in arch.parameters()}
        kept = [
            f"{path}.{name}" if path else name
            for path, module in arch.model.named_modules()
            if not callable(getattr(module, "reset_parameters", None))
            for name, parameter in module.named_parameters(recurse=False)
            if id(parameter) not in alphas
        ]
        if kept:
            warnings.warn(
                f"RandomSearch: every architecture is trained from scratch but for {len(kept)} parameters, whose "
                f"modules have no reset_parameters(): {', '.join(kept[:4])}{', ...' if kept[4:] else ''}",
                stacklevel=2,
            )

    def phases(self, arch: ArchParameterGroup, epochs: int) -> Sequence[Phase]:
        return [Phase(self.epochs_each)] * (epochs // self.epochs_each)

    def trains_alphas(self, epoch: int, epochs: int) -> bool:
        return False

    def decide(self, arch: ArchParameterGroup, evidence: Evidence) -> Plan:
        if evidence.moment.epoch % self.epochs_each == 0:
            choose_at_random_(arch, evidence.moment)
            _begin_afresh_(arch, evidence.moment)
        return {}

    def relaxation(self, plan: Plan) -> Argmax:
        return Argmax()

    def evaluation(self, plan: Plan) -> Argmax:
        return Argmax()

    def result(self, records: Records) -> int:
        """The most accurate of the fully trained architectures."""
        best = best_epoch(records, range(self.epochs_each - 1, len(records), self.epochs_each))
        return len(records) - 1 if best is None else best


def _begin_afresh_(arch: ArchParameterGroup, moment: Moment) -> None:
    """Initialise all weights again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(moment.generator("weights").initial_seed())
        for module in arch.model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()


METHODS = (
    Method("random-search", (RandomSearch(),), "architectures drawn at random, each trained (a control)", PLAIN),
)
