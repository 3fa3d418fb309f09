"""Differentiable architecture search with mixed temperatures, for the models you already have."""

from .methods.schedule import BatchMixedScheduler
from .relaxations import SparseSmoothSoftmax
from .supernet.group import ArchParameterGroup
from .supernet.mixed_op import MixedOp

__all__ = ["ArchParameterGroup", "BatchMixedScheduler", "MixedOp", "SparseSmoothSoftmax"]
__version__ = "0.3.0"
