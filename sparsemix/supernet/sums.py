"""Weighted sums of many values for many edges, in a few operators.

An edge needs ``sum_k w_k y_k``, and in the backward pass the product of its gradient with every ``y_k``. For all edges
that leave a node, both are matrix products: weights times values, and gradients times values. They need the values
copied into one tensor. On a CPU, where operator calls are cheap and copies are not, large values are therefore
multiplied one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._utils.torch_private import added
from .forward import Forward

__all__ = ["Sums", "Total", "add_each"]


class Total(NamedTuple):
    """The sum of one edge.

    Attributes:
        value: the sum.
        is_own: whether it is a new tensor that nothing else holds.
        passes_gradients: whether gradients flow back from it to the node.
    """

    value: Tensor
    is_own: bool
    passes_gradients: bool


class Sums:
    """The weighted sums of edges that leave a node, gathered value by value and then computed together."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._added: dict[tuple[int, ...], list[Tensor]] = {}
        self._weighted: dict[int, _Common] = {}
        self._scored: dict[tuple[torch.Size, torch.dtype], dict[int, _Common]] = {}
        self._totals: dict[int, Tensor] = {}
        self._own: set[int] = set()
        self._passing: set[int] = set()

    def add(self, edges: Sequence[int], values: Tensor) -> None:
        """Add one value to each of these edges; a new tensor holds the values, concatenated along dimension 1."""
        if values.requires_grad:
            self._passing.update(edges)
        if len({*edges}) == len(edges):
            self._added.setdefault(tuple(edges), []).append(values)
        else:
            for edge, value in zip(edges, values.chunk(len(edges), dim=1), strict=True):
                self.add_weighted(edge, value, None)

    def add_weighted(self, edge: int, value: Tensor | None, weight: Tensor | None) -> None:
        """Add ``weight * value`` to an edge; no weight: it has been applied already; no value: add nothing."""
        if value is None:
            return
        if value.requires_grad:
            self._passing.add(edge)
        if weight is None:
            self._add(edge, value)
        else:
            _put(self._weighted, edge, value, weight)

    def score(self, edge: int, value: Tensor | None, weight: Tensor) -> None:
        """Add ``weight * value`` to an edge where the value has no graph."""
        if value is not None:
            _put(self._scored.setdefault((value.shape, value.dtype), {}), edge, value, weight)

    def totals(self) -> dict[int, Total]:
        """The sums of the edges that anything was added to."""
        for edges, several in self._added.items():
            values = sum(several[1:], several[0])
            if len(edges) == 1:
                self._add(edges[0], values, is_own=True)
            else:
                for edge, value in zip(edges, values.chunk(len(edges), dim=1), strict=True):
                    self._add(edge, value)
        together: dict[tuple[tuple[int, ...], torch.dtype], list[_Common]] = {}
        for common in self._weighted.values():
            together.setdefault((tuple(common.weights), common.value.dtype), []).append(common)
        for (edges, _), commons in together.items():
            self._add_products(edges, commons)
        for alike in self._scored.values():
            scored = sorted({edge for common in alike.values() for edge in common.weights})
            self._add_together(scored, [*alike.values()], have_graph=False)
        return {edge: Total(value, edge in self._own, edge in self._passing) for edge, value in self._totals.items()}

    def _add(self, edge: int, value: Tensor, is_own: bool = False) -> None:
        there = self._totals.get(edge)
        self._totals[edge] = value if there is None else there + value
        if is_own or there is not None:
            self._own.add(edge)

    def _add_products(self, edges: tuple[int, ...], several: Sequence[_Common]) -> None:
        if len(edges) == 1:  # one value after another, so that a value at weight zero changes no bit of the sum
            [edge] = edges
            for value, weights in several:
                there = self._totals.get(edge)
                self._totals[edge] = (
                    value * weights[edge] if there is None else torch.addcmul(there, value, weights[edge])
                )
                self._own.add(edge)
            return
        self._add_together(edges, several, have_graph=True)

    def _add_together(self, edges: Sequence[int], several: Sequence[_Common], have_graph: bool) -> None:
        values = [common.value if have_graph else common.value.detach() for common in several]
        totals = [self._totals.get(edge) for edge in edges]
        weights = [[common.weights.get(edge) for common in several] for edge in edges]
        if values[0].is_cpu and values[0].numel() > FEW_NUMBERS:
            there = [[k for k, weight in enumerate(row) if weight is not None] for row in weights]
            sums = _OneByOne.apply(there, self._matrix(weights), *totals, *values)
        else:
            layout = _Layout.of([*values, *(total for total in totals if total is not None)])
            *sums, _ = _Together.apply(layout, self._matrix(weights, layout.images), len(edges), *totals, *values)
        self._own.update(edge for edge in edges if edge in self._totals or len(edges) == 1)  # others: parts of a tensor
        self._totals.update(zip(edges, sums, strict=True))

    def _matrix(self, weights: Sequence[Sequence[Tensor | None]], images: int | None = None) -> Tensor:
        """The weights as a matrix ``(E, K)``, zero where there is none, or expanded over the images to ``(B, E, K)``.

        Cells with the same weights share it. The expansion is part of it, so that its gradient is summed over the
        images only once for all these cells.
        """
        flat = [weight for row in weights for weight in row]
        some = next(weight for weight in flat if weight is not None)
        zero = self._forward.once("zero", (), partial(torch.zeros_like, some), some.dtype, some.device)

        def compute() -> Tensor:
            stacked = torch.stack([zero if weight is None else weight for weight in flat]).view(len(weights), -1)
            return stacked if images is None else stacked.expand(images, -1, -1)

        return self._forward.once("matrix", flat, compute, len(weights), images)


class _Common(NamedTuple):
    """One value, and its weight on each of the edges that it is added to."""

    value: Tensor
    weights: dict[int, Tensor]


def _put(values: dict[int, _Common], edge: int, value: Tensor, weight: Tensor) -> None:
    weights = values.setdefault(id(value), _Common(value, {})).weights
    weights[edge] = weights[edge] + weight if edge in weights else weight


FEW_NUMBERS = 2**16
"""Values with more elements than this are large; up to about here, both ways are equally fast on two cores."""


class _Together(torch.autograd.Function):
    """``totals[e] + sum_k matrix[b, e, k] values[k]`` for every e, and the values together, where they are kept.

    The gradient of the matrix is the score of each value on each edge, ``<g_e, y_k>``, for each image b.
    """

    @staticmethod
    def forward(layout: _Layout, matrix: Tensor, count: int, *totals_and_values: Any) -> tuple[Tensor, ...]:
        totals, values = totals_and_values[:count], totals_and_values[count:]
        there = [e for e, total in enumerate(totals) if total is not None]
        with _as_it_is(values[0]):
            together = layout.together(values)
            sums = layout.apart(torch.bmm(matrix.to(together.dtype), together))
        added_up = dict(zip(there, added([totals[e] for e in there], [sums[e] for e in there]), strict=True))
        sums = [added_up.get(e, sums[e]) for e in range(count)]
        return *(sums if count > 1 or there else [sums[0].clone()]), together  # a view could not be changed in place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.layout, matrix, count, *totals_and_values = inputs
        totals, values, together = totals_and_values[:count], totals_and_values[count:], output[-1]
        ctx.are_complex = [None if total is None else total.is_complex() for total in totals]
        ctx.number = len(values)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(together)
        # Values with a graph are in memory anyway; without one, only the joint copy has to be kept.
        ctx.is_together = not any(ctx.needs_input_grad[3 + count :])
        ctx.save_for_backward(matrix, *([together] if ctx.is_together else values))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        layout, (matrix, *values) = ctx.layout, ctx.saved_tensors
        some = next((g for g in gradients if g is not None), None)
        if some is None:
            return (None,) * len(ctx.needs_input_grad)
        sums = [torch.zeros_like(some) if g is None else g for g in gradients[:-1]]
        gradient, scores, back = layout.together(sums), None, [None] * ctx.number
        if ctx.needs_input_grad[1]:
            [together] = values if ctx.is_together else [layout.together(values)]
            scores = torch.bmm(gradient.to(together.dtype), together.transpose(1, 2))
        if not ctx.is_together:
            back = layout.apart(torch.bmm(matrix.to(gradient.dtype).transpose(1, 2), gradient))
        totals = [None if c is None else g if c else torch.real(g) for g, c in zip(sums, ctx.are_complex, strict=True)]
        return None, scores, None, *totals, *back


class _OneByOne(torch.autograd.Function):
    """``totals[e] + sum_k matrix[e, k] values[k]`` for every e, over the values ``there[e]``."""

    @staticmethod
    def forward(there: Sequence[Sequence[int]], matrix: Tensor, *totals_and_values: Any) -> tuple[Tensor, ...]:
        totals, values = totals_and_values[: len(there)], totals_and_values[len(there) :]
        sums = []
        for own, total, weights in zip(there, totals, matrix, strict=True):
            first, *others = own
            new = (
                values[first] * weights[first] if total is None else torch.addcmul(total, values[first], weights[first])
            )
            for k in others:
                new.addcmul_(values[k], weights[k])  # of the same dtype
            sums.append(new)
        return tuple(sums)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.there, matrix, *totals_and_values = inputs
        totals, values = totals_and_values[: len(ctx.there)], totals_and_values[len(ctx.there) :]
        ctx.are_complex = [None if total is None else total.is_complex() for total in totals]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(matrix, *values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        matrix, *values = ctx.saved_tensors
        scores: list[list[Tensor]] = [[matrix.new_zeros(())] * len(values) for _ in gradients]
        back: list[Tensor | None] = [None] * len(values)
        wanted = ctx.needs_input_grad[2 + len(gradients) :]
        product = None
        for e, g in enumerate(gradients):
            if g is None:
                continue
            for k in ctx.there[e]:
                if ctx.needs_input_grad[1]:
                    product = torch.mul(g, values[k].conj(), out=None if torch.is_grad_enabled() else product)
                    scores[e][k] = torch.real(product.sum())
                if wanted[k]:
                    before = back[k]
                    back[k] = g * matrix[e, k] if before is None else torch.addcmul(before, g, matrix[e, k])
        by_matrix = torch.stack([score for row in scores for score in row]).view_as(matrix)
        totals = [
            None if g is None or c is None else g if c else torch.real(g)
            for g, c in zip(gradients, ctx.are_complex, strict=True)
        ]
        return None, by_matrix, *totals, *back


def add_each(totals: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Each total plus its counterpart, in one operator."""
    alike = {(tensor.dtype, tensor.shape) for tensor in (*totals, *others)}
    # A compiler fuses the additions anyway, and formats such as ONNX have no operator on lists.
    if len(totals) < 2 or len(alike) > 1 or torch.compiler.is_compiling():
        return [total + other for total, other in zip(totals, others, strict=True)]
    return [*_AddEach.apply(len(totals), *totals, *others)]


class _AddEach(torch.autograd.Function):
    """Adds two lists of tensors; PyTorch's own derivative of that would keep all inputs in memory."""

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(added(tensors[:count], tensors[count:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *gradients, *gradients


class _Layout(NamedTuple):
    """How values of one shape lie side by side as ``(B, K, n)``: as real numbers, in the order of their memory."""

    shape: torch.Size
    is_channels_last: bool
    is_complex: bool

    @classmethod
    def of(cls, values: Sequence[Tensor]) -> _Layout:
        first = values[0]
        is_channels_last = first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last)
        return cls(first.shape, is_channels_last, any(value.is_complex() for value in values))

    @property
    def images(self) -> int:
        return self.shape[0] if self.shape else 1

    def together(self, values: Sequence[Tensor]) -> Tensor:
        rows = [self._in_order(value).unsqueeze(1) for value in values]
        return (torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]).flatten(2)

    def apart(self, together: Tensor) -> list[Tensor]:
        if self.is_complex:
            together = torch.view_as_complex(together.unflatten(2, (-1, 2)))
        values = together.unbind(1) if together.shape[1] > 1 else [together.squeeze(1)]  # the only one may be changed
        if self.is_channels_last:
            channels, *sides = self.shape[1:]
            return [value.unflatten(1, (*sides, channels)).movedim(3, 1) for value in values]
        return [value.view(self.shape) for value in values]

    def _in_order(self, value: Tensor) -> Tensor:
        if value.dim() < 2:
            value = value.view(-1, 1)
        if self.is_channels_last:
            value = value.movedim(1, 3)
        return (
            torch.view_as_real(value.to(torch.promote_types(value.dtype, torch.complex32)))
            if self.is_complex
            else value
        )


def _as_it_is(value: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast, which would compute the product in a lower precision than the value's."""
    kind = value.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if is_on else nullcontext()
