"""The supernet of the DARTS space, and the networks of a genotype for CIFAR-size and for ImageNet-size images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..spaces import darts
from ..spaces.cells import TwoInputCell
from ..spaces.darts import DartsGenotype, read_genotype, robust
from ..supernet.group import tie_alphas_
from .network import CIFAR_CFG, Network

__all__ = ["DartsNetwork", "sparsemix_darts_cifar", "sparsemix_darts_imagenet", "sparsemix_darts_supernet"]

# (kind, channels of the two inputs, channels, whether the first input is halved, drop_path) -> cell
CellFactory = Callable[[str, tuple[int, int], int, bool, nn.Module | None], TwoInputCell]


class DartsNetwork(Network):
    """A stem, a chain of cells that each read the two before it, and a classifier.

    Cells ``cells // 3`` and ``2 * cells // 3``, from 0, are reductions: they halve height and width and double C.

    Args:
        make_cell: makes each cell; the supernet's or that of a genotype.
        channels: C, of the nodes of the first cells.
        cells: how many, at least 3.
        num_classes, in_chans, global_pool, drop_rate: as timm's models take them.
        drop_path_rate: on the edges of every cell alike, as DARTS code has it; training scripts raise it over the
            epochs with :meth:`set_drop_path`.
        stem: ``"cifar"``, a convolution; or ``"imagenet"``, three of stride 2.
        auxiliary: in training return ``(logits, auxiliary logits)``, the latter from a classifier on the second
            reduction.

    Shapes:
        input ``(B, in_chans, H, W)``, H and W divisible by 4 (ImageNet stem: 32); output ``(B, num_classes)``.

    Raises:
        ValueError: channels not positive or odd, fewer than 3 cells, an unknown stem; at the first input, a size that
            the reductions cannot divide, or one that is too small for the auxiliary classifier.

    Source: Liu et al., "DARTS", section 3.2 and 3.3.
    """

    stem: Any
    cells: Any
    auxiliary: Any

    def __init__(
        self,
        make_cell: CellFactory,
        channels: int = 36,
        cells: int = 20,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem: str = "cifar",
        auxiliary: bool = False,
    ) -> None:
        super().__init__(num_classes, in_chans, channels, cells)
        if cells < 3 or channels % 2:
            raise ValueError(
                f"DartsNetwork: needs at least 3 cells, two of them reductions, and an even number of channels; "
                f"got {cells} and {channels}"
            )
        if stem not in _STEMS:
            raise ValueError(f"DartsNetwork: the stem must be one of {', '.join(_STEMS)}, got {stem!r}")
        self.stem, stem_channels, stem_stride, halved = _STEMS[stem](in_chans, channels)
        reductions = (cells // 3, 2 * cells // 3)
        inputs, width, stride = (stem_channels, stem_channels), channels, stem_stride
        self.cells = nn.ModuleList()
        self.feature_info = []
        for i in range(cells):
            kind = "reduce" if i in reductions else "normal"
            if kind == "reduce":
                self.feature_info.append({"num_chs": inputs[1], "reduction": stride, "module": f"cells.{i - 1}"})
                width, stride = 2 * width, 2 * stride
            cell = make_cell(kind, inputs, width, halved, DropPath(drop_path_rate))
            self.cells.append(cell)
            inputs, halved = (inputs[1], len(cell.concat) * width), kind == "reduce"
            if i == reductions[1]:
                self.auxiliary_at, auxiliary_channels = i, inputs[1]
        self.feature_info.append({"num_chs": inputs[1], "reduction": stride, "module": f"cells.{cells - 1}"})
        self.stride = stride
        self.auxiliary = AuxiliaryHead(auxiliary_channels, num_classes, stem) if auxiliary else None
        self.make_head(inputs[1], global_pool, drop_rate)
        self.set_drop_path(drop_path_rate)
        tie_alphas_(self)

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last cell's output, and that of the second reduction."""
        height, width = x.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"DartsNetwork: height and width must be divisible by {self.stride}, got an input {tuple(x.shape)}"
            )
        before, last = self.stem(x)
        second = last
        for i, cell in enumerate(self.cells):
            if self.grad_checkpointing and self.training:
                out = checkpoint(cell, before, last, cell.operation_weights(), use_reentrant=False)
            else:
                out = cell(before, last)
            before, last = last, out
            if i == self.auxiliary_at:
                second = out
        return last, second

    def forward_features(self, x: Tensor) -> Tensor:
        return self._run(x)[0]

    def forward(self, x: Tensor) -> Any:
        last, second = self._run(x)
        logits = self.forward_head(last)
        if self.training and self.auxiliary is not None:
            return logits, self.auxiliary(second)
        return logits

    def set_drop_path(self, rate: float) -> None:
        """The probability of dropping an edge, from now on; in [0, 1)."""
        for module in self.modules():
            if isinstance(module, DropPath):
                module.drop_prob = rate

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        if self.auxiliary is not None:
            self.auxiliary.reset_classifier(num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": [(r"^cells\.(\d+)", None), (r"^auxiliary", (99_999,))]}


class AuxiliaryHead(nn.Module):
    """The auxiliary classifier of published DARTS code.

    Args:
        channels: of its input.
        num_classes: of its output.
        stem: ``"cifar"``, for inputs of 8x8; or ``"imagenet"``, for 7x7. The latter lacks the second batch norm, which
            the authors left out by mistake and kept out, since their results were obtained without it.

    Raises:
        ValueError: at an input that is too small.
    """

    def __init__(self, channels: int, num_classes: int, stem: str) -> None:
        super().__init__()
        stride = 3 if stem == "cifar" else 2
        self.smallest = 5 + stride
        self.pool = nn.AvgPool2d(5, stride, count_include_pad=False)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            *([nn.BatchNorm2d(768)] if stem == "cifar" else []),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc: nn.Module = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < self.smallest:
            raise ValueError(
                f"DartsNetwork: the auxiliary classifier needs {self.smallest}x{self.smallest} after the second "
                f"reduction, got {tuple(x.shape)}: use larger images, or auxiliary=False"
            )
        return self.fc(self.body(self.pool(torch.relu(x))))

    def reset_classifier(self, num_classes: int) -> None:
        weight = next(self.parameters())
        new = nn.Linear(768, num_classes) if num_classes else nn.Identity()
        self.fc = new.to(device=weight.device, dtype=weight.dtype)


class CifarStem(nn.Module):
    """A convolution; the first cell reads it twice."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bn(self.conv(x))
        return x, x


class ImageNetStem(nn.Module):
    """Three convolutions of stride 2; the first cell reads the results of the second and the third."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(in_chans, channels // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.second = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        return x, self.second(x)


# name -> (in_chans, C) -> the stem, its channels, its stride, and whether its first output is larger than its second
_STEMS: dict[str, Callable[[int, int], tuple[nn.Module, int, int, bool]]] = {
    "cifar": lambda in_chans, channels: (CifarStem(in_chans, 3 * channels), 3 * channels, 1, False),
    "imagenet": lambda in_chans, channels: (ImageNetStem(in_chans, channels), channels, 8, True),
}

SPACES = {"darts": darts.DARTS, "darts-none": darts.WITH_NONE, **robust.SPACES}

_CIFAR = {**CIFAR_CFG, "first_conv": "stem.conv"}
_IMAGENET = {
    **CIFAR_CFG,
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": DEFAULT_CROP_PCT,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "stem.first.0",
}
default_cfgs = generate_default_cfgs(
    {
        "sparsemix_darts_supernet": _CIFAR,
        "sparsemix_darts_cifar": _CIFAR,
        "sparsemix_darts_imagenet": _IMAGENET,
    }
)


def _create(name: str, make_cell: CellFactory, pretrained: bool, **kwargs: Any) -> DartsNetwork:
    return build_model_with_cfg(
        DartsNetwork,
        name,
        pretrained,
        make_cell=make_cell,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "hook"},
        **kwargs,
    )


@register_model
def sparsemix_darts_supernet(
    pretrained: bool = False, space: str | darts.Space = "darts", channel_parts: int = 1, **kwargs: Any
) -> DartsNetwork:
    """The supernet of the DARTS space, of S1 to S4 (``space="s1"``), or of a table of your own; 8 cells, C 16.

    ``channel_parts`` mixes a share of the channels, as PC-DARTS does.
    """
    table = SPACES.get(space) if isinstance(space, str) else space
    if table is None:
        raise ValueError(f"sparsemix_darts_supernet: unknown space {space!r}; choose among {', '.join(SPACES)}")
    darts.check_space(table)
    sizes = {"channels": 16, "cells": 8}
    return _create(
        "sparsemix_darts_supernet",
        partial(darts.mixed_cell, table, channel_parts=channel_parts),
        pretrained,
        **{**sizes, **kwargs},
    )


@register_model
def sparsemix_darts_cifar(
    pretrained: bool = False, genotype: DartsGenotype | str | Path = "DARTS_V2", search: bool = False, **kwargs: Any
) -> DartsNetwork:
    """The network of a genotype for CIFAR-size images; 20 cells, C 36.

    The genotype is an object, its notation, a JSON file, or a published name. ``search``: use the operations of the
    supernet (no affine batch norms, poolings normalised), so that the supernet's weights can be loaded.
    """
    cells = partial(darts.cell, read_genotype(genotype), search=search)
    return _create("sparsemix_darts_cifar", cells, pretrained, **kwargs)


@register_model
def sparsemix_darts_imagenet(
    pretrained: bool = False, genotype: DartsGenotype | str | Path = "DARTS_V2", **kwargs: Any
) -> DartsNetwork:
    """The network of a genotype for ImageNet-size images; 14 cells, C 48."""
    sizes = {"channels": 48, "cells": 14, "stem": "imagenet"}
    cells = partial(darts.cell, read_genotype(genotype))
    return _create("sparsemix_darts_imagenet", cells, pretrained, **{**sizes, **kwargs})
