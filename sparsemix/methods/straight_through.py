"""Straight-through top-1: the strongest operation of each edge runs, and the softmax's gradient trains the alphas.

A control for methods that sample one operation: nothing is drawn, so once an operation leads, it is the only one that
learns. Source of the estimator: Bengio et al., "Estimating or Propagating Gradients Through Stochastic
Neurons for Conditional Computation".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import relaxations
from .darts import PLAIN
from .method import Method, Part, Plan

__all__ = ["METHODS", "StraightThrough"]


@dataclass(frozen=True)
class StraightThrough(Part):
    """The strongest operation of an edge runs alone; the gradient is that of the softmax."""

    mixes: ClassVar[bool] = False

    def relaxation(self, plan: Plan) -> relaxations.StraightThrough:
        return relaxations.StraightThrough()

    def evaluation(self, plan: Plan) -> relaxations.Argmax:
        """The strongest operations alone, as in training."""
        return relaxations.Argmax()


_SUMMARY = "the strongest operation of an edge alone, straight-through gradient (a control)"

METHODS = (Method("straight-through", (StraightThrough(),), _SUMMARY, PLAIN),)
