"""A search on a user's own supernet, built by a function, and on the user's own data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from accelerate.utils import set_seed
from torch import nn

from ..data import Pairs
from ..methods.method import Method
from ..methods.registry import find_method
from ..spaces.settings import SpaceSettings
from ..supernet.group import ArchParameterGroup
from .choice import Choice
from .config import SearchConfig, configured
from .launching import make_accelerator
from .presets import preset_names, search_settings
from .search import Search

__all__ = ["custom_config", "custom_search"]

# The space of any model's layers: a custom supernet takes the methods' settings for it.
_ANY_MODEL = SpaceSettings("timm", {}, {})


def custom_config(method: str | Method, settings: Mapping[str, Any] | None = None) -> SearchConfig:
    """The configuration of a search on any supernet: the method's published settings, overridden by ``settings``.

    Args:
        method: its name, or the method itself.
        settings: name -> value, of any group of the configuration or of the method.

    Raises:
        ValueError: an unknown method, or a setting that neither the method nor a search has.

    Example:
        >>> custom_config("darts-v2", {"epochs": 3}).optimization.order
        'second'
    """
    chosen = find_method(method) if isinstance(method, str) else method
    config = replace(SearchConfig(), method=chosen)
    published = search_settings(chosen, _ANY_MODEL, preset_names(chosen, _ANY_MODEL)[0], dataset="own")
    known = {name: value for name, value in published.items() if name in config.settings and name != "method"}
    return configured(config, {**known, **(settings or {})})


def custom_search(
    build: Callable[..., nn.Module],
    pairs: Pairs | Callable[[int], Pairs],
    config: SearchConfig,
    read_out: Callable[[ArchParameterGroup, float], Any] = Choice,
) -> Search:
    """A search, ready to run; its run folder has been made.

    Args:
        build: makes the supernet, a model that contains mixed operations; called after the seed has been set, with the
            method's supernet options (PC-DARTS: its share of channels) as keyword arguments.
        pairs: the images, or a function that opens them for a seed.
        config: the configuration.
        read_out: (arch, temperature) -> the architecture found; see :class:`~sparsemix.runs.search.Search`.

    Raises:
        ValueError: ``build`` does not accept the method's supernet options.
    """
    options = config.method.supernet()
    try:
        inspect.signature(build).bind(**options)
    except TypeError as error:
        raise ValueError(
            f"{config.method.name} has the supernet built with {dict(options)} ({error}): let the function that builds "
            f"it take these keyword arguments, or leave the method out"
        ) from error
    accelerator = make_accelerator(config.run.device)
    set_seed(config.run.seed)
    data = pairs(config.run.seed) if callable(pairs) else pairs
    arch = ArchParameterGroup(build(**options), threshold=config.execution.threshold)
    return Search(config, arch, data, accelerator, "own", read_out)
