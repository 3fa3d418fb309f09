"""NAS-Bench-201: its space, notation, table of accuracies, and the settings of a search of it."""

from .genotypes import NB201Genotype
from .settings import SETTINGS
from .space import NODES, OPERATIONS, cell, genotype, mixed_cell
from .table import NB201Table, convert_nats_bench

__all__ = [
    "NODES",
    "OPERATIONS",
    "SETTINGS",
    "NB201Genotype",
    "NB201Table",
    "cell",
    "convert_nats_bench",
    "genotype",
    "mixed_cell",
]
