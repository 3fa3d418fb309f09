"""Context managers that restore on exit: attributes, the modes of modules, parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .torch_private import buffers_of

__all__ = ["evaluating", "having", "out_of_place", "restoring", "work_out_of_place_"]


@contextmanager
def having(owner: Any, **values: Any) -> Iterator[None]:
    """Context manager: set attributes of the owner; restore the previous values on exit."""
    previous = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in previous.items():
            setattr(owner, name, value)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context manager: put the model into evaluation mode; on exit each module returns to its previous mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def work_out_of_place_(module: nn.Module) -> list[nn.Module]:
    """Switch off ``inplace`` in the module and its parts; return those that had it on."""
    in_place: list[Any] = [part for part in module.modules() if getattr(part, "inplace", False)]
    for part in in_place:
        part.inplace = False
    return in_place


@contextmanager
def out_of_place(module: nn.Module) -> Iterator[None]:
    """Context manager: the module and its parts work out of place."""
    in_place: list[Any] = work_out_of_place_(module)
    try:
        yield
    finally:
        for part in in_place:
            part.inplace = True


@contextmanager
def restoring(model: nn.Module) -> Iterator[None]:
    """Context manager: on exit, restore parameters, buffers and the random state, bit for bit.

    Parameters and buffers that a forward initialises for the first time (lazy modules) are kept.
    """
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if not is_lazy(tensor)]
    saved = [tensor.detach().clone() for tensor in tensors]
    registered = [(buffers_of(module), dict(buffers_of(module))) for module in model.modules()]
    devices = {tensor.device.index for tensor in tensors if tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
        for buffers, before in registered:
            for name, buffer in before.items():
                if buffers[name] is not buffer:  # a forward put a new tensor in its place
                    buffers[name] = buffer
