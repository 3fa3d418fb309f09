"""The space of DARTS and its relatives S1 to S4: operations, notation, read-out, published cells, settings."""

from . import robust
from .genotypes import DartsGenotype
from .published import PUBLISHED, Published, read_genotype
from .read_out import READ_OUTS, Candidate, ReadOut, genotype, select
from .settings import ROBUST_SETTINGS, SETTINGS
from .space import (
    DARTS,
    EDGES,
    NODES,
    OPERATIONS,
    PRIMITIVES,
    WITH_NONE,
    Space,
    cell,
    check_space,
    everywhere,
    mixed_cell,
)

__all__ = [
    "DARTS",
    "EDGES",
    "NODES",
    "OPERATIONS",
    "PRIMITIVES",
    "PUBLISHED",
    "READ_OUTS",
    "ROBUST_SETTINGS",
    "SETTINGS",
    "WITH_NONE",
    "Candidate",
    "DartsGenotype",
    "Published",
    "ReadOut",
    "Space",
    "cell",
    "check_space",
    "everywhere",
    "genotype",
    "mixed_cell",
    "read_genotype",
    "robust",
    "select",
]
