"""Settings of a search that belong to its space: what all methods share there, and the sizes that it comes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["SpaceSettings"]

Settings = Mapping[str, Any]


class SpaceSettings(NamedTuple):
    """Settings of a space. A method's own come on top of the recipe and the hints, and a scale on top of those.

    Attributes:
        name: under which methods list their presets for it.
        recipe: of every search, at the published size.
        scales: name -> data set (``"*"`` for all) -> settings: other sizes, over which no method has a say.
        hints: the same, of what another size makes sensible, unless the method says otherwise.
    """

    name: str
    recipe: Settings
    scales: Mapping[str, Mapping[str, Settings]]
    hints: Mapping[str, Mapping[str, Settings]] = {}
