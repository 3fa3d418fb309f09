"""Ready-made families of candidates: the modules that may replace a layer of an existing model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import (
    Conv2dSame,
    LayerNorm,
    LayerNorm2d,
    RmsNorm2d,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    StdConv2dSame,
)
from torch import Tensor, nn

from .._utils.modes import evaluating

__all__ = ["FAMILIES", "Family", "Site"]


@dataclass(frozen=True)
class Site:
    """A layer and its position in the model, as passed to a candidate factory."""

    path: str
    """Its name in the model."""
    layer: nn.Module
    """The layer itself, with its weights."""
    input: torch.Size
    """Shape of the layer's input, with the example's batch size."""
    output: torch.Size
    """Shape of the layer's output, with the example's batch size."""


@dataclass(frozen=True)
class Family:
    """Candidates for a kind of layer.

    Args:
        build: maps a site to its candidates, name -> module in the order of the alphas, including the layer itself.
        applies: tells whether a layer can be replaced; None: this cannot be told from the layer, so ``where`` is
            required.
        needs: a description of the replaceable layers, for error messages.
    """

    build: Callable[[Site], Mapping[str, nn.Module]]
    applies: Callable[[nn.Module], bool] | None
    needs: str = ""


# Convolutions

_DYNAMIC = (Conv2dSame, StdConv2dSame, ScaledStdConv2dSame)  # timm's with TensorFlow's padding, for any kernel
_SCALED = (ScaledStdConv2d, ScaledStdConv2dSame)  # timm's with standardised kernels, scaled by their size
_CONVOLUTIONS = (nn.Conv2d, StdConv2d, *_DYNAMIC, *_SCALED)


def _is_same_convolution(layer: Any) -> bool:
    """A square convolution whose padding keeps the size. (Unknown subclasses may compute something else.)"""
    if type(layer) not in _CONVOLUTIONS:
        return False
    size, dilation = layer.kernel_size[0], layer.dilation[0]
    square = layer.kernel_size == (size, size) and layer.dilation == (dilation, dilation)
    padded = type(layer) in _DYNAMIC or layer.padding in ("same", (dilation * (size // 2),) * 2)
    return square and size % 2 == 1 and size > 1 and padded


def _is_full_convolution(layer: Any) -> bool:
    plain = type(layer) is nn.Conv2d and _is_same_convolution(layer)
    return plain and layer.groups == 1 and layer.in_channels > 1


def _has_even_channels(layer: Any) -> bool:
    return layer.in_channels % 2 == 0 and layer.out_channels % 2 == 0


def _convolution(layer: nn.Conv2d, size: int, dilation: int, groups: int) -> nn.Conv2d:
    """A convolution like this one, with another kernel."""
    options: dict[str, Any] = {"stride": layer.stride, "dilation": dilation, "groups": groups}
    options["bias"] = layer.bias is not None
    if type(layer) not in _DYNAMIC:
        options["padding"] = dilation * (size // 2)
    if type(layer) is nn.Conv2d:
        options["padding_mode"] = layer.padding_mode
    new: Any = type(layer)(layer.in_channels, layer.out_channels, size, **options)
    if hasattr(layer, "eps"):
        new.eps = layer.eps
    if isinstance(layer, _SCALED):
        new.scale = layer.scale * math.sqrt(layer.weight[0].numel() / new.weight[0].numel())
    return new


def _with_weights(new: nn.Conv2d, old: nn.Conv2d) -> nn.Conv2d:
    """Initialise with the old kernel, cropped to its centre or padded with zeros."""
    margin = (new.kernel_size[0] - old.kernel_size[0]) // 2
    with torch.no_grad():
        new.weight.copy_(F.pad(old.weight, (margin,) * 4))  # a negative margin crops
        for name, parameter in new.named_parameters():
            if name != "weight":  # bias, and the gain of a scaled standardised convolution
                parameter.copy_(old.get_parameter(name))
    return new


def _kernels(site: Site) -> dict[str, nn.Module]:
    layer: Any = site.layer
    [own, _], [dilation, _] = layer.kernel_size, layer.dilation
    return {
        f"conv{size}": layer if size == own else _with_weights(_convolution(layer, size, dilation, layer.groups), layer)
        for size in sorted({3, 5, 7, own})
    }


def _dilations(site: Site) -> dict[str, nn.Module]:
    layer: Any = site.layer
    [size, _], [own, _] = layer.kernel_size, layer.dilation
    return {
        f"dilation{rate}": layer if rate == own else _with_weights(_convolution(layer, size, rate, layer.groups), layer)
        for rate in sorted({1, 2, 3, own})
    }


def _separable(site: Site) -> dict[str, nn.Module]:
    layer: Any = site.layer
    channels, [size, _], [dilation, _] = layer.in_channels, layer.kernel_size, layer.dilation
    depthwise = nn.Conv2d(
        channels,
        channels,
        size,
        layer.stride,
        dilation * (size // 2),
        dilation,
        groups=channels,
        bias=False,
        padding_mode=layer.padding_mode,
    )
    pointwise = nn.Conv2d(channels, layer.out_channels, 1, bias=layer.bias is not None)
    return {"full": layer, "separable": _scaled(nn.Sequential(depthwise, pointwise), pointwise, site)}


def _groups(site: Site) -> dict[str, nn.Module]:
    layer: Any = site.layer
    [size, _], [dilation, _] = layer.kernel_size, layer.dilation
    common = math.gcd(layer.in_channels, layer.out_channels)
    grouped = {g: _convolution(layer, size, dilation, g) for g in (2, 4, 8) if common % g == 0}
    return {"groups1": layer, **{f"groups{g}": _scaled(conv, conv, site) for g, conv in grouped.items()}}


def _scaled(new: nn.Module, last: nn.Conv2d, site: Site) -> nn.Module:
    """Scale a candidate that cannot take over the layer's weights, so that both start with outputs of the same spread.

    Its last convolution gets the layer's bias, and is scaled so that for standard normal inputs the standard deviation
    of its outputs is the layer's.
    """
    layer: Any = site.layer
    x = torch.randn(8, *site.input[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if last.bias is not None:
            last.bias.zero_()
        weight = layer.weight
        expected = F.conv2d(x.to(weight), weight, None, layer.stride, layer.padding, layer.dilation).std()
        last.weight.mul_(expected / new.to(weight)(x.to(weight)).std())
        if last.bias is not None:
            last.bias.copy_(layer.bias)
    return new


# Activations and normalisation

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
}
_REPLACED = {"relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "mish": nn.Mish}
"""Activations that are candidates only where they are the layer itself."""


def _activations(site: Site) -> dict[str, nn.Module]:
    own = {name: site.layer for name, kind in _REPLACED.items() if type(site.layer) is kind}
    return own | {name: site.layer if type(site.layer) is kind else kind() for name, kind in _ACTIVATIONS.items()}


_LAYER_NORMS = (nn.LayerNorm, LayerNorm, LayerNorm2d)


def _norms(site: Site) -> dict[str, nn.Module]:
    layer: Any = site.layer
    if type(layer) in _LAYER_NORMS:
        return {"layer": layer, "rms": _rms_norm(layer)}
    channels = layer.num_features
    size = next((size for size in range(8, channels) if channels % size == 0), channels)
    group = nn.GroupNorm(channels // size, channels, layer.eps, layer.affine)
    if layer.affine:
        group.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    after = [copy.deepcopy(child) for child in layer.children()]  # timm's BatchNormAct2d: drop and activation
    return {"batch": layer, "group": nn.Sequential(group, *after) if after else group}


def _rms_norm(layer: Any) -> nn.Module:
    """An RMS norm with the scale of a layer norm, without its mean and shift."""
    affine, shape = layer.elementwise_affine, layer.normalized_shape
    rms: Any = RmsNorm2d(shape[0], layer.eps, affine) if isinstance(layer, LayerNorm2d) else None
    rms = nn.RMSNorm(shape, layer.eps, affine) if rms is None else rms
    if affine:
        with torch.no_grad():
            rms.weight.copy_(layer.weight)
    return rms


# Parts of blocks


class _Identity(nn.Module):
    """Like ``nn.Identity``, but accepts the layer's keyword arguments (an attention's mask)."""

    def forward(self, x: Tensor, **ignored: Any) -> Tensor:
        return x


class _TokenPool(nn.Module):
    """The mean of a token and its two neighbours, (B, tokens, channels) -> the same."""

    def forward(self, x: Tensor, **ignored: Any) -> Tensor:
        return F.avg_pool1d(x.transpose(1, 2), 3, 1, 1, count_include_pad=False).transpose(1, 2)


class _MapPool(nn.Module):
    """The mean of a position and its eight neighbours, (B, C, H, W) -> the same."""

    def forward(self, x: Tensor, **ignored: Any) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _token_mixers(site: Site) -> dict[str, nn.Module]:
    pools = {3: _TokenPool, 4: _MapPool}
    if len(site.input) not in pools or site.input != site.output:
        raise ValueError(
            f"family 'token_mixer' is for layers (B, tokens, channels) or (B, C, H, W) -> the same; {site.path!r} maps "
            f"{tuple(site.input)} to {tuple(site.output)}"
        )
    return {"mixer": site.layer, "identity": _Identity(), "pool": pools[len(site.input)]()}


def _skip(site: Site) -> dict[str, nn.Module]:
    return {"block": site.layer, "skip": _shortcut(site)}


def _shortcut(site: Site) -> nn.Module:
    """The identity; where the block changes the shape, pooling with its stride and a 1x1 convolution."""
    before, after = site.input, site.output
    if before == after:
        return _Identity()
    if not len(before) == len(after) == 4:
        raise ValueError(
            f"family 'skip' knows shortcuts of layers (B, C, H, W) -> (B, C', H', W'), or to the same shape; "
            f"{site.path!r} maps {tuple(before)} to {tuple(after)}"
        )
    parts: list[nn.Module] = []
    if before[2:] != after[2:]:
        parts.append(_pooling(site))
    if before[1] != after[1]:
        parts += [nn.Conv2d(before[1], after[1], 1, bias=False), nn.BatchNorm2d(after[1])]
    return nn.Sequential(*parts)


def _pooling(site: Site) -> nn.Module:
    """Average pooling with the block's stride and rounding.

    One size does not determine them: 5 -> 2 may be stride 2, rounded down, or stride 3, rounded up. The block therefore
    also runs on a second size, if it can.
    """
    shapes = [(site.input, site.output)]
    larger = torch.Size((*site.input[:2], *(2 * size + 1 for size in site.input[2:])))
    with suppress(RuntimeError, AssertionError, TypeError), evaluating(site.layer), torch.no_grad():
        like = next(site.layer.parameters(), torch.empty(0))
        shapes.append((larger, site.layer(like.new_zeros(larger)).shape))
    fitting = []
    for up in (True, False):
        strides = [_stride([(given[i], out[i]) for given, out in shapes], up) for i in range(2, len(site.input))]
        if len(strides) == 2 and all(strides):
            fitting.append(((strides[0], strides[1]), up))
    if not fitting:
        mapped = " and ".join(f"{tuple(given)} to {tuple(out)}" for given, out in shapes)
        raise ValueError(f"family 'skip' knows no shortcut for {site.path!r}, which maps {mapped}")
    stride, up = min(fitting)
    return nn.AvgPool2d(stride, ceil_mode=up, count_include_pad=False)


def _stride(sizes: list[tuple[int, int]], up: bool) -> int:
    """The smallest stride that maps each input size to its output size, rounded up or down; 0 if there is none."""
    rounded = math.ceil if up else math.floor
    return next((s for s in range(1, 65) if all(out == rounded(given / s) for given, out in sizes)), 0)


_SAME = "square convolutions of odd size above 1, padded by half of it"
_FULL = f"{_SAME}, without groups and of more than one channel"

FAMILIES = {
    "kernel": Family(_kernels, _is_same_convolution, _SAME),
    "dilation": Family(_dilations, _is_same_convolution, _SAME),
    "separable": Family(_separable, _is_full_convolution, _FULL),
    "groups": Family(
        _groups, lambda layer: _is_full_convolution(layer) and _has_even_channels(layer), f"{_FULL}, their number even"
    ),
    "activation": Family(
        _activations,
        lambda layer: type(layer) in (*_ACTIVATIONS.values(), *_REPLACED.values()),
        f"activations: {', '.join((*_ACTIVATIONS, *_REPLACED))}",
    ),
    "norm": Family(
        _norms,
        lambda layer: isinstance(layer, nn.BatchNorm2d) or type(layer) in _LAYER_NORMS,
        "two-dimensional batch norms, and layer norms",
    ),
    "token_mixer": Family(_token_mixers, None, "layers (B, tokens, channels) or (B, C, H, W) -> the same"),
    "skip": Family(_skip, None, "layers (B, C, H, W) -> (B, C', H', W'), or to the same shape"),
}
"""name -> family.

- ``kernel``: 3, 5 and 7, and the layer's own, initialised with its weights; ``dilation``: 1, 2 and 3, likewise. Both
  accept PyTorch's convolutions, and timm's with dynamic padding or standardised kernels.
- ``separable``: full, or depthwise and pointwise; ``groups``: 1, 2, 4 and 8 where they divide the channels. Outputs of
  both initially have the same standard deviation as the layer's.
- ``activation``: ReLU, SiLU, GELU and Hardswish, and the layer's own.
- ``norm``: batch norm, or group norm with the same scale and shift, in groups of 8 channels or the next larger divisor;
  layer norm, or RMS norm with the same scale.
- ``token_mixer``: the layer (an attention, token MLP or convolution), the identity, or the mean of neighbours.
- ``skip``: a block, or a shortcut.
"""
