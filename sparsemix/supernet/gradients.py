"""Alpha's gradient, in first and in second order.

A loss here is a function of a batch, ``loss(batch) -> scalar``, that runs the model. ``split`` cuts a batch that is too
large for one run into parts whose losses add up to the batch's; it is still one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._utils.modes import restoring
from .._utils.torch_private import add_, norms
from .architecture import Architecture

__all__ = [
    "Arch",
    "Gradients",
    "Loss",
    "Reduce",
    "Split",
    "alpha_gradient",
    "checked",
    "loss_gradients",
    "unrolled_alpha_gradient",
    "whole",
]

Loss = Callable[[Any], Tensor]
Gradients = Sequence[Tensor]
Reduce = Callable[[Gradients], None]
Split = Callable[[Any], Iterable[Any]]
Arch = TypeVar("Arch", bound=Architecture)


def checked(loss: Any) -> Tensor:
    """Check that a loss is a differentiable scalar tensor.

    Raises:
        TypeError: it is not a tensor, or one without a graph or with several elements.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    got = (
        f"a tensor {tuple(loss.shape)}, requires_grad={loss.requires_grad}" if isinstance(loss, Tensor) else repr(loss)
    )
    raise TypeError(f"the loss must return a scalar tensor with a graph, from weights that are not frozen; got {got}")


def whole(batch: Any) -> Iterable[Any]:
    """A batch in one part."""
    return (batch,)


def loss_gradients(loss: Loss, batch: Any, split: Split, parameters: Sequence[Tensor]) -> tuple[Gradients, Tensor]:
    """Gradients with respect to these parameters, zero where the loss does not depend on one; and the detached loss.

    The parts of the batch run one after the other, so that only one of them is in memory.

    Raises:
        ValueError: the loss depends on none of them.
    """
    total: list[Tensor] = []
    values = []
    for part in split(batch):
        value = checked(loss(part))
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        if all(gradient is None for gradient in found):
            raise ValueError(
                "the loss depends on no parameter that is to be updated: does it run another model (a copy, a "
                "discretised one), under a relaxation without a gradient (Argmax), or with weights of its own?"
            )
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        total = [a + b for a, b in zip(total, gradients, strict=True)] if total else [*gradients]
        values.append(value.detach())
    return total, sum(values[1:], values[0])


def alpha_gradient(arch: Arch, loss: Loss, batch: Any, split: Split = whole) -> tuple[Gradients, Tensor]:
    """First-order gradient of the alphas at the present weights, and the loss (DARTS-V1).

    Only alpha's gradients are asked for, so that no weight gradient is computed.

    Returns:
        One gradient for each of ``arch.parameters()``, and the detached loss.

    Raises:
        ValueError: the loss depends on no alpha, because it does not run the group's model, for instance.
    """
    return loss_gradients(loss, batch, split, arch.parameters())


def unrolled_alpha_gradient(
    arch: Arch,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    train_batch: Any,
    val_batch: Any,
    reduce: Reduce | None = None,
    split: Split = whole,
) -> tuple[Gradients, Tensor]:
    """Second-order gradient of the alphas: of the validation loss after one virtual step of the weights (DARTS-V2).

    ``grad L_val(w') - xi [grad L_train(w+) - grad L_train(w-)] / (2 R)`` with ``w'`` one SGD step of learning rate xi,
    with the optimizer's momentum and weight decay, ``w+- = w +- R grad_w' L_val`` and ``R = 0.01 / |grad_w' L_val|``.
    The finite difference stands for the product of the Hessian with ``grad_w' L_val``. Its two passes see the same
    random numbers (dropout). Weights, buffers (running statistics) and the random state are restored afterwards.

    Args:
        arch: the model's architecture parameters.
        loss: function of a batch.
        optimizer: the weights' SGD; its state is read, not changed.
        train_batch, val_batch: batches of the two halves.
        reduce: averages a list of gradients over processes, in place: the weights' gradients before the virtual step
            and before the finite difference. Alpha's gradients are returned as they are.
        split: cuts a batch into parts whose losses add up to the batch's.

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
        gradients, _ = loss_gradients(loss, train_batch, split, weights)
    reduce(gradients)
    steps, rates = _virtual_sgd_step(optimizer, weights, gradients)
    with restoring(arch.model):
        _shift(weights, steps)
        gradients, value = loss_gradients(loss, val_batch, split, [*alphas, *weights])
    gradient, outer = gradients[: len(alphas)], gradients[len(alphas) :]
    reduce(outer)
    vector = [rate * g for rate, g in zip(rates, outer, strict=True)]  # xi grad_w' L_val, so that R absorbs xi
    norm = torch.linalg.vector_norm(torch.stack(norms(vector)))
    if norm == 0:
        return gradient, value
    radius = 0.01 / norm
    shifted = []
    for sign in (1, -1):
        with restoring(arch.model):
            _shift(weights, [sign * radius * v for v in vector])
            shifted.append(loss_gradients(loss, train_batch, split, alphas)[0])
    implicit = [(plus - minus) / (2 * radius) for plus, minus in zip(*shifted, strict=True)]
    return [g - i for g, i in zip(gradient, implicit, strict=True)], value


def _virtual_sgd_step(
    optimizer: torch.optim.Optimizer, weights: Sequence[Tensor], gradients: Gradients
) -> tuple[list[Tensor], list[float]]:
    """The step that SGD would take for these gradients, and minus its derivative with respect to the gradient."""
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
        add_(weights, by)
