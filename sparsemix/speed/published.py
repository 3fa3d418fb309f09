"""The dense formulation of the published codes, as the yardstick for speed and the oracle for correctness.

Every candidate of every edge runs in both updates, its output is multiplied by its weight, and each update is a full
backward pass through weights and alphas alike (NAS-Bench-201's DARTS, as most repositories that followed it).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import DartsNetwork, NB201Network
from ..spaces.cells import DenseCell, TwoInputCell
from ..spaces.nb201 import NB201Genotype
from ..spaces.primitives import Zero
from ..supernet.mixed_op import MixedOp

__all__ = [
    "Dense",
    "DiscreteDarts",
    "DiscreteNetwork",
    "PublishedChain",
    "PublishedDarts",
    "PublishedSupernet",
    "published_step",
    "published_weights_update",
]


class Dense(Protocol):
    """A supernet that computes its own operation weights."""

    def __call__(self, x: Tensor) -> Any: ...

    def weight_parameters(self) -> list[nn.Parameter]: ...


class _PublishedMixedOp(nn.Module):
    def __init__(self, op: MixedOp) -> None:
        super().__init__()
        self.ops = nn.ModuleList(op.candidates.values())

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        outputs = [x[:, :, :: op.stride, :: op.stride].mul(0.0) if isinstance(op, Zero) else op(x) for op in self.ops]
        return torch.as_tensor(sum(w * out for w, out in zip(weights, outputs, strict=True)))


class _PublishedCell(nn.Module):
    def __init__(self, cell: DenseCell) -> None:
        super().__init__()
        self.edges = nn.ModuleDict({name: _PublishedMixedOp(cast(MixedOp, op)) for name, op in cell.edges.items()})

    def forward(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        nodes = [x]
        for j in range(1, 4):
            nodes.append(sum(self.edges[f"{j}<-{i}"](nodes[i], weights[f"{j}<-{i}"]) for i in range(j)))
        return nodes[-1]


class PublishedChain(nn.Module):
    """A user's supernet, densely: mixed operations one after another, each with its own row of alphas."""

    def __init__(self, ops: Sequence[MixedOp], temperature: float) -> None:
        super().__init__()
        self.ops = nn.ModuleList(_PublishedMixedOp(copy.deepcopy(op)) for op in ops)
        self.alphas = nn.Parameter(torch.stack([op.alpha.detach() for op in ops]))
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        for op, weights in zip(self.ops, F.softmax(self.alphas / self.temperature, dim=-1), strict=True):
            x = op(x, weights)
        return x.mean((2, 3))

    def weight_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter is not self.alphas]


class _PublishedTwoInputCell(nn.Module):
    def __init__(self, cell: TwoInputCell) -> None:
        super().__init__()
        self.input_0, self.input_1 = cell.input_0, cell.input_1
        self.edges = nn.ModuleDict({name: _PublishedMixedOp(cast(MixedOp, op)) for name, op in cell.edges.items()})
        self.labels = {name: cast(MixedOp, op).label for name, op in cell.edges.items()}

    def forward(self, before: Tensor, last: Tensor, weights: dict[str, Tensor]) -> Tensor:
        nodes = [self.input_0(before), self.input_1(last)]
        for j in range(2, 6):
            names = [f"{j}<-{i}" for i in range(j)]
            outputs = [self.edges[n](nodes[i], weights[str(self.labels[n])]) for i, n in enumerate(names)]
            nodes.append(torch.as_tensor(sum(outputs)))
        return torch.cat(nodes[2:], dim=1)


class PublishedDarts(nn.Module):
    """The dense supernet of the DARTS space with the weights and alphas of one of this library's."""

    def __init__(self, supernet: DartsNetwork, temperature: float) -> None:
        super().__init__()
        self.net = copy.deepcopy(supernet)
        rows = {str(m.label): m.alpha.detach() for m in self.net.modules() if isinstance(m, MixedOp)}
        self.labels = list(rows)
        self.alphas = nn.ParameterList(nn.Parameter(row) for row in rows.values())
        self.temperature = temperature
        for i, cell in enumerate(self.net.cells):
            self.net.cells[i] = _PublishedTwoInputCell(cell)

    def forward(self, x: Tensor) -> Tensor:
        relaxed = [F.softmax(alpha / self.temperature, dim=-1) for alpha in self.alphas]
        weights = dict(zip(self.labels, relaxed, strict=True))
        before, last = self.net.stem(x)
        for cell in self.net.cells:
            before, last = last, cell(before, last, weights)
        return self.net.forward_head(last)

    def weight_parameters(self) -> list[nn.Parameter]:
        alphas = {id(alpha) for alpha in self.alphas}
        return [parameter for parameter in self.parameters() if id(parameter) not in alphas]


class DiscreteDarts(nn.Module):
    """A network of one operation on each of the 14 edges, written out: no mixed operation, no sharing."""

    def __init__(self, network: DartsNetwork) -> None:
        super().__init__()
        self.net = copy.deepcopy(network)

    def forward(self, x: Tensor) -> Tensor:
        before, last = self.net.stem(x)
        for cell in self.net.cells:
            nodes = [cell.input_0(before), cell.input_1(last)]
            for j in range(2, 6):
                nodes.append(torch.as_tensor(sum(cell.edges[f"{j}<-{i}"](nodes[i]) for i in range(j))))
            before, last = last, torch.cat(nodes[2:], dim=1)
        return self.net.forward_head(last)


class PublishedSupernet(nn.Module):
    """The dense NAS-Bench-201 supernet with the weights and alphas of this library's, which is unchanged."""

    def __init__(self, supernet: NB201Network, temperature: float) -> None:
        super().__init__()
        self.net = copy.deepcopy(supernet)
        rows = {m.label: m.alpha for m in self.net.modules() if isinstance(m, MixedOp)}
        self.alphas = nn.Parameter(torch.stack([rows[edge].detach() for edge in NB201Genotype.EDGES]))
        self.temperature = temperature
        for stage in self.net.stages:
            for name, block in stage.named_children():
                if isinstance(block, DenseCell):
                    setattr(stage, name, _PublishedCell(block))

    def forward(self, x: Tensor) -> Tensor:
        weights = dict(zip(NB201Genotype.EDGES, F.softmax(self.alphas / self.temperature, dim=-1), strict=True))
        x = self.net.stem(x)
        for stage in self.net.stages:
            for block in stage.children():
                x = block(x, weights) if isinstance(block, _PublishedCell) else block(x)
        return self.net.forward_head(F.relu(self.net.norm(x)))

    def weight_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter is not self.alphas]


def published_weights_update(
    model: Dense,
    weight_optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    max_norm: float = 5.0,
) -> None:
    """An update of the weights by one full backward pass, which computes alpha's gradients too."""
    weight_optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    nn.utils.clip_grad_norm_(model.weight_parameters(), max_norm)
    weight_optimizer.step()


def published_step(
    model: Dense,
    weight_optimizer: torch.optim.Optimizer,
    alpha_optimizer: torch.optim.Optimizer,
    train_batch: Sequence[Tensor],
    val_batch: Sequence[Tensor],
    max_norm: float = 5.0,
) -> None:
    """Weights, then alphas, each by one full backward pass."""
    x, y = train_batch
    published_weights_update(model, weight_optimizer, x, y, max_norm)

    x, y = val_batch
    alpha_optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    alpha_optimizer.step()


class DiscreteNetwork(nn.Module):
    """A NAS-Bench-201 network written out by hand, one operation an edge, with the modules of a final network."""

    def __init__(self, network: NB201Network) -> None:
        super().__init__()
        self.net = copy.deepcopy(network)

    def forward(self, x: Tensor) -> Tensor:
        x = self.net.stem(x)
        for stage in self.net.stages:
            for block in stage.children():
                if isinstance(block, DenseCell):
                    e = block.edges
                    n1 = e["1<-0"](x)
                    n2 = e["2<-0"](x) + e["2<-1"](n1)
                    x = e["3<-0"](x) + e["3<-1"](n1) + e["3<-2"](n2)
                else:
                    x = block(x)
        return self.net.forward_head(F.relu(self.net.norm(x)))
