"""Partial channels: an edge mixes a share of its channels and passes the rest on.

Source: Xu et al., "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .execution import Weights
from .mixed_op import MixedOp

__all__ = ["PartialChannels", "joined", "share_of", "split_channels"]


def share_of(channels: int, parts: int) -> int:
    """The channels that are mixed, C / K.

    Raises:
        ValueError: K does not divide C.
    """
    if parts < 1 or channels % parts:
        raise ValueError(f"partial channels: {parts} parts do not divide {channels} channels")
    return channels // parts


def split_channels(x: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """The first ``1 / K`` of the channels, which are mixed, and the rest."""
    mixed = share_of(x.shape[1], parts)
    first, rest = x.split([mixed, x.shape[1] - mixed], dim=1)
    return first, rest


def joined(mixed: Tensor, rest: Tensor, parts: int, op: nn.Module, weights: Weights | None) -> Tensor:
    """The channels together again, shuffled, so that the next edge mixes others.

    Args:
        mixed: output of the mixed operation ``(B, C / K, H, W)``.
        rest: the other channels, max-pooled here if the operation had a stride of 2.
        parts: K.
        op: the edge. The rest takes the edge's weight, where that is weighed: the sum of its operation weights.
        weights: of the edge's operations; None for one that is no mixed operation.
    """
    if mixed.shape[-2:] != rest.shape[-2:]:
        rest = F.max_pool2d(rest, 2)
    if weights is not None and getattr(op, "beta", None) is not None:
        rest = rest * torch.stack([*weights.scalars]).sum()
    return rearrange(torch.cat([mixed, rest], dim=1), "b (k c) h w -> b (c k) h w", k=parts)


class PartialChannels(nn.Module):
    """A mixed operation on the first ``1 / K`` of the channels; the others pass (PC-DARTS, Eq. 2).

    Args:
        op: the mixed operation, whose candidates are built for ``C / K`` channels, at stride 1 or 2.
        parts: K.

    Shapes:
        input ``(B, C, H, W)``, K divides C; output ``(B, C, H, W)``, or half that size.

    Raises:
        ValueError: at an input whose channels K does not divide.

    Example:
        >>> edge = PartialChannels(MixedOp({"skip": nn.Identity(), "conv": nn.Conv2d(4, 4, 1)}, node="2"), parts=4)
        >>> edge(torch.zeros(1, 16, 8, 8)).shape
        torch.Size([1, 16, 8, 8])
    """

    def __init__(self, op: MixedOp, parts: int = 4) -> None:
        super().__init__()
        self.op = op
        self.channel_parts = parts

    def forward(self, x: Tensor) -> Tensor:
        first, rest = split_channels(x, self.channel_parts)
        if not isinstance(self.op, MixedOp):  # what was chosen of it
            return joined(self.op(first), rest, self.channel_parts, self.op, None)
        weights = self.op.operation_weights()
        return joined(self.op(first, weights), rest, self.channel_parts, self.op, weights)
