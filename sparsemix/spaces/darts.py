"""The space of DARTS: two cells with two inputs, four nodes and 14 edges each, and up to eight operations an edge.

Source: Liu et al., "DARTS: Differentiable Architecture Search", section 3.1.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..supernet.group import ArchParameterGroup
from ..supernet.mixed_op import MixedOp
from .cells import TwoInputCell
from .genotypes import DartsGenotype
from .primitives import AvgPool, Conv7x1And1x7, DilConv, FactorizedReduce, MaxPool, Noise, NormalizedPool, SepConv, Zero

__all__ = [
    "DARTS",
    "EDGES",
    "OPERATIONS",
    "PRIMITIVES",
    "READ_OUTS",
    "WITH_NONE",
    "Candidate",
    "ReadOut",
    "Space",
    "cell",
    "check_space",
    "everywhere",
    "genotype",
    "mixed_cell",
    "select",
]

Space = Mapping[str, Mapping[str, tuple[str, ...]]]  # cell -> edge -> operations

NODES = range(2, 6)
EDGES = tuple(f"{target}<-{source}" for target in NODES for source in range(target))


def everywhere(*operations: str) -> Space:
    """The space that has these operations on every edge of both cells."""
    return {cell: dict.fromkeys(EDGES, operations) for cell in DartsGenotype.CELLS}


def check_space(space: Space) -> None:
    """Insist that a space has operations that this module knows on the 14 edges of both cells, and not ``none`` alone.

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
) -> TwoInputCell:
    """A cell of the supernet: the space's operations on every edge, rows labelled by cell and edge, ``normal 2<-0``."""
    edges = {
        edge: MixedOp(
            {name: OPERATIONS[name](channels, _stride(kind, edge), True) for name in operations},
            label=f"{kind} {edge}",
            node=f"{kind} {edge.split('<-')[0]}",
        )
        for edge, operations in space[kind].items()
    }
    return TwoInputCell(edges, NODES, in_channels, channels, halved, affine=False, drop_path=drop_path)


def cell(
    genotype: DartsGenotype,
    kind: str,
    in_channels: tuple[int, int],
    channels: int,
    halved: bool,
    drop_path: nn.Module | None = None,
    search: bool = False,
) -> TwoInputCell:
    """A cell of the final network; with ``search`` its operations are those of a supernet."""
    edges = {
        edge: OPERATIONS[name](channels, _stride(kind, edge), search) for edge, name in genotype.edges(kind).items()
    }
    concat = getattr(genotype, f"{kind}_concat")
    return TwoInputCell(edges, concat, in_channels, channels, halved, affine=not search, drop_path=drop_path)


# Reading out


@dataclass(frozen=True)
class ReadOut:
    """How edges and operations are ranked where published codes differ.

    Attributes:
        decimals: weights are rounded to as many before they are compared; None: not at all, and then edges are compared
            by the log-odds of the winner's weight, which do not saturate where many weights are 1.0000.
        later_edge: of edges that tie, the later predecessor is kept.
        last_operation: of operations that tie, the last is chosen.
    """

    decimals: int | None = None
    later_edge: bool = False
    last_operation: bool = False


READ_OUTS = {
    "exact": ReadOut(),
    "authors": ReadOut(decimals=4, later_edge=True),
    "authors-robust": ReadOut(decimals=3, last_operation=True),
}


def genotype(arch: ArchParameterGroup, temperature: float, rule: ReadOut = READ_OUTS["exact"]) -> DartsGenotype:
    """Read both cells out of a supernet's alphas: for each node the two edges whose best operation is strongest.

    ``none`` is left out of both choices, but weighs in: an edge that prefers it is a weak one. Edges are ranked by the
    weight of their best operation k at the temperature, as log-odds
    ``alpha_k / t - log sum_{m != k} exp(alpha_m / t)``: strictly monotone in that weight, and exact where the weight
    itself is within rounding of 1. Edges that compete are ranked by ``beta_e a_ek``.

    Args:
        arch: of a supernet of :func:`mixed_cell`.
        temperature: t, positive; with more than two operations an edge the ranking depends on it. The paper's is t_sp.
        rule: how ties are broken, and whether weights are rounded first.
    """
    edge_weights = arch.edge_weights()

    def candidate(kind: str, node: int, source: int) -> Candidate:
        label = f"{kind} {node}<-{source}"
        op = arch.rows[label][0]
        alpha, weight = op.alpha.detach().double(), edge_weights[label].item()
        return Candidate(op.names, alpha, op.allowed_names, weight)

    cells = {
        kind: [
            pair
            for node in NODES
            for pair in select([candidate(kind, node, source) for source in range(node)], temperature, rule)
        ]
        for kind in DartsGenotype.CELLS
    }
    return DartsGenotype(tuple(cells["normal"]), tuple(NODES), tuple(cells["reduce"]), tuple(NODES))


class Candidate(NamedTuple):
    """An edge that a node may keep.

    Attributes:
        names: of its operations.
        alpha: their logits ``(M,)``.
        allowed: names of the operations that may be chosen; None: all of them.
        weight: of the edge among those of its node.
    """

    names: tuple[str, ...]
    alpha: Tensor
    allowed: tuple[str, ...] | None = None
    weight: float = 1.0


def select(edges: Sequence[Candidate], temperature: float, rule: ReadOut = READ_OUTS["exact"]) -> list[tuple[str, int]]:
    """The two edges of one node: (operation, predecessor), the stronger first.

    Edges that have been removed, and those that may only be ``none``, come last: every node has two.

    Args:
        edges: one from each predecessor.
        temperature: t.
        rule: see :class:`ReadOut`.
    """
    is_weighed = any(edge.weight != 1 for edge in edges)
    ranked = []
    for source, (names, alpha, allowed, weight) in enumerate(edges):
        order = [k for k in range(len(names)) if names[k] != "none"][:: -1 if rule.last_operation else 1]
        possible = [k for k in order if allowed is None or names[k] in allowed]
        if not possible:
            best, strength = max(order, key=alpha.tolist().__getitem__), -math.inf
        else:
            forbidden = torch.tensor([allowed is not None and name not in allowed for name in names])
            scores = (alpha / temperature).masked_fill(forbidden, -math.inf)
            strengths = _weighed(scores, weight, rule) if is_weighed else _strengths(scores, rule)
            best = max(possible, key=strengths.__getitem__)
            strength = strengths[best]
        ranked.append((strength, source if rule.later_edge else -source, names[best], source))
    ranked.sort(reverse=True)
    return [(name, source) for _, _, name, source in ranked[:2]]


def _weighed(scores: Tensor, weight: float, rule: ReadOut) -> list[float]:
    """Edge weight times operation weight, ``beta_e a_em``, as PC-DARTS ranks edges."""
    weights = (weight * torch.softmax(scores, dim=0)).tolist()
    return weights if rule.decimals is None else [round(value, rule.decimals) for value in weights]


def _strengths(scores: Tensor, rule: ReadOut) -> list[float]:
    if rule.decimals is not None:
        return [round(weight, rule.decimals) for weight in torch.softmax(scores, dim=0).tolist()]
    others = [torch.cat([scores[:k], scores[k + 1 :]]) for k in range(len(scores))]
    return [float(score - rest.logsumexp(0)) for score, rest in zip(scores, others, strict=True)]
