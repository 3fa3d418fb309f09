"""The NAS-Bench-201 space: five operations on the six edges of a four-node cell.

Source: Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..supernet.group import ArchParameterGroup
from ..supernet.mixed_op import MixedOp
from .cells import DenseCell
from .darts import DARTS_SETTINGS, DIGITS, FAST
from .genotypes import NB201Genotype
from .primitives import AvgPool, ReLUConvBN, Zero

__all__ = ["NODES", "OPERATIONS", "PRESETS", "cell", "genotype", "mixed_cell"]

NODES = 4

# name -> (channels, whether batch norm is affine) -> module
OPERATIONS: dict[str, Callable[[int, bool], nn.Module]] = {
    "none": lambda channels, affine: Zero(),
    "skip_connect": lambda channels, affine: nn.Identity(),
    "nor_conv_1x1": lambda channels, affine: ReLUConvBN(channels, channels, 1, affine=affine),
    "nor_conv_3x3": lambda channels, affine: ReLUConvBN(channels, channels, 3, affine=affine),
    "avg_pool_3x3": lambda channels, affine: AvgPool(),
}


def mixed_cell(channels: int, drop_path: nn.Module | None = None) -> DenseCell:
    """A cell of the supernet: all five operations on every edge, rows labelled by edge, batch norm not affine."""

    def mixed_edge(name: str) -> MixedOp:
        return MixedOp({op: make(channels, False) for op, make in OPERATIONS.items()}, label=name)

    return DenseCell(NODES, mixed_edge, drop_path)


def cell(genotype: NB201Genotype, channels: int, drop_path: nn.Module | None = None) -> DenseCell:
    """A cell of the final network: one operation on every edge, batch norm affine."""
    chosen = genotype.by_edge()
    return DenseCell(NODES, lambda name: OPERATIONS[chosen[name]](channels, True), drop_path)


def genotype(arch: ArchParameterGroup) -> NB201Genotype:
    """Read a cell out of the supernet's alphas: argmax of each edge, ``none`` allowed, a tie to the lower index."""
    return NB201Genotype.from_edges(arch.genotype())


# Settings of a search, as sparsemix.spaces.darts.PRESETS
_PAPER: dict[str, Any] = {
    "channels": 16,
    "cells": 5,
    "epochs": 50,
    "batch_size": 256,
    "weight_lr": 0.05,
    "weight_lr_min": 0.05,
    "weight_decay": 5e-4,
    "sparse": 1.1e-3,
    "smooth": 1.1e-2,
    "p_up": 1.0,
    "warmup_epochs": 1,
    "eval_temperature": 1e-4,
}
_PAPER_CIFAR100: dict[str, Any] = {"sparse": 1.3e-3, "smooth": 1.3e-2, "p_up": 0.9}
_AUTHORS: dict[str, Any] = {
    **_PAPER,
    "smooth": 11 * 1.1e-3,
    "warmup_smooth": 10 * 1.1e-3,
    "clip_alphas": True,
    "split": "benchmark",
    "sampling": "replacement",
}
_AUTHORS_CIFAR100: dict[str, Any] = {
    "sparse": 1.3e-3,
    "smooth": 11 * 1.3e-3,
    "warmup_smooth": 10 * 1.3e-3,
    "p_up": 0.9,
    "hold_epoch": 45,
    "hold_sparse": 6e-4,
}
_DARTS: dict[str, Any] = {
    **_PAPER,
    **DARTS_SETTINGS,
    "clip_alphas": True,
    "split": "benchmark",
    "sampling": "replacement",
}
_DARTS_AUTHORS: dict[str, Any] = {
    **_DARTS,
    "batch_size": 256,
    "weight_lr": 0.025,
    "weight_lr_min": 0.025,
    "alpha_weight_decay": 0.0,
    "eval_temperature": 1e-4,
}
_PROXY: dict[str, Any] = {"cells": 1, "epochs": 25, "batch_size": 64, "image_size": 16, "limit": 12_800}
# Adam carries an alpha about lr sqrt(steps) far. In 300 steps instead of 4,900 it gets as far, against the same
# temperature and the same start, at four times the learning rate.
_DIGITS: dict[str, Any] = {**DIGITS, "alpha_lr": 1.2e-3}

PRESETS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "sp-darts": {
        "paper": {"*": _PAPER, "cifar100": _PAPER_CIFAR100},
        "fast": {"*": {**_PAPER, **FAST}, "cifar100": _PAPER_CIFAR100},
        "authors": {"*": _AUTHORS, "cifar100": _AUTHORS_CIFAR100},
        "proxy": {"*": {**_PAPER, **FAST, **_PROXY}, "digits": _DIGITS},
    },
    "darts": {
        "nas-bench-201": {"*": _DARTS},
        "authors": {"*": _DARTS_AUTHORS},
        "proxy": {"*": {**_DARTS, **_PROXY, "split": "halves"}, "digits": _DIGITS},
    },
}
