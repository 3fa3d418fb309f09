"""Arguments with which a timm model fits a data set."""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor

__all__ = ["fitting_options"]


def fitting_options(name: str, num_classes: int, image: Tensor) -> dict[str, Any]:
    """Keyword arguments for ``timm.create_model(name, ...)``: classes, channels and, where it is fixed, the image size.

    Args:
        name: of the timm model.
        num_classes: number of classes.
        image: a batch of the data, ``(B, C, H, W)``.

    Example:
        >>> import torch
        >>> fitting_options("resnet18", 10, torch.zeros(1, 3, 32, 32))
        {'num_classes': 10, 'in_chans': 3}
        >>> fitting_options("vit_tiny_patch16_224", 10, torch.zeros(1, 3, 32, 32))
        {'num_classes': 10, 'in_chans': 3, 'img_size': 32}
    """
    options = {"num_classes": num_classes, "in_chans": image.shape[1]}
    pretrained_cfg = timm.models.get_pretrained_cfg(name)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:  # vision transformers, mixers
        options["img_size"] = image.shape[-1]
    return options
