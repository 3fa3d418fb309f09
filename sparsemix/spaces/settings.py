"""Settings of a search that belong to its space: what all methods share there, and the sizes that it comes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["DARTS", "NB201", "ROBUST", "SpaceSettings"]

Settings = Mapping[str, Any]


class SpaceSettings(NamedTuple):
    """Settings of a space. A method's own come on top of the recipe, and a scale on top of those.

    Attributes:
        name: under which methods list their presets for it.
        recipe: of every search, at the published size.
        scales: name -> data set (``"*"`` for all) -> settings: other sizes, and what follows from them.
    """

    name: str
    recipe: Settings
    scales: Mapping[str, Mapping[str, Settings]]


# for CPUs: a small supernet on few, small images; the embedded data has its own size
NB201 = SpaceSettings(
    "nb201",
    {"channels": 16, "cells": 5, "epochs": 50, "weight_decay": 5e-4, "nesterov": True},
    {
        "proxy": {
            "*": {
                "cells": 1,
                "epochs": 25,
                "batch_size": 64,
                "image_size": 16,
                "limit": 12_800,
                "split": "halves",  # the benchmark's lists are of all images
            },
            # Adam carries an alpha about lr sqrt(steps) far. In 300 steps instead of 4,900 it gets as far, against the
            # same temperature and the same start, at four times the learning rate.
            "digits": {"image_size": 8, "limit": None, "alpha_lr": 1.2e-3},
        }
    },
)
DARTS = SpaceSettings(
    "darts",
    {"channels": 16, "cells": 8, "epochs": 50, "weight_decay": 3e-4, "nesterov": False},
    {
        "proxy": {
            "*": {"channels": 8, "cells": 5, "epochs": 10, "batch_size": 64, "image_size": 16, "limit": 6_400},
            "digits": {"image_size": 8, "limit": None},
        }
    },
)
ROBUST = DARTS._replace(name="robust")
