"""Settings of a search of NAS-Bench-201, whatever the method."""

from __future__ import annotations

from ..settings import SpaceSettings

__all__ = ["SETTINGS"]

# for CPUs: a small supernet on few, small images; the embedded data has its own size
SETTINGS = SpaceSettings(
    "nb201",
    {"channels": 16, "cells": 5, "epochs": 50, "weight_decay": 5e-4, "nesterov": True},
    {
        "proxy": {
            "*": {
                "channels": 16,
                "cells": 1,
                "epochs": 25,
                "batch_size": 64,
                "image_size": 16,
                "limit": 12_800,
                "split": "halves",  # the benchmark's lists are of all images
            },
            "digits": {"image_size": 8, "limit": None},
        }
    },
    # Adam carries an alpha about lr sqrt(steps) far. In 300 steps instead of 4,900 it gets as far, against the same
    # temperature and the same start, at four times the learning rate.
    {"proxy": {"digits": {"alpha_lr": 1.2e-3}}},
)
