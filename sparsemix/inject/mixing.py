"""Search inside an existing model: turn chosen layers into mixed operations, and a choice back into a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from .._utils.tensors import reference_tensor
from ..supernet.architecture import name_or_names
from ..supernet.chosen import Chosen
from ..supernet.mixed_op import MixedOp
from .families import FAMILIES, Family, Site
from .layers import STATES, Call, candidates_of, check_replaceable, observe, replace

__all__ = ["MixedLayers", "choices", "choose_", "mix_"]

Factory = Callable[[Site], nn.Module]
Candidates = str | Family | Mapping[str, Factory]
_ONE = (str, Family, Mapping)
Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Where = Selector | Sequence[Selector]


class MixedLayers(dict[str, MixedOp]):
    """A mapping path -> mixed operation, with a one-line ``repr``."""

    def __repr__(self) -> str:
        shown = [f"{path} ({', '.join(op.names)})" for path, op in [*self.items()][:3]]
        more = f", and {len(self) - 3} more" if len(self) > 3 else ""
        return f"{len(self)} mixed layers: {', '.join(shown)}{more}"


def mix_(
    model: nn.Module,
    candidates: Candidates,
    where: Where | None = None,
    *,
    share: int | Callable[[str], str] | None = None,
    keep_weights: bool = True,
    example: Tensor | None = None,
) -> MixedLayers:
    """Replace layers of a model by mixed operations, in place.

    Each chosen layer becomes a :class:`~sparsemix.MixedOp` of its candidates, including the layer itself with its
    weights. The model runs once on ``example`` to find the shapes; every candidate is built and tried before the first
    layer is replaced, so an error leaves the model unchanged. Candidates share their input, and later layers must not
    modify the tensors that candidates keep for the backward pass. Therefore ``inplace`` is switched off in the
    candidates and in the modules that receive their output. A layer's hooks stay on the layer, now a candidate.

    Args:
        model: any module, such as the backbone of a larger model. It must not be compiled, and the chosen layers must
            not be frozen, quantised, parametrised or scripted.
        candidates: the name of a family (``"kernel"``, ``"dilation"``, ``"separable"``, ``"groups"``,
            ``"activation"``, ``"norm"``, ``"token_mixer"``, ``"skip"``; see :data:`~sparsemix.inject.FAMILIES`), a
            :class:`~sparsemix.inject.Family` of your own, or a mapping name -> factory. A factory gets a
            :class:`~sparsemix.inject.Site` and returns a module; the layer itself is then the candidate ``original``.
        where: selects the layers: a path pattern (``"layer3.*.conv2"``; ``*`` also matches dots), a type, a function
            ``where(path, layer)`` that returns true for them, or a list of these. A family skips layers that it cannot
            replace; by default it takes every layer outside mixed operations that it can replace.
        share: layers with the same label share a row of alphas. The label is the first ``share`` parts of the path (1:
            ``layer3`` of ``layer3.0.conv2``; 2: ``blocks.3`` of ``blocks.3.1.conv_dw``), or ``share(path)``. By default
            every layer has its own row. If an earlier call used the label for other candidates, the names of the new
            candidates are added to the label, and these layers get a row of their own.
        keep_weights: False: initialise the layers anew.
        example: an input, any batch size. By default zeros of the input size in a timm model's ``pretrained_cfg``.

    Returns:
        path -> mixed operation, in module order; a dictionary with a short ``repr``. Hand the model to an
        :class:`~sparsemix.ArchParameterGroup` next.

    Raises:
        ValueError: nothing is chosen (the layers that exist are listed); a layer that does not run, has several
            parents, is mixed already or lies inside another chosen one; candidates that disagree in shape, or work in
            place by functions (not detected if they do so only in training); a layer that is frozen, quantised,
            parametrised, pruned or scripted; a compiled model, or one that already has an ArchParameterGroup.
        TypeError: an argument of the wrong type.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        >>> mixed = mix_(model, "kernel", where="2", example=torch.zeros(1, 3, 8, 8))
        >>> mixed["2"].names
        ('conv3', 'conv5', 'conv7')
        >>> wide = {"wide": lambda site: nn.Conv2d(site.layer.in_channels, 8, (1, 9), padding=(0, 4))}
        >>> mix_(model, wide, where="0", example=torch.zeros(1, 3, 8, 8))["0"].names
        ('original', 'wide')
    """
    family = _family(candidates)
    _check_whole(model)
    if any(isinstance(op, MixedOp) and op.group is not None for op in model.modules()):
        raise ValueError(
            "mix_: an ArchParameterGroup holds the mixed operations of this model; mix first, then make it"
        )
    paths = _select(model, family, where, candidates)
    check_replaceable(model, paths)
    _check_trainable(model, paths)
    calls = observe(model, paths, example)
    label = _labeller(model, share)
    ops = MixedLayers()
    for path, call in calls.items():
        found = candidates_of(model, family, path, call, keep_weights)
        ops[path] = MixedOp(found, label(path, found))
    _check_shared(ops)
    for path, op in ops.items():
        device = reference_tensor(model, path).device  # the candidates are already on it
        op.alpha.data, op.allowed = op.alpha.data.to(device), op.allowed.to(device)
    replace(model, ops, calls, example)
    return ops


def choices(model: nn.Module) -> dict[str, str | list[str]]:
    """The chosen candidate of every mixed operation of a model: path -> name, ready for ``json.dump``.

    The value is a list of names where the group's ``discretization`` keeps several candidates, or none.

    Raises:
        ValueError: the model has no mixed operations, for instance because it was discretised.
    """
    operations = {path: module for path, module in model.named_modules() if isinstance(module, MixedOp)}
    found = {path: name_or_names(op.choices()) for path, op in operations.items()}
    if not found:
        raise ValueError(
            f"choices: {type(model).__name__} has no mixed operations; ask the model that was searched, not what "
            f"discretize() returned"
        )
    return found


def choose_(
    model: nn.Module,
    candidates: Candidates | Sequence[Candidates],
    choice: Mapping[str, str | Sequence[str]],
    where: Where | None = None,
    *,
    example: Tensor | None = None,
) -> None:
    """Give a freshly built model the layers that a search chose, in place.

    Afterwards it has the structure of the model that ``arch.discretize()`` returns, and can load its ``state_dict``.

    Args:
        model: the model as it was before :func:`mix_`.
        candidates: the ``candidates`` argument of :func:`mix_`, or, after several calls, the list of these arguments; a
            layer then takes its candidates from the first entry that contains the chosen name.
        choice: path -> name, or names, as :func:`choices` returns it.
        where: selects layers of the choice, as in :func:`mix_`; by default all.
        example: as for :func:`mix_`.

    Raises:
        ValueError: the model lacks a layer, or a layer has no candidate of the chosen name; also as :func:`mix_`.

    Example:
        >>> import torch
        >>> build = lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        >>> model, x = build(), torch.zeros(1, 3, 8, 8)
        >>> _ = mix_(model, "activation", example=x), mix_(model, "kernel", example=x)
        >>> again = build()
        >>> choose_(again, ["activation", "kernel"], choices(model), example=x)
    """
    if not isinstance(choice, Mapping):
        raise TypeError(f"choose_: the choice must be a mapping path -> name, as choices() returns it; got {choice!r}")
    if not choice:
        raise ValueError(
            "choose_: the choice is empty; give what choices(model) returned for the model that was searched"
        )
    families = [_family(each) for each in ([candidates] if isinstance(candidates, _ONE) else candidates)]
    _check_whole(model)
    layers = dict(model.named_modules())
    if where is not None:
        chosen_by_hand = {path: name for path, name in choice.items() if path in layers}
        choice = {path: name for path, name in chosen_by_hand.items() if _matches(where, path, layers[path])}
        if not choice:
            raise ValueError(f"choose_: where={where!r} matches none of {', '.join(chosen_by_hand) or 'no layer'}")
    missing = [path for path in choice if path not in layers]
    if missing:
        raise ValueError(f"choose_: {type(model).__name__} has no {', '.join(missing)}; {_layers(model)}")
    check_replaceable(model, [*choice])
    calls = observe(model, [*choice], example)
    chosen = {path: _chosen(model, families, path, name, calls[path]) for path, name in choice.items()}
    replace(model, chosen, calls, example)


def _chosen(
    model: nn.Module, families: Sequence[Family], path: str, name: str | Sequence[str], call: Call
) -> nn.Module:
    """The candidate of that name, or a module of several or none, from the first family that has them here."""
    names = (name,) if isinstance(name, str) else tuple(name)
    layer, others, errors = model.get_submodule(path), [], []
    for family in families:
        if family.applies is None or family.applies(layer):
            try:
                found = candidates_of(model, family, path, call)
            except ValueError as error:  # another family's layer, perhaps
                errors.append(error)
                continue
            if {*names} <= {*found}:
                return found[names[0]] if len(names) == 1 else Chosen({n: found[n] for n in names or found}, names)
            others += [*found]
    if errors:
        raise errors[0]
    raise ValueError(
        f"choose_: {path!r}, a {type(layer).__name__}, has no candidate {name!r}; it has "
        f"{', '.join(others) or 'none'}. Give choices(model), whose keys are layers (those of arch.genotype() are "
        f"rows), and the list of the families where several were mixed"
    )


# What is chosen


def _family(candidates: Candidates) -> Family:
    if isinstance(candidates, Family):
        return candidates
    if isinstance(candidates, str):
        if candidates not in FAMILIES:
            raise ValueError(f"there is no family {candidates!r}; there are {', '.join(FAMILIES)}")
        return FAMILIES[candidates]
    if not isinstance(candidates, Mapping):
        raise TypeError(
            f"mix_: candidates are the name of a family, a Family, or a mapping name -> factory; got {candidates!r}. "
            f"To mix several families, call it for each"
        )
    factories = dict(candidates)
    if not factories or "original" in factories:
        raise ValueError(f"mix_: give factories by name, none of them 'original'; got {list(factories)}")
    for name, make in factories.items():
        if not callable(make) or isinstance(make, type | nn.Module):
            raise TypeError(f"mix_: candidate {name!r} must be a factory, lambda site: module; got {make!r}")
    return Family(lambda site: {"original": site.layer, **{n: make(site) for n, make in factories.items()}}, None)


def _check_whole(model: nn.Module) -> None:
    if STATES["compiled"](model) or STATES["scripted"](model):
        raise ValueError(f"mix_: the model is compiled ({type(model).__name__}); mix first, compile afterwards")


def _select(model: nn.Module, family: Family, where: Where | None, candidates: Candidates) -> list[str]:
    """The paths of the selected layers."""
    if where is None and family.applies is None:
        raise ValueError(f"mix_: {candidates!r} needs where=, such as 'layer3.*' or a type; {_layers(model)}")
    mixed = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, MixedOp))
    matching = {
        path: layer
        for path, layer in model.named_modules()
        if path and (_matches(where, path, layer) if where is not None else not path.startswith(mixed))
    }
    if not matching:
        raise ValueError(f"mix_: where={where!r} matches nothing in {type(model).__name__}; {_layers(model)}")
    paths = [path for path, layer in matching.items() if family.applies is None or family.applies(layer)]
    if not paths:
        kinds = Counter(type(layer).__name__ for layer in matching.values())
        raise ValueError(
            f"mix_: {candidates!r} can replace none of the {len(matching)} layers chosen: "
            f"{', '.join(f'{count} {kind}' for kind, count in kinds.items())}. It needs "
            f"{family.needs or 'other layers'}"
        )
    return _without_fused(model, paths, where is not None)


def _without_fused(model: nn.Module, paths: list[str], are_named: bool) -> list[str]:
    """The paths without layers that an outer block folds into one convolution when it is re-parameterised.

    timm's ``reparameterize_model`` does this; if such a layer were mixed, it would fail or change the output.
    """
    inside = {path: block for path in paths if (block := _fused_by(model, path)) is not None}
    if not inside or (len(inside) < len(paths) and not are_named):
        return [path for path in paths if path not in inside]
    path, block = next(iter(inside.items()))
    raise ValueError(
        f"mix_: {path!r} is part of {block!r}, a {type(model.get_submodule(block)).__name__} whose layers are folded "
        f"into one when the model is re-parameterised ({len(inside)} of {len(paths)} chosen layers are of this kind). "
        f"Choose the block itself (where={block!r}, with 'skip' or candidates of your own), re-parameterise the model "
        f"first, or leave such layers out by where="
    )


def _fused_by(model: nn.Module, path: str) -> str | None:
    """The outermost block that contains a layer and can fold it."""
    layer = model.get_submodule(path)
    if not [*layer.parameters(), *layer.buffers()]:
        return None  # an activation is not folded
    above = (path[:i] for i, letter in enumerate(path) if letter == ".")
    blocks = ((outer, model.get_submodule(outer)) for outer in above)
    return next((outer for outer, block in blocks if not isinstance(block, MixedOp) and _can_be_folded(block)), None)


def _can_be_folded(block: nn.Module) -> bool:
    """Whether timm's ``reparameterize_model`` would fold the block."""
    ways = (getattr(block, name, None) for name in ("fuse", "reparameterize", "switch_to_deploy"))
    return any(map(callable, ways))


def _matches(where: Where, path: str, layer: nn.Module) -> bool:
    if isinstance(where, str):
        return fnmatchcase(path, where)
    if isinstance(where, type):
        return isinstance(layer, where)
    if isinstance(where, Sequence):
        return any(_matches(each, path, layer) for each in where)
    if not callable(where) or isinstance(where, nn.Module):
        raise TypeError(f"mix_: where= takes a pattern, a type, a function of path and layer, or a list; got {where!r}")
    return where(path, layer)


def _check_trainable(model: nn.Module, paths: Sequence[str]) -> None:
    for path in paths:
        parameters = list(model.get_submodule(path).parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            raise ValueError(
                f"mix_: {path!r} is frozen (requires_grad is False), its competitors would train alone; "
                f"unfreeze it, or leave it out by where="
            )


def _layers(model: nn.Module) -> str:
    """The layers that exist, by type, each with an example."""
    kinds: dict[str, list[str]] = {}
    for path, layer in model.named_modules():
        if path:
            kinds.setdefault(type(layer).__name__, []).append(path)
    listed = ", ".join(f"{len(paths)} {kind} ({paths[0]!r}, ...)" for kind, paths in kinds.items())
    return f"its layers: {listed or 'none'}"


def _labeller(
    model: nn.Module, share: int | Callable[[str], str] | None
) -> Callable[[str, Mapping[str, nn.Module]], str | None]:
    """Path and candidates -> label."""
    if share is None:
        return lambda path, found: None
    if not callable(share) and not isinstance(share, int):
        raise TypeError(f"mix_: share must be a number of path parts or a function of the path; got {share!r}")
    if isinstance(share, int) and share < 1:
        raise ValueError(f"mix_: share must be a number of path parts, at least 1, or a function; got {share}")
    taken = {
        op.label or path: op.names if op.label else () for path, op in model.named_modules() if isinstance(op, MixedOp)
    }

    def label(path: str, found: Mapping[str, nn.Module]) -> str:
        shared = ".".join(path.split(".")[:share]) if isinstance(share, int) else share(path)
        if not isinstance(shared, str):
            raise TypeError(f"mix_: share({path!r}) must be a string, the row's label; got {shared!r}")
        return shared if taken.get(shared, names := (*found,)) == names else f"{shared} ({', '.join(names)})"

    return label


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
