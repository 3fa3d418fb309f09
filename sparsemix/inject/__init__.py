"""Search inside an existing model: layers become mixed operations in place, and a choice becomes a model again."""

from .families import FAMILIES, Family, Site
from .mixing import MixedLayers, choices, choose_, mix_

__all__ = ["FAMILIES", "Family", "MixedLayers", "Site", "choices", "choose_", "mix_"]
