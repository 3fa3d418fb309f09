"""Reading a pair of cells out of a supernet of the DARTS space: the two strongest edges of every node.

Source: Liu et al., "DARTS", section 2.4; where published codes differ, :class:`ReadOut`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...supernet.group import ArchParameterGroup
from .genotypes import DartsGenotype
from .space import NODES

__all__ = ["READ_OUTS", "Candidate", "ReadOut", "genotype", "select"]


@dataclass(frozen=True)
class ReadOut:
    """How edges and operations are ranked where published codes differ.

    Attributes:
        decimals: number of decimals to which weights are rounded before comparison; None: no rounding, and edges are
            compared by the log-odds of the winner's weight, which do not saturate where many weights are 1.0000.
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

    Where ``arch.discretization`` may keep several operations of an edge, or none, as that of Fair DARTS does,
    operations do not compete: edges are ranked by their strongest alpha, and a node gets all operations that its two
    strongest edges keep. Nodes without incoming edges are left out, together with the edges that read them.

    Args:
        arch: of a supernet of :func:`mixed_cell`.
        temperature: t, positive; with more than two operations an edge the ranking depends on it. The paper's is t_sp.
        rule: how ties are broken, and whether weights are rounded first.
    """
    edge_weights, choices = arch.edge_weights(), arch.choices()

    def candidate(kind: str, node: int, source: int) -> Candidate:
        label = f"{kind} {node}<-{source}"
        op = arch.rows[label][0]
        alpha, weight = op.alpha.detach().double(), edge_weights[label].item()
        kept = None if arch.keeps_one else choices[label]
        return Candidate(op.names, alpha, op.allowed_names, weight, kept)

    def cell(kind: str) -> tuple[tuple[tuple[str, int, int], ...], tuple[int, ...]]:
        """Its edges, and the nodes that something leads to."""
        edges: list[tuple[str, int, int]] = []
        reached = [0, 1]
        for node in NODES:
            found = select([candidate(kind, node, source) for source in range(node)], temperature, rule)
            if arriving := [(operation, node, source) for operation, source in found if source in reached]:
                edges += arriving
                reached.append(node)
        return tuple(edges), tuple(reached[2:])

    (normal, normal_concat), (reduce, reduce_concat) = map(cell, DartsGenotype.CELLS)
    return DartsGenotype(normal, normal_concat, reduce, reduce_concat)


class Candidate(NamedTuple):
    """An edge that a node may keep.

    Attributes:
        names: of its operations.
        alpha: their logits ``(M,)``.
        allowed: names of the operations that may be chosen; None: all of them.
        weight: of the edge among those of its node.
        kept: the operations that the edge has if the node keeps it; None: one, the strongest but ``none``.
    """

    names: tuple[str, ...]
    alpha: Tensor
    allowed: tuple[str, ...] | None = None
    weight: float = 1.0
    kept: tuple[str, ...] | None = None


def select(edges: Sequence[Candidate], temperature: float, rule: ReadOut = READ_OUTS["exact"]) -> list[tuple[str, int]]:
    """The operations of the two strongest edges of one node: (operation, predecessor), those of the stronger first.

    Removed edges, and edges that allow only ``none``, come last, but are kept if a node would have fewer than two.

    Args:
        edges: one from each predecessor.
        temperature: t.
        rule: see :class:`ReadOut`.
    """
    is_weighed = any(edge.weight != 1 for edge in edges)
    ranked = []
    for source, edge in enumerate(edges):
        strength, operations = _read(edge, temperature, rule, is_weighed)
        ranked.append((strength, source if rule.later_edge else -source, operations, source))
    ranked.sort(reverse=True)
    return [(operation, source) for _, _, operations, source in ranked[:2] for operation in operations]


def _read(edge: Candidate, temperature: float, rule: ReadOut, is_weighed: bool) -> tuple[float, tuple[str, ...]]:
    """How strong an edge is, and the operations that it has."""
    names, alpha, allowed, weight, kept = edge
    order = [k for k in range(len(names)) if names[k] != "none"][:: -1 if rule.last_operation else 1]
    possible = [k for k in order if allowed is None or names[k] in allowed]
    if kept is not None:
        strength = max((alpha[k].item() for k in possible), default=-math.inf)
        return strength, tuple(name for name in kept if name != "none")
    if not possible:
        return -math.inf, (names[max(order, key=alpha.tolist().__getitem__)],)
    forbidden = torch.tensor([allowed is not None and name not in allowed for name in names])
    scores = (alpha / temperature).masked_fill(forbidden, -math.inf)
    strengths = _strengths(scores, rule)
    best = max(possible, key=strengths.__getitem__)  # the edge weight does not affect this choice
    return (_weighed(scores, weight, rule) if is_weighed else strengths)[best], (names[best],)


def _weighed(scores: Tensor, weight: float, rule: ReadOut) -> list[float]:
    """Edge weight times operation weight, ``beta_e a_em``, as PC-DARTS ranks edges."""
    weights = (weight * torch.softmax(scores, dim=0)).tolist()
    return weights if rule.decimals is None else [round(value, rule.decimals) for value in weights]


def _strengths(scores: Tensor, rule: ReadOut) -> list[float]:
    if rule.decimals is not None:
        return [round(weight, rule.decimals) for weight in torch.softmax(scores, dim=0).tolist()]
    others = [torch.cat([scores[:k], scores[k + 1 :]]) for k in range(len(scores))]
    return [float(score - rest.logsumexp(0)) for score, rest in zip(scores, others, strict=True)]
