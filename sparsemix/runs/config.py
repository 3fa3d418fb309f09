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
    """Seed of initialisation, data order, augmentation and every other draw."""
    output: Path | None = None
    """Run folder; by default one in runs/, named after space, data, method, preset and seed."""
    resume: bool = False
    """Continue the run in the output folder."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to run on; auto takes what Accelerate finds."""

    dataset: str = "digits"
    """Data set: digits (embedded), cifar10, cifar100, svhn, imagenet16-120, or folder."""
    data: Path = Path("data")
    """Folder that holds the data set; for --dataset folder, the images, one folder a class."""
    download: bool = False
    """Fetch the data set if it is missing."""
    image_size: int | None = None
    """Resize images to this height and width."""
    limit: int | None = None
    """Number of training images to use in all, stratified by class; by default all."""
    workers: int = 2
    """Processes that decode images too large to stay in memory."""

    accumulate: int = 1
    """Cut every batch into so many parts that run one after the other: less memory, the same number of steps."""
    save_every: int = 0
    """Steps between checkpoints within an epoch; 0: save after each epoch only."""
    log_with: str | None = None
    """Tracker that gets every epoch's numbers, by its name in Accelerate: tensorboard, wandb, ..."""

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
    """Settings of a search, as ``config.json`` in its run folder holds them: a preset's, overridden by flags."""

    method: Literal["sp-darts", "darts"] = "sp-darts"
    """Search method."""
    preset: str = "paper"
    """The settings that the other flags start from: paper, fast, authors or proxy; for darts see docs/presets.md."""
    split: Split = "halves"
    """Images for weights and alphas: halves of the training images, or the split of NAS-Bench-201's searches."""
    sampling: Sampling = "shuffled"
    """Alpha batches: shuffled once an epoch, drawn with replacement, or shuffled anew for every batch."""

    channels: int = 16
    """Channels C of the first stage (NAS-Bench-201) or cell (DARTS space)."""
    cells: int = 5
    """Cells N per stage (NAS-Bench-201), or cells in all (DARTS space)."""

    epochs: int = 50
    """Length of the search, I."""
    batch_size: int = 256
    """Images per batch, for the weights and for the alphas alike."""
    order: Order = "first"
    """Alpha gradient: first, at the present weights; second, through a virtual step; single, one loss for both."""
    weights_first: bool = True
    """Update the weights before the alphas (Algorithm 1), or after."""
    weight_lr: float = 0.05
    """Learning rate of the weights' SGD in the first epoch."""
    weight_lr_min: float = 0.05
    """Learning rate of the weights' SGD at the end of its cosine; equal to weight_lr, it is constant."""
    weight_decay: float = 5e-4
    """Weight decay of the weights' SGD."""
    momentum: float = 0.9
    """Momentum of the weights' SGD."""
    nesterov: bool = True
    """Use Nesterov's momentum for the weights."""
    max_norm: float = 5.0
    """Norm to which the weights' gradient is clipped."""
    clip_alphas: bool = False
    """Include alpha's gradients when the weights' gradient norm is clipped, as published NAS-Bench-201 code does."""
    alpha_lr: float = 3e-4
    """Learning rate of the alphas' Adam."""
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    """Betas of the alphas' Adam."""
    alpha_weight_decay: float = 0.0
    """Weight decay of the alphas' Adam."""

    sparse: float = 1.1e-3
    """Temperature of sparse batches, t_sp."""
    smooth: float = 1.1e-2
    """Temperature of smooth batches, t_sm."""
    double_softmax: bool = False
    """In weights updates relax softmax(alpha) instead of alpha, as published code for S1 to S4 does."""
    p_low: float = 0.0
    """Probability p of a sparse batch at the end of the warm-up."""
    p_up: float = 1.0
    """Probability p of a sparse batch in the last epoch (Eq. 20)."""
    warmup_epochs: int = 1
    """Epochs without sparse batches at the beginning."""
    warmup_smooth: float | None = None
    """Temperature of warm-up batches; by default t_sm."""
    hold_epoch: int | None = None
    """Epoch, counted from 0, from which p stays what it was before; by default p rises to the end."""
    hold_sparse: float | None = None
    """Temperature t_sp from the hold epoch on, with t_sm in the same ratio; by default unchanged."""
    auto_temperature: bool = False
    """Choose t_sp each epoch so that the alphas' entropy at t_sp falls linearly."""
    entropy_start: float = 0.5
    """With auto_temperature: entropy in the first epoch, as a share of the greatest possible."""
    entropy_end: float = 0.05
    """With auto_temperature: entropy in the last epoch, as a share of the greatest possible."""
    eval_temperature: float = 1e-4
    """Temperature at which the supernet is evaluated; with auto_temperature, scaled with t_sp."""
    evaluate_every: int = 1
    """Epochs between measurements of accuracies and leakage; the last epoch is always measured."""
    evaluate_limit: int | None = None
    """Number of images of the alpha half on which accuracies are measured, stratified; by default all."""
    statistics_images: int = 2048
    """Number of images of the weights half on which batch-norm statistics are renewed before measuring accuracies."""

    average_epochs: int = 5
    """Number of last epochs whose mean alphas give a second genotype."""

    threshold: float = 0.0
    """Weight below which operations are skipped in weights updates and only scored in alpha updates; 0: all run."""
    compile: bool = False
    """Compile operations and fixed parts of the supernet with torch.compile."""
    audit_every: int = 0
    """Steps between audits, which measure what thresholds change against the dense computation; 0: no audits."""
    audit_thresholds: tuple[float, ...] = (1e-3, 1e-2)
    """Thresholds that audits measure."""

    table: Path | None = None
    """Benchmark table (CSV) with true accuracies, made by sparsemix table convert."""
    table_dataset: str | None = None
    """Data set whose column of the table judges the cells; by default the data set searched on."""

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
