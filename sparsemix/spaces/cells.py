"""Building blocks that networks of several spaces are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ..mixed_op import MixedOp, Weights, fan_out
from .ops import ReLUConvBN

__all__ = ["DenseCell", "ResidualReduction"]


class DenseCell(nn.Module):
    """A cell whose nodes each read all earlier nodes; a node is the sum of its edges, the last node is the output.

    Args:
        nodes: how many, the input included.
        make_edge: edge name, ``"2<-0"`` for node 2 reading node 0 -> module, a mixed operation or any other.
        drop_path: applied to each edge's output, identity edges excepted; None: nothing is dropped.

    Shapes:
        input and output ``(B, C, H, W)``.

    Source: Dong and Yang, "NAS-Bench-201", Fig. 1.
    """

    def __init__(self, nodes: int, make_edge: Callable[[str], nn.Module], drop_path: nn.Module | None = None) -> None:
        super().__init__()
        self.nodes = nodes
        self.edges = nn.ModuleDict({f"{t}<-{s}": make_edge(f"{t}<-{s}") for t in range(1, nodes) for s in range(t)})
        self.drop_path = drop_path

    def operation_weights(self) -> dict[str, Weights]:
        """The weights of the mixed edges, for a forward that is run again when activations are checkpointed."""
        return {name: edge.operation_weights() for name, edge in self.edges.items() if isinstance(edge, MixedOp)}

    def forward(self, x: Tensor, weights: Mapping[str, Weights] | None = None) -> Tensor:
        weights = self.operation_weights() if weights is None else weights
        sums: dict[int, Tensor] = {0: x}
        for source in range(self.nodes - 1):
            targets = range(source + 1, self.nodes)
            names = [f"{target}<-{source}" for target in targets]
            edges = [self.edges[name] for name in names]
            outputs = fan_out(sums[source], edges, [weights.get(name) for name in names])
            for target, edge, out in zip(targets, edges, outputs, strict=True):
                if self.drop_path is not None and not isinstance(edge, nn.Identity):
                    out = self.drop_path(out)
                sums[target] = sums[target] + out if target in sums else out
        return sums[self.nodes - 1]


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
