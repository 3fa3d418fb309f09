"""How a training went, in figures."""

from __future__ import annotations

from .course import Drawing

__all__ = ["TRAINING"]

TRAINING = (
    Drawing("error", "Error", "On the test images, or on those held out.", "error", "error, %", 100),
    Drawing("loss", "Loss", "Of the training images.", "loss", "loss", lowest=None),
    Drawing("lr", "Learning rate", "Of each epoch.", "lr", "learning rate"),
)
"""The figures of a training, in the order of the page."""
