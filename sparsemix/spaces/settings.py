"""Settings of a search that belong to its space: what all methods share there, and the sizes that it comes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["SpaceSettings"]

Settings = Mapping[str, Any]


class SpaceSettings(NamedTuple):
    """Settings of a space. A method's own come on top of the recipe and the hints, and a scale on top of those.

    Attributes:
        name: the name under which methods list their presets for the space.
        recipe: the settings of every search at the published size.
        scales: name -> data set (``"*"`` for all) -> settings of other sizes, which no method can override.
        hints: the same mapping, with settings that suit another size but that a method can override.
    """

    name: str
    recipe: Settings
    scales: Mapping[str, Mapping[str, Settings]]
    hints: Mapping[str, Mapping[str, Settings]] = {}
