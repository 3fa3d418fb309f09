"""``sparsemix train``: train a network from scratch and report its test error.

Of a genotype that was found, of a published one, or a model of timm's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import timm
from accelerate.utils import set_seed

from .. import models  # noqa: F401  (registers the networks)
from ..data import open_training
from ..runs.launching import make_accelerator
from ..runs.training import RetrainConfig, Retraining, retrain_config_from_flags
from ..spaces.published import PUBLISHED, read_genotype


def resolved(config: RetrainConfig) -> RetrainConfig:
    """With the genotype itself in place of where it is to be found, which may change."""
    if config.model is not None:
        return config
    if config.genotype is None:
        raise ValueError(
            f"what is to be trained? Give --genotype, one of {', '.join(PUBLISHED)}, a .json file or the notation; or "
            f"--model, a model of timm's"
        )
    return replace(config, output=config.named_output(), genotype=str(read_genotype(config.genotype)))


def train(config: RetrainConfig) -> dict[str, Any]:
    """Train, and return the summary."""
    config = resolved(config)
    accelerator = make_accelerator(config.device)
    set_seed(config.seed)
    data = open_training(**config.data_options(), device=accelerator.device)
    options: dict[str, Any] = {"num_classes": len(data.classes), "in_chans": data.in_chans}
    if config.model is None:
        name = "sparsemix_darts_imagenet" if config.preset == "imagenet" else "sparsemix_darts_cifar"
        options |= {"genotype": config.genotype, "channels": config.channels, "cells": config.cells}
        options |= {"auxiliary": config.auxiliary > 0}
    else:
        name = config.model
    return Retraining(config, timm.create_model(name, **options), data, accelerator).run()


def main(args: list[str]) -> None:
    """The command with these flags."""
    train(retrain_config_from_flags(args, prog="sparsemix train"))
