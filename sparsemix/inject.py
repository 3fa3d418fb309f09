"""Search inside an existing model: chosen layers become mixed operations in place, and a choice a model again."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .arch_parameters import evaluating
from .families import FAMILIES, Family, Site
from .mixed_op import MixedOp, check_same_shape

__all__ = ["choices", "choose_", "mix_"]

Factory = Callable[[Site], nn.Module]
Candidates = str | Family | Mapping[str, Factory]
Where = str | type[nn.Module] | tuple[type[nn.Module], ...] | Callable[[str, nn.Module], bool]


def mix_(
    model: nn.Module,
    candidates: Candidates,
    where: Where | None = None,
    *,
    share: int | Callable[[str], str] | None = None,
    keep_weights: bool = True,
    example: Tensor | None = None,
) -> dict[str, MixedOp]:
    """Replace layers of a model by mixed operations, in place.

    Each chosen layer becomes a :class:`~sparsemix.MixedOp` of its candidates, the layer itself among them with its
    weights. The model is run once on ``example`` to see the shapes; every candidate is built and tried before the first
    layer is replaced, so that after an error the model is what it was. Their modules' ``inplace`` is
    switched off, since candidates share their input; one that changes its input by a function is not noticed.

    Args:
        model: any module tree. Not compiled; the chosen layers neither frozen, quantised, parametrised nor scripted.
        candidates: the name of a family (``"kernel"``, ``"dilation"``, ``"separable"``, ``"groups"``,
            ``"activation"``, ``"norm"``, ``"token_mixer"``, ``"skip"``; see :data:`~sparsemix.families.FAMILIES`), a
            :class:`~sparsemix.families.Family` of your own, or a mapping name -> factory. A factory gets a
            :class:`~sparsemix.families.Site` and returns a module; the layer itself is then the candidate ``original``.
        where: which layers: those whose path matches a pattern (``"layer3.*.conv2"``, ``*`` matches dots too), of a
            type, or for which ``where(path, layer)`` is true. A family leaves out what it cannot replace, and by
            default takes all that it can.
        share: layers with one label share one row of alphas: the first ``share`` parts of the path (1: ``layer3`` of
            ``layer3.0.conv2``; 2: ``blocks.3`` of ``blocks.3.1.conv_dw``), or ``share(path)``. By default every layer
            has its own row.
        keep_weights: False: initialise the layers anew.
        example: an input, any batch size. By default zeros of the size that a timm model names in its
            ``pretrained_cfg``.

    Returns:
        path -> mixed operation, in module order. Hand the model to an :class:`~sparsemix.ArchParameterGroup` next.

    Raises:
        ValueError: nothing is chosen (the layers that exist are listed); a layer that does not run, has several
            parents, is mixed already or lies inside another chosen one; candidates that disagree in shape; a layer
            that is frozen, quantised, parametrised or scripted; a compiled model.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        >>> mixed = mix_(model, "kernel", where="2", example=torch.zeros(1, 3, 8, 8))
        >>> mixed["2"].names
        ('conv3', 'conv5', 'conv7')
        >>> wide = {"wide": lambda site: nn.Conv2d(site.layer.in_channels, 8, (1, 9), padding=(0, 4))}
        >>> mix_(model, wide, where="0", example=torch.zeros(1, 3, 8, 8))["0"].names
        ('original', 'wide')
    """
    family = _family(candidates)
    paths = _select(model, family, where, candidates)
    built = _build(model, family, paths, example, keep_weights)
    label = _labeller(share)
    ops = {path: MixedOp(found, label(path)) for path, found in built.items()}
    _check_shared(ops)
    for path, op in ops.items():
        op.alpha.data = op.alpha.data.to(_like(model, path).device)
        op.train(model.get_submodule(path).training)
        _replace(model, path, op)
    return ops


def choices(model: nn.Module) -> dict[str, str]:
    """The strongest candidate of every mixed operation of a model: path -> name, ready for ``json.dump``."""
    return {path: module.choice() for path, module in model.named_modules() if isinstance(module, MixedOp)}


def choose_(
    model: nn.Module,
    candidates: Candidates,
    choice: Mapping[str, str],
    *,
    example: Tensor | None = None,
) -> None:
    """Give a freshly built model the layers that a search chose, in place.

    Afterwards it has the structure of ``arch.discretize()``, so that it loads that one's ``state_dict``.

    Args:
        model: as it was before :func:`mix_`.
        candidates: what :func:`mix_` was given.
        choice: path -> name, as :func:`choices` returns it.
        example: as for :func:`mix_`.

    Raises:
        ValueError: the model has no such layer, or the layer no such candidate; and as :func:`mix_`.

    Example:
        >>> build = lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        >>> model, x = build(), torch.zeros(1, 3, 8, 8)
        >>> _ = mix_(model, "activation", example=x)
        >>> again = build()
        >>> choose_(again, "activation", choices(model), example=x)
    """
    family = _family(candidates)
    missing = [path for path in choice if path not in dict(model.named_modules())]
    if missing:
        raise ValueError(f"choose_: {type(model).__name__} has no {', '.join(missing)}; {_layers(model)}")
    built = _build(model, family, list(choice), example, keep_weights=True)
    for path, found in built.items():
        if choice[path] not in found:
            raise ValueError(f"choose_: {path!r} has no candidate {choice[path]!r}; it has {', '.join(found)}")
    for path, found in built.items():
        chosen = found[choice[path]]
        chosen.train(model.get_submodule(path).training)
        _replace(model, path, chosen)


# What is chosen


def _family(candidates: Candidates) -> Family:
    if isinstance(candidates, Family):
        return candidates
    if isinstance(candidates, str):
        if candidates not in FAMILIES:
            raise ValueError(f"there is no family {candidates!r}; there are {', '.join(FAMILIES)}")
        return FAMILIES[candidates]
    factories = dict(candidates)
    if not factories or "original" in factories:
        raise ValueError(f"mix_: give factories by name, none of them 'original'; got {list(factories)}")
    return Family(lambda site: {"original": site.layer, **{n: make(site) for n, make in factories.items()}}, None)


def _select(model: nn.Module, family: Family, where: Where | None, candidates: Candidates) -> list[str]:
    """The paths of the layers that are meant."""
    if _STATES["compiled"](model) or _STATES["scripted"](model):
        raise ValueError(f"mix_: the model is compiled ({type(model).__name__}); mix first, compile afterwards")
    if where is None and family.applies is None:
        raise ValueError(f"mix_: {candidates!r} needs where=, such as 'layer3.*' or a type; {_layers(model)}")
    matching = {path: layer for path, layer in model.named_modules() if path and _matches(where, path, layer)}
    if not matching:
        raise ValueError(f"mix_: where={where!r} matches nothing in {type(model).__name__}; {_layers(model)}")
    paths = [path for path, layer in matching.items() if family.applies is None or family.applies(layer)]
    if not paths:
        kinds = Counter(type(layer).__name__ for layer in matching.values())
        raise ValueError(
            f"mix_: {candidates!r} can replace none of the {len(matching)} layers chosen: "
            f"{', '.join(f'{count} {kind}' for kind, count in kinds.items())}"
        )
    return paths


def _matches(where: Where | None, path: str, layer: nn.Module) -> bool:
    if where is None:
        return True
    if isinstance(where, str):
        return fnmatchcase(path, where)
    if isinstance(where, type | tuple):
        return isinstance(layer, where)
    return where(path, layer)


def _layers(model: nn.Module) -> str:
    """The layers that exist, by type, each with an example."""
    kinds: dict[str, list[str]] = {}
    for path, layer in model.named_modules():
        if path:
            kinds.setdefault(type(layer).__name__, []).append(path)
    listed = ", ".join(f"{len(paths)} {kind} ({paths[0]!r}, ...)" for kind, paths in kinds.items())
    return f"its layers: {listed or 'none'}"


def _labeller(share: int | Callable[[str], str] | None) -> Callable[[str], str | None]:
    if share is None:
        return lambda path: None
    if isinstance(share, int):
        if share < 1:
            raise ValueError(f"mix_: share must be a number of path parts, at least 1, or a function; got {share}")
        return lambda path: ".".join(path.split(".")[:share])
    return share


def _check_shared(ops: Mapping[str, MixedOp]) -> None:
    first: dict[str, str] = {}
    for path, op in ops.items():
        if op.label is not None:
            other = first.setdefault(op.label, path)
            if ops[other].names != op.names:
                raise ValueError(
                    f"mix_: {other!r} and {path!r} are to share the row {op.label!r} but have different candidates: "
                    f"{', '.join(ops[other].names)} and {', '.join(op.names)}; share less, or narrow where="
                )


# What it is replaced by


class _Call(NamedTuple):
    """What a layer was given in the model's forward, and what it returned."""

    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any


def _build(
    model: nn.Module, family: Family, paths: list[str], example: Tensor | None, keep_weights: bool
) -> dict[str, dict[str, nn.Module]]:
    """The candidates of every site, built and tried; the model is not touched."""
    _check(model, paths)
    calls = _observe(model, paths, example)
    return {path: _candidates(model, family, path, calls[path], keep_weights) for path in paths}


def _check(model: nn.Module, paths: list[str]) -> None:
    """Insist that these layers can be replaced."""
    everywhere = list(model.named_modules(remove_duplicate=False))
    mixed = [path for path, module in everywhere if isinstance(module, MixedOp)]
    parents: dict[nn.Module, list[str]] = {}
    for path, module in everywhere:
        parents.setdefault(module, []).append(path)
    chosen = set(paths)
    for path in paths:
        layer = model.get_submodule(path)
        above = [path[:i] for i, letter in enumerate(path) if letter == "."]
        inside = [outer for outer in above if outer in chosen]
        if inside:
            raise ValueError(f"mix_: {path!r} lies inside {inside[0]!r}, which is chosen too; narrow where=")
        if any(outer == path or outer.startswith(f"{path}.") or outer in above for outer in mixed):
            raise ValueError(f"mix_: {path!r} is mixed already; build the model anew, or choose other layers by where=")
        if len(parents[layer]) > 1:
            raise ValueError(f"mix_: one layer has several parents: {', '.join(parents[layer])}; copy it, or leave it")
        for state, holds in _STATES.items():
            if any(holds(module) for module in layer.modules()):
                raise ValueError(f"mix_: {path!r} is {state}; undo that first, or leave it out by where=")
        parameters = list(layer.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            raise ValueError(
                f"mix_: {path!r} is frozen (requires_grad is False), its competitors would train alone; "
                f"unfreeze it, or leave it out by where="
            )


_STATES: dict[str, Callable[[nn.Module], bool]] = {
    "parametrised": is_parametrized,
    "compiled": lambda module: hasattr(module, "_orig_mod") or module._compiled_call_impl is not None,
    "scripted": lambda module: isinstance(module, torch.jit.ScriptModule),
    "quantised": lambda module: (
        ".quantized" in type(module).__module__
        or any(tensor.is_quantized for tensor in [*module.parameters(False), *module.buffers(False)])
    ),
}


def _observe(model: nn.Module, paths: list[str], example: Tensor | None) -> dict[str, _Call]:
    """What each of these layers is given and returns when the model runs on the example; no state is touched."""
    if example is None:
        config = getattr(model, "pretrained_cfg", None) or {}
        if "input_size" not in config:
            raise ValueError(f"mix_: {type(model).__name__} does not say its input size; give example=, an input")
        example = torch.zeros(1, *config["input_size"])
    reference = _like(model)
    example = example.to(reference.device, reference.dtype if example.is_floating_point() else None)
    calls: dict[str, _Call] = {}

    def record(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            calls[path] = _Call(inputs, keywords, output)

        return hook

    hooks = [model.get_submodule(path).register_forward_hook(record(path), with_kwargs=True) for path in paths]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    except RuntimeError as error:
        raise ValueError(f"mix_: the model does not run on an example {tuple(example.shape)}; give another") from error
    finally:
        for hook in hooks:
            hook.remove()
    for path in paths:
        if path not in calls:
            raise ValueError(f"mix_: {path!r} does not run when the model runs; leave it out by where=")
        inputs, output = calls[path].inputs, calls[path].output
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            raise ValueError(
                f"mix_: {path!r} maps {len(inputs)} positional arguments to a {type(output).__name__}; "
                f"only layers that map one tensor to one tensor can be mixed"
            )
    return calls


def _candidates(model: nn.Module, family: Family, path: str, call: _Call, keep_weights: bool) -> dict[str, nn.Module]:
    layer, [x] = model.get_submodule(path), call.inputs
    if not keep_weights:
        layer = copy.deepcopy(layer)
        for module in layer.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    found = dict(family.build(Site(path, layer, x.shape, call.output.shape)))
    own = next((name for name, candidate in found.items() if candidate is layer), "the layer itself")
    reference = _like(model, path)
    for name, candidate in found.items():
        if candidate is not layer:
            candidate.to(reference.device, reference.dtype)
        try:
            with evaluating(candidate), torch.no_grad():
                shape = candidate(torch.zeros_like(x), **call.keywords).shape
            check_same_shape(own, call.output.shape, name, shape, x.shape)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"mix_: candidate {name!r} cannot stand at {path!r}: {error}") from error
    return found


def _like(model: nn.Module, path: str = "") -> Tensor:
    """A tensor of the layer's device and dtype; of the model's where the layer has none."""
    for module in (model.get_submodule(path), model):
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                return tensor
    return torch.empty(0)


def _replace(model: nn.Module, path: str, new: nn.Module) -> None:
    for module in new.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010  (a plain attribute, whatever a module's type declares)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)
