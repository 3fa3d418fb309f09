"""The supernet of NAS-Bench-201, and the network of one of its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..spaces import nb201
from ..spaces.cells import DenseCell, ResidualReduction
from ..spaces.nb201 import NB201Genotype
from ..supernet.group import tie_alphas_
from .network import CIFAR_CFG, Network

__all__ = ["RESNET_LIKE", "NB201Network", "sparsemix_nb201", "sparsemix_nb201_supernet"]

CellFactory = Callable[[int, nn.Module | None], DenseCell]


class NB201Network(Network):
    """The skeleton of NAS-Bench-201: a stem, three stages of N cells with reductions between, and a classifier.

    Args:
        make_cell: (channels, drop_path) -> cell; the supernet's or that of a genotype.
        channels: C of the first stage; the next ones have 2 C and 4 C.
        cells: N, cells a stage.
        num_classes, in_chans, global_pool, drop_rate, drop_path_rate: as timm's models take them; the drop path acts on
            the edges of the cells and rises linearly with depth.

    Shapes:
        input ``(B, in_chans, H, W)`` of any size; output ``(B, num_classes)``.

    Source: Dong and Yang, "NAS-Bench-201", section 2.1.
    """

    def __init__(
        self,
        make_cell: CellFactory,
        channels: int = 16,
        cells: int = 5,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, channels, cells)
        widths = [channels, 2 * channels, 4 * channels]
        self.stem = nn.Sequential(nn.Conv2d(in_chans, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        stages: list[nn.Module] = []
        drop_rates: Any = calculate_drop_path_rates(drop_path_rate, [cells] * len(widths), stagewise=True)
        for i, (width, rates) in enumerate(zip(widths, drop_rates, strict=True)):
            reduction = [ResidualReduction(widths[i - 1], width)] if i else []
            stages.append(
                nn.Sequential(*reduction, *(make_cell(width, DropPath(rate) if rate else None) for rate in rates))
            )
        self.stages = nn.Sequential(*stages)
        self.feature_info = [
            {"num_chs": width, "reduction": 2**i, "module": f"stages.{i}"} for i, width in enumerate(widths)
        ]
        self.norm = nn.BatchNorm2d(widths[-1])
        self.make_head(widths[-1], global_pool, drop_rate)
        tie_alphas_(self)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.grad_checkpointing and self.training:
            blocks = [block for stage in self.stages for block in stage.children()]
            for block in blocks:
                weights = (block.operation_weights(),) if isinstance(block, DenseCell) else ()
                x = checkpoint(block, x, *weights, use_reentrant=False)
        else:
            x = self.stages(x)
        return F.relu(self.norm(x))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}


_CFG = {**CIFAR_CFG, "first_conv": "stem.0"}
default_cfgs = generate_default_cfgs({"sparsemix_nb201_supernet": _CFG, "sparsemix_nb201": _CFG})


def _create(name: str, make_cell: CellFactory, pretrained: bool, **kwargs: Any) -> NB201Network:
    return build_model_with_cfg(
        NB201Network,
        name,
        pretrained,
        make_cell=make_cell,
        feature_cfg={"out_indices": (0, 1, 2), "flatten_sequential": True},
        **kwargs,
    )


@register_model
def sparsemix_nb201_supernet(
    pretrained: bool = False, without: Sequence[str] = (), channel_parts: int = 1, **kwargs: Any
) -> NB201Network:
    """The NAS-Bench-201 supernet: every edge a :class:`~sparsemix.MixedOp`, the six rows shared by all cells.

    ``without`` leaves operations out of the space, such as ``none``; ``channel_parts`` mixes a share of the channels.
    """
    cells = partial(nb201.mixed_cell, without=without, channel_parts=channel_parts)
    return _create("sparsemix_nb201_supernet", cells, pretrained, **kwargs)


RESNET_LIKE = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


@register_model
def sparsemix_nb201(
    pretrained: bool = False,
    genotype: NB201Genotype | str = RESNET_LIKE,
    **kwargs: Any,
) -> NB201Network:
    """The network of a NAS-Bench-201 cell, given as the benchmark writes it; by default one with a residual path."""
    cell = NB201Genotype.parse(genotype) if isinstance(genotype, str) else genotype
    return _create(
        "sparsemix_nb201", lambda channels, drop_path: nb201.cell(cell, channels, drop_path), pretrained, **kwargs
    )
