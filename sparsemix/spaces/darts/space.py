"""The space of DARTS: two cells with two inputs, four nodes and 14 edges each, and up to eight operations an edge.

Source: Liu et al., "DARTS: Differentiable Architecture Search", section 3.1.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from ...supernet.mixed_op import MixedOp
from ...supernet.partial import share_of
from ..cells import TwoInputCell
from ..primitives import (
    AvgPool,
    Conv7x1And1x7,
    DilConv,
    FactorizedReduce,
    MaxPool,
    MaxPool2x2,
    Noise,
    NormalizedPool,
    ReLUConvBN,
    SepConv,
    Zero,
)
from .genotypes import DartsGenotype

__all__ = [
    "DARTS",
    "EDGES",
    "NODES",
    "OPERATIONS",
    "PRIMITIVES",
    "WITH_NONE",
    "Space",
    "cell",
    "check_space",
    "everywhere",
    "mixed_cell",
]

Space = Mapping[str, Mapping[str, tuple[str, ...]]]  # cell -> edge -> operations

NODES = range(2, 6)
EDGES = tuple(f"{target}<-{source}" for target in NODES for source in range(target))


def everywhere(*operations: str) -> Space:
    """The space that has these operations on every edge of both cells."""
    return {cell: dict.fromkeys(EDGES, operations) for cell in DartsGenotype.CELLS}


def check_space(space: Space) -> None:
    """Check that a space gives known operations, and not only ``none``, to all 14 edges of both cells.

    Raises:
        ValueError: names the cell and the edge.
    """
    for kind in DartsGenotype.CELLS:
        edges = space.get(kind, {})
        if set(edges) != set(EDGES):
            raise ValueError(f"the {kind} cell of a space has the edges {', '.join(EDGES)}, got {', '.join(edges)}")
        for edge, operations in edges.items():
            unknown = [name for name in operations if name not in OPERATIONS]
            if unknown or set(operations) <= {"none"}:
                raise ValueError(
                    f"edge {edge} of the {kind} cell needs an operation other than none, of {', '.join(OPERATIONS)}; "
                    f"got {', '.join(operations)}"
                )


PRIMITIVES = DartsGenotype.OPERATIONS[1:8]  # the paper's seven, from max_pool_3x3 to dil_conv_5x5
DARTS: Space = everywhere(*PRIMITIVES)
WITH_NONE: Space = everywhere("none", *PRIMITIVES)

# name -> (channels, stride, whether it is in a supernet) -> module. In a supernet no batch norm is affine, and poolings
# are followed by one.
OPERATIONS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "none": lambda channels, stride, search: Zero(stride),
    "max_pool_3x3": lambda channels, stride, search: _pool(MaxPool(stride), channels, search),
    "avg_pool_3x3": lambda channels, stride, search: _pool(AvgPool(stride), channels, search),
    "skip_connect": lambda channels, stride, search: (
        nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=not search)
    ),
    "sep_conv_3x3": lambda channels, stride, search: SepConv(channels, 3, stride, affine=not search),
    "sep_conv_5x5": lambda channels, stride, search: SepConv(channels, 5, stride, affine=not search),
    "sep_conv_7x7": lambda channels, stride, search: SepConv(channels, 7, stride, affine=not search),
    "dil_conv_3x3": lambda channels, stride, search: DilConv(channels, 3, stride, affine=not search),
    "dil_conv_5x5": lambda channels, stride, search: DilConv(channels, 5, stride, affine=not search),
    "conv_7x1_1x7": lambda channels, stride, search: Conv7x1And1x7(channels, stride, affine=not search),
    "noise": lambda channels, stride, search: Noise(stride),
    "conv_1x1": lambda channels, stride, search: ReLUConvBN(channels, channels, 1, stride, affine=not search),
    "conv_3x3": lambda channels, stride, search: ReLUConvBN(channels, channels, 3, stride, affine=not search),
    "max_pool_2x2": lambda channels, stride, search: _pool(MaxPool2x2(stride), channels, search),
    "dil_sep_conv_5x5": lambda channels, stride, search: SepConv(channels, 5, stride, not search, dilation=2),
}


def _pool(pool: Any, channels: int, search: bool) -> nn.Module:
    return NormalizedPool(pool, channels) if search else pool


def _stride(kind: str, edge: str) -> int:
    """Edges from the inputs of a reduction cell have a stride of 2."""
    return 2 if kind == "reduce" and edge.rstrip("'").endswith(("<-0", "<-1")) else 1


def mixed_cell(
    space: Space,
    kind: str,
    in_channels: tuple[int, int],
    channels: int,
    halved: bool,
    drop_path: nn.Module | None = None,
    channel_parts: int = 1,
) -> TwoInputCell:
    """A cell of the supernet: the space's operations on every edge, rows labelled by cell and edge, ``normal 2<-0``.

    With ``channel_parts`` K edges mix ``channels / K`` of the channels (:mod:`sparsemix.supernet.partial`).
    """
    build = partial(_candidates, space, kind, channels)
    edges = {
        edge: MixedOp(build(edge, channel_parts), label=f"{kind} {edge}", node=f"{kind} {edge.split('<-')[0]}")
        for edge in space[kind]
    }
    return TwoInputCell(edges, NODES, in_channels, channels, halved, False, drop_path, channel_parts, build)


def _candidates(space: Space, kind: str, channels: int, edge: str, channel_parts: int) -> dict[str, nn.Module]:
    """The operations of an edge, for one in K of the channels."""
    mixed = share_of(channels, channel_parts)
    return {name: OPERATIONS[name](mixed, _stride(kind, edge), True) for name in space[kind][edge]}


def cell(
    genotype: DartsGenotype,
    kind: str,
    in_channels: tuple[int, int],
    channels: int,
    halved: bool,
    drop_path: nn.Module | None = None,
    search: bool = False,
) -> TwoInputCell:
    """A cell of the final network; with ``search`` its operations are those of a supernet.

    Raises:
        ValueError: nothing was kept of that cell.
    """
    if not genotype.edges(kind):
        raise ValueError(
            f"the {kind} cell of this genotype keeps no operation, so that there is no network to build: search for "
            f"more epochs, or keep operations from a lower threshold on; got {genotype}"
        )
    edges = {
        edge: OPERATIONS[name](channels, _stride(kind, edge), search) for edge, name in genotype.edges(kind).items()
    }
    concat = getattr(genotype, f"{kind}_concat")
    return TwoInputCell(edges, concat, in_channels, channels, halved, affine=not search, drop_path=drop_path)
