"""Replacing candidates by wider ones that start from their weights.

Source: Chen et al., "DrNAS: Dirichlet Neural Architecture Search", section 3.3; Chen et al., "Net2Net".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from .mixed_op import MixedOp

__all__ = ["Widened", "Widening", "widen_"]

Widened = Mapping[nn.Parameter, Callable[[Tensor], Tensor]]
"""Widened parameter -> function that widens a tensor of its old shape, such as an optimizer's momentum."""


class Widening:
    """New channels as copies of old ones, drawn at random.

    Where a dimension grows from C to C', its C entries stay, and each new one is a copy of a randomly drawn one. The
    same draw is used wherever C grows to C', so that a convolution's new outputs match the copied entries of its batch
    norm and of the next layer's inputs.

    Args:
        generator: of the draws, on the CPU.

    Example:
        >>> weight = torch.tensor([[1.0, 2.0]])
        >>> widened = Widening(torch.Generator().manual_seed(0))(weight, (1, 4))
        >>> widened[0, :2].tolist(), all(value in (1.0, 2.0) for value in widened[0, 2:].tolist())
        ([1.0, 2.0], True)
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._copied: dict[tuple[int, int], Tensor] = {}

    def __call__(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensor at a larger shape."""
        wanted = torch.channels_last if _is_channels_last(tensor) else torch.contiguous_format
        for dim, (before, after) in enumerate(zip(tensor.shape, shape, strict=True)):
            if before != after:
                tensor = tensor.index_select(dim, self._entries(before, after).to(tensor.device))
        return tensor.contiguous(memory_format=wanted)

    def _entries(self, before: int, after: int) -> Tensor:
        if (before, after) not in self._copied:
            drawn = torch.randint(before, (after - before,), generator=self.generator)
            self._copied[before, after] = torch.cat([torch.arange(before), drawn])
        return self._copied[before, after]


def widen_(op: MixedOp, candidates: Mapping[str, nn.Module], generator: torch.Generator) -> Widened:
    """Replace a mixed operation's candidates by wider ones, in place; parameters remain the same objects, but larger.

    Args:
        op: the mixed operation.
        candidates: the wider candidates, with the same names and structure; their own weights are discarded.
        generator: draws the channels that are copied, see :class:`Widening`.

    Returns:
        The parameters that have grown, and how.

    Raises:
        ValueError: the candidates' names differ, or one is narrower or has another structure.

    Example:
        >>> build = lambda channels: {"conv": nn.Conv2d(channels, channels, 1, bias=False)}
        >>> op = MixedOp(build(2))
        >>> [(weight, grow)] = widen_(op, build(3), torch.Generator()).items()
        >>> weight.shape, grow(torch.zeros(2, 2, 1, 1)).shape
        (torch.Size([3, 3, 1, 1]), torch.Size([3, 3, 1, 1]))
    """
    if op.names != tuple(candidates):
        raise ValueError(f"widen_: the candidates are {', '.join(op.names)}, got {', '.join(candidates)}")
    widening, widened = Widening(generator), {}
    for name, wide in candidates.items():
        narrow = op.candidates[name]
        _check_wider(name, narrow, wide)
        for path, parameter in [*narrow.named_parameters()]:
            shape = wide.get_parameter(path).shape
            if parameter.shape != shape:
                widened[parameter] = partial(widening, shape=shape)
                parameter.data, parameter.grad = widening(parameter.data, shape), None
            _put(wide, path, parameter)
        for path, buffer in [*narrow.named_buffers()]:
            _put(wide, path, widening(buffer, wide.get_buffer(path).shape))
        op.candidates[name] = wide.train(narrow.training)
    return widened


def _check_wider(name: str, narrow: nn.Module, wide: nn.Module) -> None:
    before, after = ({n: t.shape for n, t in module.state_dict().items()} for module in (narrow, wide))
    for path in {**before, **after}:
        old, new = before.get(path), after.get(path)
        if old is None or new is None or len(old) != len(new) or any(b > a for b, a in zip(old, new, strict=True)):
            raise ValueError(
                f"widen_: {path} of candidate {name!r} has the shape {old and tuple(old)}, and cannot grow to "
                f"{new and tuple(new)}"
            )


def _put(module: nn.Module, path: str, tensor: Tensor) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(owner), leaf, tensor)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
