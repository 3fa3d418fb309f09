"""Settings of a search of the DARTS space and of S1 to S4, whatever the method."""

from __future__ import annotations

from ..settings import SpaceSettings

__all__ = ["ROBUST_SETTINGS", "SETTINGS"]

# for CPUs: a small supernet on few, small images; the embedded data has its own size
SETTINGS = SpaceSettings(
    "darts",
    {"channels": 16, "cells": 8, "epochs": 50, "weight_decay": 3e-4, "nesterov": False},
    {
        "proxy": {
            "*": {
                "channels": 8,
                "cells": 5,
                "epochs": 10,
                "batch_size": 64,
                "image_size": 16,
                "limit": 6_400,
                "split": "halves",
            },
            "digits": {"image_size": 8, "limit": None},
        }
    },
)
ROBUST_SETTINGS = SETTINGS._replace(name="robust")
