"""Partial channels: an edge mixes a share of its channels and passes the rest on.

Source: Xu et al., "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .execution import Weights
from .mixed_op import MixedOp
from .widening import Widened, widen_

__all__ = ["PartialChannels", "PartlyMixed", "check_partial", "joined", "share_of", "split_channels", "widen_channels_"]


def share_of(channels: int, parts: int) -> int:
    """The channels that are mixed, C / K.

    Raises:
        ValueError: K does not divide C.
    """
    if parts < 1 or channels % parts:
        raise ValueError(
            f"partial channels: {parts} parts do not divide {channels} channels; choose a K that divides them"
        )
    return channels // parts


def split_channels(x: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """The first ``1 / K`` of the channels, which are mixed, and the rest."""
    mixed = share_of(x.shape[1], parts)
    first, rest = x.split([mixed, x.shape[1] - mixed], dim=1)
    return first, rest


def joined(mixed: Tensor, rest: Tensor, parts: int, op: nn.Module, weights: Weights | None) -> Tensor:
    """Concatenate mixed and other channels, and shuffle them so that the next edge mixes other channels.

    Args:
        mixed: output of the mixed operation ``(B, C / K, H, W)``.
        rest: the other channels, max-pooled here if the operation had a stride of 2.
        parts: K.
        op: the edge. If it has a beta, the rest is multiplied by the edge weight, the sum of its operation weights.
        weights: the edge's operation weights; None if it is not a mixed operation.
    """
    if mixed.shape[-2:] != rest.shape[-2:]:
        rest = F.max_pool2d(rest, 2)
    if weights is not None and getattr(op, "beta", None) is not None:
        rest = rest * torch.stack([*weights.scalars]).sum()
    return rearrange(torch.cat([mixed, rest], dim=1), "b (k c) h w -> b (c k) h w", k=parts)


class PartlyMixed(nn.Module):
    """A module whose mixed operations see 1/K of its channels, and that can rebuild them for a larger share.

    K is saved in the state dict; loading a state dict of wider operations first widens the module's own.

    Args:
        channel_parts: K; 1: all channels.
    """

    channel_parts: int
    parts: Tensor | None

    def __init__(self, channel_parts: int) -> None:
        super().__init__()
        self.channel_parts = channel_parts
        self.register_buffer("parts", torch.tensor(channel_parts) if channel_parts > 1 else None)
        self.register_load_state_dict_pre_hook(_load_parts)

    def wider(self, channel_parts: int) -> Iterator[tuple[nn.Module, Mapping[str, nn.Module]]]:
        """Its mixed operations, each with new candidates for 1/K of the channels.

        Raises:
            ValueError: the module has no function that builds candidates.
        """
        raise NotImplementedError

    def widen_(self, channel_parts: int, generator: torch.Generator) -> Widened:
        """Let the mixed operations see more of the channels, in place; see :func:`~.widening.widen_`.

        Raises:
            ValueError: the share of channels would not grow, the candidates cannot be built, or the operations have
                been replaced by their chosen candidates.
        """
        if not 1 <= channel_parts < self.channel_parts:
            raise ValueError(
                f"partial channels: one in {self.channel_parts} of the channels is mixed, which can become more (a "
                f"smaller K, at least 1); got K = {channel_parts}"
            )
        widened: dict[nn.Parameter, Callable[[Tensor], Tensor]] = {}
        for op, candidates in self.wider(channel_parts):
            if not isinstance(op, MixedOp):
                raise ValueError(
                    f"partial channels: what was chosen of a mixed operation ({type(op).__name__}) stays at one in "
                    f"{self.channel_parts} of the channels; build the supernet with channel_parts={channel_parts}"
                )
            widened |= widen_(op, {n: c.to(op.alpha) for n, c in candidates.items()}, generator)
        self.channel_parts = channel_parts
        if self.parts is not None:
            self.parts.fill_(channel_parts)
        return widened


def _load_parts(module: PartlyMixed, state: dict[str, Any], prefix: str, *args: Any) -> None:
    """Before a state dict is loaded: widen the module to its K; if it holds none, the module keeps its own K."""
    saved = int(state.pop(f"{prefix}parts", module.channel_parts))
    if saved != module.channel_parts:
        module.widen_(saved, torch.Generator())  # the weights come from the state dict, whatever is drawn
    if module.parts is not None:
        state[f"{prefix}parts"] = module.parts.clone()


def check_partial(model: nn.Module, stages: Sequence[int], setting: str) -> None:
    """Check that a model's mixed operations see 1/K of their channels, and can be rebuilt for each later K.

    Args:
        model: the supernet.
        stages: the values of K, in order.
        setting: name of the setting that requires them, for the error message.

    Raises:
        ValueError: the operations were built for another share, or cannot be built for a later one.
    """
    partly = [module for module in model.modules() if isinstance(module, PartlyMixed)]
    first, found = stages[0], {module.channel_parts for module in partly}
    if first > 1 and found != {first}:
        raise ValueError(
            f"{setting}: mixes 1/{first} of the channels, and the candidates of {type(model).__name__} were built for "
            f"{', '.join(f'1/{k}' if k > 1 else 'all' for k in sorted(found or {1}))} of them: build its mixed "
            f"operations at C / {first} in PartialChannels, or set it to 1"
        )
    for k in {*stages} - {first}:
        for module in partly:
            next(module.wider(k))


def widen_channels_(
    model: nn.Module, channel_parts: int, generator: torch.Generator, optimizer: torch.optim.Optimizer
) -> None:
    """Widen the mixed operations of a model to one in ``channel_parts`` of the channels, in place.

    New channels are copies of old ones; the optimizer's state for them, such as momentum, is copied as well.

    Args:
        model: contains :class:`PartlyMixed` modules, such as a supernet of the DARTS space.
        channel_parts: K, smaller than at present.
        generator: draws the channels that are copied.
        optimizer: the weights' optimizer.

    Source: Chen et al., "DrNAS", section 3.3.
    """
    for module in [*model.modules()]:
        if isinstance(module, PartlyMixed) and module.channel_parts != channel_parts:
            for parameter, grow in module.widen_(channel_parts, generator).items():
                state = optimizer.state.get(parameter, {})
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.dim():
                        state[name] = grow(value)


class PartialChannels(PartlyMixed):
    """A mixed operation on the first ``1 / K`` of the channels; the others bypass it (PC-DARTS, Eq. 2).

    Args:
        op: the mixed operation, whose candidates are built for ``C / K`` channels, at stride 1 or 2.
        parts: K.
        build: K -> name -> candidate, for a search that later mixes more of the channels; None: it cannot be widened.

    Shapes:
        input ``(B, C, H, W)``, K divides C; output ``(B, C, H, W)``, or half that size.

    Raises:
        ValueError: at an input whose channels K does not divide.

    Example:
        >>> edge = PartialChannels(MixedOp({"skip": nn.Identity(), "conv": nn.Conv2d(4, 4, 1)}, node="2"), parts=4)
        >>> edge(torch.zeros(1, 16, 8, 8)).shape
        torch.Size([1, 16, 8, 8])
    """

    def __init__(
        self, op: MixedOp, parts: int = 4, build: Callable[[int], Mapping[str, nn.Module]] | None = None
    ) -> None:
        super().__init__(parts)
        self.op = op
        self.build = build

    def wider(self, channel_parts: int) -> Iterator[tuple[nn.Module, Mapping[str, nn.Module]]]:
        if self.build is None:
            raise ValueError(
                "PartialChannels: the candidates are finished modules; give build=, a function K -> candidates, to "
                "let them grow"
            )
        yield self.op, self.build(channel_parts)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = split_channels(x, self.channel_parts)
        if not isinstance(self.op, MixedOp):  # after discretisation
            return joined(self.op(first), rest, self.channel_parts, self.op, None)
        weights = self.op.operation_weights()
        return joined(self.op(first, weights), rest, self.channel_parts, self.op, weights)
