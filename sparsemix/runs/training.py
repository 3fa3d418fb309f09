"""Training a network from scratch, with the protocols of the papers: what an architecture is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from .._utils.modes import restoring
from ..data import TrainingData
from ..measure.accuracy import topk_accuracy
from ..measure.cost import macs
from .config import RunConfig, peek_flags
from .epochs import Progress, Steps
from .folder import RunFolder
from .launching import rng_state, say, set_rng_state, stop_requests, surroundings
from .processes import Parallel, cut, sums
from .trackers import check_tracker, tracking

__all__ = [
    "MOBILE_MACS",
    "PRESETS",
    "Cost",
    "RetrainConfig",
    "Retraining",
    "cost",
    "linear_rate",
    "retrain_config_from_flags",
    "schedule",
]

MOBILE_MACS = 600e6
"""Multiply-accumulates that a network of the mobile setting may take for an image of 224x224."""
FLAT_EPOCHS = 5
"""The last epochs of a linear learning rate, in which it is flatter."""


@dataclass(frozen=True)
class RetrainConfig(RunConfig):
    """Settings of a training, as ``config.json`` in its run folder holds them: a preset's, overridden by flags."""

    genotype: str | None = None
    """Architecture to train: a published name such as DARTS_V2, a .json file, or the notation itself."""
    model: str | None = None
    """Model of timm's to train instead of a genotype."""
    preset: Literal["cifar", "robust", "imagenet", "proxy"] = "cifar"
    """Settings that the other flags start from; docs/presets.md lists them."""

    test_data: Path | None = None
    """Folder of test images, for --dataset folder."""
    holdout: float = 0.0
    """Share of the training images held out to judge on; 0: judge on the test images."""

    channels: int = 36
    """Channels C of the first cells."""
    cells: int = 20
    """Number of cells."""
    auxiliary: float = 0.4
    """Weight of the auxiliary classifier's loss; 0: no auxiliary classifier."""
    drop_path: float = 0.3
    """Probability of dropping an edge in the last epoch; it rises linearly from 0."""
    cutout: int = 16
    """Side of the square that cutout blanks; 0: no cutout."""
    smoothing: float = 0.0
    """Label smoothing."""

    epochs: int = 600
    """Length of the training."""
    batch_size: int = 64
    """Images per batch."""
    opt: str = "sgd"
    """Optimizer, by its name in timm; sgd is SGD with momentum but without Nesterov's (timm: momentum)."""
    lr: float = 0.025
    """Highest learning rate."""
    momentum: float = 0.9
    """Momentum of the optimizer."""
    weight_decay: float = 3e-4
    """Weight decay of all parameters."""
    sched: Literal["cosine", "linear"] = "cosine"
    """Schedule of the learning rate over the epochs, down to 0: a cosine, or a line that flattens in the last five."""
    warmup_epochs: int = 0
    """Epochs of linear learning-rate warm-up."""
    max_norm: float = 5.0
    """Norm to which the gradient is clipped."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, judged as well; 0: no average."""

    MOVABLE: ClassVar[frozenset[str]] = RunConfig.MOVABLE | {"test_data"}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "channels", "cells"):
            if getattr(self, name) < 1:
                raise ValueError(f"RetrainConfig: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("auxiliary", "drop_path", "smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"RetrainConfig: {name} must be in [0, 1), got {getattr(self, name)}")
        if self.sched == "linear" and self.epochs <= FLAT_EPOCHS:
            raise ValueError(
                f"RetrainConfig: a linear schedule takes more than {FLAT_EPOCHS} epochs, got {self.epochs}"
            )
        if self.image_size is not None and self.cutout >= self.image_size:
            raise ValueError(
                f"RetrainConfig: a cutout of {self.cutout} leaves nothing of images of size {self.image_size}"
            )

    def data_options(self) -> dict[str, Any]:
        judged = {"test_root": self.test_data, "holdout": self.holdout}
        return {**super().data_options(), **judged, "cutout": self.cutout}

    def named_output(self) -> Path:
        genotype = self.genotype or ""
        what = self.model or (Path(genotype).parent.name if genotype.endswith(".json") else genotype)
        what = what.replace("/", "-") if len(what) <= 40 and "(" not in what else "genotype"
        return self.output or Path("runs") / f"train-{what}-{self.dataset}-{self.preset}-seed{self.seed}"


# preset -> data set -> settings; "*" is for all
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # Liu et al., "DARTS", appendix A.2, with the batch and the drop path of Chen et al., "DrNAS"
    "cifar": {"*": {}},
    # Chen and Hsieh, "SmoothDARTS": S1 to S4; CIFAR-100 and SVHN on the smaller networks of Zela et al.
    "robust": {
        "*": {"batch_size": 96, "drop_path": 0.2},
        "cifar100": {"channels": 16, "cells": 8},
        "svhn": {"channels": 16, "cells": 8},
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


def retrain_config_from_flags(args: list[str] | None = None, prog: str | None = None) -> RetrainConfig:
    """The configuration of a command line: a preset's settings, the data set's, and then the flags.

    Raises:
        SystemExit: a flag is unknown or malformed (shown with the usage), as command lines do.
    """
    import tyro

    defaults = RetrainConfig()
    chosen = peek_flags(args, preset=(sorted(PRESETS), defaults.preset), dataset=(None, None))
    preset = PRESETS[chosen["preset"]]
    dataset = chosen["dataset"] or preset["*"].get("dataset", defaults.dataset)
    settings = {**preset["*"], **preset.get(dataset, {}), "preset": chosen["preset"], "dataset": dataset}
    return tyro.cli(RetrainConfig, prog=prog, args=args, default=RetrainConfig(**settings))


def linear_rate(epoch: int, epochs: int, warmup_epochs: int = 0) -> float:
    """The learning rate of an epoch, as a share of the greatest, in a straight line with a flat end.

    ``(epoch + 1) / warmup`` in the warm-up, then ``(epochs - 5 - epoch) / (epochs - 5)``, and in the last five epochs,
    where that would fall by a large factor, ``(epochs - epoch) / (5 (epochs - 5))``.

    Args:
        epoch: from 0.
        epochs: length of the training; more than 5.
        warmup_epochs: epochs of the warm-up.

    Example:
        >>> [round(0.5 * linear_rate(epoch, 250, 5), 5) for epoch in (0, 4, 5, 244, 249)]
        [0.1, 0.5, 0.4898, 0.00204, 0.00041]

    Source: Chen et al., "DrNAS", published code.
    """
    if epoch < warmup_epochs:
        return (epoch + 1) / warmup_epochs
    if epochs - epoch > FLAT_EPOCHS:
        return (epochs - FLAT_EPOCHS - epoch) / (epochs - FLAT_EPOCHS)
    return (epochs - epoch) / (FLAT_EPOCHS * (epochs - FLAT_EPOCHS))


def schedule(optimizer: Any, config: RetrainConfig) -> Any:
    """A scheduler of timm's kind for the optimizer, to be stepped at the start of each epoch."""
    from timm.scheduler.cosine_lr import CosineLRScheduler
    from timm.scheduler.scheduler import Scheduler

    class Linear(Scheduler):
        def _get_lr(self, t: int) -> list[float]:
            return [base * linear_rate(t, config.epochs, config.warmup_epochs) for base in self.base_values]

    if config.sched == "linear":
        return Linear(optimizer, "lr")
    return CosineLRScheduler(
        optimizer,
        max(config.epochs, 2),  # timm warns of a cosine over one epoch, whose rate is the first one
        warmup_t=config.warmup_epochs,
        warmup_lr_init=config.lr / max(config.warmup_epochs, 1),
    )


@dataclass(frozen=True)
class Cost:
    """What a network costs: its parameters, and the multiply-accumulates of one image."""

    parameters: int
    macs: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.3f} M parameters, {self.macs / 1e6:.1f} M MACs"


def cost(model: nn.Module, x: torch.Tensor) -> Cost:
    """Count by running: multiply-accumulates an image of a batch ``x``, and the parameters that it takes.

    An auxiliary classifier takes no part in an evaluation and is not counted.

    Example:
        >>> cost(nn.Conv2d(2, 3, 1, bias=False), torch.zeros(1, 2, 4, 4))
        Cost(parameters=6, macs=96)
    """
    auxiliary = getattr(model, "auxiliary", None)
    left_out = {id(p) for p in auxiliary.parameters()} if isinstance(auxiliary, nn.Module) else set()
    parameters = sum(p.numel() for p in model.parameters() if id(p) not in left_out)
    return Cost(parameters, round(macs(model, x) / len(x)))


@dataclass
class _Epoch(Progress):
    loss: float = 0.0

    def shown(self) -> str:
        return f"loss {self.loss / self.step:.3f}"


@dataclass
class Retraining:
    """A training from its configuration to ``summary.json`` in its run folder.

    Args:
        config: the configuration.
        model: what is trained; in training it may return ``(logits, auxiliary logits)``.
        data: the data.
        accelerator: where and how it runs.

    Example:
        See ``benchmarks/evaluate.py``.
    """

    config: RetrainConfig
    model: nn.Module
    data: TrainingData
    accelerator: Accelerator
    _ema: Any = field(default=None, init=False)

    def run(self) -> dict[str, Any]:
        """Train, or continue to train, to the end.

        Returns:
            The summary.

        Raises:
            Interrupted: by Ctrl-C or SIGTERM, after the running step; the checkpoint is of that moment.
            FloatingPointError: the loss is not finite; the last checkpoint is of before that epoch.
        """
        from timm.optim import create_optimizer_v2
        from timm.utils import ModelEmaV3

        config = self.config
        check_tracker(config.log_with)
        self.model.to(self.accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x, _ = next(self.data.test())
        self.cost = cost(self.model, x[:1])
        with restoring(self.model):  # whatever does not fit shows before there is a run to keep
            self.model.train()
            self.model(x[:2])
        self.optimizer: Any = create_optimizer_v2(
            self.model,
            opt="momentum" if config.opt == "sgd" else config.opt,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            filter_bias_and_bn=False,
        )
        self.schedule = schedule(self.optimizer, config)
        if config.ema:
            self._ema = ModelEmaV3(self.model, decay=config.ema)
        self._prepared = self.accelerator.prepare(self.optimizer)
        model = self.accelerator.prepare_model(self.model, evaluation_mode=True)  # gradients are averaged by hand
        self.parallel = Parallel(self.accelerator)
        self.parallel.check_batch_size(config.batch_size)
        settings, main = {**config.as_json(), **surroundings(self.accelerator)}, self.accelerator.is_main_process
        self.folder = RunFolder(config.named_output(), settings, config.resume, config.MOVABLE, writes=main)
        self.accelerator.wait_for_everyone()
        first, progress = self._restore()
        say(
            self.accelerator,
            f"{config.model or config.genotype}: {self.cost}; {config.epochs} epochs of {len(self.data)} steps on "
            f"{self.accelerator.device}; run folder {self.folder.path}",
        )
        if config.preset == "imagenet" and self.cost.macs > MOBILE_MACS:
            say(
                self.accelerator,
                f"{self.cost.macs / 1e6:.1f} M MACs are over the {MOBILE_MACS / 1e6:.0f} M of the mobile setting: "
                f"compare the result with larger networks only, or lower --channels",
            )
        with (
            stop_requests() as stop,
            tracking(self.accelerator, config.log_with, self.folder.path, settings) as self._log,
            Steps(self.parallel, self._save, stop, config) as steps,
        ):
            for epoch in range(first, config.epochs):
                self._train_epoch(steps, model, epoch, progress)
                self._finish_epoch(epoch, progress)
                progress = _Epoch()
        return self._summarize()

    def _train_epoch(self, steps: Steps, model: Any, epoch: int, progress: _Epoch) -> None:
        config = self.config
        self.model.train()
        self.schedule.step(epoch)
        set_drop_path: Callable[[float], None] | None = getattr(self.model, "set_drop_path", None)
        if set_drop_path is not None:
            set_drop_path(config.drop_path * epoch / config.epochs)
        for batch in steps.epoch(self.data, epoch, progress):
            self._prepared.zero_grad()
            loss = torch.zeros((), device=self.accelerator.device)
            for x, y, share in cut(self.parallel.shard(batch), config.accumulate):
                part = share * self._loss(model(x), y)
                self.accelerator.backward(part)
                loss += part.detach()
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            self.parallel.average([loss, *gradients, *(b for b in self.model.buffers() if b.is_floating_point())])
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_norm)
            self._prepared.step()
            if self._ema is not None:
                self._ema.update(self.model)
            progress.loss += float(loss)
        self._check_finite(epoch, progress)
        self.parallel.check_same((name, sums(weight)) for name, weight in self.model.named_parameters())

    def _loss(self, out: Any, y: Tensor) -> Tensor:
        logits, *auxiliary = out if isinstance(out, tuple) else (out,)
        loss = F.cross_entropy(logits, y, label_smoothing=self.config.smoothing)
        for other in auxiliary:
            loss = loss + self.config.auxiliary * F.cross_entropy(other, y, label_smoothing=self.config.smoothing)
        return loss

    def _check_finite(self, epoch: int, progress: _Epoch) -> None:
        if not math.isfinite(progress.loss):
            raise FloatingPointError(
                f"the loss of epoch {epoch + 1} is {progress.loss}: start anew with a lower --lr; "
                f"the checkpoints are of before"
            )

    def _finish_epoch(self, epoch: int, progress: _Epoch) -> None:
        started = time.perf_counter()
        record = {
            "epoch": epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": progress.loss / max(progress.step, 1),
            **self._errors(self.model, ""),
            **({} if self._ema is None else self._errors(self._ema.module, "ema_")),
        }
        record["seconds"] = progress.seconds + time.perf_counter() - started
        self.folder.append_record(record)
        self._save(epoch + 1, _Epoch())
        self._log(record, {})
        top5 = f" (top-5 {record['top5_error']:.2%})" if "top5_error" in record else ""
        ema = f", of the average {record['ema_error']:.2%}" if "ema_error" in record else ""
        say(
            self.accelerator,
            f"epoch {epoch + 1:3}/{self.config.epochs}  lr {record['lr']:.4f}  loss {record['loss']:.3f}"
            f"  error {record['error']:.2%}{top5}{ema}  {record['seconds']:.1f} s",
        )

    def _errors(self, model: nn.Module, prefix: str) -> dict[str, float]:
        """Top-1 error, and the top-5 error where there are more classes than that."""
        ks = {"error": 1, "top5_error": 5} if len(self.data.classes) > 5 else {"error": 1}
        accuracies = topk_accuracy(model, self.data.test(), [*ks.values()])
        return {f"{prefix}{name}": 1 - accuracies[k] for name, k in ks.items()}

    def _summarize(self) -> dict[str, Any]:
        records = self.folder.records
        last = {key: value for key, value in records[-1].items() if key not in ("epoch", "lr", "seconds")}
        summary = {
            "model": self.config.model,
            "genotype": None if self.config.model else self.config.genotype,
            "seed": self.config.seed,
            **asdict(self.cost),
            **last,
            "best_error": min(record["error"] for record in records),
            "judged_on": "held-out images" if self.config.holdout else "test images",
            "seconds": sum(record["seconds"] for record in records),
        }
        self.folder.save("weights.pt", self.model.state_dict())
        if self._ema is not None:
            self.folder.save("weights_ema.pt", self._ema.module.state_dict())
        self.folder.write("summary.json", summary)
        top5 = f", top-5 {summary['top5_error']:.2%}" if "top5_error" in summary else ""
        say(
            self.accelerator,
            f"error {summary['error']:.2%}{top5} at the end (best {summary['best_error']:.2%}) on "
            f"{summary['judged_on']}, {self.cost}, {summary['seconds']:.0f} s\nwritten to {self.folder.path}",
        )
        return summary

    # Checkpoints

    def _save(self, epoch: int, progress: _Epoch) -> None:
        """All that the next step depends on; order and augmentation depend on (seed, epoch, step) alone."""
        self._check_finite(epoch, progress)
        best = min(self.folder.records, key=lambda record: record["error"], default=None)
        self.folder.save_checkpoint(
            {
                "epoch": epoch,
                "progress": asdict(progress),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": None if self._ema is None else self._ema.state_dict(),
                "rng": rng_state(),
            },
            epoch,
            progress.step,
            best=None if best is None else best["epoch"] + 1,
        )

    def _restore(self) -> tuple[int, _Epoch]:
        state = self.folder.load_checkpoint() if self.config.resume else None
        if state is None:
            return 0, _Epoch()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
        set_rng_state(state["rng"])
        return state["epoch"], _Epoch(**state["progress"])
