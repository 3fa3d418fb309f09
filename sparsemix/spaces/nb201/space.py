"""The NAS-Bench-201 space: five operations on the six edges of a four-node cell.

Source: Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from ...supernet.group import ArchParameterGroup
from ...supernet.mixed_op import MixedOp
from ...supernet.partial import share_of
from ..cells import DenseCell
from ..primitives import AvgPool, ReLUConvBN, Zero
from .genotypes import NB201Genotype

__all__ = ["NODES", "OPERATIONS", "cell", "genotype", "mixed_cell"]

NODES = 4

# name -> (channels, whether batch norm is affine) -> module
OPERATIONS: dict[str, Callable[[int, bool], nn.Module]] = {
    "none": lambda channels, affine: Zero(),
    "skip_connect": lambda channels, affine: nn.Identity(),
    "nor_conv_1x1": lambda channels, affine: ReLUConvBN(channels, channels, 1, affine=affine),
    "nor_conv_3x3": lambda channels, affine: ReLUConvBN(channels, channels, 3, affine=affine),
    "avg_pool_3x3": lambda channels, affine: AvgPool(),
}


def mixed_cell(
    channels: int, drop_path: nn.Module | None = None, without: Sequence[str] = (), channel_parts: int = 1
) -> DenseCell:
    """A supernet cell: all operations but ``without`` on every edge, rows labelled by edge, batch norm not affine.

    Raises:
        ValueError: ``without`` names an operation that the space does not have, or all of them; ``channel_parts`` does
            not divide the channels.
    """
    operations = [op for op in OPERATIONS if op not in without]
    if not operations or len(operations) + len({*without}) != len(OPERATIONS):
        raise ValueError(f"NAS-Bench-201 has the operations {', '.join(OPERATIONS)}; cannot leave out {without}")

    build = partial(_candidates, operations, channels)

    def mixed_edge(name: str) -> MixedOp:
        return MixedOp(build(name, channel_parts), label=name, node=name.split("<-")[0])

    return DenseCell(NODES, mixed_edge, drop_path, channel_parts, build)


def _candidates(operations: Sequence[str], channels: int, edge: str, channel_parts: int) -> dict[str, nn.Module]:
    """The operations of any edge, for one in K of the channels."""
    mixed = share_of(channels, channel_parts)
    return {op: OPERATIONS[op](mixed, False) for op in operations}


def cell(genotype: NB201Genotype, channels: int, drop_path: nn.Module | None = None) -> DenseCell:
    """A cell of the final network: one operation on every edge, batch norm affine."""
    chosen = genotype.by_edge()
    return DenseCell(NODES, lambda name: OPERATIONS[chosen[name]](channels, True), drop_path)


def genotype(arch: ArchParameterGroup) -> NB201Genotype:
    """Read a cell out of the supernet's alphas: argmax of each edge, ``none`` allowed, a tie to the lower index.

    An edge that was removed, or that keeps no operation, is ``none``.

    Raises:
        ValueError: an edge keeps several operations.
    """
    choices = arch.choices()
    for edge, names in choices.items():
        if len(names) > 1:
            raise ValueError(
                f"NAS-Bench-201 has one operation on each edge, and edge {edge} keeps {len(names)}: "
                f"{', '.join(names)}; keep at most one an edge"
            )
    return NB201Genotype.from_edges({edge: names[0] if names else "none" for edge, names in choices.items()})
