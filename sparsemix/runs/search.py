"""The search loop on Accelerate: epochs of search steps, and a record of each.

A script builds data, supernet and :class:`~sparsemix.ArchParameterGroup`, and hands them to :class:`Search`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from ..data import Pairs
from ..measure.accuracy import discretization
from ..measure.audit import audit
from ..measure.leakage import leakage
from ..methods.bilevel import SearchStep
from ..methods.schedule import BatchMixedScheduler
from ..methods.temperature import EntropySchedule
from ..relaxations import OfSoftmax, Softmax
from ..supernet.compilation import compile_operations
from ..supernet.group import ArchParameterGroup
from .config import METHODS, SearchConfig
from .epoch_table import Columns, EpochTable, closing_lines
from .epochs import Progress, Steps
from .folder import RunFolder
from .launching import rng_state, say, set_rng_state, stop_requests, surroundings
from .processes import Parallel, cut, sums
from .trackers import check_tracker, tracking

__all__ = ["Search"]


@dataclass
class _Epoch(Progress):
    sparse: int = 0
    t_sp: float | None = None  # what it was when the epoch began
    train_loss: float = 0.0
    val_loss: float = 0.0
    audits: list[dict[str, Any]] = field(default_factory=list)

    def shown(self) -> str:
        return f"loss {self.train_loss / self.step:.3f}"


@dataclass
class Search:
    """A differentiable architecture search, from its configuration to ``summary.json`` in its run folder.

    Args:
        config: the configuration.
        arch: architecture parameters of the supernet.
        pairs: the data.
        accelerator: where and how it runs.
        space: name of the search space, for the run folder.
        read_out: arch -> the genotype, whose ``str`` is written, and whose ``skips`` is the number of its skip
            connections, or None if the space has none.
        judge: the genotype -> further entries of the summary, such as its true accuracy, or nothing.
        columns: further fields of the records for the printed table, such as those of ``judge``.
        retrain: the run folder -> the command that trains what was found from scratch; None if retraining is
            unsupported.
        cost_term: what is added to the loss of the alphas, such as a :class:`~sparsemix.measure.cost.CostTerm`.

    Example:
        See ``benchmarks/nb201_space.py``.
    """

    config: SearchConfig
    arch: ArchParameterGroup
    pairs: Pairs
    accelerator: Accelerator
    space: str
    read_out: Callable[[ArchParameterGroup], Any]
    judge: Callable[[Any], dict[str, Any]] = field(default=lambda genotype: {})
    columns: Columns = field(default_factory=dict)
    retrain: Callable[[Path], str] | None = None
    cost_term: Callable[[], Tensor] | None = None

    def run(self) -> dict[str, Any]:
        """Search, or continue to search, to the end.

        Returns:
            The summary.

        Raises:
            Interrupted: by Ctrl-C or SIGTERM, after the running step; the checkpoint is of that moment.
            FloatingPointError: an alpha is not finite; the last checkpoint is of before that epoch.
        """
        from timm.scheduler import CosineLRScheduler

        config, arch = self.config, self.arch
        check_tracker(config.log_with)
        arch.model.to(self.accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.weight_optimizer = torch.optim.SGD(
            arch.weight_parameters(),
            lr=config.weight_lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            foreach=True,  # one call for many small tensors, on a CPU too
        )
        self.alpha_optimizer = torch.optim.Adam(
            arch.parameters(), lr=config.alpha_lr, betas=config.alpha_betas, weight_decay=config.alpha_weight_decay
        )
        length = max(config.epochs, 2)  # timm warns of a cosine over one epoch, whose rate is the first one
        self.lr_schedule = CosineLRScheduler(self.weight_optimizer, length, lr_min=config.weight_lr_min)
        self.phi = BatchMixedScheduler(
            arch,
            config.epochs,
            len(self.pairs),
            p_low=config.p_low,
            p_up=config.p_up,
            warmup_epochs=config.warmup_epochs if config.epochs > 1 else 0,  # one epoch is to try things
            hold_epoch=config.hold_epoch,
            seed=config.seed,
        )
        arch.dry_run(next(self.pairs.validation())[0][:2])
        self.compilations = compile_operations(arch.model) if config.compile else None
        weight_optimizer, alpha_optimizer = self.accelerator.prepare(self.weight_optimizer, self.alpha_optimizer)
        model = self.accelerator.prepare_model(arch.model, evaluation_mode=True)  # gradients are averaged by hand
        self.parallel = Parallel(self.accelerator)
        self.parallel.check_batch_size(config.batch_size)

        def loss(batch: tuple[Tensor, Tensor, float]) -> Tensor:
            x, y, share = batch
            loss = F.cross_entropy(model(x), y)
            return share * (loss if self.cost_term is None else loss + self.cost_term())  # a constant for the weights

        self.search_step = SearchStep(
            arch,
            loss,
            weight_optimizer,
            alpha_optimizer,
            order=config.order,
            weights_first=config.weights_first,
            max_norm=config.max_norm,
            clip_alphas=config.clip_alphas,
            reduce=self.parallel.average,
            split=lambda batch: cut(batch, config.accumulate),
            around_weights=self._around_weights,
            backward=self.accelerator.backward,
        )
        # Only now, when everything fits together, is there a run to keep.
        settings = {**config.as_json(), "space": self.space, **surroundings(self.accelerator)}
        main = self.accelerator.is_main_process
        self.folder = RunFolder(config.named_output(self.space), settings, config.resume, config.MOVABLE, writes=main)
        self.accelerator.wait_for_everyone()
        first, progress = self._restore()
        self._say(
            f"{config.method} on {self.space}, {config.dataset} {self.pairs.image_size}x{self.pairs.image_size}, "
            f"{config.epochs} epochs of {len(self.pairs)} steps on {self.accelerator.device}; "
            f"run folder {self.folder.path}"
        )
        self._table = EpochTable(config.epochs, self.columns, self.read_out(arch).skips is not None)
        if first == config.epochs:
            self._say("this search has finished already")
        else:
            if first or progress.step:
                self._say(f"resumed in epoch {first + 1} after step {progress.step} of {len(self.pairs)}")
            self._say(self._table.heading())
        with (
            stop_requests() as stop,
            tracking(self.accelerator, config.log_with, self.folder.path, settings) as self._log,
            Steps(self.parallel, self._save, stop, config) as steps,
        ):
            for epoch in range(first, config.epochs):
                self._train_epoch(steps, epoch, progress)
                self._finish_epoch(epoch, progress)
                progress = _Epoch()
        return self._summarize()

    def _train_epoch(self, steps: Steps, epoch: int, progress: _Epoch) -> None:
        config, arch = self.config, self.arch
        arch.model.train()
        progress.t_sp = progress.t_sp or self._sparse_temperature(epoch)
        arch.relaxation = METHODS[config.method](self._at(progress.t_sp, epoch))
        self.lr_schedule.step(epoch)
        self.phi.step(epoch)
        for train_batch, val_batch in steps.epoch(self.pairs, epoch, progress, note=f", p {self.phi.p:.2f}"):
            self.phi.step_update(epoch * len(self.pairs) + progress.step)
            train, val = self.parallel.shard(train_batch), self.parallel.shard(val_batch)
            if config.audit_every and progress.step % config.audit_every == 0:
                progress.audits += self._audit(progress.step, val)
            losses = torch.stack([*self.search_step(train, val)])
            self.parallel.average([losses, *(b for b in arch.model.buffers() if b.is_floating_point())])
            train_loss, val_loss = losses.tolist()
            progress.sparse += self.phi.phi
            progress.train_loss += train_loss
            progress.val_loss += val_loss
        arch.check_finite()
        self.parallel.check_same((f"alpha of {label!r}", alpha) for label, alpha in arch.named_parameters())
        weights = arch.model.named_parameters()
        self.parallel.check_same((name, sums(weight)) for name, weight in weights)

    def _finish_epoch(self, epoch: int, progress: _Epoch) -> None:
        config, arch, started = self.config, self.arch, time.perf_counter()
        assert progress.t_sp is not None
        relaxation: Any = arch.relaxation
        genotype, steps = self.read_out(arch), max(progress.step, 1)
        evaluated = (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.epochs
        record = {
            "epoch": epoch,
            "p": self.phi.p,
            "sparse_share": progress.sparse / steps,
            "train_loss": progress.train_loss / steps,
            "val_loss": progress.val_loss / steps,
            **(self._evaluate(self._at(progress.t_sp, epoch).eval_temperature) if evaluated else {}),
            "temperature": relaxation.temperature,
            "entropy": arch.entropy(),
            "entropy_at_1": arch.entropy(1.0),
            **({} if genotype.skips is None else {"skips": genotype.skips}),
            **({"audits": progress.audits} if config.audit_every else {}),
            "genotype": str(genotype),
            "alphas": {label: alpha.tolist() for label, alpha in arch.named_parameters()},
            **self.judge(genotype),
            "seconds": progress.seconds + time.perf_counter() - started,
        }
        self.folder.append_record(record)
        self._save(epoch + 1, _Epoch())
        self._log(record, {f"alpha/{label}": alpha for label, alpha in arch.named_parameters()})
        *_, previous = [None, *self.folder.records[:-1]]
        recent = [record["seconds"] for record in self.folder.records[-5:]]
        left = (config.epochs - epoch - 1) * sum(recent) / len(recent)
        self._say(self._table.line(record, previous, left))

    def _evaluate(self, temperature: float) -> dict[str, Any]:
        """Accuracies and leakage. Nothing of it reaches the search: statistics and random state are put back."""
        arch, pairs, started = self.arch, self.pairs, time.perf_counter()
        relaxation, validation = Softmax(temperature), _Repeatable(pairs.validation)
        statistics = _Repeatable(lambda: pairs.statistics(self.config.statistics_images))
        devices = [self.accelerator.device.index or 0] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            raw = discretization(arch, validation, relaxation)
            renewed = discretization(arch, validation, relaxation, statistics)
            phi, arch.phi = arch.phi, True  # leakage of the sparse batches
            leaks = leakage(arch, next(iter(statistics))[0])
            arch.phi = phi
        return {
            "supernet_accuracy": renewed.supernet,
            "discretized_accuracy": renewed.discretized,
            "discretization_gap": renewed.gap,
            "raw_supernet_accuracy": raw.supernet,
            "raw_discretized_accuracy": raw.discretized,
            "weight_leakage": {label: leak.weight for label, leak in leaks.items()},
            "output_leakage": {label: leak.output for label, leak in leaks.items()},
            "evaluation_seconds": time.perf_counter() - started,
        }

    def _summarize(self) -> dict[str, Any]:
        records, config = self.folder.records, self.config
        self.arch.relaxation = METHODS[config.method](self._at(records[-1]["temperature"], config.epochs - 1))
        dropped = {"epoch", "p", "sparse_share", "audits", "alphas", "seconds", "evaluation_seconds"}
        averaged = self._averaged_genotype()
        summary = {
            "method": config.method,
            "seed": config.seed,
            **{key: value for key, value in records[-1].items() if key not in dropped},
            "averaged_genotype": str(averaged),
            **{f"averaged_{key}": value for key, value in self.judge(averaged).items()},
            "undecided": _undecided(self.arch, records[-1]["temperature"]),
            "seconds": sum(record["seconds"] for record in records),
            **({} if self.compilations is None else {"compilations": self.compilations.count}),
        }
        self.folder.write(
            "genotype.json", {"space": self.space, "genotype": summary["genotype"], "edges": self.arch.genotype()}
        )
        self.folder.write("summary.json", summary)
        following = f"its course: sparsemix report {self.folder.path} --figure search.png"
        if self.retrain is not None:
            following = f"to train it from scratch: {self.retrain(self.folder.path)}\n{following}"
        self._say(closing_lines(summary, len(self.arch.rows), self.folder.path, following))
        return summary

    def _averaged_genotype(self) -> Any:
        """Read out of the mean of the last epochs' alphas, which a late change of mind moves less."""
        last = [record["alphas"] for record in self.folder.records[-self.config.average_epochs :]]
        mean = {label: torch.tensor([alphas[label] for alphas in last]).mean(0) for label in self.arch.rows}
        with self.arch.reading(mean):
            return self.read_out(self.arch)

    # Checkpoints

    def _save(self, epoch: int, progress: _Epoch) -> None:
        """All that the next step depends on; the draws depend on (seed, epoch, step) alone."""
        self.arch.check_finite()
        evaluated = [record for record in self.folder.records if "discretized_accuracy" in record]
        best = max(evaluated, key=lambda record: record["discretized_accuracy"], default=None)
        self.folder.save_checkpoint(
            {
                "epoch": epoch,
                "progress": asdict(progress),
                "model": self.arch.model.state_dict(),
                "weight_optimizer": self.weight_optimizer.state_dict(),
                "alpha_optimizer": self.alpha_optimizer.state_dict(),
                "phi": self.phi.state_dict(),
                "alpha_gradients": [alpha.grad for alpha in self.arch.parameters()],  # clipped with the weights' next
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
        self.arch.model.load_state_dict(state["model"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.phi.load_state_dict(state["phi"])
        for alpha, gradient in zip(self.arch.parameters(), state["alpha_gradients"], strict=True):
            alpha.grad = None if gradient is None else gradient.to(alpha)
        set_rng_state(state["rng"])
        return state["epoch"], _Epoch(**state["progress"])

    # Details

    def _audit(self, step: int, batch: tuple[Tensor, Tensor, float]) -> list[dict[str, Any]]:
        at = {"step": step, "phi": self.phi.phi}
        return [
            {**at, "threshold": t, **asdict(audit(self.arch, self.search_step.loss, batch, t, self.alpha_optimizer))}
            for t in self.config.audit_thresholds
        ]

    def _sparse_temperature(self, epoch: int) -> float:
        """t_sp of an epoch that begins now."""
        config = self.config
        if config.auto_temperature:
            schedule = EntropySchedule(self.arch, config.epochs, config.entropy_start, config.entropy_end)
            return schedule.temperature(epoch) or config.sparse
        held = config.hold_epoch is not None and epoch >= config.hold_epoch
        return config.hold_sparse if held and config.hold_sparse is not None else config.sparse

    def _at(self, t_sp: float, epoch: int) -> SearchConfig:
        """The configuration with an epoch's temperatures: this t_sp, and those that keep their ratio to it."""
        config, scale = self.config, t_sp / self.config.sparse
        warm = config.warmup_smooth if epoch < config.warmup_epochs else None
        evaluated = config.eval_temperature * (scale if config.auto_temperature else 1)
        return replace(config, sparse=t_sp, smooth=warm or config.smooth * scale, eval_temperature=evaluated)

    def _around_weights(self) -> AbstractContextManager[None]:
        arch = self.arch
        return arch.using(OfSoftmax(arch.relaxation)) if self.config.double_softmax else nullcontext()

    def _say(self, text: str) -> None:
        say(self.accelerator, text)


class _Repeatable:
    """An iterable that begins anew each time: what a function returns."""

    def __init__(self, begin: Callable[[], Iterator[Any]]) -> None:
        self.begin = begin

    def __iter__(self) -> Iterator[Any]:
        return self.begin()


def _undecided(arch: ArchParameterGroup, temperature: float) -> dict[str, list[str]]:
    """The rows whose strongest alpha leads by less than two temperatures, with their two strongest operations."""
    found = {}
    for label, alpha in arch.named_parameters():
        if len(alpha) > 1:
            values, order = alpha.detach().sort(descending=True, stable=True)
            if values[0] - values[1] < 2 * temperature:
                found[label] = [arch.rows[label][0].names[i] for i in order[:2].tolist()]
    return found
