"""One forward of a supernet: what is done once for all of its mixed operations rather than in each of them.

On a GPU, the cost of a small operator is its launch, and the bookkeeping of mixed operations consists of small
operators. Zero gradients, running statistics and expanded weights are therefore computed for all operations at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._utils.torch_private import add_, calls_running, lerp_, map_tensors, tensors_in

__all__ = ["Forward", "apart", "in_forward", "with_zero_gradients"]

_running: ContextVar[Forward | None] = ContextVar("running", default=None)


class Forward:
    """The state of one forward: results that its mixed operations compute only once, and work deferred to its end.

    A group begins one with each forward of its model; mixed operations that run outside such a forward begin their own
    (:func:`in_forward`). Each thread has its own running forward.

    Args:
        model: the supernet whose forward it is; None for that of a mixed operation alone.
        decided: label -> the weights of the model's rows, and what decides which candidates run.
    """

    def __init__(self, model: nn.Module | None = None, decided: Mapping[str, Any] | None = None) -> None:
        self.model = model
        self.decided = decided or {}
        self._outer: Forward | None = None
        self._computed: dict[Hashable, tuple[Tensor, Any]] = {}
        self._without_part: dict[Tensor, None] = {}
        self._moving: dict[nn.BatchNorm2d, tuple[Tensor, Tensor]] = {}
        self._zeros: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @staticmethod
    def of(model: nn.Module) -> Forward | None:
        """The running forward of a model; the innermost one if it calls itself."""
        return next((forward for forward in _chain() if forward.model is model), None)

    def begin(self) -> None:
        """Make this the running forward, which mixed operations use."""
        self._outer = _running.get()
        while self._outer is not None and self._outer._was_interrupted(self.model):
            self._outer = self._outer._outer
        _running.set(self)

    def _was_interrupted(self, beginning: nn.Module | None) -> bool:
        """Whether it ended without :meth:`end`: hooks see exceptions, but not Ctrl-C (KeyboardInterrupt)."""
        if self.model is None:
            return False
        calls = calls_running(self.model) - (beginning is self.model)
        return calls < sum(forward.model is self.model for forward in _chain(self))

    def end(self, output: Any) -> Any:
        """Do the work that was deferred to the end.

        Args:
            output: of the forward: a tensor, or tensors in lists, tuples, dictionaries or attributes of an object.

        Returns:
            The output, whose backward pass also gives a zero gradient to every tensor noted by :meth:`owe`.
        """
        _running.set(self._outer)
        self._move_statistics()
        return self._with_gradients_owed(output)

    def once(self, name: str, of: Sequence[Tensor | None], compute: Callable[[], Tensor], *more: Hashable) -> Tensor:
        """``compute()``, cached by the identity of these tensors and by everything else that it depends on."""
        key = (name, *map(id, of), *more, torch.is_grad_enabled())
        if key not in self._computed:
            self._computed[key] = compute(), of  # keep the tensors alive, so that no id is reused
        return self._computed[key][0]

    # Gradients of zero

    @property
    def owed(self) -> list[Tensor]:
        """Tensors that were not used in the forward so far."""
        return [*self._without_part]

    def owe(self, tensors: Iterable[Tensor]) -> None:
        """Note tensors that were not used in the forward, and must get zero gradients instead of None."""
        if torch.is_grad_enabled():
            owed = (tensor for tensor in tensors if tensor.requires_grad and not is_lazy(tensor))
            self._without_part.update(dict.fromkeys(owed))

    def _with_gradients_owed(self, output: Any) -> Any:
        owed, self._without_part = [*self._without_part], {}
        if not owed or not torch.is_grad_enabled():
            return output
        found = {id(value): value for value in tensors_in(output)}.values()
        values = [v for v in found if v.requires_grad] or [v for v in found if v.is_floating_point()]
        replaced = dict(zip(map(id, values), _behind(values, owed), strict=True)) if values else {}
        return map_tensors(lambda value: replaced.get(id(value), value), output)

    # Running statistics

    def statistics(self, norm: nn.BatchNorm2d, channels: int) -> tuple[Tensor, Tensor]:
        """Zeros that receive a batch's mean and variance, as the running statistics of a batch norm at momentum 1."""
        like = cast(Tensor, norm.running_mean)
        key = like.dtype, like.device
        room = self._zeros.get(key)
        if room is None or len(room) < 2 * channels:
            room = torch.zeros(max(_ROOM, 2 * channels), dtype=like.dtype, device=like.device)
        mean, var, self._zeros[key] = room[:channels], room[channels : 2 * channels], room[2 * channels :]
        return mean, var

    @property
    def moving(self) -> dict[nn.BatchNorm2d, tuple[Tensor, Tensor]]:
        """Batch norms whose running statistics are to move, with the mean and variance of the batch."""
        return self._moving

    def move(self, norms: Sequence[nn.BatchNorm2d], means: Sequence[Tensor], variances: Sequence[Tensor]) -> None:
        """Move running statistics towards those of a batch, at the end of the forward.

        Args:
            norms: with momentum.
            means, variances: one for each norm.
        """
        if not self._moving.keys().isdisjoint(norms):  # one that runs several times moves as often
            self._move_statistics()
        self._moving.update(zip(norms, zip(means, variances, strict=True), strict=True))

    def _move_statistics(self) -> None:
        moving, self._moving = self._moving, {}
        with torch.no_grad():
            for momentum in {norm.momentum for norm in moving}:
                norms = [norm for norm in moving if norm.momentum == momentum]
                own = [cast(Tensor, of) for norm in norms for of in (norm.running_mean, norm.running_var)]
                lerp_(own, [of for norm in norms for of in moving[norm]], cast(float, momentum))
            if moving:
                add_([cast(Tensor, norm.num_batches_tracked) for norm in moving], 1)


def _chain(forward: Forward | None = None) -> Iterator[Forward]:
    """A forward, by default the running one, and those within which it runs."""
    forward = forward or _running.get()
    while forward is not None:
        yield forward
        forward = forward._outer


_ROOM = 4096
"""Zeros made at once, which serve many batch norms."""


@contextmanager
def in_forward() -> Iterator[Forward]:
    """The running forward; if there is none, a new one that ends with the context."""
    if (running := _running.get()) is not None:
        yield running
    else:
        (forward := Forward()).begin()
        try:
            yield forward
        finally:
            forward.end(None)


@contextmanager
def apart() -> Iterator[Forward]:
    """A forward of its own, whose deferred work is left to the caller: :attr:`Forward.owed`, :attr:`Forward.moving`."""
    (forward := Forward()).begin()
    try:
        yield forward
    finally:
        _running.set(forward._outer)


class _Behind(torch.autograd.Function):
    """Returns values unchanged, and gives zero gradients instead of None to tensors that were not used in them.

    An operation with weight zero changes nothing, so it need not run; but an optimizer skips parameters whose gradient
    is None. With zero gradients, momentum and weight decay still act on them, as if the operation had run with weight
    zero, and a wrapper that waits for every parameter's gradient (DistributedDataParallel) does not hang.
    """

    @staticmethod
    def forward(count: int, is_own: bool, *values_and_others: Tensor) -> tuple[Tensor, ...]:
        values = values_and_others[:count]
        return values if is_own else tuple(value.clone() for value in values)  # a view could not be changed in place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        count, is_own, *values_and_others = inputs
        ctx.set_materialize_grads(False)
        ctx.count, ctx.others = count, values_and_others[count:]
        if is_own:
            ctx.mark_dirty(*values_and_others[:count])  # the same tensors, no views of them

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2 + ctx.count :]
        wanted = [other for other, need in zip(ctx.others, needed, strict=True) if need]
        zeros = iter(_zeros_like(wanted))
        return None, None, *gradients, *(next(zeros) if need else None for need in needed)


def _behind(values: Sequence[Tensor], others: Sequence[Tensor], is_own: bool = False) -> tuple[Tensor, ...]:
    return _Behind.apply(len(values), is_own, *values, *others)


def _zeros_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Zeros of each tensor's shape and memory format, views of one block."""
    sizes: Counter[tuple[torch.dtype, torch.device]] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype, tensor.device] += tensor.numel()
    blocks = {(dtype, device): torch.zeros(size, dtype=dtype, device=device) for (dtype, device), size in sizes.items()}
    rest = {
        key: iter(block.split([t.numel() for t in tensors if (t.dtype, t.device) == key]))
        for key, block in blocks.items()
    }
    zeros = []
    for tensor in tensors:
        part = next(rest[tensor.dtype, tensor.device])
        if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
            zeros.append(part.view(tensor.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2))
        else:
            zeros.append(part.view(tensor.shape))
    return zeros


def with_zero_gradients(value: Tensor, others: Sequence[Tensor], is_own: bool = False) -> Tensor:
    """The value, whose backward pass gives the other tensors zero gradients instead of None.

    Within the forward of a supernet, the forward's output does this for all such tensors, and the value is returned
    unchanged.

    Args:
        value: any tensor.
        others: tensors that were not used in it.
        is_own: whether nothing else holds the value, so that it need not be copied.
    """
    if (forward := _running.get()) is not None:
        forward.owe(others)
    elif torch.is_grad_enabled() and (owed := [t for t in others if t.requires_grad and not is_lazy(t)]):
        [value] = _behind([value], owed, is_own)
    return value
