"""Every primitive operation of the search spaces, once.

A primitive that can run together with its like on other edges of the same source node defines two things that
:func:`sparsemix.mixed_op.fan_out` looks for: ``sharing_key``, equal for those that may run together (None: not now),
and ``contributions``, which runs them and returns for each a pair (value, weight still to be applied). A weight of None
says that it has been applied, a value of None that there is nothing to add.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixed_op import Source

__all__ = ["AvgPool", "ReLUConvBN", "Zero", "scaled_batch_norm"]

Contribution = tuple[Tensor | None, Tensor | None]


class Zero(nn.Module):
    """No connection (``none``): zeros of the input's shape, subsampled by the stride. It adds nothing, at no cost."""

    sharing_key = ("zero",)

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])

    def contributions(self, ops: Sequence[Zero], source: Source, weights: Sequence[Tensor]) -> Iterable[Contribution]:
        return [(None, None) for _ in ops]


class AvgPool(nn.AvgPool2d):
    """Average pooling over 3x3 that does not count the padding; computed once for all edges of a source."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__(3, stride, padding=1, count_include_pad=False)

    @property
    def sharing_key(self) -> Hashable:
        return ("avg_pool", self.stride)

    def contributions(
        self, ops: Sequence[AvgPool], source: Source, weights: Sequence[Tensor]
    ) -> Iterable[Contribution]:
        pooled = self(source.x)
        return [(pooled, weight) for weight in weights]


class ReLUConvBN(nn.Module):
    """ReLU, convolution, batch norm: the convolution of NAS-Bench-201.

    Several of one shape on one source run as a single wider convolution and batch norm, which also takes the operation
    weights as its scale, so that no multiplication is left to do: ``w BN(x) = (w / sigma) (x - mu)``.

    Args:
        in_channels, out_channels: C of input and output.
        kernel_size, stride, dilation: of the convolution; padded to keep the size at stride 1.
        affine: whether the batch norm learns a scale and a shift (not in supernets).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        affine: bool = True,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(F.relu(x)))

    @property
    def sharing_key(self) -> Hashable:
        conv, bn = self.conv, self.bn
        plain = type(conv) is nn.Conv2d and type(bn) is nn.BatchNorm2d and bn.momentum is not None
        if not plain:  # converted to synchronised statistics, quantised, ...: called as it is
            return None
        shape = (conv.weight.shape, conv.stride, conv.padding, conv.dilation)
        return ("relu_conv_bn", *shape, bn.affine, bn.track_running_stats, bn.training, bn.eps, bn.momentum)

    def contributions(
        self, ops: Sequence[ReLUConvBN], source: Source, weights: Sequence[Tensor]
    ) -> Iterable[Contribution]:
        conv = self.conv
        kernels = torch.cat([op.conv.weight for op in ops]) if len(ops) > 1 else conv.weight
        y = F.conv2d(source.relu, kernels, None, conv.stride, conv.padding, conv.dilation)
        y = scaled_batch_norm([op.bn for op in ops], y, weights)
        return [(value, None) for value in y.chunk(len(ops), dim=1)]


def scaled_batch_norm(norms: Sequence[nn.BatchNorm2d], y: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """``cat([w * bn(part), ...])`` over the channel blocks of ``y`` as one batch norm; updates running statistics."""
    first = norms[0]
    scale = torch.cat([weight.expand(first.num_features) for weight in weights])
    shift = None
    if first.affine:
        shift = scale * torch.cat([norm.bias for norm in norms])
        scale = scale * torch.cat([norm.weight for norm in norms])
    tracked = first.track_running_stats
    momentum = cast(float, first.momentum)
    means: list[Any] = [norm.running_mean for norm in norms]
    variances: list[Any] = [norm.running_var for norm in norms]
    mean, var = (torch.cat(means), torch.cat(variances)) if tracked else (None, None)
    y = F.batch_norm(y, mean, var, scale, shift, first.training or not tracked, momentum, first.eps)
    if mean is not None and var is not None and first.training:
        with torch.no_grad():
            torch._foreach_copy_(means, mean.chunk(len(norms)))
            torch._foreach_copy_(variances, var.chunk(len(norms)))
            torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm in norms], 1)
    return y
