"""The largest eigenvalue of the validation loss's Hessian in the alphas, an indicator of a failing search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["dominant_eigenvalue", "largest_eigenvalue"]


def dominant_eigenvalue(
    loss: Tensor,
    parameters: Sequence[Tensor],
    products: int = 20,
    seed: int = 0,
    reduce: Callable[[Sequence[Tensor]], None] | None = None,
) -> float:
    """The algebraically largest eigenvalue of the Hessian of a loss.

    Hessian-vector products use double backward, because finite differences step over the kinks of ReLU.

    Args:
        loss: a scalar with a graph.
        parameters: the variables of the Hessian, such as ``arch.parameters()``.
        products: maximum number of Hessian-vector products, each about as expensive as two backward passes.
        seed: seed of the random start vector.
        reduce: averages a list of tensors over processes, in place; needed if each process has a part of the loss.

    Raises:
        ValueError: the loss depends on none of the parameters, or is not twice differentiable with respect to them.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> round(dominant_eigenvalue((torch.tensor([3.0, -5.0]) * x**2).sum(), [x]), 4)
        6.0

    Source: Zela et al., "Understanding and Robustifying Differentiable Architecture Search", section 4.
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    if not flat.requires_grad:
        raise ValueError("dominant_eigenvalue: the loss depends on these parameters linearly, or not at all")
    sizes = [parameter.numel() for parameter in parameters]

    def product(vector: Tensor) -> Tensor:
        found = torch.autograd.grad(flat, parameters, vector, retain_graph=True, materialize_grads=True)
        together = torch.cat([part.reshape(-1) for part in found])
        if reduce is not None:
            reduce([together])
        return together

    start = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(flat)
    return largest_eigenvalue(product, start, products)


def largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor, products: int) -> float:
    """The largest eigenvalue of a symmetric matrix, by the Lanczos method.

    Power iteration would find the eigenvalue of largest magnitude, which may be negative.

    Args:
        product: vector -> matrix times vector.
        start: a vector that is not orthogonal to any eigenvector of interest.
        products: maximum number of products; with as many as the matrix has rows, the result is exact.
    """
    basis = [start / start.norm()]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for _ in range(min(products, len(start))):
        vector = product(basis[-1])
        diagonal.append(vector @ basis[-1])
        for _ in range(2):  # twice, since one pass leaves rounding errors along known vectors
            for known in basis:
                vector = vector - (vector @ known) * known
        beside.append(vector.norm())
        if beside[-1] <= 1e-6 * torch.stack(diagonal).abs().max():
            break
        basis.append(vector / beside[-1])
    off = torch.stack(beside[: len(diagonal) - 1]) if len(diagonal) > 1 else diagonal[0].new_zeros(0)
    tridiagonal = torch.diag(torch.stack(diagonal)) + torch.diag(off, 1) + torch.diag(off, -1)
    return float(torch.linalg.eigvalsh(tridiagonal.double())[-1])
