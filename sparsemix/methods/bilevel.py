"""One search step: the weights' update and the alphas' update, and alpha's gradient in first and second order.

A loss here is a function of a batch, ``loss(batch) -> scalar``, that runs the model. ``split`` cuts a batch that is too
large for one run into parts whose losses add up to that of the batch; it is still one step. This module knows nothing
of processes: gradients pass through ``reduce`` before they are used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..supernet.architecture import check_architecture
from ..supernet.gradients import (
    Arch,
    Gradients,
    Loss,
    Reduce,
    Split,
    alpha_gradient,
    checked,
    loss_gradients,
    unrolled_alpha_gradient,
    whole,
)

__all__ = ["Losses", "Order", "SearchStep"]

Order = Literal["first", "second", "single"]
Context = Callable[[], AbstractContextManager[None]]
AroundWeights = Callable[[Any], AbstractContextManager[None]]


class Losses(NamedTuple):
    """The detached losses of one search step, each a scalar."""

    train: Tensor
    val: Tensor


def _clip_gradient_norm(parameters: Sequence[Tensor], max_norm: float) -> None:
    """``torch.nn.utils.clip_grad_norm_`` to the last bit; on a CPU gradients within the norm are not multiplied by 1.

    PyTorch always multiplies, to avoid waiting for a GPU; with the many small gradients of idle operations that is
    expensive. The condition is that of ``clip_grads_with_norm_`` for a coefficient below 1, or NaN.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm.device.type != "cpu" or not max_norm / (norm + 1e-6) >= 1:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def _held(optimizer: Any) -> set[int]:
    """The identities of an optimizer's parameters."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _check_weights(arch: Arch, weight_optimizer: Any) -> None:
    """Check that the weights' optimizer trains this model, and warn about weights that it leaves out."""
    weights = [weight for weight in arch.weight_parameters() if weight.requires_grad]
    held = _held(weight_optimizer)
    missing = sum(id(weight) not in held for weight in weights)
    if missing and missing == len(weights):
        raise ValueError(
            f"SearchStep: the weights' optimizer holds none of the {len(weights)} weights of "
            f"{type(arch.model).__name__}; "
            f"it is of another model. Make it over arch.weight_parameters()"
        )
    if missing:
        warnings.warn(
            f"SearchStep: the weights' optimizer lacks {missing} of {len(weights)} weights, which will never move (was "
            f"it made before mix_?): make it over arch.weight_parameters(), or freeze them by requires_grad_(False)",
            stacklevel=4,
        )


def _check_optimizers(arch: Arch, weight_optimizer: Any, alpha_optimizer: Any) -> None:
    """Check that each optimizer holds its own parameters: the weights, or the alphas."""
    if frozen := sum(not alpha.requires_grad for alpha in arch.parameters()):
        raise ValueError(
            f"SearchStep: {frozen} of {len(arch.parameters())} alphas have requires_grad=False; to keep a row as it "
            f"is, allow only one candidate: arch.restrict(row, [name])"
        )
    alphas = {id(alpha) for alpha in arch.parameters()}
    among_weights, among_alphas = _held(weight_optimizer), _held(alpha_optimizer)
    if alphas <= among_weights and not alphas & among_alphas:
        raise ValueError(
            "SearchStep: the two optimizers are swapped: the weights' optimizer comes first, over "
            "arch.weight_parameters(), then alpha's, over arch.parameters()"
        )
    if shared := len(alphas & among_weights):
        raise ValueError(
            f"SearchStep: the weights' optimizer holds {shared} of {len(alphas)} alphas, which it would train on the "
            f"training loss and decay: make it over arch.weight_parameters()"
        )
    if missing := len(alphas - among_alphas):
        raise ValueError(
            f"SearchStep: alpha's optimizer lacks {missing} of {len(alphas)} alphas, which would never move: make it "
            f"over arch.parameters()"
        )
    if others := len(among_alphas - alphas):
        raise ValueError(
            f"SearchStep: alpha's optimizer holds {others} parameters that are no alphas of this group: make it over "
            f"arch.parameters()"
        )
    if arch.has_model:
        _check_weights(arch, weight_optimizer)


class SearchStep(Generic[Arch]):
    """One step of the search: an update of the weights and one of the alphas, under one phi (Algorithm 1).

    Args:
        arch: the model's architecture parameters: its group, or tables of alphas that other code owns (whatever
            satisfies :class:`~sparsemix.supernet.architecture.Architecture`).
        loss: function of a batch that runs the model and returns a scalar.
        weight_optimizer: over ``arch.weight_parameters()``.
        alpha_optimizer: over ``arch.parameters()``, the alphas and, where edges are weighed, the betas.
        order: ``"first"``: alpha's gradient at the present weights; ``"second"``: through a virtual step of the
            weights, which must be trained by SGD; ``"single"``: not bilevel, one backward pass of the training loss
            updates both and the validation batch is not used.
        weights_first: update the weights before the alphas (Algorithm 1), or after them (DARTS code).
        max_norm: the weights' gradient is clipped to this norm; None: no clipping.
        clip_alphas: include alpha's gradients, present and stale, in the norm used for clipping, as published
            NAS-Bench-201 code does. This shrinks the weights' update; off by default.
        reduce: averages a list of gradients over processes, in place: those of the alphas, and of the weights.
        split: cuts a batch into parts whose losses add up to the batch's, which then run one after the other
            (gradient accumulation). There is still one step, one phi, and one update each of weights and alphas. By
            default the batch is not split.
        around_weights: function of the training batch that returns the context in which the weights' loss is computed,
            such as ``lambda batch: arch.using(relaxation)`` for a relaxation that applies to the weights update only
            (to the one update of both with ``order="single"``).
        backward: runs the backward pass of the weights' loss. It must leave unscaled gradients, which are then clipped:
            ``torch.amp.GradScaler`` is not supported, bf16 needs none.

    Raises:
        ValueError: an unknown order, a norm that is not positive, a frozen alpha, or optimizers that do not hold what
            they should: swapped optimizers, alphas in the weights' optimizer, or an alphas' optimizer that lacks an
            alpha or holds anything else. At a step, the loss depends on no alpha, or the alphas have been replaced
            since.
        TypeError: ``arch`` does not hold architecture parameters; at a step, the loss is not a scalar tensor with a
            graph.
        RuntimeError: at a step, the group has been released, because another one was made for the model.

    Warns:
        UserWarning: the weights' optimizer lacks some of the model's weights; or a second step is made under the same
            phi although the relaxation depends on it.

    Example:
        >>> from torch import nn
        >>> from sparsemix import ArchParameterGroup, MixedOp
        >>> model = nn.Sequential(MixedOp({"skip": nn.Identity(), "linear": nn.Linear(4, 4)}), nn.Linear(4, 2))
        >>> arch = ArchParameterGroup(model)
        >>> step = SearchStep(
        ...     arch,
        ...     lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        ...     torch.optim.SGD(arch.weight_parameters(), lr=0.05),
        ...     torch.optim.Adam(arch.parameters(), lr=3e-4, betas=(0.5, 0.999)),
        ... )
        >>> batch = torch.randn(8, 4), torch.randint(2, (8,))
        >>> losses = step(batch, batch)
        >>> losses.train.ndim, losses.val.ndim
        (0, 0)

    Source: Zhang and Ding, Algorithm 1; Liu et al., "DARTS", Algorithm 1.
    """

    def __init__(
        self,
        arch: Arch,
        loss: Loss,
        weight_optimizer: torch.optim.Optimizer,
        alpha_optimizer: torch.optim.Optimizer,
        *,
        order: Order = "first",
        weights_first: bool = True,
        max_norm: float | None = 5.0,
        clip_alphas: bool = False,
        reduce: Reduce | None = None,
        split: Split = whole,
        around_weights: AroundWeights = nullcontext,
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
    ) -> None:
        check_architecture(arch, "SearchStep")
        if order not in get_args(Order):
            raise ValueError(f"SearchStep: order must be one of {', '.join(get_args(Order))}, got {order!r}")
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"SearchStep: max_norm must be positive or None, got {max_norm}")
        _check_optimizers(arch, weight_optimizer, alpha_optimizer)
        self.arch = arch
        self._alphas = arch.parameters()
        self.loss = loss
        self.weight_optimizer = weight_optimizer
        self.alpha_optimizer = alpha_optimizer
        self.order = order
        self.weights_first = weights_first
        self.max_norm = max_norm
        self.clip_alphas = clip_alphas
        self.reduce = reduce
        self.split = split
        self.around_weights = around_weights
        self.backward = backward

    def __call__(self, train_batch: Any, val_batch: Any, alphas: bool = True) -> Losses:
        """Update weights and alphas, or only the weights if ``alphas`` is false.

        Returns:
            The losses; where the validation batch is not used, both are the training loss.
        """
        self.arch.check_bound()
        self.arch.spend_moment()
        if not alphas:
            loss = self.update_weights(train_batch)
            return Losses(loss, loss)
        if self.order == "single":
            loss = self.update_both(train_batch)
            return Losses(loss, loss)
        if self.weights_first:
            train_loss = self.update_weights(train_batch)
            return Losses(train_loss, self.update_alphas(train_batch, val_batch))
        val_loss = self.update_alphas(train_batch, val_batch)
        return Losses(self.update_weights(train_batch), val_loss)

    def update_weights(self, batch: Any) -> Tensor:
        """One step of the weights' optimizer on the loss of ``batch``; alpha's gradient is not computed."""
        self.weight_optimizer.zero_grad()
        with self.around_weights(batch):
            loss = self._backward(batch, nullcontext if self.clip_alphas else self.arch.fixed_alphas)
        self._step_weights()
        return loss

    def update_alphas(self, train_batch: Any, val_batch: Any) -> Tensor:
        """One step of alpha's optimizer on the loss of ``val_batch``; no weight gradient is left behind."""
        if self.order == "second":
            gradients, loss = unrolled_alpha_gradient(
                self.arch, self.loss, self.weight_optimizer, train_batch, val_batch, self.reduce, self.split
            )
        else:
            gradients, loss = alpha_gradient(self.arch, self.loss, val_batch, self.split)
        self._step_alphas(gradients)
        return loss

    def update_both(self, batch: Any) -> Tensor:
        """One step of both optimizers on the loss of ``batch``, by one backward pass."""
        self.weight_optimizer.zero_grad()
        self.alpha_optimizer.zero_grad()
        with self.around_weights(batch):
            loss = self._backward(batch, nullcontext)
        gradients = [torch.zeros_like(a) if a.grad is None else a.grad for a in self.arch.parameters()]
        self._step_weights()
        self._step_alphas(gradients)
        return loss

    def gradients(self, batch: Any, tensors: Sequence[Tensor]) -> tuple[Gradients, Tensor]:
        """The gradients of a batch's loss with respect to any tensors, and the loss; nothing is updated.

        For methods that perturb or measure. Batches are split and gradients averaged over processes as in the updates.
        """
        found, loss = loss_gradients(self.loss, batch, self.split, tensors)
        if self.reduce is not None:
            self.reduce([*found, loss])
        return found, loss

    def _backward(self, batch: Any, forward: Context) -> Tensor:
        """Add the gradients of the batch's loss to the parameters, part by part; the detached loss."""
        values = []
        for part in self.split(batch):
            with forward():
                value = checked(self.loss(part))
            self.backward(value)
            values.append(value.detach())
        return sum(values[1:], values[0])

    def _step_weights(self) -> None:
        clipped = [weight for group in self.weight_optimizer.param_groups for weight in group["params"]]
        if self.clip_alphas:
            clipped += self.arch.parameters()
        if self.reduce is not None:
            self.reduce([parameter.grad for parameter in clipped if parameter.grad is not None])
        if self.max_norm is not None:
            _clip_gradient_norm(clipped, self.max_norm)
        self.weight_optimizer.step()

    def _step_alphas(self, gradients: Gradients) -> None:
        if self.reduce is not None:
            self.reduce(gradients)
        alphas = self.arch.parameters()
        if [*map(id, alphas)] != [*map(id, self._alphas)]:
            _check_optimizers(self.arch, self.weight_optimizer, self.alpha_optimizer)  # may still hold the old ones
            self._alphas = alphas
        for alpha, gradient in zip(alphas, gradients, strict=True):
            alpha.grad = gradient
        self.alpha_optimizer.step()
