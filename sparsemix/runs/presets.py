"""The settings of a preset: those of the space, of the method on that space, and of the scale, in that order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..methods.method import Method
from ..spaces.settings import SpaceSettings

__all__ = ["preset_names", "search_settings"]


def preset_names(method: Method, space: SpaceSettings) -> list[str]:
    """The presets of a method on a space, its default first."""
    own = [*method.presets.get(space.name, {"default": {}})]
    return [*own, *(scale for scale in space.scales if scale not in own)]


def _of(layer: Mapping[str, Mapping[str, Any]], dataset: str) -> dict[str, Any]:
    return {**layer.get("*", {}), **layer.get(dataset, {})}


def search_settings(
    method: Method, space: SpaceSettings, preset: str, dataset: str, scale: str = "published"
) -> dict[str, Any]:
    """The settings of a search, name -> value: the space's, the method's on that space, and those of the scale.

    Args:
        method: the search method.
        space: settings of the space.
        preset: one of :func:`preset_names`; a preset named after a scale implies that scale.
        dataset: name of the data set.
        scale: ``"published"``, or one of the space's scales.
    """
    presets = method.presets.get(space.name, {"default": {}})
    chosen = presets.get(preset, next(iter(presets.values())))
    scale = preset if preset in space.scales else scale
    layers = (space.hints.get(scale, {}), chosen, space.scales.get(scale, {}))
    settings = dict(space.recipe)
    whole = {"split": "whole"} if _of(chosen, dataset).get("split") == "whole" else {}  # not overridden by the scale
    for layer in layers:
        settings |= _of(layer, dataset)
    settings |= whole
    return {**settings, "method": method.name, "preset": preset, "scale": scale, "dataset": dataset}
