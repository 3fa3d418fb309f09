"""The frozen configuration of a search, the methods as data, and the command line that shows it as flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from ..data import Sampling, Split
from ..methods.bilevel import Order
from ..relaxations import Softmax, SparseSmoothSoftmax

__all__ = ["METHODS", "Presets", "RunConfig", "SearchConfig", "config_from_flags", "peek_flags"]


@dataclass(frozen=True)
class RunConfig:
    """What every run is told: where, on which data, with which seed."""

    seed: int = 0
    """Of initialisation, data order, augmentation and every other draw."""
    output: Path | None = None
    """Run folder; by default one in runs/, named after what is run."""
    resume: bool = False
    """Continue the run in the output folder."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to run; auto takes what Accelerate finds."""

    dataset: str = "digits"
    """digits (embedded), cifar10, cifar100, svhn, imagenet16-120, or folder."""
    data: Path = Path("data")
    """Where the data set is; for folder, the folder with one folder a class."""
    download: bool = False
    """Fetch the data set if it is not there."""
    image_size: int | None = None
    """Resize images to this height and width."""
    limit: int | None = None
    """Use this many training images in all, every class keeping its share."""
    workers: int = 2
    """Processes that decode images too large to stay in memory."""

    accumulate: int = 1
    """Cut every batch into so many parts that run one after the other: less memory, the same number of steps."""
    save_every: int = 0
    """Save after every so many steps, too, and not only after an epoch; 0: not."""
    log_with: str | None = None
    """A tracker of Accelerate's: tensorboard, wandb, ..."""

    # Fields that do not say what a run computes, but where, and how it is read out: a resumed run may change them.
    MOVABLE: ClassVar[frozenset[str]] = frozenset(
        {"output", "resume", "device", "data", "download", "workers", "save_every", "log_with"}
    )

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"{type(self).__name__}: accumulate must be at least 1, got {self.accumulate}")
        if self.save_every < 0:
            raise ValueError(f"{type(self).__name__}: save_every must not be negative, got {self.save_every}")

    def data_options(self) -> dict[str, Any]:
        """The arguments, but for the device, with which :mod:`sparsemix.data` opens the data set."""
        names = ("dataset", "batch_size", "image_size", "limit", "seed", "download", "workers")
        return {"root": self.data, **{name: getattr(self, name) for name in names}}

    def as_json(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class SearchConfig(RunConfig):
    """A search, completely: what a run folder's ``config.json`` holds. Presets give these fields; flags change them."""

    method: Literal["sp-darts", "darts"] = "sp-darts"
    """What relaxes the alphas."""
    preset: str = "paper"
    """The settings that the other flags start from: paper, fast, authors or proxy; for darts see docs/presets.md."""
    split: Split = "halves"
    """Images for weights and alphas: halves of the training images, or the split of NAS-Bench-201's searches."""
    sampling: Sampling = "shuffled"
    """Alpha batches: shuffled once an epoch, drawn with replacement, or shuffled anew for every batch."""

    channels: int = 16
    """C of the first stage or cell."""
    cells: int = 5
    """N, cells a stage (NAS-Bench-201), or cells in all (DARTS space)."""

    epochs: int = 50
    """I, the length of the search."""
    batch_size: int = 256
    """Images a batch, of each half."""
    order: Order = "first"
    """first: alpha's gradient at the present weights; second: through a virtual step; single: no bilevel problem."""
    weights_first: bool = True
    """The weights' update before the alphas' (Algorithm 1)."""
    weight_lr: float = 0.05
    """Learning rate of the weights' SGD, ..."""
    weight_lr_min: float = 0.05
    """... and where its cosine ends."""
    weight_decay: float = 5e-4
    """Of the weights."""
    momentum: float = 0.9
    """Of the weights' SGD."""
    nesterov: bool = True
    """Nesterov's momentum."""
    max_norm: float = 5.0
    """The weights' gradient is clipped to this norm."""
    clip_alphas: bool = False
    """Take alpha's gradients into that norm, as published code does."""
    alpha_lr: float = 3e-4
    """Learning rate of alpha's Adam."""
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    """Its betas."""
    alpha_weight_decay: float = 0.0
    """Its weight decay."""

    sparse: float = 1.1e-3
    """t_sp, the temperature of sparse batches."""
    smooth: float = 1.1e-2
    """t_sm, the temperature of the others."""
    double_softmax: bool = False
    """In weights updates relax softmax(alpha) instead of alpha, as published code for S1 to S4 does."""
    p_low: float = 0.0
    """Probability p of a sparse batch at the end of the warm-up."""
    p_up: float = 1.0
    """Probability p of a sparse batch in the last epoch (Eq. 20)."""
    warmup_epochs: int = 1
    """Epochs at the beginning without sparse batches."""
    warmup_smooth: float | None = None
    """Temperature of the batches of the warm-up; by default t_sm."""
    hold_epoch: int | None = None
    """From this epoch on (counted from 0) p stays what it was in the epoch before; by default it rises to the end."""
    hold_sparse: float | None = None
    """t_sp from the hold epoch on, t_sm keeping its ratio to it; by default both stay as they are."""
    auto_temperature: bool = False
    """Choose t_sp each epoch so that the alphas' entropy at it falls linearly ..."""
    entropy_start: float = 0.5
    """... from this share of the greatest possible one ..."""
    entropy_end: float = 0.05
    """... to this; t_sm keeps its ratio to it."""
    eval_temperature: float = 1e-4
    """Temperature at which the supernet is evaluated; with a chosen t_sp it keeps its ratio to that."""
    evaluate_every: int = 1
    """Measure accuracies and leakage after every so many epochs, and after the last one."""
    evaluate_limit: int | None = None
    """Measure accuracies on so many images of the alphas, every class keeping its share; by default on all."""
    statistics_images: int = 2048
    """Batch-norm statistics are renewed on so many images of the weights before accuracies are measured."""

    average_epochs: int = 5
    """A second genotype is read out of the mean of this many last epochs' alphas."""

    threshold: float = 0.0
    """Operations of smaller weight do not run in weights updates and are only scored in alpha updates; 0: all run."""
    compile: bool = False
    """Compile operations and fixed parts of the supernet by torch.compile."""
    audit_every: int = 0
    """Every so many steps, measure what thresholds change against the dense computation; 0: never."""
    audit_thresholds: tuple[float, ...] = (1e-3, 1e-2)
    """The thresholds that are measured."""

    table: Path | None = None
    """Benchmark table (CSV) with true accuracies."""
    table_dataset: str | None = None
    """Its column, by default the data set's."""

    MOVABLE: ClassVar[frozenset[str]] = RunConfig.MOVABLE | {"table", "table_dataset", "average_epochs"}

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("channels", "cells", "epochs", "batch_size", "average_epochs", "evaluate_every", "statistics_images")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"SearchConfig: {name} must be at least 1, got {getattr(self, name)}")
        temperatures = ("sparse", "smooth", "warmup_smooth", "hold_sparse", "eval_temperature")
        for name in (*temperatures, "weight_lr", "alpha_lr"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"SearchConfig: {name} must be positive, got {value}")
        for value in (self.threshold, *self.audit_thresholds):
            if not 0 <= value < 1:
                raise ValueError(f"SearchConfig: a threshold must be in [0, 1), got {value}")
        if not (0 <= self.p_low <= 1 and self.p_low <= self.p_up):
            raise ValueError(f"SearchConfig: need p_low in [0, 1] and p_up >= p_low, got {self.p_low} and {self.p_up}")
        if self.audit_every < 0:
            raise ValueError(f"SearchConfig: audit_every must not be negative, got {self.audit_every}")
        if self.auto_temperature and (self.method != "sp-darts" or self.hold_sparse is not None):
            raise ValueError(
                f"SearchConfig: auto_temperature chooses the t_sp of sp-darts; it excludes method={self.method!r} with "
                f"hold_sparse={self.hold_sparse}"
            )
        if self.warmup_smooth is not None and self.method == "sp-darts" and not self.warmup_smooth > self.sparse:
            raise ValueError(
                f"SearchConfig: warmup_smooth must be above sparse, got {self.warmup_smooth} and {self.sparse}"
            )
        if self.hold_sparse is not None and self.hold_epoch is None:
            raise ValueError(f"SearchConfig: hold_sparse={self.hold_sparse} needs a hold_epoch from which it holds")

    def data_options(self) -> dict[str, Any]:
        choices = {"split": self.split, "sampling": self.sampling, "validation_limit": self.evaluate_limit}
        return {**super().data_options(), **choices}

    def named_output(self, space: str) -> Path:
        return self.output or Path("runs") / f"{space}-{self.dataset}-{self.method}-{self.preset}-seed{self.seed}"


METHODS: dict[str, Callable[[SearchConfig], Softmax | SparseSmoothSoftmax]] = {
    "sp-darts": lambda config: SparseSmoothSoftmax(config.sparse, config.smooth),
    "darts": lambda config: Softmax(),
}
"""Method -> its relaxation."""

Presets = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]
"""Method -> preset -> data set (``"*"`` for all) -> settings; the first preset of a method is its default."""

Config = TypeVar("Config", bound=SearchConfig)


def config_from_flags(
    presets: Presets,
    args: list[str] | None = None,
    kind: type[Config] = SearchConfig,  # type: ignore[assignment]
    prog: str | None = None,
) -> Config:
    """The configuration of a command line: the settings of the method's preset, those for the data set, then the flags.

    Args:
        presets: see :data:`Presets`.
        args: the command line; by default the process's own.
        kind: the class of the configuration; a command with more flags has its own.
        prog: the command's name, for its help.

    Raises:
        SystemExit: a flag is unknown or malformed (shown with the usage), as command lines do.
    """
    import tyro

    defaults = kind()
    method = peek_flags(args, method=([*presets], defaults.method))["method"]
    of_method = presets[method]
    chosen = peek_flags(args, preset=([*of_method], next(iter(of_method))), dataset=(None, defaults.dataset))
    preset = of_method[chosen["preset"]]
    settings = {**preset["*"], **preset.get(chosen["dataset"], {}), **chosen, "method": method}
    return tyro.cli(kind, prog=prog, args=args, default=kind(**settings))


def peek_flags(args: list[str] | None, **flags: tuple[Sequence[str] | None, str | None]) -> dict[str, Any]:
    """The values of a few flags that decide what the others start from: name -> (choices or None, default)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, (choices, default) in flags.items():
        parser.add_argument(f"--{name}", choices=choices, default=default)
    return vars(parser.parse_known_args(args)[0])
