"""SGAS: every few epochs the edge with the clearest choice is decided for good.

Source: Li et al., "SGAS: Sequential Greedy Architecture Search". Presets are their published code, which also enlarges
the batches by 8 images after every decision; here the batch size is constant. For that edge, ``sgas+pt`` chooses the
operation whose removal lowers accuracy most (Wang et al., "Rethinking Architecture Selection").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..supernet.group import ArchParameterGroup
from .darts import ORIGINAL, SETTINGS
from .method import Evidence, Method, Part, Plan
from .pt import by_kind, needed

__all__ = ["METHODS", "SGAS", "edge_scores"]


def edge_scores(rows: Sequence[Tensor], nothing: Sequence[Tensor], history: Sequence[Sequence[Tensor]] = ()) -> Tensor:
    """How clear the choice on every edge is: importance times certainty, times stability where there is a history.

    Importance is the weight of all operations but ``none``; certainty is 1 minus the entropy of their shares, relative
    to its maximum; stability is the mean overlap of the shares with those of earlier epochs. Each is rescaled to
    [0, 1] over these edges (Eq. 3 to 8).

    Args:
        rows: alphas of each edge ``(M,)``.
        nothing: for each edge, a bool mask ``(M,)`` of its ``none`` operations.
        history: alphas of the edges in earlier epochs.

    Example:
        >>> clear, unclear = torch.tensor([0.0, 3.0, 0.0]), torch.tensor([0.0, 1.0, 1.0])
        >>> none = torch.tensor([True, False, False])
        >>> edge_scores([clear, unclear], [none, none])
        tensor([1., 0.])
    """
    importance = torch.stack([row.softmax(0)[~none].sum() for row, none in zip(rows, nothing, strict=True)])
    shares = _shares(rows, nothing)
    certainty = torch.stack([1 - torch.special.entr(share).sum() / math.log(max(len(share), 2)) for share in shares])
    score = _to_unit(importance) * _to_unit(certainty)
    if history:
        past = [_shares(earlier, nothing) for earlier in history]
        overlap = [[torch.minimum(a, b).sum() for a, b in zip(shares, earlier, strict=True)] for earlier in past]
        score = score * _to_unit(torch.tensor(overlap).mean(0))
    return score


def _shares(rows: Sequence[Tensor], nothing: Sequence[Tensor]) -> list[Tensor]:
    """Softmax over the operations but ``none``."""
    return [row[~none].softmax(0) for row, none in zip(rows, nothing, strict=True)]


def _to_unit(values: Tensor) -> Tensor:
    """The values rescaled to [0, 1]; if all are equal, 1, so that they have no effect."""
    low, high = values.aminmax()
    return (values - low) / (high - low) if high > low else torch.ones_like(values)


@dataclass(frozen=True)
class SGAS(Part):
    """One edge of every kind of cell is decided every few epochs, the clearest first."""

    first_decision: int = 10
    """Epoch, counted from 0, at whose beginning the first edges are decided."""
    decision_every: int = 5
    """Epochs between decisions."""
    edges_per_node: int | None = None
    """Edges that each node keeps; once these are decided, the others are removed. By default all."""
    history: int = 0
    """Number of earlier epochs over which the stability of a choice is measured; 0 ignores stability."""
    by_accuracy: bool = False
    """Choose the operation whose removal lowers accuracy most, instead of the strongest."""

    needs_mixtures: ClassVar[str | None] = "decides in a mixture"

    def __post_init__(self) -> None:
        if min(self.first_decision, self.decision_every) < 1 or self.history < 0:
            raise ValueError(
                f"SGAS: first_decision and decision_every must be at least 1 and history not negative, got "
                f"{self.first_decision}, {self.decision_every} and {self.history}"
            )
        if self.edges_per_node is not None and self.edges_per_node < 1:
            raise ValueError(f"SGAS: edges_per_node must be at least 1, got {self.edges_per_node}")

    def check(self, arch: ArchParameterGroup, epochs: int) -> None:
        decisions = max(map(len, by_kind(self._kept(arch)).values()))
        last = self.first_decision + self.decision_every * (decisions - 1)
        if last >= epochs:
            raise ValueError(
                f"SGAS: {decisions} decisions, every {self.decision_every} epochs from epoch {self.first_decision} on, "
                f"end in epoch {last}; the search has {epochs} epochs"
            )

    def _kept(self, arch: ArchParameterGroup) -> list[str]:
        """As many rows as there will be decisions."""
        kept: dict[Any, list[str]] = {}
        for row, (op, *_) in arch.rows.items():
            if len(op) > 1:
                kept.setdefault(row if op.node is None else op.node, []).append(row)
        return [row for rows in kept.values() for row in rows[: self.edges_per_node]]

    def decide(self, arch: ArchParameterGroup, evidence: Evidence) -> Plan:
        since = evidence.moment.epoch - self.first_decision
        if since < 0 or since % self.decision_every:
            return {}
        open_rows = [row for row, (op, *_) in arch.rows.items() if len(op.allowed_names) > 1]
        for rows in by_kind(open_rows).values():
            row = rows[int(self._scores(arch, rows, evidence).argmax())]
            arch.restrict(row, [self._chosen(arch, row, evidence)])
            self._close_node(arch, row)
        left = {row: op.allowed_names for row, (op, *_) in arch.rows.items()}
        return {"decided": {row: [*names] for row, names in left.items() if len(names) < 2}}

    def _scores(self, arch: ArchParameterGroup, rows: Sequence[str], evidence: Evidence) -> Tensor:
        ops = [arch.rows[row][0] for row in rows]
        nothing = [torch.tensor([name == "none" for name in op.names]) for op in ops]
        recent = evidence.records[:-1][-self.history :] if self.history else ()
        history = [[torch.tensor(record["alphas"][row]) for row in rows] for record in recent]
        return edge_scores([op.alpha.detach().cpu() for op in ops], nothing, history)

    def _chosen(self, arch: ArchParameterGroup, row: str, evidence: Evidence) -> str:
        """The operation chosen for an edge. Never ``none`` if nodes drop edges, since that has the same effect."""
        op = arch.rows[row][0]
        names = [name for name in op.ranked() if name != "none" or self.edges_per_node is None]
        if self.by_accuracy:
            return needed(arch, row, evidence.accuracy, names)
        return names[0]

    def _close_node(self, arch: ArchParameterGroup, decided: str) -> None:
        """Once a node has all the edges that it keeps, remove the others."""
        node = arch.rows[decided][0].node
        if self.edges_per_node is None or node is None:
            return
        leading = {row: len(op.allowed_names) for row, (op, *_) in arch.rows.items() if op.node == node}
        if sum(left == 1 for left in leading.values()) >= self.edges_per_node:
            for row, left in leading.items():
                if left > 1:
                    arch.restrict(row, ())


_NB201: dict[str, Any] = {**ORIGINAL, "weight_decay": 3e-4, "nesterov": False}
_SMALL_NB201: dict[str, Any] = {**_NB201, "first_decision": 5, "decision_every": 3}
_DARTS: dict[str, Any] = {**ORIGINAL, "edges_per_node": 2}
_SMALL: dict[str, Any] = {**_DARTS, "first_decision": 2, "decision_every": 1}  # as a share of the proxy's epochs


def _presets(history: int) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Presets of SGAS: criterion 1 without a history, criterion 2 with one."""
    of_space: dict[str, dict[str, dict[str, Any]]] = {
        "nb201": {"original": _NB201, "proxy": _SMALL_NB201},
        "darts": {"original": {**_DARTS, "space": "darts-none"}, "proxy": _SMALL},
        "robust": {"original": _DARTS, "proxy": _SMALL},
        "timm": {"default": SETTINGS},
    }
    return {
        space: {name: {"*": {**settings, "history": history}} for name, settings in named.items()}
        for space, named in of_space.items()
    }


METHODS = (
    Method("sgas", (SGAS(),), "the clearest edge is decided every few epochs (criterion 1)", _presets(0)),
    Method("sgas-2", (SGAS(history=4),), "SGAS that also asks for stable weights (criterion 2)", _presets(4)),
    Method(
        "sgas+pt",
        (SGAS(by_accuracy=True),),
        "the clearest edge is decided every few epochs, by the accuracy that is lost without an operation",
        _presets(0),
    ),
)
