"""How long a search step takes, as ratios within one run: all variants interleaved, medians, and peak memory.

    python benchmarks/speed.py                    # the table
    python benchmarks/speed.py --json speed.json  # and its rows

Let nothing else run beside it. The yardstick of a search step (both updates) is the dense formulation of the
published codes, in their memory format; that of a MixedOp with one candidate is the candidate; that of the loader is a
data loader that augments PIL images one by one.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision.transforms as T
import tyro
from published import DiscreteNetwork, PublishedChain, PublishedSupernet, published_step
from torch import Tensor, nn
from tqdm.auto import tqdm

from sparsemix import ArchParameterGroup, MixedOp, SparseSmoothSoftmax
from sparsemix.bilevel import SearchStep
from sparsemix.data import Images, ResidentPairs
from sparsemix.genotype import NB201Genotype
from sparsemix.models import RESNET_LIKE

SPARSE, SMOOTH, THRESHOLD = 1.1e-3, 1.1e-2, 1e-3
Batch = tuple[Tensor, Tensor]
Variants = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Options:
    cells: tuple[int, ...] = (1, 5)
    """N, cells a stage, of the NAS-Bench-201 supernets."""
    candidates: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Candidates an edge of the chain of mixed operations."""
    channels: int = 16
    """C of the first stage."""
    batch_size: int = 64
    image_size: int = 32
    rounds: int = 9
    """How often each variant is timed, after one round that is not counted."""
    device: str = "cpu"
    threads: int | None = None
    """CPU threads; by default all cores."""
    json: Path | None = None
    """Write the rows to this file."""


@dataclass(frozen=True)
class Row:
    space: str
    cells: int | None
    variant: str
    milliseconds: float
    ratio: float
    """To the first variant of the same space and cells."""
    peak_memory: float | None
    """Most bytes allocated at once during the variant, above those before it, in MiB."""


def main(options: Options) -> list[Row]:
    torch.set_num_threads(options.threads or torch.get_num_threads())
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, {options.device}, torch {torch.__version__}")
    rows = []
    for cells in options.cells:
        rows += measure("nb201", cells, search_steps(options, cells), options)
    for candidates in options.candidates:
        rows += measure(f"chain of {candidates} candidates", None, chain_updates(options, candidates), options)
    rows += measure("one candidate", None, one_candidate(options), options, inner=10)
    rows += measure("loader", None, loaders(options), options)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return rows


# What is measured: for each space its variants, the yardstick first


def search_steps(options: Options, cells: int) -> Variants:
    """NAS-Bench-201: a step is an update of the weights and one of the alphas."""
    train, val = batch(options), batch(options)
    supernet: Any = timm.create_model("sparsemix_nb201_supernet", channels=options.channels, cells=cells)
    supernet.to(options.device)
    dense = PublishedSupernet(supernet, SMOOTH)
    dense_optimizers = optimizers(dense.weight_parameters(), [dense.alphas])
    network: Any = timm.create_model("sparsemix_nb201", channels=options.channels, cells=cells, genotype=RESNET_LIKE)
    discrete = DiscreteNetwork(network).to(options.device).to(memory_format=torch.channels_last)
    sgd, _ = optimizers([*discrete.parameters()], [nn.Parameter(torch.zeros(1))])

    def train_twice() -> None:
        for x, y in (channels_last(train), channels_last(val)):
            sgd.zero_grad()
            F.cross_entropy(discrete(x), y).backward()
            sgd.step()

    cell = NB201Genotype.parse(RESNET_LIKE).by_edge()
    one = {edge: [operation] for edge, operation in cell.items()}
    eight = {**one, "2<-1": [cell["2<-1"], "nor_conv_1x1"], "3<-1": [cell["3<-1"], "skip_connect"]}
    return {
        "published dense step": lambda: published_step(dense, *dense_optimizers, train, val),
        "smooth step": our_step(copy.deepcopy(supernet), train, val, phi=False),
        "sparse step, 8 of 30 operations active": our_step(
            copy.deepcopy(supernet), train, val, phi=True, active=eight, gap=12 * SPARSE
        ),
        "step of one operation an edge, none scored": our_step(
            copy.deepcopy(supernet), train, val, phi=True, active=one, gap=200 * SPARSE
        ),
        "discrete network, two training steps": train_twice,
    }


def our_step(
    supernet: Any,
    train: Batch,
    val: Batch,
    phi: bool,
    active: Mapping[str, list[str]] = MappingProxyType({}),
    gap: float = 0.0,
) -> Callable[[], Any]:
    """A search step of this library, its alphas put so that all but the active operations lag by ``gap``, and kept."""
    supernet.to(memory_format=torch.channels_last)
    arch = ArchParameterGroup(supernet, SparseSmoothSoftmax(SPARSE, SMOOTH), threshold=THRESHOLD if phi else 0.0)
    arch.phi = phi
    with torch.no_grad():
        for label, names in active.items():
            op = arch.rows[label][0]
            op.alpha.copy_(torch.tensor([0.0 if name in names else -gap for name in op.names]))
    weight_optimizer, _ = optimizers(arch.weight_parameters(), arch.parameters())
    step = SearchStep(
        arch,
        lambda batch: F.cross_entropy(supernet(batch[0]), batch[1]),
        weight_optimizer,
        torch.optim.Adam(arch.parameters(), lr=0.0),
    )
    batches = channels_last(train), channels_last(val)
    return lambda: step(*batches)


def chain_updates(options: Options, candidates: int) -> Variants:
    """A user's supernet, three mixed convolutions: how an update of the weights grows with the candidates."""
    c = options.channels
    names = [f"conv{i}" for i in range(candidates)]
    model = nn.Sequential(*(MixedOp({name: nn.Conv2d(c, c, 3, padding=1) for name in names}) for _ in range(3)))
    model = model.to(options.device)
    x, y = batch(options, channels=c)
    dense = PublishedChain([op for op in model if isinstance(op, MixedOp)], SMOOTH)
    sgd, _ = optimizers(dense.weight_parameters(), [dense.alphas])

    def dense_update() -> None:
        sgd.zero_grad()
        F.cross_entropy(dense(x), y).backward()
        nn.utils.clip_grad_norm_(dense.weight_parameters(), 5.0)
        sgd.step()

    arch = ArchParameterGroup(model, SparseSmoothSoftmax(SPARSE, SMOOTH), threshold=THRESHOLD)
    arch.phi = True
    with torch.no_grad():
        for alpha in arch.parameters():
            alpha.fill_(-20 * SPARSE)[0] = 0.0
    weight_optimizer, alpha_optimizer = optimizers(arch.weight_parameters(), arch.parameters())
    step = SearchStep(
        arch, lambda batch: F.cross_entropy(model(batch[0]).mean((2, 3)), batch[1]), weight_optimizer, alpha_optimizer
    )
    return {
        "published dense weights update": dense_update,
        "sparse weights update, one operation an edge": lambda: step.update_weights((x, y)),
    }


def batch(options: Options, channels: int = 3) -> Batch:
    size = (options.batch_size, channels, options.image_size, options.image_size)
    labels = torch.randint(10, (options.batch_size,), device=options.device)
    return torch.randn(size, device=options.device), labels


def channels_last(batch: Batch) -> Batch:
    return batch[0].contiguous(memory_format=torch.channels_last), batch[1]


def optimizers(weights: list[nn.Parameter], alphas: list[nn.Parameter]) -> tuple[torch.optim.SGD, torch.optim.Adam]:
    sgd = torch.optim.SGD(weights, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=True)
    return sgd, torch.optim.Adam(alphas, lr=3e-4, betas=(0.5, 0.999))


def one_candidate(options: Options) -> Variants:
    c = options.channels
    conv = nn.Conv2d(c, c, 3, padding=1).to(options.device)
    model = nn.Sequential(MixedOp({"conv": conv}))
    ArchParameterGroup(model)
    x = torch.randn(options.batch_size, c, options.image_size, options.image_size, device=options.device)

    def step(module: nn.Module) -> None:
        module(x).sum().backward()

    return {"the candidate alone": lambda: step(conv), "MixedOp of one candidate": lambda: step(model)}


def loaders(options: Options) -> Variants:
    """An epoch of pairs each; images of random pixels, whose content does not matter here."""
    n, size = 2048, options.image_size

    def half() -> Images:
        pixels = torch.randint(256, (n, size, size, 3), dtype=torch.uint8)
        return Images(pixels, torch.arange(n) % 10, tuple("0123456789"))

    weights, alphas = half(), half()
    pairs = ResidentPairs(weights, alphas, options.batch_size, device=options.device)
    transform = T.Compose(
        [
            T.RandomCrop(size, padding=size // 8),
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

    pil = [torch.utils.data.DataLoader(Pil(half), options.batch_size, shuffle=True) for half in (weights, alphas)]

    def run(batches: Any) -> None:
        for _ in batches:
            pass

    return {
        f"PIL images one by one, {2 * n} images": lambda: run(zip(*pil, strict=True)),
        f"ResidentPairs, {2 * n} images": lambda: run(pairs.epoch(0)),
    }


# How it is measured


def measure(space: str, cells: int | None, variants: Variants, options: Options, inner: int = 1) -> list[Row]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in tqdm(range(options.rounds + 1), f"{space} {cells or ''}", leave=False, disable=None):
        for name, variant in variants.items():
            times[name].append(timed(variant, inner, options.device))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    first = next(iter(medians.values()))
    rows = [
        Row(space, cells, name, 1e3 * median, median / first, peak_memory(variants[name], options.device) / 2**20)
        for name, median in medians.items()
    ]
    for row in rows:
        label = f"{space}{'' if cells is None else f', N {cells}'}"
        print(f"{label:22} {row.variant:46} {row.milliseconds:9.2f} ms  {row.ratio:6.3f}  {row.peak_memory:8.1f} MiB")
    return rows


def timed(variant: Callable[[], Any], inner: int, device: str) -> float:
    synchronize(device)
    started = time.perf_counter()
    for _ in range(inner):
        variant()
    synchronize(device)
    return (time.perf_counter() - started) / inner


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory(variant: Callable[[], Any], device: str) -> float:
    """On CUDA the allocator's own figure; on a CPU the running sum of the allocations that the profiler saw."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        variant()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        variant()
    results = profile.profiler.kineto_results
    allocations = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    live = peak = 0
    for _, size in allocations:
        live += size
        peak = max(peak, live)
    return peak


if __name__ == "__main__":
    main(tyro.cli(Options))
