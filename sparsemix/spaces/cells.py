"""Building blocks shared by the networks of several spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..supernet.execution import Weights
from ..supernet.forward import with_zero_gradients
from ..supernet.mixed_op import MixedOp, fan_out, is_idle
from ..supernet.partial import PartlyMixed, joined, split_channels
from ..supernet.sums import add_each
from .primitives import FactorizedReduce, ReLUConvBN

__all__ = ["Cell", "DenseCell", "ResidualReduction", "TwoInputCell"]

CandidateFactory = Callable[[str, int], Mapping[str, nn.Module]]  # (edge name, K) -> name -> candidate at C / K


class Cell(PartlyMixed):
    """A directed acyclic graph of nodes; each node other than the inputs is the sum of the edges that lead to it.

    Edges that add nothing, because they were removed or their weight is zero, do not run if another edge feeds their
    node. Their parameters receive zero gradients, like those of any operation that does not run.

    Args:
        edges: edge name -> module, a mixed operation or any other; ``"3<-1"`` leads from node 1 to node 3, and
            ``"3<-1'"`` is a second edge between the same two nodes.
        drop_path: applied to each edge's output, except on identity edges; None: nothing is dropped.
        channel_parts: K; edges mix 1/K of a node's channels, and the others bypass them. 1: all channels are mixed.
        build: (edge name, K) -> name -> candidate, for a search that later mixes more of the channels.
    """

    def __init__(
        self,
        edges: Mapping[str, nn.Module],
        drop_path: nn.Module | None = None,
        channel_parts: int = 1,
        build: CandidateFactory | None = None,
    ) -> None:
        super().__init__(channel_parts)
        self.build = build
        self.edges = nn.ModuleDict(edges)
        self.drop_path = drop_path
        self._leaving: dict[int, list[tuple[int, str]]] = {}  # node -> (target, edge name), in the order of the edges
        for name in edges:
            target, source = map(int, name.rstrip("'").split("<-"))
            self._leaving.setdefault(source, []).append((target, name))
        targets = {target for leaving in self._leaving.values() for target, _ in leaving}
        self._order = sorted({*self._leaving, *targets})  # every node after those that lead to it

    def wider(self, channel_parts: int) -> Iterator[tuple[nn.Module, Mapping[str, nn.Module]]]:
        if self.build is None:
            raise ValueError(
                f"{type(self).__name__}: the candidates are finished modules; give build= to let them grow"
            )
        for name, edge in self.edges.items():
            yield edge, self.build(name, channel_parts)

    def operation_weights(self) -> dict[str, Weights]:
        """The weights of the mixed edges, computed once so that gradient checkpointing reruns the forward with them."""
        weights = {name: edge.operation_weights() for name, edge in self.edges.items() if isinstance(edge, MixedOp)}
        passing: dict[int, float] = {}
        for leaving in self._leaving.values():
            for target, name in leaving:
                edge = self.edges[name]
                adds = edge.passing(weights[name]) if isinstance(edge, MixedOp) else 1.0
                passing[target] = passing.get(target, 0.0) + adds
        for leaving in self._leaving.values():
            for target, name in leaving:
                if name in weights:
                    weights[name] = weights[name]._replace(passing=passing[target])
        return weights

    def nodes(self, inputs: Sequence[Tensor], weights: Mapping[str, Weights] | None = None) -> dict[int, Tensor]:
        """The values of the inputs, and of all nodes that an edge leads to."""
        weights = self.operation_weights() if weights is None else weights
        values = dict(enumerate(inputs))
        left_out = self._left_out(weights)
        without_part: dict[int, list[Tensor]] = {}  # node -> what edges that were left out owe a gradient of zero
        for node in self._order:
            if node in without_part:
                values[node] = with_zero_gradients(values[node], without_part[node])
            leaving = [(target, name) for target, name in self._leaving.get(node, ()) if name not in left_out]
            edges = [self.edges[name] for _, name in leaving]
            outputs = self._outputs(values[node], edges, [weights.get(name) for _, name in leaving])
            if self.drop_path is not None:
                drop = zip(outputs, edges, strict=True)
                outputs = [out if isinstance(edge, nn.Identity) else self.drop_path(out) for out, edge in drop]
            _add(values, [target for target, _ in leaving], outputs)
            for target, name in self._leaving.get(node, ()):
                if name in left_out:
                    rest = without_part.setdefault(target, [])
                    if isinstance(edge := self.edges[name], MixedOp):
                        rest += edge.rest(weights[name])
                    if not leaving:  # no other edge leaves the node: earlier parts would get no gradient
                        rest.append(values[node])
        return values

    def _outputs(self, x: Tensor, edges: Sequence[nn.Module], weights: Sequence[Weights | None]) -> list[Tensor]:
        """The outputs of all edges that leave a node."""
        if self.channel_parts == 1:
            return fan_out(x, edges, weights)
        first, rest = split_channels(x, self.channel_parts)
        outputs = zip(fan_out(first, edges, weights), edges, weights, strict=True)
        return [joined(out, rest, self.channel_parts, edge, of_edge) for out, edge, of_edge in outputs]

    def _left_out(self, weights: Mapping[str, Weights]) -> set[str]:
        """The edges that add nothing, and whose node is fed by another edge."""
        idle = {name for name, edge in self.edges.items() if is_idle(edge, weights.get(name))}
        if not idle:
            return idle
        arriving = [edge for leaving in self._leaving.values() for edge in leaving]
        fed = {target for target, name in arriving if name not in idle}
        return {name for target, name in arriving if name in idle and target in fed}


def _add(values: dict[int, Tensor], targets: Sequence[int], outputs: Sequence[Tensor]) -> None:
    """Add the outputs of one node's edges to their targets' values, in one operator if the targets are distinct."""
    if len({*targets}) < len(targets):
        for target, out in zip(targets, outputs, strict=True):
            _add(values, [target], [out])
        return
    new = dict(zip(targets, outputs, strict=True))
    there = [target for target in targets if target in values]
    values |= new | dict(zip(there, add_each([values[t] for t in there], [new[t] for t in there]), strict=True))


class DenseCell(Cell):
    """A cell whose nodes each read all earlier nodes; the last node is the output.

    Args:
        nodes: how many, the input included.
        make_edge: edge name, ``"2<-0"`` for node 2 reading node 0 -> module.
        drop_path, channel_parts, build: see :class:`Cell`.

    Shapes:
        input and output ``(B, C, H, W)``.

    Source: Dong and Yang, "NAS-Bench-201", Fig. 1.
    """

    def __init__(
        self,
        nodes: int,
        make_edge: Callable[[str], nn.Module],
        drop_path: nn.Module | None = None,
        channel_parts: int = 1,
        build: CandidateFactory | None = None,
    ) -> None:
        names = [f"{target}<-{source}" for target in range(1, nodes) for source in range(target)]
        super().__init__({name: make_edge(name) for name in names}, drop_path, channel_parts, build)
        self.output = nodes - 1

    def forward(self, x: Tensor, weights: Mapping[str, Weights] | None = None) -> Tensor:
        return self.nodes([x], weights)[self.output]


class TwoInputCell(Cell):
    """A cell that reads the outputs of the two cells before it; its output is the concatenation of some of its nodes.

    Args:
        edges, drop_path, channel_parts, build: see :class:`Cell`; nodes 0 and 1 are the inputs.
        concat: the nodes of the output.
        in_channels: of the two inputs.
        channels: C of every node.
        halved: whether the first input still has the size before a reduction, and is halved first.
        affine: whether the batch norms on the inputs are affine.

    Shapes:
        inputs ``(B, in_channels[i], H, W)``, the first ``(B, in_channels[0], 2 H, 2 W)`` where it is halved; output
        ``(B, len(concat) C, H, W)``, or half that size if edges from the inputs have a stride.

    Source: Liu et al., "DARTS", section 2.1.
    """

    def __init__(
        self,
        edges: Mapping[str, nn.Module],
        concat: Sequence[int],
        in_channels: tuple[int, int],
        channels: int,
        halved: bool,
        affine: bool,
        drop_path: nn.Module | None = None,
        channel_parts: int = 1,
        build: CandidateFactory | None = None,
    ) -> None:
        super().__init__(edges, drop_path, channel_parts, build)
        self.concat = tuple(concat)
        before = FactorizedReduce if halved else _one_by_one
        self.input_0 = before(in_channels[0], channels, affine=affine)
        self.input_1 = _one_by_one(in_channels[1], channels, affine=affine)

    def forward(self, before: Tensor, last: Tensor, weights: Mapping[str, Weights] | None = None) -> Tensor:
        values = self.nodes([self.input_0(before), self.input_1(last)], weights)
        return torch.cat([values[node] for node in self.concat], dim=1)


def _one_by_one(in_channels: int, out_channels: int, affine: bool) -> Any:
    return ReLUConvBN(in_channels, out_channels, 1, affine=affine)


class ResidualReduction(nn.Module):
    """The fixed residual block between stages: halves height and width (rounding up), changes the number of channels.

    Source: Dong and Yang, "NAS-Bench-201", section 2.1.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(in_channels, out_channels, 3, stride=2)
        self.conv_b = ReLUConvBN(out_channels, out_channels, 3)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # ceil_mode: odd sizes are halved as the strided convolution halves them
        return self.conv_b(self.conv_a(x)) + self.shortcut(F.avg_pool2d(x, 2, ceil_mode=True))
