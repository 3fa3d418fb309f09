"""All uses of private PyTorch names, each behind a name that states its purpose.

If PyTorch changes one of them, only this file and its test break.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

__all__ = [
    "DispatchMode",
    "add_",
    "added",
    "at_end_of_backward",
    "buffers_of",
    "calls_running",
    "compiler_backend",
    "compiler_limits",
    "copy_",
    "forward_pre_hooks",
    "has_forward_hooks",
    "in_backward_pass",
    "is_batch_norm",
    "is_compiled",
    "is_view",
    "is_watched",
    "lerp_",
    "map_tensors",
    "norms",
    "own_parameters",
    "tensors_in",
    "version",
]


DispatchMode = TorchDispatchMode
"""Base class of context managers that see every dispatched operator."""


def is_view(operator: Any) -> bool:
    """Whether an operator returns a view of its argument, and so runs no kernel."""
    return any(result.alias_info is not None and not result.alias_info.is_write for result in operator._schema.returns)


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks, which may read or change its inputs or outputs."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_watched(module: nn.Module) -> bool:
    """Whether the module or any inside it has forward hooks; faster than a walk through ``module.modules()``."""
    if has_forward_hooks(module):
        return True
    return any(child is not None and is_watched(child) for child in module._modules.values())


def forward_pre_hooks(module: nn.Module) -> list[Any]:
    """What is called with a module's input before it runs."""
    return list(module._forward_pre_hooks.values())


def is_compiled(module: nn.Module) -> bool:
    """Whether calls go through ``torch.compile``: by ``module.compile()`` or a ``torch.compile`` wrapper."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether it is a batch norm, of any dimension, synchronised or not."""
    return isinstance(module, _BatchNorm)


def own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """As ``module.parameters()``, whose bookkeeping is most of the cost where hundreds of small modules are idle."""
    if module._modules:
        return module.parameters()
    return (parameter for parameter in module._parameters.values() if parameter is not None)


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The module's own buffers, as the dictionary that holds them."""
    return module._buffers


def version(tensor: Tensor) -> int:
    """How often the tensor has been changed in place; 0 for those of inference mode, which do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def in_backward_pass() -> bool:
    """Whether a backward pass is running, which recomputes parts of a model whose activations were not kept."""
    return torch._C._current_graph_task_id() != -1


def at_end_of_backward(function: Callable[[], None]) -> None:
    """Call a function when the running backward pass has ended; to be called within one."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def calls_running(module: nn.Module) -> int:
    """How many calls of the module are running in this thread, found on its stack."""
    frame: FrameType | None = sys._getframe()
    calls = 0
    while frame is not None:
        calls += frame.f_code is nn.Module._call_impl.__code__ and frame.f_locals["self"] is module
        frame = frame.f_back
    return calls


def map_tensors(function: Callable[[Tensor], Any], structure: Any) -> Any:
    """The same lists, tuples, dictionaries and objects (such as dataclasses), with each of their tensors replaced."""

    def replaced(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if isinstance(leaf, dict | list):  # a class derived from one, which the walk takes for a leaf
            changed = copy.copy(leaf)
            for key, value in [*(leaf.items() if isinstance(leaf, dict) else enumerate(leaf))]:
                changed[key] = map_tensors(function, value)
            leaf = changed
        attributes = {} if isinstance(leaf, nn.Module) else getattr(leaf, "__dict__", {})
        found = {n: v for n, v in attributes.items() if any(isinstance(part, Tensor) for part in tree_leaves(v))}
        if found:
            leaf = copy.copy(leaf)
            leaf.__dict__.update(tree_map_only(Tensor, function, found))
        return leaf

    return tree_map(replaced, structure)


def tensors_in(structure: Any) -> list[Tensor]:
    """The tensors that :func:`map_tensors` would replace."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, structure)
    return found


# One call for many small tensors


def add_(tensors: Sequence[Tensor], others: Sequence[Tensor] | float) -> None:
    """Add to each tensor, in place, its counterpart or a number."""
    torch._foreach_add_(list(tensors), others if isinstance(others, int | float) else list(others))


def added(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor plus its counterpart."""
    return list(torch._foreach_add(list(tensors), list(others))) if tensors else []


def copy_(tensors: Sequence[Tensor], others: Iterable[Tensor]) -> None:
    """Copy into each tensor its counterpart."""
    torch._foreach_copy_(list(tensors), list(others))


def lerp_(tensors: Sequence[Tensor], others: Sequence[Tensor], weight: float) -> None:
    """Move each tensor, in place, towards its counterpart by a share of the way."""
    torch._foreach_lerp_(list(tensors), list(others), weight)


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The Euclidean norm of each tensor."""
    return list(torch._foreach_norm(list(tensors)))


# The compiler


def compiler_backend(name: str) -> Any:
    """A backend of ``torch.compile`` by its name: (graph module, example inputs) -> callable."""
    return torch._dynamo.lookup_backend(name)


def compiler_limits() -> Any:
    """The settings of ``torch.compile`` that limit how many graphs a function may have."""
    return torch._dynamo.config
