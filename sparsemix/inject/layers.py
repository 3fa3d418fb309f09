"""Candidates for layers of an existing model, built and tried before anything is replaced."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .._utils.modes import evaluating, out_of_place, work_out_of_place_
from .._utils.tensors import fitting, reference_tensor
from .._utils.torch_private import forward_pre_hooks, has_forward_hooks, is_compiled, version
from ..supernet.mixed_op import MixedOp, check_same_shape
from .families import Family, Site

__all__ = ["STATES", "candidates_of", "check_replaceable", "observe", "replace"]

STATES: dict[str, Callable[[nn.Module], bool]] = {
    "parametrised": is_parametrized,
    "pruned, or normalised by a hook": lambda module: any(
        type(hook).__module__.startswith("torch.nn.utils.") for hook in forward_pre_hooks(module)
    ),
    "compiled": is_compiled,
    "scripted": lambda module: isinstance(module, torch.jit.ScriptModule),
    "quantised": lambda module: (
        ".quantized" in type(module).__module__
        or any(tensor.is_quantized for tensor in [*module.parameters(False), *module.buffers(False)])
    ),
}
"""States of a module in which it cannot be mixed."""


_FUSED = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""Modules with a fused kernel, which takes their layers' weights instead of calling the layers."""


@dataclass
class Call:
    """A layer's inputs and output in the model's forward, and how later modules changed the output."""

    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any
    version: int
    """The output's version, which counts in-place changes, when it was returned and after every follower."""
    followers: list[nn.Module] = field(default_factory=list)
    """Later modules that change the layer's output in place, and must work out of place from now on."""
    is_changed_by_a_function: bool = False

    def compare(self) -> None:
        """Record whether anything other than its followers has changed the output since."""
        self.is_changed_by_a_function |= version(self.output) > self.version


def replace(
    model: nn.Module, layers: Mapping[str, nn.Module], calls: Mapping[str, Call], example: Tensor | None
) -> None:
    """Replace layers and keep their training mode; the new layers and their followers work out of place.

    Raises:
        ValueError: the model still runs an old layer; all old layers have been put back.
    """
    old = {path: model.get_submodule(path) for path in layers}
    for path, layer in layers.items():
        if has_forward_hooks(old[path]):
            warnings.warn(f"mix_: the hooks of {path!r} stay with the layer, now a candidate", stacklevel=3)
        layer.train(old[path].training)
        _put(model, path, layer)
        for module in [layer, *calls[path].followers]:
            work_out_of_place_(module)
    try:
        observe(model, [*layers], example)
    except ValueError as error:
        for path, layer in old.items():
            _put(model, path, layer)
        raise ValueError(f"{error}: the model keeps the layer in a place of its own, such as a list") from error


def _put(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def check_replaceable(model: nn.Module, paths: Sequence[str]) -> None:
    """Check that these layers can be replaced."""
    everywhere = list(model.named_modules(remove_duplicate=False))
    mixed = [path for path, module in everywhere if isinstance(module, MixedOp)]
    parents: dict[nn.Module, list[str]] = {}
    for path, module in everywhere:
        parents.setdefault(module, []).append(path)
    chosen = set(paths)
    for path in paths:
        layer = model.get_submodule(path)
        above = ["", *(path[:i] for i, letter in enumerate(path) if letter == ".")]
        inside = [outer for outer in above if outer in chosen]
        if inside:
            raise ValueError(f"mix_: {path!r} lies inside {inside[0]!r}, which is chosen too; narrow where=")
        if any(outer == path or outer.startswith(f"{path}.") for outer in mixed):
            raise ValueError(f"mix_: {path!r} is mixed already; build the model anew, or choose other layers by where=")
        if within := [outer for outer in mixed if outer in above]:
            raise ValueError(
                f"mix_: {path!r} lies inside the mixed operation {within[0]!r}; build the model anew, or choose other "
                f"layers by where="
            )
        fused = [outer for outer in map(model.get_submodule, above) if isinstance(outer, _FUSED)]
        if fused and torch.backends.mha.get_fastpath_enabled():
            raise ValueError(
                f"mix_: {path!r} is part of a {type(fused[0]).__name__}, whose fused kernel for evaluation does not "
                f"call it; call torch.backends.mha.set_fastpath_enabled(False) first, and wherever the result runs, or "
                f"leave it out by where="
            )
        if len(parents[layer]) > 1:
            raise ValueError(f"mix_: one layer has several parents: {', '.join(parents[layer])}; copy it, or leave it")
        for state, holds in STATES.items():
            if any(holds(module) for module in layer.modules()):
                raise ValueError(f"mix_: {path!r} is {state}; undo that first, or leave it out by where=")


def observe(model: nn.Module, paths: Sequence[str], example: Tensor | None) -> dict[str, Call]:
    """The inputs and output of each of these layers when the model runs on the example; no state changes."""
    if example is None:
        config = getattr(model, "pretrained_cfg", None) or {}
        if "input_size" not in config:
            raise ValueError(f"mix_: {type(model).__name__} does not say its input size; give example=, an input")
        example = torch.zeros(1, *config["input_size"])
    example = fitting(example, model)
    calls: dict[str, Call] = {}

    def record(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            calls[path] = Call(inputs, keywords, output, version(output) if isinstance(output, Tensor) else 0)

        return hook

    def follow(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for call in calls.values():
            if inputs and inputs[0] is call.output:
                call.compare()
                call.followers.append(module)

    def followed(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        for call in calls.values():
            if module in call.followers:
                call.version = version(call.output)

    hooks = [model.get_submodule(path).register_forward_hook(record(path), with_kwargs=True) for path in paths]
    for module in model.modules():
        if getattr(module, "inplace", False):
            hooks += [module.register_forward_pre_hook(follow), module.register_forward_hook(followed)]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    except Exception as error:
        raise ValueError(
            f"mix_: the model does not run on an example {tuple(example.shape)}; give another ({error})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    for path in paths:
        if path not in calls:
            raise ValueError(f"mix_: {path!r} does not run when the model runs; leave it out by where=")
        inputs, output = calls[path].inputs, calls[path].output
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            given = ", ".join(type(value).__name__ for value in inputs) or "no positional argument"
            raise ValueError(
                f"mix_: {path!r} is given ({given}) and returns a {type(output).__name__}; only layers that map one "
                f"tensor to one tensor can be mixed"
            )
        calls[path].compare()
    return calls


def candidates_of(
    model: nn.Module, family: Family, path: str, call: Call, keep_weights: bool = True
) -> dict[str, nn.Module]:
    """The candidates of a site, built and tried; the model is not touched."""
    layer, [x] = model.get_submodule(path), call.inputs
    if not keep_weights:
        layer = _initialised_anew(layer, path)
    found = dict(family.build(Site(path, layer, x.shape, call.output.shape)))
    own = next((name for name, candidate in found.items() if candidate is layer), "the layer itself")
    reference, format = reference_tensor(model, path), _memory_format(model)
    for name, candidate in found.items():
        if not isinstance(candidate, nn.Module):
            raise TypeError(f"mix_: candidate {name!r} must be a module, its factory returned {candidate!r}")
        if candidate is not layer:
            candidate.to(reference.device, reference.dtype)
            candidate.to(memory_format=format)
        try:
            with evaluating(candidate), out_of_place(candidate):
                shape = _try(candidate, torch.zeros_like(x), call)
            check_same_shape(own, call.output.shape, name, shape, x.shape)
        except Exception as error:
            raise ValueError(f"mix_: candidate {name!r} cannot stand at {path!r}: {error}") from error
    return found


def _try(candidate: nn.Module, x: Tensor, call: Call) -> torch.Size:
    """The shape of the candidate's output; an error if the candidate could not be trained in this position."""
    before = version(x)
    with torch.no_grad():
        output = candidate(x, **call.keywords)
    if version(x) > before:
        raise ValueError(
            "it changes its input in place (by a function, not by a module's inplace), which the others are to read; "
            "choose the layers inside it"
        )
    if call.is_changed_by_a_function and x.is_floating_point():
        with torch.enable_grad():
            given = x.requires_grad_().clone()
            before = version(given)
            changed = candidate(given, **call.keywords).mul_(1)
            if version(given) > before:
                raise ValueError("what follows changes its output in place (by a function), and with it its input")
            torch.autograd.grad(changed.sum(), x, allow_unused=True)  # fails if backward needs the unchanged output
    return output.shape


def _initialised_anew(layer: nn.Module, path: str) -> nn.Module:
    layer = copy.deepcopy(layer)
    for name, module in layer.named_modules(prefix=path):
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        elif own := dict(module.named_parameters(recurse=False)):
            raise ValueError(
                f"mix_: keep_weights=False, but {name!r} ({type(module).__name__}) has no reset_parameters() for its "
                f"{', '.join(own)}; keep the weights of a model that is not trained instead"
            )
    return layer


def _memory_format(model: nn.Module) -> torch.memory_format:
    """The memory format of the model's convolutions."""
    kernels = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    last = any(not k.is_contiguous() and k.is_contiguous(memory_format=torch.channels_last) for k in kernels)
    return torch.channels_last if last else torch.preserve_format
