"""DARTS: a softmax of the alphas mixes the operations of an edge, in every batch.

Source: Liu et al., "DARTS: Differentiable Architecture Search". First-order DARTS (DARTS-V1) is the default search.
DARTS-0.1 is a baseline of Zhang and Ding (Table VI): a large learning rate alone makes the operation weights sparse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..relaxations import Softmax
from .method import Method, Part, Plan, Presets

__all__ = ["METHODS", "ORIGINAL", "PLAIN", "SETTINGS", "Darts"]


@dataclass(frozen=True)
class Darts(Part):
    """A softmax of the alphas at temperature 1 mixes the operations (Eq. 2 of the source)."""

    eval_temperature: float = 1.0
    """Temperature at which the supernet is evaluated."""

    def __post_init__(self) -> None:
        if not self.eval_temperature > 0:
            raise ValueError(f"Darts: eval_temperature must be positive, got {self.eval_temperature}")

    def evaluation(self, plan: Plan) -> Softmax:
        return Softmax(self.eval_temperature)


SETTINGS: dict[str, Any] = {"batch_size": 64, "weight_lr": 0.025, "weight_lr_min": 0.001, "alpha_weight_decay": 1e-3}
"""The search of Liu et al. (section 3.1.2 and appendix A.1.1), on which many others are based."""

# as NAS-Bench-201's own code runs it, and as the authors of SP-DARTS do
_NB201: dict[str, Any] = {**SETTINGS, "clip_alphas": True, "split": "benchmark", "sampling": "replacement"}
_NB201_AUTHORS: dict[str, Any] = {
    **_NB201,
    "batch_size": 256,
    "weight_lr": 0.025,
    "weight_lr_min": 0.025,
    "alpha_weight_decay": 0.0,
    "eval_temperature": 1e-4,
}
ORIGINAL: dict[str, Any] = {**SETTINGS, "weights_first": False, "sampling": "anew"}
"""The same as in the DARTS code, which updates the alphas first, on batches from a new shuffle each time."""


def _presets(**changes: Any) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """The presets of DARTS with some settings changed."""
    presets: dict[str, dict[str, dict[str, Any]]] = {
        "nb201": {"nas-bench-201": _NB201, "authors": _NB201_AUTHORS},
        # its operations include none
        "darts": {"original": {**ORIGINAL, "space": "darts-none"}, "proxy": ORIGINAL},
        "robust": {"original": ORIGINAL},
        "timm": {"default": SETTINGS},
    }
    return {space: {name: {"*": {**s, **changes}} for name, s in named.items()} for space, named in presets.items()}


def _without(setting: str, presets: Mapping[str, Presets]) -> dict[str, Presets]:
    return {
        space: {
            name: {dataset: {k: v for k, v in settings.items() if k != setting} for dataset, settings in named.items()}
            for name, named in of_space.items()
        }
        for space, of_space in presets.items()
    }


PLAIN = _without("eval_temperature", _presets())
"""The presets of DARTS for methods with an evaluation of their own."""

METHODS = (
    Method("darts", (Darts(),), "softmax of the alphas, always at temperature 1", _presets()),
    Method(
        "darts-v2",
        (Darts(),),
        "DARTS with the alphas' gradient through a step of the weights",
        _presets(order="second"),
    ),
    Method("darts-0.1", (Darts(),), "DARTS with a learning rate of 0.1 for the alphas", _presets(alpha_lr=0.1)),
)
