"""Train a network from scratch by the protocols of the papers, to evaluate its architecture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from .._utils.modes import restoring
from ..data import TrainingData
from ..measure.accuracy import topk_accuracy
from ..measure.cost import network_cost
from .epoch_table import EpochTable, training_columns
from .learning_rate import schedule
from .processes import cut
from .run import Run
from .training_config import TrainingConfig

__all__ = ["MOBILE_MACS", "Training"]

MOBILE_MACS = 600e6
"""Maximum multiply-accumulates of a network in the mobile setting, for one 224x224 image."""


class Training(Run):
    """A training from its configuration to ``summary.json`` in its run folder.

    Args:
        config: the configuration.
        model: the network; in training mode it may return ``(logits, auxiliary logits)``.
        data: the data.
        accelerator: device, processes and precision.

    Example:
        See ``sparsemix/cli/train.py``.
    """

    config: TrainingConfig

    def __init__(self, config: TrainingConfig, model: nn.Module, data: TrainingData, accelerator: Accelerator) -> None:
        from timm.optim import create_optimizer_v2
        from timm.utils import ModelEmaV3

        super().__init__(config, accelerator, model, data)
        self.config = config
        self.epochs = config.size.epochs
        self.images = data

        model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x, _ = next(data.test())
        self.cost = network_cost(model, x[:1])
        with restoring(model):  # a model that does not fit the data fails before the run folder is made
            model.train()
            model(x[:2])
        settings = config.optimization
        self.optimizer: Any = create_optimizer_v2(
            model,
            opt="momentum" if settings.opt == "sgd" else settings.opt,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            filter_bias_and_bn=False,
        )
        self.learning_rate = schedule(self.optimizer, settings.sched, self.epochs, settings.warmup_epochs)
        self.ema: Any = ModelEmaV3(model, decay=settings.ema) if settings.ema else None
        self._prepared_optimizer = accelerator.prepare(self.optimizer)
        self._prepared = accelerator.prepare_model(model, evaluation_mode=True)  # gradients are averaged by hand
        self.parallel.check_batch_size(config.size.batch_size)
        self.table = EpochTable(self.epochs, training_columns(len(data.classes) > 5, self.ema is not None))
        self.open(config.named_output(), config.as_json())

    def run(self) -> dict[str, Any]:
        network = self.config.network
        self.say(
            f"{network.model or network.genotype}: {self.cost}; {self.epochs} epochs of {len(self.images)} steps on "
            f"{self.accelerator.device}; run folder {self.folder.path}"
        )
        if self.config.preset == "imagenet" and self.cost.macs > MOBILE_MACS:
            self.say(
                f"{self.cost.macs / 1e6:.1f} M MACs are over the {MOBILE_MACS / 1e6:.0f} M of the mobile setting: "
                f"compare the result with larger networks only, or take fewer channels"
            )
        self.say(self.table.heading())
        return super().run()

    # An epoch

    def begin_epoch(self) -> None:
        self.model.train()
        self.learning_rate.step(self.epoch)
        set_drop_path: Callable[[float], None] | None = getattr(self.model, "set_drop_path", None)
        if set_drop_path is not None:
            set_drop_path(self.config.network.drop_path * self.epoch / self.epochs)

    def step(self, batch: Any) -> None:
        self._prepared_optimizer.zero_grad()
        loss = torch.zeros((), device=self.accelerator.device)
        for x, y, share in cut(self.parallel.shard(batch), self.config.run.accumulate):
            part = share * self._loss(self._prepared(x), y)
            self.accelerator.backward(part)
            loss += part.detach()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.parallel.average([loss, *gradients, *(b for b in self.model.buffers() if b.is_floating_point())])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimization.max_norm)
        self._prepared_optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.progress.add(loss=float(loss), images=len(batch[1]))

    def _loss(self, out: Any, y: Tensor) -> Tensor:
        logits, *auxiliary = out if isinstance(out, tuple) else (out,)
        smoothing = self.config.optimization.smoothing
        loss = F.cross_entropy(logits, y, label_smoothing=smoothing)
        for other in auxiliary:
            loss = loss + self.config.network.auxiliary * F.cross_entropy(other, y, label_smoothing=smoothing)
        return loss

    def check_finite(self) -> None:
        loss = self.progress.totals.get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss of epoch {self.epoch + 1} is {loss}: start anew with a lower learning rate than "
                f"{self.config.optimization.lr}; the last checkpoint is from before that"
            )

    def record(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": self.progress.mean("loss"),
            **self._errors(self.model, ""),
            **({} if self.ema is None else self._errors(self.ema.module, "ema_")),
        }

    def running(self) -> dict[str, Any]:
        return {"lr": self.optimizer.param_groups[0]["lr"], "loss": self.progress.mean("loss")}

    def _errors(self, model: nn.Module, prefix: str) -> dict[str, float]:
        """Top-1 error, and the top-5 error where there are more classes than that."""
        ks = {"error": 1, "top5_error": 5} if len(self.images.classes) > 5 else {"error": 1}
        accuracies = topk_accuracy(model, self.images.test(), [*ks.values()])
        return {f"{prefix}{name}": 1 - accuracies[k] for name, k in ks.items()}

    # The end

    def summarize(self) -> dict[str, Any]:
        records, network = self.folder.records, self.config.network
        last = {key: value for key, value in records[-1].items() if key not in ("epoch", "lr", "seconds")}
        summary = {
            "model": network.model,
            "genotype": None if network.model else network.genotype,
            "choice": None if network.choice is None else json.loads(network.choice),
            "seed": self.config.run.seed,
            **asdict(self.cost),
            **last,
            "best_error": min(record["error"] for record in records),
            "judged_on": "held-out images" if self.config.data.holdout else "test images",
            "seconds": sum(record["seconds"] for record in records),
        }
        self.folder.save("weights.pt", self.model.state_dict())
        if self.ema is not None:
            self.folder.save("weights_ema.pt", self.ema.module.state_dict())
        self.folder.write("summary.json", summary)
        top5 = f", top-5 {summary['top5_error']:.2%}" if "top5_error" in summary else ""
        self.say(
            f"error {summary['error']:.2%}{top5} at the end (best {summary['best_error']:.2%}) on "
            f"{summary['judged_on']}, {self.cost}, {summary['seconds']:.0f} s\nwritten to {self.folder.path}"
        )
        return summary

    # Checkpoints

    def state(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])

    def best_epoch(self) -> int | None:
        best = min(self.folder.records, key=lambda record: record["error"], default=None)
        return None if best is None else best["epoch"] + 1
