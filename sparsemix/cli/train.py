"""``sparsemix train``: train a network from scratch and report its test error.

The network is built from a found or published genotype, or is a timm model, unchanged or with the layers of a search.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
from accelerate.utils import set_seed

from .. import models  # noqa: F401  (registers the networks)
from ..data import open_training
from ..inject.mixing import choose_
from ..models.fitting import fitting_options
from ..runs.config import configured
from ..runs.launching import make_accelerator
from ..runs.training import Training
from ..runs.training_config import TrainingConfig
from ..spaces.darts import PUBLISHED, read_genotype
from .flags import training_config


def resolved(config: TrainingConfig) -> TrainingConfig:
    """The configuration with the genotype or choice itself in place of its file or name, whose content may change."""
    if (choice := config.network.choice) is not None:
        text = Path(choice).read_text() if choice.endswith(".json") else choice
        return configured(config, {"output": config.named_output(), "choice": json.dumps(json.loads(text))})
    if config.network.model is not None:
        return config
    if config.network.genotype is None:
        raise ValueError(
            f"what is to be trained? Give --genotype, one of {', '.join(PUBLISHED)}, a .json file or the notation; or "
            f"--model, a model of timm's"
        )
    genotype = str(read_genotype(config.network.genotype))
    return configured(config, {"output": config.named_output(), "genotype": genotype})


def train(config: TrainingConfig) -> dict[str, Any]:
    """Train, and return the summary."""
    return make_training(config).run()


def make_training(config: TrainingConfig) -> Training:
    """The training of this configuration, ready to run; its run folder has been made."""
    config = resolved(config)
    accelerator = make_accelerator(config.run.device)
    set_seed(config.run.seed)
    data = open_training(**config.data_options(), device=accelerator.device)
    network, size = config.network, config.size
    published = "sparsemix_darts_imagenet" if config.preset == "imagenet" else "sparsemix_darts_cifar"
    name = network.model or published
    options = fitting_options(name, len(data.classes), data.in_chans, data.image_size)
    if network.model is None:
        options |= {"genotype": network.genotype, "channels": size.channels, "cells": size.cells}
        options |= {"auxiliary": network.auxiliary > 0}
    model = timm.create_model(name, **options)
    if network.choice is not None and network.mix is not None:
        image = next(data.test())[0][:1].to("cpu")
        choose_(model, network.mix, json.loads(network.choice), example=image)
    return Training(config, model, data, accelerator)


def configure(args: list[str] | None = None) -> TrainingConfig:
    """The configuration of these flags."""
    return training_config(args, "sparsemix train")


def main(args: list[str]) -> None:
    """The command with these flags."""
    train(configure(args))
