"""Differentiable architecture search with mixed temperatures, for the models you already have."""

from .arch_parameters import ArchParameterGroup
from .mixed_op import MixedOp
from .relaxation import SparseSmoothSoftmax
from .schedule import BatchMixedScheduler

__all__ = ["ArchParameterGroup", "BatchMixedScheduler", "MixedOp", "SparseSmoothSoftmax"]
__version__ = "0.2.0"
