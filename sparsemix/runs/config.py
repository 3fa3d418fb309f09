"""The configuration of a run: frozen dataclasses in groups, also available as one flat table of settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from ..data import Sampling, Split
from ..methods.bilevel import Order
from ..methods.method import Method
from ..methods.registry import find_method

__all__ = [
    "AnyConfig",
    "Config",
    "DataSettings",
    "Execution",
    "Measurement",
    "Optimization",
    "RunSettings",
    "SearchConfig",
    "SearchData",
    "Size",
    "at_least",
    "configured",
]


def at_least(settings: Any, least: float, names: Iterable[str]) -> None:
    """Check that fields of a dataclass are at least as large as their minimum; fields that are None are not checked.

    Raises:
        ValueError: one is smaller.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class RunSettings:
    """The run: where it is kept, what it starts from, how it is saved."""

    seed: int = 0
    """Seed of initialisation, data order, augmentation and every other draw."""
    output: Path | None = None
    """Run folder; by default a folder in runs/ named after the space, data, method, preset and seed."""
    resume: bool = False
    """Continue the run in the output folder."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to run on; auto takes what Accelerate finds."""
    save_every: int = 0
    """Steps between checkpoints within an epoch; 0 saves only at the end of each epoch."""
    log_with: str | None = None
    """Experiment tracker for every epoch's metrics, by its name in Accelerate (tensorboard, wandb, ...)."""
    accumulate: int = 1
    """Parts that each batch is split into for gradient accumulation, to save memory; the step count is unchanged."""

    def __post_init__(self) -> None:
        at_least(self, 0, ["save_every"])
        at_least(self, 1, ["accumulate"])


@dataclass(frozen=True)
class DataSettings:
    """The images."""

    dataset: str = "digits"
    """Name of the data set, one of digits (embedded), cifar10, cifar100, svhn, imagenet16-120 and folder."""
    data: Path = Path("data")
    """Folder that holds the data set; for --dataset folder, the folder of images, with one subfolder per class."""
    download: bool = False
    """Fetch the data set if it is missing."""
    image_size: int | None = None
    """Resize images to this height and width."""
    limit: int | None = None
    """Total number of training images to use, stratified by class; by default all."""
    workers: int = 2
    """Worker processes that decode images, used only if the images are too large to stay in memory."""

    def options(self) -> dict[str, Any]:
        """The arguments with which :mod:`sparsemix.data` opens the data set, as far as these settings define them."""
        names = ("dataset", "image_size", "limit", "download", "workers")
        return {"root": self.data, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class SearchData(DataSettings):
    """The images, and which of them train the weights and which the alphas."""

    split: Split = "halves"
    """How images are divided between weights and alphas. halves gives each one half of the training images, benchmark
    uses the split of NAS-Bench-201's searches, and whole uses all training images for both."""
    sampling: Sampling = "shuffled"
    """How alpha batches are drawn. shuffled uses every image once before any repeats, replacement draws with
    replacement, and anew reshuffles the images for every batch."""

    def options(self) -> dict[str, Any]:
        return {**super().options(), "split": self.split, "sampling": self.sampling}


@dataclass(frozen=True)
class Size:
    """Size of the supernet and length of the search: the published settings that are too large for a small machine."""

    channels: int = 16
    """Channels C of the first stage (NAS-Bench-201) or cell (DARTS space)."""
    cells: int = 5
    """Cells N per stage (NAS-Bench-201), or total number of cells (DARTS space)."""
    epochs: int = 50
    """Number of epochs I of the search."""
    batch_size: int = 256
    """Images per batch, for the weights and for the alphas alike."""

    def __post_init__(self) -> None:
        at_least(self, 1, ["channels", "cells", "epochs", "batch_size"])


@dataclass(frozen=True)
class Optimization:
    """The two updates of a step and their optimizers."""

    order: Order = "first"
    """How the alphas are trained. first takes their gradient at the present weights, second through a virtual step of
    the weights; single trains weights and alphas on one loss."""
    weights_first: bool = True
    """Update the weights before the alphas (Algorithm 1) instead of after them."""
    weight_lr: float = 0.05
    """Learning rate of the weights' SGD in the first epoch."""
    weight_lr_min: float = 0.05
    """Learning rate of the weights' SGD at the end of its cosine; if equal to weight_lr, the rate is constant."""
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

    def __post_init__(self) -> None:
        for name in ("weight_lr", "alpha_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        at_least(self, 0, ["weight_lr_min", "weight_decay", "alpha_weight_decay"])


@dataclass(frozen=True)
class Execution:
    """How the supernet is computed, and audits of what this changes."""

    threshold: float = 0.0
    """Weight below which operations are skipped in weights updates and only scored in alpha updates; 0 skips only
    operations with weight exactly 0."""
    compile: bool = False
    """Compile operations and fixed parts of the supernet with torch.compile."""
    audit_every: int = 0
    """Steps between audits, which measure the error of thresholds against the dense computation; 0 disables them."""
    audit_thresholds: tuple[float, ...] = (1e-3, 1e-2)
    """Thresholds that audits measure."""

    def __post_init__(self) -> None:
        at_least(self, 0, ["audit_every"])
        for value in (self.threshold, *self.audit_thresholds):
            if not 0 <= value < 1:
                raise ValueError(f"a threshold must be in [0, 1), got {value}")


@dataclass(frozen=True)
class Measurement:
    """What is measured while the search runs, and read out at its end."""

    evaluate_every: int = 1
    """Epochs between measurements of accuracies and leakage; the last epoch is always measured."""
    evaluate_limit: int | None = None
    """Number of images of the alpha half on which accuracies are measured, stratified; by default all."""
    statistics_images: int = 2048
    """Number of images of the weights half on which batch-norm statistics are renewed before measuring accuracies."""
    average_epochs: int = 5
    """Number of final epochs over which the alphas are averaged to read out a second genotype."""
    best_from: float | None = None
    """Fraction of the search after which the epoch with the best discretised accuracy becomes the result; by default
    the result is the last epoch, or the one that the method chooses."""
    table: Path | None = None
    """Benchmark table (CSV) with true accuracies, made by sparsemix table convert."""
    table_dataset: str | None = None
    """Data set whose accuracies in the table are used to judge cells; by default the data set searched on."""

    def __post_init__(self) -> None:
        at_least(self, 1, ["evaluate_every", "evaluate_limit", "average_epochs"])
        at_least(self, 2, ["statistics_images"])
        if self.best_from is not None and not 0 <= self.best_from < 1:
            raise ValueError(f"best_from must be in [0, 1), got {self.best_from}")


@dataclass(frozen=True)
class Config:
    """The configuration of every run: individual settings, and groups of settings.

    No name occurs twice, so files and command lines can show the settings as one flat table. ``settings`` is that
    table, and :func:`configured` accepts it.
    """

    run: RunSettings = field(default_factory=RunSettings)
    data: DataSettings = field(default_factory=DataSettings)

    # A resumed run may change these settings, which affect where it runs and its read-out, but not what it computes.
    MOVABLE: ClassVar[frozenset[str]] = frozenset(
        {"output", "resume", "device", "data", "download", "workers", "save_every", "log_with"}
    )

    @property
    def settings(self) -> dict[str, Any]:
        """Name -> value, of all groups."""
        flat: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Method):
                flat |= {each.name: value.name, **value.settings}
            elif is_dataclass(value) and not isinstance(value, type):
                flat |= asdict(value)
            else:
                flat[each.name] = value
        return flat

    def as_json(self) -> dict[str, Any]:
        """The settings, ready for JSON."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in self.settings.items()}


AnyConfig = TypeVar("AnyConfig", bound=Config)


def configured(config: AnyConfig, settings: Mapping[str, Any]) -> AnyConfig:
    """A copy of a configuration with some settings changed, whichever groups they belong to.

    Args:
        config: the configuration to copy.
        settings: name -> value; ``method`` takes a name, and settings of that method may then be given too.

    Raises:
        ValueError: an unknown setting, or an invalid value.

    Example:
        >>> config = configured(SearchConfig(), {"epochs": 10, "sparse": 2e-3, "smooth": 2e-2})
        >>> config.size.epochs, config.method.settings["sparse"]
        (10, 0.002)
    """
    if "method" in settings:
        settings = {**settings, "method": find_method(settings["method"])}
        config = replace(config, method=settings["method"])  # type: ignore[call-arg]
    if unknown := [name for name in settings if name not in config.settings]:
        raise ValueError(
            f"{type(config).__name__} has no setting {', '.join(unknown)}; it has {', '.join(config.settings)}"
        )
    changed: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        if isinstance(value, Method):
            changed[each.name] = value.with_settings(settings)
        elif is_dataclass(value) and not isinstance(value, type):
            mine = {inner.name for inner in fields(value)} & settings.keys()
            changed[each.name] = replace(value, **{name: settings[name] for name in mine})
        elif each.name in settings:
            changed[each.name] = settings[each.name]
    return replace(config, **changed)


@dataclass(frozen=True)
class SearchConfig(Config):
    """Settings of a search, stored in ``config.json`` in its run folder: a preset's settings, overridden by flags."""

    method: Method = field(default_factory=lambda: find_method("sp-darts"))
    """Search method, or two that go together (sdarts-rs+pt)."""
    preset: str = "paper"
    """Preset of published settings, which the other flags override; docs/presets.md lists all presets."""
    scale: str = "published"
    """Size of the search, either published or proxy, which is small enough for a CPU."""

    data: SearchData = field(default_factory=SearchData)
    size: Size = field(default_factory=Size)
    optimization: Optimization = field(default_factory=Optimization)
    execution: Execution = field(default_factory=Execution)
    measurement: Measurement = field(default_factory=Measurement)

    MOVABLE: ClassVar[frozenset[str]] = Config.MOVABLE | {"table", "table_dataset", "average_epochs", "best_from"}

    def data_options(self) -> dict[str, Any]:
        """The arguments of :func:`sparsemix.data.open_pairs`, except the device."""
        return {
            **self.data.options(),
            "batch_size": self.size.batch_size,
            "seed": self.run.seed,
            "validation_limit": self.measurement.evaluate_limit,
        }

    def named_output(self, space: str) -> Path:
        """The run folder."""
        preset = self.preset if self.scale in ("published", self.preset) else f"{self.preset}-{self.scale}"
        name = f"{space}-{self.data.dataset}-{self.method.name}-{preset}-seed{self.run.seed}"
        return self.run.output or Path("runs") / name
