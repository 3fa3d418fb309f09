"""Train a network from scratch and report its test error: of a genotype, of a published one, or a model of timm's.

    accelerate launch benchmarks/evaluate.py --genotype runs/NAME/genotype.json --preset proxy    # on a laptop
    accelerate launch benchmarks/evaluate.py --genotype DARTS_V2 --dataset cifar10 --download     # the papers' protocol
    accelerate launch benchmarks/evaluate.py --model densenet121 --dataset cifar10 --download
    accelerate launch benchmarks/evaluate.py --genotype DARTS_V2 --preset imagenet --data TRAIN --test-data VAL

Every flag: --help. An interrupted run goes on with --resume.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import timm
from accelerate.utils import set_seed

import sparsemix.models  # noqa: F401  (registers the networks)
from sparsemix.data import open_training
from sparsemix.retrain import RetrainConfig, Retraining, retrain_config_from_flags
from sparsemix.running import make_accelerator, run_script
from sparsemix.spaces.published import PUBLISHED, read_genotype


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


def main(config: RetrainConfig) -> dict[str, Any]:
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


if __name__ == "__main__":
    run_script(lambda: main(retrain_config_from_flags()))
