"""Arguments with which a timm model fits a data set."""

from __future__ import annotations

from typing import Any

import timm

__all__ = ["fitting_options"]


def fitting_options(name: str, num_classes: int, in_chans: int, image_size: int) -> dict[str, Any]:
    """Keyword arguments for ``timm.create_model(name, ...)``: classes, channels and, where it is fixed, the image size.

    Args:
        name: of the timm model.
        num_classes: number of classes.
        in_chans: channels of the images.
        image_size: their height and width.

    Example:
        >>> fitting_options("resnet18", 10, in_chans=3, image_size=32)
        {'num_classes': 10, 'in_chans': 3}
        >>> fitting_options("vit_tiny_patch16_224", 10, in_chans=3, image_size=32)
        {'num_classes': 10, 'in_chans': 3, 'img_size': 32}
    """
    options = {"num_classes": num_classes, "in_chans": in_chans}
    pretrained_cfg = timm.models.get_pretrained_cfg(name)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:  # vision transformers, mixers
        options["img_size"] = image_size
    return options
