"""What ``sparsemix speed`` times: the variants of each comparison, the baseline first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from torch import Tensor, nn

from .._utils.modes import restoring
from ..data import Images, ResidentPairs
from ..inject import FAMILIES, Family, mix_
from ..methods import SearchStep
from ..models import RESNET_LIKE
from ..relaxations import Softmax
from ..spaces import darts
from ..spaces.compiled_cells import compile_cells
from ..spaces.darts import DartsGenotype
from ..spaces.nb201 import NB201Genotype
from ..supernet.group import ArchParameterGroup
from ..supernet.mixed_op import Execution, MixedOp
from .autodl import AutoDLSupernet
from .models import MODELS
from .published import (
    Dense,
    DiscreteDarts,
    DiscreteNetwork,
    PublishedChain,
    PublishedDarts,
    PublishedSupernet,
    published_step,
    published_weights_update,
)

SPARSE, SMOOTH, THRESHOLD = 1.1e-3, 1.1e-2, 1e-3
CELLS = {
    # found by a search of the proxy (docs/results.md), and of median size among those found
    "two 3x3": "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|skip_connect~0|skip_connect~1|nor_conv_3x3~2|",
    "five 3x3": RESNET_LIKE,
}
SECOND = {"2<-0": "nor_conv_1x1", "3<-0": "nor_conv_1x1"}  # active beside the winners: 8 of 30
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Size:
    """The size of what is timed, and where."""

    channels: int = 16
    """Channels C of the first stage."""
    batch_size: int = 64
    """Images per batch."""
    image_size: int = 32
    """Height and width of the images."""
    device: str = "cpu"
    """Device to measure on, as PyTorch names it."""

    def batch(self, channels: int = 3) -> Batch:
        shape = (self.batch_size, channels, self.image_size, self.image_size)
        labels = torch.randint(min(10, self.channels), (self.batch_size,), device=self.device)
        return torch.randn(shape, device=self.device), labels


class Variant(NamedTuple):
    """Something to time, and how many operations it runs."""

    run: Callable[[], Any]
    operations: str = ""


Variants = dict[str, Variant]


# NAS-Bench-201


def nb201_steps(size: Size, cells: int, compiled: bool = False) -> Variants:
    """A search step: an update of the weights and one of the alphas; with ``compiled`` also of compiled cells."""
    train, val = size.batch(), size.batch()
    supernet = nb201_supernet(size, cells)
    published = PublishedSupernet(supernet, SMOOTH)
    dense = dense_step(published, [published.alphas], train, val)
    variants = {"published dense": Variant(dense, "30, 30"), **nb201_our_steps(supernet, train, val)}
    if compiled:
        ours = nb201_our_steps(supernet, train, val, compiled)
        variants |= {f"{name}, compiled cells": variant for name, variant in ours.items()}
    return variants


def nb201_our_steps(supernet: nn.Module, train: Batch, val: Batch, compiled: bool = False) -> Variants:
    """Smooth and sparse steps on copies of a supernet."""
    steps = {"smooth": our_step(supernet, phi=False)}
    for name, cell in CELLS.items():
        steps[f"sparse, 8 of 30 active, {name}"] = our_step(supernet, True, active(cell))
    if compiled:
        for step in steps.values():
            compile_cells(step.arch.model, after=0)
    return {name: search_step(step, train, val) for name, step in steps.items()}


def autodl_steps(size: Size, cells: int, checkout: Path) -> Variants:
    """A search step of AutoDL-Projects' own supernets, and of ours."""
    train, val = size.batch(), size.batch()
    variants = {}
    for method, operations in (("DARTS", "30, 30"), ("GDAS", "6, 6")):
        model = AutoDLSupernet(checkout, method, size.channels, cells, classes=10).to(size.device)
        step = dense_step(model, [model.alphas], train, val, fused=False)
        variants[f"AutoDL-Projects, {method}"] = Variant(step, operations)
    return variants | nb201_our_steps(nb201_supernet(size, cells), train, val)


def nb201_single_operations(size: Size, cells: int) -> Variants:
    """One operation an edge, against a network of those operations that knows nothing of search."""
    train, val = channels_last(size.batch()), channels_last(size.batch())
    network: Any = timm.create_model("sparsemix_nb201", channels=size.channels, cells=cells, genotype=CELLS["five 3x3"])
    discrete = DiscreteNetwork(network).to(size.device).to(memory_format=torch.channels_last)
    step = our_step(nb201_supernet(size, cells), True, active(CELLS["five 3x3"], {}), gap=200 * SPARSE)
    return {
        "discrete network, two training steps": Variant(training_steps(discrete, train, val), "6, 6"),
        "search step, none scored": search_step(step, train, val),
    }


def nb201_weights_updates(size: Size, cells: int) -> Variants:
    """The weights update alone."""
    train = size.batch()
    supernet = nb201_supernet(size, cells)
    dense = PublishedSupernet(supernet, SMOOTH)
    sgd, _ = optimizers(dense.weight_parameters(), [dense.alphas])
    variants = {"published dense": Variant(lambda: published_weights_update(dense, sgd, *train), "30")}
    for name, cell in CELLS.items():
        step = our_step(supernet, True, active(cell))
        variants[f"sparse, 8 of 30 active, {name}"] = weights_update(step, channels_last(train))
    return variants


def nb201_supernet(size: Size, cells: int) -> Any:
    supernet = timm.create_model("sparsemix_nb201_supernet", channels=size.channels, cells=cells)
    return supernet.to(size.device)


def active(cell: str, second: Mapping[str, str] = SECOND) -> dict[str, set[str]]:
    winners = NB201Genotype.parse(cell).by_edge()
    return {edge: {winner} | ({second[edge]} if edge in second else set()) for edge, winner in winners.items()}


# The space of DARTS, half the batch


def darts_steps(size: Size, cells: int) -> Variants:
    """A search step."""
    size = replace(size, batch_size=size.batch_size // 2)
    train, val = size.batch(), size.batch()
    supernet = darts_supernet(size, cells)
    published = PublishedDarts(supernet, SMOOTH)
    return {
        "published dense": Variant(dense_step(published, [*published.alphas], train, val), "196, 196"),
        "smooth": search_step(our_step(supernet, phi=False), train, val),
        "sparse, one operation an edge active": search_step(our_step(supernet, True, darts_active()), train, val),
    }


def darts_weights_updates(size: Size, cells: int) -> Variants:
    """The weights update alone."""
    size = replace(size, batch_size=size.batch_size // 2)
    train = size.batch()
    supernet = darts_supernet(size, cells)
    dense = PublishedDarts(supernet, SMOOTH)
    sgd, _ = optimizers(dense.weight_parameters(), [*dense.alphas])
    return {
        "published dense": Variant(lambda: published_weights_update(dense, sgd, *train), "196"),
        "sparse, one operation an edge": weights_update(darts_single_operations(supernet), channels_last(train)),
    }


def darts_discrete(size: Size, cells: int) -> Variants:
    """A weights update with one operation an edge, against a network that has nothing but those operations."""
    size = replace(size, batch_size=size.batch_size // 2)
    train = channels_last(size.batch())
    step = darts_single_operations(darts_supernet(size, cells))
    network: Any = step.arch.discretize()
    discrete = DiscreteDarts(network).to(memory_format=torch.channels_last)
    return {
        "discrete network, a training step": Variant(training_steps(discrete, train), "28"),
        "sparse weights update": weights_update(step, train),
    }


def darts_supernet(size: Size, cells: int) -> Any:
    return timm.create_model("sparsemix_darts_supernet", channels=size.channels, cells=cells).to(size.device)


def darts_single_operations(supernet: nn.Module) -> SearchStep[ArchParameterGroup]:
    return our_step(supernet, True, darts_active(), gap=200 * SPARSE)


def darts_active() -> dict[str, set[str]]:
    """One operation an edge; every operation of the space is on some edge."""
    labels = [f"{kind} {edge}" for kind in DartsGenotype.CELLS for edge in darts.EDGES]
    return {label: {darts.PRIMITIVES[i % len(darts.PRIMITIVES)]} for i, label in enumerate(labels)}


# A user's supernet


def user_steps(size: Size) -> Variants:
    """Six mixed operations in a row, of five plain modules each, that share nothing."""
    c = size.channels
    train, val = size.batch(c), size.batch(c)
    model = nn.Sequential(
        *(
            MixedOp(
                {
                    "skip": nn.Identity(),
                    "conv1": nn.Conv2d(c, c, 1),
                    "conv3": nn.Conv2d(c, c, 3, padding=1),
                    "conv5": nn.Conv2d(c, c, 5, padding=2),
                    "pool": nn.AvgPool2d(3, 1, 1),
                }
            )
            for _ in range(6)
        )
    ).to(size.device)
    winners = ["conv3", "skip", "conv1", "conv3", "pool", "conv5"]
    mixed: list[Any] = [*model]
    published = PublishedChain(mixed, SMOOTH)
    chosen = {str(i): {winner} for i, winner in enumerate(winners)}
    chosen["1"] |= {"conv3"}
    chosen["4"] |= {"conv1"}
    plain = nn.Sequential(*(op.candidates[winner] for op, winner in zip(copy.deepcopy(mixed), winners, strict=True)))
    plain = plain.to(memory_format=torch.channels_last)
    plain_steps = training_steps(plain, channels_last(train), channels_last(val))
    return {
        "published dense": Variant(dense_step(published, [published.alphas], train, val), "30, 30"),
        "smooth": search_step(our_step(model, phi=False), train, val),
        "sparse, 8 of 30 active": search_step(our_step(model, True, chosen), train, val),
        "discrete network, two training steps": Variant(plain_steps, "6, 6"),
    }


def dense_growth(size: Size, candidates: tuple[int, ...]) -> Variants:
    """How the dense weights update of three mixed convolutions grows with their candidates."""
    variants = {}
    for count in candidates:
        x, y = size.batch(size.channels)
        dense = PublishedChain(mixed_convolutions(size, count), SMOOTH)
        sgd, _ = optimizers(dense.weight_parameters(), [dense.alphas])

        def run(dense: PublishedChain = dense, sgd: Any = sgd, x: Tensor = x, y: Tensor = y) -> None:
            published_weights_update(dense, sgd, x, y)

        variants[f"{count} candidates"] = Variant(run, str(3 * count))
    return variants


def sparse_growth(size: Size, candidates: tuple[int, ...]) -> Variants:
    """How the sparse weights update of the same convolutions grows, with one active operation per edge."""
    variants = {}
    for count in candidates:
        model = nn.Sequential(*mixed_convolutions(size, count))
        step = our_step(model, True, {str(i): {"conv0"} for i in range(3)})
        variants[f"{count} candidates"] = weights_update(step, channels_last(size.batch(size.channels)))
    return variants


def mixed_convolutions(size: Size, candidates: int) -> list[MixedOp]:
    c = size.channels
    names = [f"conv{i}" for i in range(candidates)]
    return [MixedOp({name: nn.Conv2d(c, c, 3, padding=1) for name in names}).to(size.device) for _ in range(3)]


def one_candidate(size: Size) -> Variants:
    """What a mixed operation of a single candidate costs."""
    c = size.channels
    conv = nn.Conv2d(c, c, 3, padding=1).to(size.device)
    model = nn.Sequential(MixedOp({"conv": conv}))
    ArchParameterGroup(model)
    x, _ = size.batch(c)
    return {
        "the candidate alone": Variant(lambda: conv(x).sum().backward()),
        "MixedOp": Variant(lambda: model(x).sum().backward()),
    }


# Models of timm's, mixed


def timm_training_steps(size: Size, name: str) -> Variants:
    """A training step of a model at twice the image size: unchanged, with one candidate per layer, and mixed."""
    build, family, where, share = MODELS[name]
    model = build(num_classes=10).to(size.device)
    batch = channels_last(replace(size, image_size=2 * size.image_size).batch())
    plain = copy.deepcopy(model).to(memory_format=torch.channels_last)

    themselves = Family(lambda site: {"own": site.layer}, FAMILIES[family].applies)
    alone = copy.deepcopy(plain)
    mix_(alone, themselves, where, example=batch[0][:1])
    ArchParameterGroup(alone)

    convolutions = {path: layer for path, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    kernels = {path: f"conv{layer.kernel_size[0]}" for path, layer in convolutions.items()}
    mixed = mix_(model, family, where, share=share, example=batch[0][:1])
    own = {op.label or path: {kernels[path]} for path, op in mixed.items()}
    return {
        "as it is": Variant(training_steps(plain, batch)),
        f"{len(mixed)} layers of one candidate": Variant(training_steps(alone, batch)),
        f"{len(mixed)} layers of 3 kernels, sparse weights update": weights_update(our_step(model, True, own), batch),
    }


# Steps of this library, and the plain ones


def dense_step(
    model: Dense, alphas: list[nn.Parameter], train: Batch, val: Batch, fused: bool = True
) -> Callable[[], None]:
    """Two full backward passes."""
    both = optimizers(model.weight_parameters(), alphas, fused)
    return lambda: published_step(model, *both, train, val)


def our_step(
    model: nn.Module, phi: bool, active: Mapping[str, set[str]] | None = None, gap: float = 12 * SPARSE
) -> SearchStep[ArchParameterGroup]:
    """A step on a copy of the model, whose alphas stay where all but the active operations lag by ``gap``."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    arch = ArchParameterGroup(model, Softmax(SPARSE if phi else SMOOTH), threshold=THRESHOLD)
    with torch.no_grad():
        for label, names in (active or {}).items():
            op = arch.rows[label][0]
            op.alpha.copy_(torch.tensor([0.0 if name in names else -gap for name in op.names]))
    sgd, _ = optimizers(arch.weight_parameters(), arch.parameters())

    def loss(batch: Batch) -> Tensor:
        out = model(batch[0])
        return F.cross_entropy(out.mean((2, 3)) if out.dim() == 4 else out, batch[1])

    return SearchStep(arch, loss, sgd, torch.optim.Adam(arch.parameters(), lr=0.0))


def search_step(step: SearchStep[ArchParameterGroup], train: Batch, val: Batch) -> Variant:
    batches = channels_last(train), channels_last(val)
    with step.arch.fixed_alphas():
        operations = executed(step, train)

    def run() -> None:
        step.arch.moment = step.arch.moment  # as in a loop, which draws phi before every step
        step(*batches)

    return Variant(run, f"{operations}, {executed(step, val)}")


def weights_update(step: SearchStep[ArchParameterGroup], train: Batch) -> Variant:
    with step.arch.fixed_alphas():
        operations = executed(step, train)
    return Variant(lambda: step.update_weights(train), operations)


def executed(step: SearchStep[ArchParameterGroup], batch: Batch) -> str:
    """How many operations a forward runs in full, and how many it scores, counted once a row."""
    with restoring(step.arch.model):
        step.loss(channels_last(batch))
    executions = [execution for op, *_ in step.arch.rows.values() for execution in op.ran]
    scored = executions.count(Execution.SCORED)
    return f"{executions.count(Execution.FULL)}" + (f" and {scored} scored" if scored else "")


def training_steps(network: nn.Module, *batches: Batch) -> Callable[[], None]:
    sgd, _ = optimizers([*network.parameters()], [nn.Parameter(torch.zeros(1))])

    def run() -> None:
        for x, y in batches:
            out = network(x)
            sgd.zero_grad()
            F.cross_entropy(out.mean((2, 3)) if out.dim() == 4 else out, y).backward()
            sgd.step()

    return run


def optimizers(
    weights: list[nn.Parameter], alphas: list[nn.Parameter], fused: bool = True
) -> tuple[torch.optim.SGD, torch.optim.Adam]:
    """SGD for the weights and Adam for the alphas. Fused SGD fails where a weight has no gradient, as in GDAS."""
    kind = {"fused": True} if fused else {"foreach": True}
    sgd = torch.optim.SGD(weights, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, **kind)
    return sgd, torch.optim.Adam(alphas, lr=3e-4, betas=(0.5, 0.999))


def channels_last(batch: Batch) -> Batch:
    return batch[0].contiguous(memory_format=torch.channels_last), batch[1]


# Data


def loaders(size: Size) -> Variants:
    """An epoch of pairs each; images of random pixels, whose content does not matter here."""
    n, side = 2048, size.image_size

    def half() -> Images:
        pixels = torch.randint(256, (n, side, side, 3), dtype=torch.uint8)
        return Images(pixels, torch.arange(n) % 10, tuple("0123456789"))

    weights, alphas = half(), half()
    pairs = ResidentPairs(weights, alphas, size.batch_size, device=size.device)
    transform = T.Compose(
        [
            T.RandomCrop(side, padding=side // 8),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )

    class Pil(torch.utils.data.Dataset):
        def __init__(self, images: Images) -> None:
            self.images = [T.functional.to_pil_image(pixels.permute(2, 0, 1)) for pixels in images.pixels]

        def __len__(self) -> int:
            return n

        def __getitem__(self, index: int) -> Tensor:
            return transform(self.images[index])

    pil = [torch.utils.data.DataLoader(Pil(half), size.batch_size, shuffle=True) for half in (weights, alphas)]

    def run(batches: Any) -> None:
        for _ in batches:
            pass

    return {
        f"PIL images one by one, {2 * n}": Variant(lambda: run(zip(*pil, strict=True))),
        f"ResidentPairs, {2 * n}": Variant(lambda: run(pairs.epoch(0))),
    }
