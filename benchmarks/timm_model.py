"""Search inside a model of timm's: which kernels, activations, ... should its layers have?

    accelerate launch benchmarks/timm_model.py --preset proxy                             # embedded digits, on a laptop
    accelerate launch benchmarks/timm_model.py --model resnet18 --pretrained --mix kernel --where "layer[34]*" \
        --dataset folder --data DIR
    accelerate launch benchmarks/timm_model.py --model vit_tiny_patch16_224 --mix token_mixer --where "blocks.*.attn" \
        --cost macs --cost-budget 8e8 --dataset folder --data DIR
    accelerate launch benchmarks/timm_model.py --model mobilenetv3_small_100 --mix kernel \
        --measure-latency --cost-weight 0.1 --dataset cifar10 --image-size 64 --download

Every flag: --help. An interrupted run goes on with --resume. The run folder holds ``choice.json``, path -> candidate,
and the weights of the network found; ``sparsemix.inject.choose_`` builds that network again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import timm
import tyro
from accelerate.utils import set_seed

from sparsemix import ArchParameterGroup
from sparsemix.config import METHODS, SearchConfig, config_from_flags
from sparsemix.cost import CostTable, CostTerm, Unit, measure_costs
from sparsemix.data import open_pairs
from sparsemix.inject import choices, mix_
from sparsemix.metrics import skip_count
from sparsemix.running import make_accelerator, run_script
from sparsemix.search import Search
from sparsemix.spaces.darts import DARTS_SETTINGS


@dataclass(frozen=True)
class TimmConfig(SearchConfig):
    preset: str = "default"
    """The row of settings that the other flags start from."""
    model: str = "mobilenetv3_small_100"
    """A model of timm's."""
    pretrained: bool = False
    """Start from its trained weights."""
    mix: str = "kernel"
    """Family of candidates: kernel, dilation, separable, groups, activation, norm, token_mixer or skip."""
    where: str | None = None
    """Pattern of the layers' paths ("layer3.*"); by default all that the family can replace."""
    share: int | None = None
    """Layers whose paths agree in so many first parts share one choice; by default each has its own."""
    cost: Literal["parameters", "macs"] = "macs"
    """What is counted: parameters, or multiply-accumulates of an image."""
    measure_latency: bool = False
    """Count seconds an image instead, measured on this machine when a search begins or is resumed."""
    cost_weight: float | None = None
    """Weight of the expected cost in alpha's loss; by default 1 if there is a budget, and otherwise 0."""
    cost_budget: float | None = None
    """What the result may cost: only what exceeds it counts."""

    # of supernets that are built of cells
    channels: tyro.conf.Suppress[int] = 16
    cells: tyro.conf.Suppress[int] = 5
    table: tyro.conf.Suppress[None] = None
    table_dataset: tyro.conf.Suppress[None] = None


_DEFAULT: dict[str, Any] = {"epochs": 50, "batch_size": 64, "sparse": 1e-3, "smooth": 1e-2, "threshold": 1e-3}
_PROXY: dict[str, Any] = {"epochs": 10, "image_size": 32, "limit": 6400}  # for CPUs

PRESETS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    method: {
        "default": {"*": {**_DEFAULT, **settings}},
        "proxy": {"*": {**_DEFAULT, **settings, **_PROXY}, "digits": {"limit": None}},
    }
    for method, settings in {"sp-darts": {}, "darts": {**DARTS_SETTINGS, "threshold": 0.0}}.items()
}


class Choice(dict[str, str]):
    """Row -> candidate, as records and tables show it."""

    @property
    def skips(self) -> int:
        return skip_count(self, frozenset({"skip", "identity"}))

    def __str__(self) -> str:
        return ", ".join(f"{row}: {name}" for row, name in self.items())


def main(config: TimmConfig) -> dict[str, Any]:
    accelerator = make_accelerator(config.device)
    set_seed(config.seed)
    pairs = open_pairs(**config.data_options(), device=accelerator.device)
    image = next(pairs.validation())[0][:1]
    options: dict[str, Any] = {"num_classes": len(pairs.classes), "in_chans": pairs.in_chans}
    pretrained_cfg = timm.models.get_pretrained_cfg(config.model)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:  # vision transformers, mixers
        options["img_size"] = image.shape[-1]
    model = timm.create_model(config.model, pretrained=config.pretrained, **options)
    mixed = mix_(model, config.mix, config.where, share=config.share, example=image)
    relaxation = METHODS[config.method](config)
    arch = ArchParameterGroup(model.to(accelerator.device), relaxation, threshold=config.threshold)

    unit: Unit = "seconds" if config.measure_latency else config.cost
    table = measure_costs(arch, image, unit)
    reach = f"from {table.cheapest:.4g} to {table.dearest:.4g} {unit}"
    accelerator.print(f"{config.mix} in {len(mixed)} layers of {config.model}: {reach}")
    weight = config.cost_weight if config.cost_weight is not None else float(config.cost_budget is not None)
    term = CostTerm(arch, table, weight, config.cost_budget) if weight else None

    def read_out(arch: ArchParameterGroup) -> Choice:
        return Choice(arch.genotype())

    def judge(choice: Choice) -> dict[str, Any]:
        return {"cost": table.of(choice)}

    search = Search(config, arch, pairs, accelerator, config.model, read_out, judge, cost_term=term)
    summary = search.run()
    keep(search, table, options)
    return summary


def keep(search: Search, table: CostTable, options: dict[str, Any]) -> None:
    """The network that was found, beside the record of the search."""
    config: Any = search.config
    folder, arch = search.folder, search.arch
    folder.write("choice.json", choices(arch.model))
    folder.write("costs.json", {"unit": table.unit, "fixed": table.fixed, "rows": table.rows})
    folder.save("weights.pt", arch.discretize().state_dict())
    found, budget = table.of(arch.genotype()), config.cost_budget
    if budget is not None and found > budget:
        search.accelerator.print(f"over the budget of {budget:.4g}: raise --cost-weight, or search for longer")
    search.accelerator.print(
        f"{found:.4g} {table.unit}; to build it:\n"
        f"  model = timm.create_model({config.model!r}, {', '.join(f'{k}={v}' for k, v in options.items())})\n"
        f"  choose_(model, {config.mix!r}, json.load(open({str(folder.path / 'choice.json')!r})), example=image)\n"
        f"  model.load_state_dict(torch.load({str(folder.path / 'weights.pt')!r}, weights_only=True))"
    )


if __name__ == "__main__":
    run_script(lambda: main(config_from_flags(PRESETS, kind=TimmConfig)))
