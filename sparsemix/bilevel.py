"""One search step: the weights' update and the alphas' update, and alpha's gradient in first and second order.

A loss here is a function of a batch, ``loss(batch) -> scalar``, that runs the model. Nothing is known of processes:
alpha's gradients, and in second order those of the virtual step, pass through ``reduce`` before they are used; the
weights' backward pass is ``backward``, which may reduce theirs (as DistributedDataParallel does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Generic, Literal, TypeVar, get_args

import torch
from torch import Tensor

from .alphas import AlphaTables
from .arch_parameters import ArchParameterGroup, restoring

__all__ = ["Loss", "SearchStep", "alpha_gradient", "unrolled_alpha_gradient"]

Loss = Callable[[Any], Tensor]
Order = Literal["first", "second", "single"]
Gradients = Sequence[Tensor]
Reduce = Callable[[Gradients], None]
Arch = TypeVar("Arch", bound=ArchParameterGroup | AlphaTables)


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of these parameters alone; zero for one that the loss does not depend on."""
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


def alpha_gradient(arch: Arch, loss: Loss, batch: Any) -> tuple[Gradients, Tensor]:
    """First-order gradient of the alphas at the present weights, and the loss (DARTS-V1).

    Only alpha's gradients are asked for, so that no weight gradient is computed.

    Returns:
        One gradient for each of ``arch.parameters()``, and the detached loss.
    """
    value = loss(batch)
    return _gradients(value, arch.parameters()), value.detach()


def unrolled_alpha_gradient(
    arch: Arch,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    train_batch: Any,
    val_batch: Any,
    reduce: Reduce | None = None,
) -> tuple[Gradients, Tensor]:
    """Second-order gradient of the alphas: of the validation loss after one virtual step of the weights (DARTS-V2).

    ``grad L_val(w') - xi [grad L_train(w+) - grad L_train(w-)] / (2 R)`` with ``w'`` one SGD step of learning rate xi,
    with the optimizer's momentum and weight decay, ``w+- = w +- R grad_w' L_val`` and ``R = 0.01 / |grad_w' L_val|``.
    The finite difference stands for the product of the Hessian with ``grad_w' L_val``. Its two passes see the same
    random numbers (dropout). Weights, buffers (running statistics) and the random state are afterwards what they were.

    Args:
        arch: the model's architecture parameters.
        loss: function of a batch.
        optimizer: the weights' SGD; its state is read, not changed.
        train_batch, val_batch: batches of the two halves.
        reduce: averages a list of gradients over processes, in place: the weights' gradients before the virtual step
            and before the finite difference. Alpha's gradients are returned as they are.

    Returns:
        One gradient for each of ``arch.parameters()``, and the detached validation loss at ``w'``.

    Raises:
        TypeError: the optimizer is not ``torch.optim.SGD``.
        ValueError: a weight of the model is not in the optimizer.

    Source: Liu et al., "DARTS", Eq. 7 and 8.
    """
    weights = [weight for weight in arch.weight_parameters() if weight.requires_grad]
    alphas = arch.parameters()
    reduce = reduce or (lambda gradients: None)
    with restoring(arch.model), arch.fixed_alphas():
        gradients = _gradients(loss(train_batch), weights)
    reduce(gradients)
    steps, rates = _virtual_sgd_step(optimizer, weights, gradients)
    with restoring(arch.model):
        _shift(weights, steps)
        value = loss(val_batch)
        gradients = _gradients(value, [*alphas, *weights])
    gradient, outer = gradients[: len(alphas)], gradients[len(alphas) :]
    reduce(outer)
    vector = [rate * g for rate, g in zip(rates, outer, strict=True)]  # xi grad_w' L_val, so that R absorbs xi
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(vector)))
    if norm == 0:
        return gradient, value.detach()
    radius = 0.01 / norm
    shifted = []
    for sign in (1, -1):
        with restoring(arch.model):
            _shift(weights, [sign * radius * v for v in vector])
            shifted.append(_gradients(loss(train_batch), alphas))
    implicit = [(plus - minus) / (2 * radius) for plus, minus in zip(*shifted, strict=True)]
    return [g - i for g, i in zip(gradient, implicit, strict=True)], value.detach()


def _virtual_sgd_step(
    optimizer: torch.optim.Optimizer, weights: Sequence[Tensor], gradients: Gradients
) -> tuple[list[Tensor], list[float]]:
    """What SGD would add to each weight for these gradients, and minus the derivative of that by the gradient."""
    sgd = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if not isinstance(sgd, torch.optim.SGD):
        raise TypeError(f"second order needs torch.optim.SGD for its virtual step, got {type(sgd).__name__}")
    groups = {weight: group for group in sgd.param_groups for weight in group["params"]}
    missing = [tuple(weight.shape) for weight in weights if weight not in groups]
    if missing:
        raise ValueError(f"second order needs every weight in its optimizer; not there: weights of shape {missing}")
    steps, rates = [], []
    for weight, gradient in zip(weights, gradients, strict=True):
        group = groups[weight]
        sign = -1.0 if group["maximize"] else 1.0
        decayed = sign * gradient + group["weight_decay"] * weight.detach()
        velocity, gain = decayed, sign
        momentum, buffer = group["momentum"], sgd.state.get(weight, {}).get("momentum_buffer")
        if momentum and buffer is not None:
            velocity = momentum * buffer + (1 - group["dampening"]) * decayed
            gain = sign * (1 - group["dampening"])
        if group["nesterov"]:
            velocity, gain = decayed + momentum * velocity, sign + momentum * gain
        steps.append(-group["lr"] * velocity)
        rates.append(group["lr"] * gain)
    return steps, rates


def _shift(weights: Sequence[Tensor], by: Sequence[Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_add_(list(weights), list(by))


class SearchStep(Generic[Arch]):
    """One step of the search: an update of the weights and one of the alphas, under one phi (Algorithm 1).

    Args:
        arch: the model's architecture parameters.
        loss: function of a batch that runs the model and returns a scalar.
        weight_optimizer: over ``arch.weight_parameters()``.
        alpha_optimizer: over ``arch.parameters()``.
        order: ``"first"``: alpha's gradient at the present weights; ``"second"``: through a virtual step of the
            weights, which must be trained by SGD; ``"single"``: no bilevel problem, both are updated by one backward
            pass of the training loss and the validation batch is not used.
        weights_first: the weights' update before the alphas' (Algorithm 1), or after (DARTS code).
        max_norm: the weights' gradient is clipped to this norm; None: not at all.
        clip_alphas: take alpha's gradients, present and stale, into the norm that is clipped, as published
            NAS-Bench-201 code does. This shrinks the weights' update; off by default.
        reduce: averages a list of gradients over processes, in place.
        backward: runs the backward pass of the weights' loss.

    Raises:
        ValueError: an unknown order, or a norm that is not positive.

    Example:
        >>> from torch import nn
        >>> from sparsemix import MixedOp
        >>> model = nn.Sequential(MixedOp({"skip": nn.Identity(), "linear": nn.Linear(4, 4)}), nn.Linear(4, 2))
        >>> arch = ArchParameterGroup(model)
        >>> step = SearchStep(
        ...     arch,
        ...     lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        ...     torch.optim.SGD(arch.weight_parameters(), lr=0.05),
        ...     torch.optim.Adam(arch.parameters(), lr=3e-4, betas=(0.5, 0.999)),
        ... )
        >>> batch = torch.randn(8, 4), torch.randint(2, (8,))
        >>> train_loss, val_loss = step(batch, batch)

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
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
    ) -> None:
        if order not in get_args(Order):
            raise ValueError(f"SearchStep: order must be one of {', '.join(get_args(Order))}, got {order!r}")
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"SearchStep: max_norm must be positive or None, got {max_norm}")
        self.arch = arch
        self.loss = loss
        self.weight_optimizer = weight_optimizer
        self.alpha_optimizer = alpha_optimizer
        self.order = order
        self.weights_first = weights_first
        self.max_norm = max_norm
        self.clip_alphas = clip_alphas
        self.reduce = reduce
        self.backward = backward

    def __call__(self, train_batch: Any, val_batch: Any) -> tuple[Tensor, Tensor]:
        """Update both; returns the detached losses (train, validation), the former twice for a single level."""
        if self.order == "single":
            loss = self.update_both(train_batch)
            return loss, loss
        if self.weights_first:
            train_loss = self.update_weights(train_batch)
            return train_loss, self.update_alphas(train_batch, val_batch)
        val_loss = self.update_alphas(train_batch, val_batch)
        return self.update_weights(train_batch), val_loss

    def update_weights(self, batch: Any) -> Tensor:
        """One step of the weights' optimizer on the loss of ``batch``; alpha's gradient is not computed."""
        with nullcontext() if self.clip_alphas else self.arch.fixed_alphas():
            loss = self.loss(batch)
        self.weight_optimizer.zero_grad()
        self.backward(loss)
        self._step_weights()
        return loss.detach()

    def update_alphas(self, train_batch: Any, val_batch: Any) -> Tensor:
        """One step of alpha's optimizer on the loss of ``val_batch``; no weight gradient is left behind."""
        if self.order == "second":
            gradients, loss = unrolled_alpha_gradient(
                self.arch, self.loss, self.weight_optimizer, train_batch, val_batch, self.reduce
            )
        else:
            gradients, loss = alpha_gradient(self.arch, self.loss, val_batch)
        self._step_alphas(gradients)
        return loss

    def update_both(self, batch: Any) -> Tensor:
        """One step of both optimizers on the loss of ``batch``, by one backward pass."""
        loss = self.loss(batch)
        self.weight_optimizer.zero_grad()
        self.alpha_optimizer.zero_grad()
        self.backward(loss)
        gradients = [torch.zeros_like(a) if a.grad is None else a.grad for a in self.arch.parameters()]
        self._step_weights()
        self._step_alphas(gradients)
        return loss.detach()

    def _step_weights(self) -> None:
        if self.max_norm is not None:
            clipped = [weight for group in self.weight_optimizer.param_groups for weight in group["params"]]
            if self.clip_alphas:
                clipped += self.arch.parameters()
            torch.nn.utils.clip_grad_norm_(clipped, self.max_norm)
        self.weight_optimizer.step()

    def _step_alphas(self, gradients: Gradients) -> None:
        if self.reduce is not None:
            self.reduce(gradients)
        for alpha, gradient in zip(self.arch.parameters(), gradients, strict=True):
            alpha.grad = gradient
        self.alpha_optimizer.step()
