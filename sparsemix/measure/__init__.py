"""Measures of a search: accuracy, discretisation gap, leakage, the error that a threshold causes, and cost."""

from .accuracy import Discretization, accuracy, discretization, renewed_statistics, topk_accuracy
from .audit import Audit, audit
from .best_epoch import best_epoch
from .cost import CostTable, CostTerm, macs, measure_costs, parameters, seconds
from .leakage import Leakage, leakage

__all__ = [
    "Audit",
    "CostTable",
    "CostTerm",
    "Discretization",
    "Leakage",
    "accuracy",
    "audit",
    "best_epoch",
    "discretization",
    "leakage",
    "macs",
    "measure_costs",
    "parameters",
    "renewed_statistics",
    "seconds",
    "topk_accuracy",
]
