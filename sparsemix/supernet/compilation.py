"""Compiling the operations of a supernet one by one, so that it does not matter which of them run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from .._utils.torch_private import compiler_backend, compiler_limits
from .mixed_op import MixedOp

__all__ = ["Compilations", "compile_operations"]


class Compilations:
    """A backend of ``torch.compile`` that counts what it compiles.

    Attributes:
        units: how many modules are compiled.
        count: how many graphs were compiled so far; modules with the same structure and shapes share one.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.units = 0
        self.count = 0
        self._compile = compiler_backend(backend)

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.count += 1
        return self._compile(graph, inputs)


def compile_operations(model: nn.Module, backend: str = "inductor") -> Compilations:
    """Compile every candidate of a supernet, and every largest part without mixed operations, in place.

    A supernet compiled as a whole would be recompiled for every new set of running operations. The relaxation, the
    alphas and the weighted sum are not compiled, so graphs do not depend on the temperature either. A module needs one
    graph each for training, scoring and evaluation, and for each batch size; PyTorch's recompilation limits are raised
    to ``8 units`` if they are lower. Compiled candidates run separately instead of sharing work.

    Args:
        model: the supernet; copies of it (``arch.discretize()``) are not compiled.
        backend: name of a ``torch.compile`` backend.

    Returns:
        The counter of compilations.

    Example:
        >>> import torch
        >>> conv = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        >>> model = nn.Sequential(MixedOp({"skip": nn.Identity(), "conv": conv}))
        >>> compilations = compile_operations(model, backend="eager")
        >>> _ = model(torch.zeros(1, 3, 4, 4)), model(torch.ones(1, 3, 4, 4))
        >>> compilations.units, compilations.count
        (1, 1)
    """
    compilations = Compilations(backend)
    for unit in _units(model):
        unit.compile(backend=compilations, dynamic=False)
        compilations.units += 1
    limits = compiler_limits()
    limits.recompile_limit = max(limits.recompile_limit, 8 * compilations.units)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 8 * compilations.units)
    return compilations


def _units(module: nn.Module) -> Iterator[nn.Module]:
    children = module.candidates.values() if isinstance(module, MixedOp) else module.children()
    for child in children:
        if isinstance(child, nn.ModuleList | nn.ModuleDict) or any(isinstance(m, MixedOp) for m in child.modules()):
            yield from _units(child)
        elif not _is_one_kernel(child):
            yield child


def _is_one_kernel(module: nn.Module) -> bool:
    """A layer of PyTorch's own, in which there is nothing to fuse."""
    return type(module).__module__.startswith("torch.nn.") and not any(True for _ in module.children())
