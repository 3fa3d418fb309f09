"""The configuration of a training, and the protocols of the papers as presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from .config import Config, DataSettings, at_least, configured
from .learning_rate import FLAT_EPOCHS

__all__ = [
    "PRESETS",
    "NetworkSettings",
    "TrainingConfig",
    "TrainingDataSettings",
    "TrainingOptimization",
    "TrainingSize",
]


@dataclass(frozen=True)
class TrainingDataSettings(DataSettings):
    """The images to train on and to evaluate on."""

    test_data: Path | None = None
    """Folder of test images, for --dataset folder; needs --holdout 0."""
    holdout: float = 0.0
    """Fraction of the training images held out for evaluation; 0 evaluates on the test images."""
    cutout: int = 16
    """Side in pixels of the square that cutout blanks; 0 disables cutout."""

    def options(self) -> dict[str, Any]:
        judged = {"test_root": self.test_data, "holdout": self.holdout}
        return {**super().options(), **judged, "cutout": self.cutout}


@dataclass(frozen=True)
class NetworkSettings:
    """The network."""

    genotype: str | None = None
    """Architecture to train, given as a published name such as DARTS_V2, a .json file, or the notation itself."""
    model: str | None = None
    """timm model to train instead of a genotype."""
    choice: str | None = None
    """Layers that a search chose for the timm model, given as the search's choice.json or as the JSON itself."""
    mix: str | None = None
    """Family of candidates that the chosen layers come from (kernel, groups, ...), as given to the search."""
    auxiliary: float = 0.4
    """Weight of the auxiliary classifier's loss; 0 removes the auxiliary classifier."""
    drop_path: float = 0.3
    """Probability of dropping an edge in the last epoch; it rises linearly from 0."""

    def __post_init__(self) -> None:
        for name in ("auxiliary", "drop_path"):
            _check_share(name, getattr(self, name))
        if self.choice is not None and (self.model is None or self.mix is None):
            raise ValueError(
                f"a choice goes with the model and the family that were searched: give --model and --mix, too, got "
                f"{self.model} and {self.mix}"
            )


@dataclass(frozen=True)
class TrainingSize:
    """Size of the network and length of the training."""

    channels: int = 36
    """Channels C of the first cells."""
    cells: int = 20
    """Number of cells."""
    epochs: int = 600
    """Number of epochs of the training."""
    batch_size: int = 64
    """Images per batch."""

    def __post_init__(self) -> None:
        at_least(self, 1, ["channels", "cells", "epochs", "batch_size"])


@dataclass(frozen=True)
class TrainingOptimization:
    """The loss and its optimizer."""

    opt: str = "sgd"
    """Optimizer, by its name in timm; sgd means SGD with plain, not Nesterov, momentum (momentum in timm)."""
    lr: float = 0.025
    """Highest learning rate."""
    momentum: float = 0.9
    """Momentum of the optimizer."""
    weight_decay: float = 3e-4
    """Weight decay of all parameters."""
    sched: Literal["cosine", "linear"] = "cosine"
    """Learning-rate schedule down to 0, either cosine or linear with a flatter end in the last five epochs."""
    warmup_epochs: int = 0
    """Epochs of linear learning-rate warm-up."""
    max_norm: float = 5.0
    """Norm to which the gradient is clipped."""
    smoothing: float = 0.0
    """Label smoothing."""
    ema: float = 0.0
    """Decay of an exponential moving average (EMA) of the weights, which is also evaluated; 0 disables it."""

    def __post_init__(self) -> None:
        for name in ("smoothing", "ema"):
            _check_share(name, getattr(self, name))


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


@dataclass(frozen=True)
class TrainingConfig(Config):
    """Settings of a training, stored in ``config.json`` in its run folder: a preset's settings, overridden by flags."""

    preset: Literal["cifar", "robust", "imagenet", "proxy"] = "cifar"
    """Preset of settings, which the other flags override; docs/presets.md lists all presets."""

    network: NetworkSettings = field(default_factory=NetworkSettings)
    data: TrainingDataSettings = field(default_factory=TrainingDataSettings)
    size: TrainingSize = field(default_factory=TrainingSize)
    optimization: TrainingOptimization = field(default_factory=TrainingOptimization)

    MOVABLE: ClassVar[frozenset[str]] = Config.MOVABLE | {"test_data"}

    def __post_init__(self) -> None:
        if self.optimization.sched == "linear" and self.size.epochs <= FLAT_EPOCHS:
            raise ValueError(f"a linear schedule takes more than {FLAT_EPOCHS} epochs, got {self.size.epochs}")

    @classmethod
    def of_preset(cls, preset: str, dataset: str | None = None) -> TrainingConfig:
        """A preset's settings for a data set, by default for the preset's own data set."""
        settings = PRESETS[preset]
        dataset = dataset or settings["*"].get("dataset", DataSettings.dataset)
        return configured(cls(), {**settings["*"], **settings.get(dataset, {}), "preset": preset, "dataset": dataset})

    @classmethod
    def fitting_cutout(cls, preset: str, dataset: str, image_size: int | None) -> int:
        """The preset's cutout, or half of the images' side if it would leave nothing of images of another size."""
        cutout = cls.of_preset(preset, dataset).data.cutout
        return cutout if image_size is None or cutout < image_size else image_size // 2

    def data_options(self) -> dict[str, Any]:
        """The arguments of :func:`sparsemix.data.open_training`, except the device."""
        return {**self.data.options(), "batch_size": self.size.batch_size, "seed": self.run.seed}

    def named_output(self) -> Path:
        """The run folder."""
        found = self.network.choice or self.network.genotype or ""
        what = Path(found).parent.name if found.endswith(".json") else self.network.model or found
        what = what.replace("/", "-") if len(what) <= 40 and "(" not in what else "genotype"
        return self.run.output or Path("runs") / f"train-{what}-{self.data.dataset}-{self.preset}-seed{self.run.seed}"


# preset -> data set -> settings; "*" is for all
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # Liu et al., "DARTS", appendix A.2, with the batch and the drop path of Chen et al., "DrNAS"
    "cifar": {"*": {}, "digits": {"cutout": 4}},
    # Chen and Hsieh, "SmoothDARTS": S1 to S4; CIFAR-100 and SVHN on the smaller networks of Zela et al.
    "robust": {
        "*": {"batch_size": 96, "drop_path": 0.2},
        "cifar100": {"channels": 16, "cells": 8},
        "svhn": {"channels": 16, "cells": 8},
        "digits": {"cutout": 4},
    },
    # Chen et al., "DrNAS", published code: the mobile setting
    "imagenet": {
        "*": {
            "dataset": "folder",
            "image_size": 224,
            "channels": 48,
            "cells": 14,
            "epochs": 250,
            "batch_size": 768,
            "lr": 0.5,
            "sched": "linear",
            "warmup_epochs": 5,
            "weight_decay": 3e-5,
            "smoothing": 0.1,
            "drop_path": 0.0,
            "cutout": 0,
        },
    },
    # for CPUs: a small network on few, small images, judged on images held out
    "proxy": {
        "*": {
            "channels": 8,
            "cells": 5,
            "epochs": 20,
            "image_size": 16,
            "limit": 10_000,
            "holdout": 0.2,
            "auxiliary": 0.0,
            "drop_path": 0.0,
            "cutout": 0,
        },
        "digits": {"image_size": 8, "limit": None},
    },
}
