"""SP-DARTS: a growing share of batches sees a sparse softmax, the rest a smooth one.

Source: Zhang and Ding, "Robustifying DARTS by Eliminating Information Bypass Leakage via Explicit Sparse
Regularization". ``authors`` presets are their published code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..relaxations import (
    Moment,
    OfSoftmax,
    Relaxation,
    Softmax,
    SparsemaxSmoothSoftmax,
    SparseSmoothSoftmax,
)
from ..supernet.group import ArchParameterGroup
from .method import Columns, Method, Part, Plan, Presets, Step
from .schedule import is_sparse, sparse_probability
from .temperature import EntropySchedule

__all__ = ["METHODS", "SPDarts"]


@dataclass(frozen=True)
class SPDarts(Part):
    """A softmax at two temperatures (Eq. 15): sparse in a growing share p of the batches (Eq. 20), else smooth."""

    sparse: float = 1.1e-3
    """Temperature of sparse batches, t_sp."""
    smooth: float = 1.1e-2
    """Temperature of smooth batches, t_sm."""
    sparsemax: bool = False
    """In sparse batches project alpha / t_sp onto the simplex (sparsemax) instead of taking its softmax."""
    both_passes: bool = False
    """Run every batch at both temperatures and add the losses up (Eq. 13), instead of mixing batches."""
    double_softmax: bool = False
    """In weights updates relax softmax(alpha) instead of alpha, as published code for S1 to S4 does."""
    p_low: float = 0.0
    """Probability p of a sparse batch at the end of the warm-up."""
    p_up: float = 1.0
    """Probability p of a sparse batch in the last epoch (Eq. 20)."""
    warmup_epochs: int = 1
    """Epochs without sparse batches at the beginning."""
    warmup_smooth: float | None = None
    """Temperature of warm-up batches; by default t_sm."""
    hold_epoch: int | None = None
    """Epoch, counted from 0, from which p keeps the value of the epoch before; by default p rises to the end."""
    hold_sparse: float | None = None
    """Temperature t_sp from the hold epoch on, with t_sm in the same ratio; by default unchanged."""
    auto_temperature: bool = False
    """Choose t_sp each epoch so that the alphas' entropy at t_sp falls linearly."""
    entropy_start: float = 0.5
    """Entropy in the first epoch, as a fraction of the maximum; used with auto_temperature."""
    entropy_end: float = 0.05
    """Entropy in the last epoch, as a fraction of the maximum; used with auto_temperature."""
    eval_temperature: float = 1e-4
    """Temperature at which the supernet is evaluated; with auto_temperature, scaled with t_sp."""

    columns: ClassVar[Columns] = {"p": ("p", "{:.2f}".format)}

    def __post_init__(self) -> None:
        for name in ("sparse", "smooth", "warmup_smooth", "hold_sparse", "eval_temperature"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"SPDarts: {name} must be positive, got {value}")
        if not self.sparse < self.smooth:
            raise ValueError(f"SPDarts: sparse must be below smooth, got {self.sparse} and {self.smooth}")
        if self.warmup_smooth is not None and not self.warmup_smooth > self.sparse:
            raise ValueError(f"SPDarts: warmup_smooth must be above sparse, got {self.warmup_smooth} and {self.sparse}")
        if not (0 <= self.p_low <= 1 and self.p_low <= self.p_up):
            raise ValueError(f"SPDarts: need p_low in [0, 1] and p_up >= p_low, got {self.p_low} and {self.p_up}")
        if self.warmup_epochs < 0:
            raise ValueError(f"SPDarts: warmup_epochs must not be negative, got {self.warmup_epochs}")
        if self.hold_epoch is not None and self.hold_epoch < 1:
            raise ValueError(f"SPDarts: hold_epoch needs an epoch before it, got {self.hold_epoch}")
        if self.hold_sparse is not None and self.hold_epoch is None:
            raise ValueError(f"SPDarts: hold_sparse={self.hold_sparse} needs a hold_epoch from which it holds")
        if self.hold_sparse is not None and self.auto_temperature:
            raise ValueError(f"SPDarts: auto_temperature chooses t_sp; it excludes hold_sparse={self.hold_sparse}")

    def check(self, arch: ArchParameterGroup, epochs: int) -> None:
        if self.warmup_epochs >= epochs > 1:
            raise ValueError(
                f"SPDarts: the warm-up must be shorter than the search, got warmup_epochs={self.warmup_epochs} of "
                f"{epochs} epochs"
            )
        if self.auto_temperature:
            EntropySchedule(arch, epochs, self.entropy_start, self.entropy_end)

    def plan(self, arch: ArchParameterGroup, epoch: int, epochs: int) -> Plan:
        holds = self.hold_epoch is not None and epoch >= self.hold_epoch
        sparse, evaluated = self.sparse, self.eval_temperature
        if self.auto_temperature:
            schedule = EntropySchedule(arch, epochs, self.entropy_start, self.entropy_end)
            sparse = schedule.temperature(epoch) or sparse
            evaluated *= sparse / self.sparse
        elif holds and self.hold_sparse is not None:
            sparse = self.hold_sparse
        warm = self.warmup_smooth if epoch < self.warmup_epochs else None
        warmup = self.warmup_epochs if epochs > 1 else 0  # a one-epoch search is a trial run
        rising = epoch if self.hold_epoch is None else min(epoch, self.hold_epoch - 1)
        return {
            "p": sparse_probability(rising, epochs, self.p_low, self.p_up, warmup),
            "temperature": sparse,
            "smooth": warm or self.smooth * (sparse / self.sparse),
            "eval_temperature": evaluated,
        }

    def phi(self, moment: Moment, plan: Plan) -> bool:
        return is_sparse(moment, plan["p"])

    def passes(self, moment: Moment, plan: Plan) -> Sequence[bool]:
        return [False, True] if self.both_passes else [moment.phi]

    def relaxation(self, plan: Plan) -> Relaxation:
        kind = SparsemaxSmoothSoftmax if self.sparsemax else SparseSmoothSoftmax
        return kind(plan["temperature"], plan["smooth"])

    def evaluation(self, plan: Plan) -> Softmax:
        return Softmax(plan["eval_temperature"])

    def around_weights(self, step: Step, batch: Any, plan: Plan) -> AbstractContextManager[None]:
        return step.arch.using(OfSoftmax(step.arch.relaxation)) if self.double_softmax else nullcontext()

    def at_temperature(self, temperature: float) -> SPDarts:
        derived = ("smooth", "warmup_smooth", "hold_sparse", "eval_temperature")
        present = {name: value for name in derived if (value := getattr(self, name)) is not None}
        scaled = {name: temperature * (value / self.sparse) for name, value in present.items()}
        return replace(self, sparse=temperature, **scaled)


# Settings, with their sources in docs/presets.md

_FAST: dict[str, Any] = {
    "threshold": 1e-3,
    "evaluate_limit": 5_000,
}  # an audit finds negligible errors, see docs/results.md
_CONSTANT: dict[str, Any] = {"weight_lr": 0.05, "weight_lr_min": 0.05}

_NB201: dict[str, Any] = {**_CONSTANT, "batch_size": 256, "sparse": 1.1e-3, "smooth": 1.1e-2}
_NB201_CIFAR100: dict[str, Any] = {"sparse": 1.3e-3, "smooth": 1.3e-2, "p_up": 0.9}
_NB201_AUTHORS: dict[str, Any] = {
    **_NB201,
    "smooth": 11 * 1.1e-3,
    "warmup_smooth": 10 * 1.1e-3,
    "clip_alphas": True,
    "split": "benchmark",
    "sampling": "replacement",
}
_NB201_AUTHORS_CIFAR100: dict[str, Any] = {
    "sparse": 1.3e-3,
    "smooth": 11 * 1.3e-3,
    "warmup_smooth": 10 * 1.3e-3,
    "p_up": 0.9,
    "hold_epoch": 45,
    "hold_sparse": 6e-4,
}

_DARTS: dict[str, Any] = {**_CONSTANT, "batch_size": 80, "sparse": 1e-3, "smooth": 1e-2}
_DARTS_AUTHORS: dict[str, Any] = {
    **_DARTS,
    "warmup_smooth": 10.0,
    "weights_first": False,
    "sampling": "anew",
    "read_out": "authors",
}

# the paper tries t_sp from 4e-4 to 7e-4 and takes the best
_ROBUST: dict[str, Any] = {**_DARTS, "sparse": 5e-4, "smooth": 5e-3, "eval_temperature": 5e-5}
_ROBUST_AUTHORS: dict[str, Any] = {
    **_ROBUST,
    "batch_size": 128,
    "weight_lr": 0.025,
    "weight_lr_min": 0.025,
    "sparse": 3e-4,
    "smooth": 3e-3,
    "double_softmax": True,
    "eval_temperature": 3e-5,
    "warmup_epochs": 0,
    "p_low": 0.8,
    "p_up": 1.1,
    "weights_first": False,
    "sampling": "anew",
    "read_out": "authors-robust",
}

_PRESETS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "nb201": {
        "paper": {"*": _NB201, "cifar100": _NB201_CIFAR100},
        "fast": {"*": {**_NB201, **_FAST, "best_from": 0.5}, "cifar100": _NB201_CIFAR100},  # see docs/evidence.md
        "authors": {"*": _NB201_AUTHORS, "cifar100": _NB201_AUTHORS_CIFAR100},
        "proxy": {"*": {**_NB201, **_FAST}},
    },
    "darts": {
        "paper": {"*": _DARTS},
        "fast": {"*": {**_DARTS, **_FAST}},
        "authors": {"*": _DARTS_AUTHORS},
        "proxy": {"*": {**_DARTS, **_FAST}},
    },
    "robust": {
        "paper": {"*": _ROBUST},
        "fast": {"*": {**_ROBUST, **_FAST}},
        "authors": {"*": _ROBUST_AUTHORS},
        "proxy": {"*": {**_ROBUST, **_FAST}},
    },
    "timm": {"default": {"*": {"sparse": 1e-3, "smooth": 1e-2, "threshold": 1e-3}}},
}


def _with(**changes: Any) -> Mapping[str, Presets]:
    """The presets of SP-DARTS with some settings changed."""
    return {
        space: {
            preset: {dataset: {**settings, **changes} for dataset, settings in of_preset.items()}
            for preset, of_preset in of_space.items()
        }
        for space, of_space in _PRESETS.items()
    }


METHODS = (
    Method("sp-darts", (SPDarts(),), "softmax at two temperatures; the share of sparse batches grows", _PRESETS),
    Method(
        "sp-darts-fixed-p",
        (SPDarts(p_low=0.5, p_up=0.5, warmup_epochs=0),),
        "SP-DARTS with the same share of sparse batches in all epochs (an ablation)",
        _with(p_low=0.5, p_up=0.5, warmup_epochs=0, hold_epoch=None, hold_sparse=None),
    ),
    Method(
        "sp-darts-both",
        (SPDarts(both_passes=True),),
        "SP-DARTS that runs every batch at both temperatures, Eq. 13 (an ablation)",
        _with(both_passes=True),
    ),
    Method(
        "sp-darts-sparsemax",
        (SPDarts(sparsemax=True),),
        "SP-DARTS with sparsemax in sparse batches (an ablation)",
        _with(sparsemax=True),
    ),
)
