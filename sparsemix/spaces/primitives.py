"""The primitive operations of all search spaces.

In a cell, up to five edges leave a node, each with up to eight candidates, most of which begin with the same ReLU or
the same pooling of that node's value. Primitives therefore declare the work that they share with others on edges from
the same node (:class:`~sparsemix.supernet.sharing.SharesWork`), and it is computed only once. A primitive whose output
is always zero declares this by ``adds_nothing``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..supernet.forward import in_forward
from ..supernet.sharing import Contribution, Source

__all__ = [
    "AvgPool",
    "Conv7x1And1x7",
    "DilConv",
    "FactorizedReduce",
    "MaxPool",
    "MaxPool2x2",
    "Noise",
    "NormalizedPool",
    "ReLUConvBN",
    "SepConv",
    "Zero",
    "scaled_batch_norm",
]


class Zero(nn.Module):
    """No connection (``none``): zeros of the input's shape, subsampled by the stride. It adds nothing, at no cost."""

    sharing_key = ("zero",)
    adds_nothing = True

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])

    def contributions(self, ops: Sequence[Zero], source: Source, weights: Sequence[Tensor]) -> Iterable[Contribution]:
        return [(None, None) for _ in ops]


class Noise(nn.Module):
    """Standard normal noise of the input's shape, subsampled by the stride, whatever the input is (``noise`` of S4)."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x[:, :, :: self.stride, :: self.stride])


class _Pool(nn.Module):
    """A pooling; it has no parameters, so it is computed once for all edges that leave a node."""

    name: str

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    @property
    def sharing_key(self) -> Hashable:
        return (type(self), self.stride)

    def contributions(self, ops: Sequence[_Pool], source: Source, weights: Sequence[Tensor]) -> Iterable[Contribution]:
        pooled = source.once(self.sharing_key, self)
        return [(pooled, weight) for weight in weights]

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class AvgPool(_Pool):
    """Average pooling over 3x3 that does not count the padding."""

    name = "avg_pool"

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, self.stride, padding=1, count_include_pad=False)


class MaxPool(_Pool):
    """Max pooling over 3x3."""

    name = "max_pool"

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, self.stride, padding=1)


class MaxPool2x2(_Pool):
    """Max pooling over 2x2, padded below and on the right at stride 1 (``max_pool_2x2`` of AmoebaNet-B)."""

    name = "max_pool_2x2"

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x = F.pad(x, (0, 1, 0, 1), value=-torch.inf)
        return F.max_pool2d(x, 2, self.stride)


class NormalizedPool(nn.Module):
    """Pooling and a batch norm that is not affine, as in supernets of the DARTS space.

    All edges that leave a node share the pooled and, in training, the normalised value; only the running statistics are
    kept per edge.

    Args:
        pool: :class:`AvgPool`, :class:`MaxPool` or :class:`MaxPool2x2`.
        channels: C.
    """

    def __init__(self, pool: _Pool, channels: int) -> None:
        super().__init__()
        self.pool = pool
        self.bn = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pool(x))

    @property
    def sharing_key(self) -> Hashable | None:
        bn = self.bn
        if not _is_plain(bn):
            return None
        return (type(self), self.pool.sharing_key, bn.training, bn.track_running_stats, bn.eps, bn.momentum)

    def contributions(
        self, ops: Sequence[NormalizedPool], source: Source, weights: Sequence[Tensor]
    ) -> Iterable[Contribution]:
        pooled = source.once(self.pool.sharing_key, self.pool)
        if not self.bn.training:  # each by its own running statistics
            return [(op.bn(pooled), weight) for op, weight in zip(ops, weights, strict=True)]
        with in_forward() as forward:
            if not self.bn.track_running_stats:
                value = F.batch_norm(pooled, None, None, None, None, True, 0.0, self.bn.eps)
            else:
                mean, var = forward.statistics(self.bn, pooled.shape[1])
                value = F.batch_norm(pooled, mean, var, None, None, True, 1.0, self.bn.eps)
                forward.move([op.bn for op in ops], [mean] * len(ops), [var] * len(ops))
        return [(value, weight) for weight in weights]


class _ReLUThenBN(nn.Module):
    """ReLU, convolutions, batch norm.

    All edges that leave a node share the ReLU, so only one tensor is computed and kept for the backward pass. The last
    batch norm absorbs the operation weight, ``w BN(x) = (w / sigma) (x - mu)``: it scales each channel anyway, which
    saves multiplying the whole output by the weight.

    Operations of the same shape run together, with their channels concatenated: their convolutions as one wide or
    grouped convolution, their batch norms as one batch norm. With the few channels of a supernet, kernel launches and
    memory traffic cost more than arithmetic.
    """

    bn: nn.BatchNorm2d

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers between the ReLU and the last batch norm (convolutions, batch norms, ``F.relu``)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        for layer in self.layers:
            x = layer(x)
        return self.bn(x)

    @property
    def sharing_key(self) -> Hashable | None:
        if not _is_plain(self.bn) or type(self).forward is not _ReLUThenBN.forward:
            return None
        keys = [*map(_key_of, self.layers), _key_of(self.bn)]
        return id(self) if None in keys else (type(self), *keys)

    def contributions(self, ops: Sequence[_ReLUThenBN], source: Source, weights: Sequence[Tensor]) -> Tensor:
        x, number = source.relu, len(ops)
        if number > 1 and cast(nn.Conv2d, self.layers[0]).groups > 1:  # grouped: every operation needs its own channels
            x = source.once(("relu", number), lambda _: torch.cat([source.relu] * number, dim=1))
        for layers in zip(*(op.layers for op in ops), strict=True):
            x = _side_by_side(layers, x)
        return scaled_batch_norm([op.bn for op in ops], x, weights)


Layer = Callable[[Tensor], Tensor]


class ReLUConvBN(_ReLUThenBN):
    """ReLU, convolution, batch norm: the convolution of NAS-Bench-201.

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

    @property
    def layers(self) -> Sequence[Layer]:
        return [self.conv]


class DilConv(_ReLUThenBN):
    """Dilated depthwise-separable convolution (``dil_conv_3x3``, ...): ReLU, depthwise, 1x1, batch norm."""

    def __init__(self, channels: int, kernel_size: int, stride: int, dilation: int = 2, affine: bool = True) -> None:
        super().__init__()
        self.depthwise = _depthwise(channels, kernel_size, stride, dilation)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels, affine=affine)

    @property
    def layers(self) -> Sequence[Layer]:
        return [self.depthwise, self.pointwise]


class SepConv(_ReLUThenBN):
    """Depthwise-separable convolution, applied twice (``sep_conv_3x3``, ...); only the first may have a stride."""

    def __init__(self, channels: int, kernel_size: int, stride: int, affine: bool = True, dilation: int = 1) -> None:
        super().__init__()
        self.first = DilConv(channels, kernel_size, stride, dilation, affine)
        self.depthwise = _depthwise(channels, kernel_size, dilation=dilation)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels, affine=affine)

    @property
    def layers(self) -> Sequence[Layer]:
        return [*self.first.layers, self.first.bn, F.relu, self.depthwise, self.pointwise]


class FactorizedReduce(_ReLUThenBN):
    """Halves height and width by two 1x1 convolutions, of even and of odd pixels (a skip of stride 2).

    Shapes:
        input ``(B, in_channels, H, W)`` with H and W even, output ``(B, out_channels, H / 2, W / 2)``; the number of
        output channels is even.
    """

    def __init__(self, in_channels: int, out_channels: int, affine: bool = True) -> None:
        super().__init__()
        if out_channels % 2:
            raise ValueError(f"FactorizedReduce: the number of output channels must be even, got {out_channels}")
        self.conv_a = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.conv_b = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, affine=affine)

    @property
    def layers(self) -> Sequence[Layer]:
        return [self.halves]

    def halves(self, x: Tensor) -> Tensor:
        """Even and odd pixels, each with half of the channels."""
        # A stride of 1 on every second pixel rather than a stride of 2: the same, but oneDNN's weight gradient of a
        # strided 1x1 convolution of fewer than 8 (AVX-512: 16) channels writes out of bounds (oneDNN issue 6035).
        return torch.cat([self.conv_a(x[:, :, ::2, ::2]), self.conv_b(x[:, :, 1::2, 1::2])], dim=1)


class Conv7x1And1x7(_ReLUThenBN):
    """A 7x7 convolution in two parts, 1x7 and 7x1 (``conv_7x1_1x7`` of AmoebaNet)."""

    def __init__(self, channels: int, stride: int, affine: bool = True) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False)
        self.conv_b = nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False)
        self.bn = nn.BatchNorm2d(channels, affine=affine)

    @property
    def layers(self) -> Sequence[Layer]:
        return [self.conv_a, self.conv_b]


def _depthwise(channels: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel_size - 1) // 2
    return nn.Conv2d(channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=False)


# Layers side by side


def _key_of(layer: Layer) -> Hashable | None:
    """A key that is equal for layers that may run together; None if this one may not."""
    if layer is F.relu:
        return "relu"
    if type(layer) is nn.Conv2d and layer.bias is None and layer.padding_mode == "zeros":
        return (layer.weight.shape, layer.stride, layer.padding, layer.dilation, layer.groups)
    if isinstance(layer, nn.BatchNorm2d) and _is_plain(layer):
        return (layer.num_features, layer.affine, layer.track_running_stats, layer.training, layer.eps, layer.momentum)
    return None


def _side_by_side(layers: Sequence[Any], x: Tensor) -> Tensor:
    """Run layers of one kind, each on its own block of channels; convolutions may instead share a single block."""
    first = layers[0]
    if isinstance(first, nn.BatchNorm2d) and _is_plain(first):
        return scaled_batch_norm(layers, x)
    if first is F.relu or len(layers) == 1:
        return first(x)
    kernels = torch.cat([layer.weight for layer in layers])
    groups = x.shape[1] // kernels.shape[1]
    return F.conv2d(x, kernels, None, first.stride, first.padding, first.dilation, groups)


# Batch norm


def _is_plain(bn: nn.BatchNorm2d) -> bool:
    """Whether it is an ordinary batch norm with a momentum; others (synchronised, ...) are called directly."""
    return type(bn) is nn.BatchNorm2d and bn.momentum is not None


def scaled_batch_norm(norms: Sequence[nn.BatchNorm2d], y: Tensor, weights: Sequence[Tensor] | None = None) -> Tensor:
    """``cat([w * bn(part), ...])`` over the channel blocks of ``y`` as one batch norm; updates running statistics.

    Args:
        norms: of one kind, each for as many channels of ``y`` as it has.
        y: ``(B, C, H, W)``.
        weights: a scalar for each norm; None: 1.
    """
    first, widths = norms[0], [norm.num_features for norm in norms]
    with in_forward() as forward:
        scale = shift = None
        if weights is not None:
            like = first.weight if first.affine else first.running_mean
            dtype = y.dtype if like is None else like.dtype  # alphas may be kept in a higher precision than weights
            scale = forward.once("scale", weights, lambda: _expanded(weights, widths).to(dtype), *widths, dtype)
        if first.affine:
            own = [torch.cat([norm.weight for norm in norms]), torch.cat([norm.bias for norm in norms])]
            scale, shift = own if scale is None else (scale * of for of in own)
        if not first.track_running_stats:
            return F.batch_norm(y, None, None, scale, shift, True, 0.0, first.eps)
        if not first.training:
            mean = torch.cat([cast(Tensor, norm.running_mean) for norm in norms])
            var = torch.cat([cast(Tensor, norm.running_var) for norm in norms])
            return F.batch_norm(y, mean, var, scale, shift, False, 0.0, first.eps)
        # With momentum 1, these buffers receive the mean and variance of the batch.
        mean, var = forward.statistics(first, sum(widths))
        y = F.batch_norm(y, mean, var, scale, shift, True, 1.0, first.eps)
        forward.move(norms, mean.split(widths), var.split(widths))
        return y


def _expanded(weights: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
    """Each weight for each of its channels."""
    return torch.cat([weight.expand(width) for weight, width in zip(weights, widths, strict=True)])
