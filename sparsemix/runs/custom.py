"""A search of a supernet that is made by a function, on images that are at hand."""

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

# What methods say of any model's layers, which is what they know of a supernet that is none of the spaces.
_ANY_MODEL = SpaceSettings("timm", {}, {})


def custom_config(method: str | Method, settings: Mapping[str, Any] | None = None) -> SearchConfig:
    """The configuration of a search of any supernet: what was published for the method, then these settings.

    Args:
        method: its name, or the method itself.
        settings: name -> value, of any group of the configuration or of the method.

    Raises:
        ValueError: no such method, or a setting that it, or a search, does not have.

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
        build: makes the supernet, a model that contains mixed operations; called after the seed has been set. What the
            method prescribes for the supernet (PC-DARTS: its share of channels) is passed as keyword arguments.
        pairs: the images, or a function that opens them for a seed.
        config: the configuration.
        read_out: (arch, temperature) -> what is found; see :class:`~sparsemix.runs.search.Search`.

    Raises:
        ValueError: the method prescribes something for the supernet that ``build`` does not accept.
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
