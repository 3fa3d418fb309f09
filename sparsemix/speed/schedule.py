"""A short but complete search by this SP-DARTS and by DARTS in the published formulation, in alternating steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim.swa_utils import update_bn
from tqdm.auto import tqdm

from .. import models  # noqa: F401  (registers the supernet)
from ..data import Pairs, open_pairs
from ..measure import accuracy
from ..methods import SearchStep
from ..methods.registry import find_method
from ..methods.schedule import BatchMixedScheduler
from ..relaxations import SparseSmoothSoftmax
from ..runs.config import Optimization, SearchConfig, configured
from ..runs.presets import search_settings
from ..spaces import nb201
from ..spaces.nb201 import NB201Genotype
from ..supernet.group import ArchParameterGroup
from .published import PublishedSupernet, published_step
from .variants import Size, channels_last

__all__ = ["ScheduleRow", "whole_schedule"]


_DEFAULT = Size()


@dataclass(frozen=True)
class ScheduleRow:
    """A search from beginning to end."""

    comparison: str
    variant: str
    seconds: float
    """Of all steps."""
    ratio: float
    """To DARTS in the published formulation."""
    genotype: str
    accuracy: float
    """Of the discretised supernet on the alpha half, its running statistics renewed; not retrained."""


@dataclass
class Contender:
    """A search in progress: each call takes one step, and the end returns the genotype and its network."""

    begin_epoch: Callable[[int], None]
    step: Callable[[int, Any, Any], Any]
    finish: Callable[[], tuple[NB201Genotype, nn.Module]]
    seconds: float = 0.0


def whole_schedule(
    size: Size = _DEFAULT, cells: int = 5, epochs: int = 10, images: int = 768, threshold: float = 1e-3
) -> list[ScheduleRow]:
    """Both searches on the embedded digits, under the paper's settings for NAS-Bench-201, their epochs scaled down.

    Alpha's learning rate is ten times as large, so that the alphas move as far in tens of steps as usual in hundreds.
    """
    torch.manual_seed(0)
    pairs = open_pairs(
        "digits", batch_size=size.batch_size, image_size=size.image_size, limit=images, device=torch.device(size.device)
    )
    supernet: Any = timm.create_model(
        "sparsemix_nb201_supernet", channels=size.channels, cells=cells, in_chans=1, num_classes=len(pairs.classes)
    )
    supernet.to(size.device)
    contenders = {
        "darts, published dense": darts(supernet, epochs),
        f"sp-darts, threshold {threshold:g}": sp_darts(supernet, epochs, len(pairs), threshold),
    }
    bar = tqdm(total=epochs * len(pairs), desc="whole schedule", leave=False, disable=None)
    for epoch in range(epochs):
        for contender in contenders.values():
            contender.begin_epoch(epoch)
        for i, (train, val) in enumerate(pairs.epoch(epoch)):
            for contender in contenders.values():
                started = time.perf_counter()
                contender.step(epoch * len(pairs) + i, train, val)
                if size.device.startswith("cuda"):
                    torch.cuda.synchronize()
                contender.seconds += time.perf_counter() - started
            bar.update()
    bar.close()
    first = next(iter(contenders.values()))
    comparison = f"N {cells}: {epochs} epochs of {len(pairs)} steps"
    rows = [
        row(comparison, name, contender, contender.seconds / first.seconds, pairs)
        for name, contender in contenders.items()
    ]
    print("\n| comparison | variant | seconds | seconds ratio | accuracy | cell |\n|---|---|---|---|---|---|")
    for r in rows:
        cell = r.genotype.replace("|", "\\|")
        print(f"| {r.comparison} | {r.variant} | {r.seconds:.1f} | {r.ratio:.3f} | {r.accuracy:.1%} | {cell} |")
    return rows


def row(comparison: str, name: str, contender: Contender, ratio: float, pairs: Pairs) -> ScheduleRow:
    genotype, network = contender.finish()
    update_bn((x for (x, _), _ in pairs.epoch(0)), network)
    return ScheduleRow(comparison, name, contender.seconds, ratio, str(genotype), accuracy(network, pairs.validation()))


def contiguous(batch: Any) -> Any:
    """In the memory format of the published codes; a copy, since one channel counts as contiguous in every format."""
    return batch[0].clone(memory_format=torch.contiguous_format), batch[1]


def settings(method: str, preset: str, epochs: int) -> SearchConfig:
    published = search_settings(find_method(method), nb201.SETTINGS, preset, dataset="digits")
    return configured(SearchConfig(), {**published, "epochs": epochs, "alpha_lr": 3e-3})


def optimizers(config: Optimization, weights: list[nn.Parameter], alphas: list[nn.Parameter]) -> tuple[Any, Any]:
    sgd = torch.optim.SGD(
        weights,
        lr=config.weight_lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        fused=True,
    )
    adam = torch.optim.Adam(
        alphas, lr=config.alpha_lr, betas=config.alpha_betas, weight_decay=config.alpha_weight_decay
    )
    return sgd, adam


def darts(supernet: Any, epochs: int) -> Contender:
    config = settings("darts", "nas-bench-201", epochs).optimization
    dense = PublishedSupernet(supernet, temperature=1.0)
    sgd, adam = optimizers(config, dense.weight_parameters(), [dense.alphas])
    schedule = CosineLRScheduler(sgd, epochs, lr_min=config.weight_lr_min)

    def finish() -> tuple[NB201Genotype, nn.Module]:
        strongest = dense.alphas.argmax(1)
        names = [list(nb201.OPERATIONS)[i] for i in strongest.tolist()]
        with torch.no_grad():  # a softmax of exactly one and zeros
            dense.alphas.copy_(1e3 * F.one_hot(strongest, dense.alphas.shape[1]))
        return NB201Genotype.from_edges(dict(zip(NB201Genotype.EDGES, names, strict=True))), dense

    def step(update: int, train: Any, val: Any) -> None:
        published_step(dense, sgd, adam, contiguous(train), contiguous(val))

    return Contender(schedule.step, step, finish)


def sp_darts(supernet: Any, epochs: int, steps_per_epoch: int, threshold: float) -> Contender:
    config = settings("sp-darts", "fast", epochs)
    model = supernet.to(memory_format=torch.channels_last)
    temperatures = {name: config.method.settings[name] for name in ("sparse", "smooth")}
    arch = ArchParameterGroup(model, SparseSmoothSoftmax(**temperatures), threshold=threshold)
    sgd, adam = optimizers(config.optimization, arch.weight_parameters(), arch.parameters())
    phi = BatchMixedScheduler(arch, epochs, steps_per_epoch)
    search_step = SearchStep(arch, lambda batch: F.cross_entropy(model(batch[0]), batch[1]), sgd, adam)

    def step(update: int, train: Any, val: Any) -> None:
        phi.step_update(update)
        search_step(channels_last(train), channels_last(val))

    return Contender(phi.step, step, lambda: (nb201.genotype(arch), arch.discretize()))
