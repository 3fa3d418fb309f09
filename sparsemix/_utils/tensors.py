"""The device and dtype of a model's tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["fitting", "reference_tensor"]


def fitting(example: Tensor, model: nn.Module) -> Tensor:
    """The example on the model's device and, if it is floating-point, in the model's dtype."""
    if not isinstance(example, Tensor):
        raise TypeError(f"an example must be a tensor, an input of the model; got a {type(example).__name__}")
    reference = reference_tensor(model)
    return example.to(reference.device, reference.dtype if example.is_floating_point() else None)


def reference_tensor(model: nn.Module, path: str = "") -> Tensor:
    """A tensor with the layer's device and dtype, or with the model's if the layer has no floating-point tensor."""
    for module in (model.get_submodule(path), model):
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                return tensor
    return torch.empty(0)
