"""``sparsemix search timm``: search the layers of a timm model, such as their kernel sizes or activations.

The run folder holds ``choice.json``, path -> candidate, and the weights of the network found;
:func:`sparsemix.inject.choose_` builds that network again.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import timm
import tyro
from accelerate.utils import set_seed
from torch import Tensor
from tyro.constructors import PrimitiveConstructorSpec

from .._utils.modes import restoring
from ..data import open_pairs
from ..inject.mixing import choices, mix_
from ..measure.cost import CostTable, CostTerm, Unit, measure_costs
from ..models.fitting import fitting_options
from ..runs.choice import Choice
from ..runs.config import Measurement, SearchConfig, Size
from ..runs.epoch_table import Columns, compact
from ..runs.launching import make_accelerator, say
from ..runs.search import Search
from ..runs.training_config import TrainingConfig
from ..spaces.settings import SpaceSettings
from ..supernet.group import ArchParameterGroup
from .flags import search_config


def amount(text: str) -> float:
    """A number such as 2200000, 2.2e6 or 2.2M."""
    factor = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1:], 1.0)
    return float(text if factor == 1 else text[:-1]) * factor


Amount = Annotated[
    float,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="NUMBER[k|M|G]",
        instance_from_str=lambda args: amount(args[0]),
        is_instance=lambda value: isinstance(value, int | float),
        str_from_instance=lambda value: [f"{value:g}"],
    ),
]


@dataclass(frozen=True)
class MixedModel:
    """The timm model, the layers to search, and the cost to count."""

    model: str = "mobilenetv3_small_100"
    """Name of the timm model to search."""
    pretrained: bool = False
    """Start from timm's trained weights of the model."""
    mix: str = "kernel"
    """Family of candidates, one of kernel, dilation, separable, groups, activation, norm, token_mixer and skip."""
    where: str | None = None
    """Pattern of the paths of the layers to mix ("layer3.*"); by default all that the family can replace."""
    share: int | None = None
    """Number of leading path parts that layers must have in common to share a choice; by default none share."""
    cost: Literal["parameters", "macs"] = "macs"
    """Cost to count, either parameters or multiply-accumulates (macs) per image."""
    measure_latency: bool = False
    """Use the seconds per image measured on this machine as the cost, instead of parameters or multiply-accumulates."""
    cost_weight: float | None = None
    """Weight of the expected cost in the alphas' loss; by default 1 with a budget, otherwise 0."""
    cost_budget: Amount | None = None
    """Cost budget of the resulting network, such as 2.2M; only cost beyond it is added to the alphas' loss."""


# These flags are hidden: a timm model fixes its own size, and has no benchmark table.


@dataclass(frozen=True)
class TimmSize(Size):
    channels: tyro.conf.Suppress[int] = 16
    cells: tyro.conf.Suppress[int] = 5


@dataclass(frozen=True)
class TimmMeasurement(Measurement):
    table: tyro.conf.Suppress[None] = None
    table_dataset: tyro.conf.Suppress[None] = None


@dataclass(frozen=True)
class TimmConfig(SearchConfig):
    mixed: MixedModel = field(default_factory=MixedModel)
    size: TimmSize = field(default_factory=TimmSize)
    measurement: TimmMeasurement = field(default_factory=TimmMeasurement)


TIMM = SpaceSettings(
    "timm",
    {"epochs": 50, "batch_size": 64},
    {"proxy": {"*": {"epochs": 10, "image_size": 32, "limit": 6400}, "digits": {"limit": None}}},  # for CPUs
)


def search(config: TimmConfig) -> dict[str, Any]:
    """Search, and return the summary."""
    run, keep_network = prepared(config)
    summary = run.run()
    keep_network()
    return summary


def make_search(config: TimmConfig) -> Search:
    """The search of this configuration, ready to run; its run folder has been made."""
    return prepared(config)[0]


def prepared(config: TimmConfig) -> tuple[Search, Callable[[], None]]:
    """The search, and a function that saves the network found."""
    accelerator = make_accelerator(config.run.device)
    set_seed(config.run.seed)
    pairs = open_pairs(**config.data_options(), device=accelerator.device)
    mixed, image = config.mixed, next(pairs.validation())[0][:1]
    options = fitting_options(mixed.model, len(pairs.classes), pairs.in_chans, pairs.image_size)
    model = timm.create_model(mixed.model, pretrained=mixed.pretrained, **options)
    layers = mix_(model, mixed.mix, mixed.where, share=mixed.share, example=image)
    arch = ArchParameterGroup(model.to(accelerator.device), threshold=config.execution.threshold)

    unit: Unit = "seconds" if mixed.measure_latency else mixed.cost
    table = measure_costs(arch, image, unit)
    reach = f"from {compact(table.cheapest)} to {compact(table.most_expensive)} {unit}"
    say(accelerator, f"{mixed.mix} in {len(layers)} layers of {mixed.model}: {reach}")
    weight = mixed.cost_weight if mixed.cost_weight is not None else float(mixed.cost_budget is not None)
    if weight and not config.method.ever_trains_alphas(config.size.epochs):
        raise ValueError(
            f"--cost-weight and --cost-budget act on the loss of the alphas, which {config.method.name} does not train"
        )
    term = CostTerm(arch, table, weight, mixed.cost_budget) if weight else None

    def judge(choice: Choice) -> dict[str, Any]:
        return {"cost": table.of(choice.names)}

    budget = "" if mixed.cost_budget is None else f" of {compact(mixed.cost_budget)}"
    columns: Columns = {"cost": (f"{unit}{budget}", compact)}
    run = Search(config, arch, pairs, accelerator, mixed.model, Choice, judge, columns, cost_term=term)
    return run, partial(keep, run, mixed, table, options, image)


def keep(run: Search, mixed: MixedModel, table: CostTable, options: dict[str, Any], image: Tensor) -> None:
    """Save the network found, and print how to train and load it."""
    if not run.accelerator.is_main_process:
        return
    folder, arch = run.folder, run.arch
    folder.write("costs.json", {"unit": table.unit, "fixed": table.fixed, "rows": table.rows})
    weights = run.result_weights()
    with run.reading_result():
        folder.write("choice.json", choices(arch.model))
        found, budget = table.of(arch.choices()), mixed.cost_budget
        if weights is not None:
            with restoring(arch.model):
                arch.model.load_state_dict(weights)
                folder.save("weights.pt", arch.discretize().state_dict())
    if budget is not None and found > budget:
        say(run.accelerator, f"over the budget of {compact(budget)}: raise --cost-weight, or search for more epochs")
    say(run.accelerator, f"{compact(found)} {table.unit}; to train it from scratch:\n  {_train_command(run, mixed)}")
    if weights is None:
        folder.remove("weights.pt")
        say(run.accelerator, "the weights of the epoch that is the result were not kept, so weights.pt is not written")
        return
    say(
        run.accelerator,
        f"with the weights of the search, to build it:\n"
        f"  import json, timm, torch\n"
        f"  from sparsemix.inject import choose_\n"
        f"  image = torch.zeros({tuple(image.shape)})\n"
        f"  model = timm.create_model({mixed.model!r}, {', '.join(f'{k}={v}' for k, v in options.items())})\n"
        f"  choose_(model, {mixed.mix!r}, json.load(open({str(folder.path / 'choice.json')!r})), example=image)\n"
        f"  model.load_state_dict(torch.load({str(folder.path / 'weights.pt')!r}, weights_only=True))",
    )


def _train_command(run: Search, mixed: MixedModel) -> str:
    data = run.config.data
    words = ["sparsemix", "train", "--model", mixed.model, "--mix", mixed.mix]
    words += ["--choice", str(run.folder.path / "choice.json"), "--dataset", data.dataset, "--data", str(data.data)]
    if data.image_size is not None:
        cutout = TrainingConfig.fitting_cutout("cifar", data.dataset, data.image_size)
        words += ["--image-size", str(data.image_size), "--cutout", str(cutout)]
    return shlex.join(words)


def configure(args: list[str] | None = None) -> TimmConfig:
    """The configuration of these flags."""
    return search_config(TimmConfig, TIMM, args, "sparsemix search timm")


def main(args: list[str]) -> None:
    """The command with these flags."""
    search(configure(args))
