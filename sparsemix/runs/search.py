"""A search: epochs of search steps under a method, and a record of each."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from .._utils.modes import having
from ..data import Pairs
from ..measure.accuracy import accuracy, discretization, renewed_statistics
from ..measure.audit import audit
from ..measure.best_epoch import best_epoch
from ..measure.leakage import leakage
from ..measure.undecided import undecided
from ..methods.bilevel import SearchStep
from ..methods.method import Evidence, Plan, Records
from ..relaxations import Moment, Softmax
from ..supernet.architecture import name_or_names
from ..supernet.compilation import compile_operations
from ..supernet.group import ArchParameterGroup
from .config import Optimization, SearchConfig
from .epoch_table import Columns, EpochTable, changed_rows, closing_lines, search_columns
from .learning_rate import PhasedCosine
from .processes import Shard, cut
from .run import Run

__all__ = ["Search"]


class TimedSearchStep(SearchStep[ArchParameterGroup]):
    """A search step that records its updates' duration on the host; on a GPU, kernels may still be running."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.seconds: dict[str, float] = {}

    def update_weights(self, batch: Any) -> Tensor:
        return self._timed("weights", super().update_weights, batch)

    def update_alphas(self, train_batch: Any, val_batch: Any) -> Tensor:
        return self._timed("alphas", super().update_alphas, train_batch, val_batch)

    def update_both(self, batch: Any) -> Tensor:
        return self._timed("both", super().update_both, batch)

    def _timed(self, name: str, update: Callable[..., Tensor], *batches: Any) -> Tensor:
        started = time.perf_counter()
        loss = update(*batches)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        return loss


class Search(Run):
    """A differentiable architecture search, from its configuration to ``summary.json`` in its run folder.

    Args:
        config: the configuration.
        arch: architecture parameters of the supernet.
        pairs: the data.
        accelerator: device, processes and precision.
        space: name of the search space, for the run folder.
        read_out: (arch, temperature) -> the genotype, whose ``str`` is written, and whose ``skips`` is the number of
            its skip connections, or None if the space has none.
        judge: genotype -> further entries of records and summary, such as its true accuracy; may be empty.
        columns: further fields of the records for the printed table, such as those of ``judge``.
        retrain: the run folder -> the command that trains what was found from scratch; None if retraining is
            unsupported.
        cost_term: what is added to the loss of the alphas, such as a :class:`~sparsemix.measure.cost.CostTerm`.

    Example:
        See ``sparsemix/cli/nb201.py``.
    """

    config: SearchConfig

    def __init__(
        self,
        config: SearchConfig,
        arch: ArchParameterGroup,
        pairs: Pairs,
        accelerator: Accelerator,
        space: str,
        read_out: Callable[[ArchParameterGroup, float], Any],
        judge: Callable[[Any], dict[str, Any]] = lambda genotype: {},
        columns: Columns | None = None,
        retrain: Callable[[Path], str] | None = None,
        cost_term: Callable[[], Tensor] | None = None,
    ) -> None:
        super().__init__(config, accelerator, arch.model, pairs)
        self.config = config
        self.method = method = config.method
        self.arch = arch
        self.pairs = pairs
        self.space = space
        self.read_out = read_out
        self.judge = judge
        self.retrain = retrain
        self.cost_term = cost_term
        self._updates_weights_alone = False

        arch.model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        arch.dry_run(next(pairs.validation())[0][:2])
        self.compilations = compile_operations(arch.model) if config.execution.compile else None
        arch.discretization = method.discretization()
        if config.measurement.best_from is not None and method.chooses_result:
            raise ValueError(
                f"best_from={config.measurement.best_from}: {method.name} chooses its result itself; set it to None"
            )
        method.check(arch, config.size.epochs)
        method.prepare_(arch)
        self.weight_optimizer, self.alpha_optimizer = self._optimizers(config.optimization)
        phases = method.phases(arch, config.size.epochs)
        self.epochs = sum(phase.epochs for phase in phases)
        self.learning_rate = PhasedCosine(self.weight_optimizer, phases, config.optimization.weight_lr_min)
        self.search_step = self._search_step(config.optimization)
        self.parallel.check_batch_size(config.size.batch_size)
        has_skips = self._check_read_out().skips is not None
        self.table = EpochTable(self.epochs, search_columns(method.columns, columns or {}, has_skips))
        self.open(config.named_output(space), {**config.as_json(), "space": space})

    def _optimizers(self, settings: Optimization) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        weights = torch.optim.SGD(
            self.arch.weight_parameters(),
            lr=settings.weight_lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
            foreach=True,  # one call for many small tensors, on a CPU too
        )
        alphas = self.arch.parameters()
        own = self.method.alpha_optimizer(self.arch, settings)
        return weights, own or torch.optim.Adam(
            alphas, lr=settings.alpha_lr, betas=settings.alpha_betas, weight_decay=settings.alpha_weight_decay
        )

    def _check_read_out(self) -> Any:
        """Check that the space can express any choice the method may find: everything, nothing, and the current one."""
        for extreme in (100.0, -100.0):
            with self.arch.reading({label: torch.full_like(a, extreme) for label, a in self.arch.named_parameters()}):
                self.read_out(self.arch, 1.0)
        return self.read_out(self.arch, 1.0)

    def _search_step(self, settings: Optimization) -> TimedSearchStep:
        weight_optimizer, alpha_optimizer = self.accelerator.prepare(self.weight_optimizer, self.alpha_optimizer)
        model = self.accelerator.prepare_model(self.model, evaluation_mode=True)  # gradients are averaged by hand

        def loss(part: tuple[Shard, bool]) -> Tensor:
            (x, y, share), phi = part
            if phi != self.arch.phi:
                self.arch.phi = phi
            total = F.cross_entropy(model(x), y)
            if self._updates_weights_alone:  # the other terms are of the alphas
                return share * total
            if self.cost_term is not None:
                total = total + self.cost_term()
            for penalty in self.method.penalties(self.arch, self.progress.plan):
                total = total + penalty
            return share * total

        return TimedSearchStep(
            self.arch,
            loss,
            weight_optimizer,
            alpha_optimizer,
            order=settings.order,
            weights_first=settings.weights_first,
            max_norm=settings.max_norm,
            clip_alphas=settings.clip_alphas,
            reduce=self.parallel.average,
            split=self._parts,
            around_weights=self._around_weights,
            backward=self.accelerator.backward,
        )

    @contextmanager
    def _around_weights(self, batch: Shard) -> Iterator[None]:
        alone = self.config.optimization.order != "single"
        with (
            having(self, _updates_weights_alone=alone),
            self.method.around_weights(self.search_step, batch, self.progress.plan),
        ):
            yield

    def _parts(self, batch: Shard) -> Iterator[tuple[Shard, bool]]:
        """The parts of a batch that run one after the other, each with its phi."""
        for phi in self.method.passes(self._moment(self.progress.plan), self.progress.plan):
            for part in cut(batch, self.config.run.accumulate):
                yield part, phi

    def run(self) -> dict[str, Any]:
        config, steps = self.config, len(self.pairs)
        self.say(
            f"{config.method.name} on {self.space}, {config.data.dataset} "
            f"{self.pairs.image_size}x{self.pairs.image_size}, {self.epochs} epochs of {steps} steps on "
            f"{self.accelerator.device}; run folder {self.folder.path}"
        )
        if self.epoch == self.epochs:
            self.say("this search has finished already")
        else:
            if self.epoch or self.progress.step:
                self.say(f"resumed in epoch {self.epoch + 1} after step {self.progress.step} of {steps}")
            self.say(self.table.heading())
        return super().run()

    # An epoch

    def begin_epoch(self) -> None:
        method, length = self.method, self.config.size.epochs
        self.learning_rate.step(self.epoch, begins=not self.progress.step)
        # A run resumed within an epoch keeps what was planned and decided at the epoch's start.
        plan = self.progress.plan or method.plan(self.arch, self.epoch, length)
        self.arch.relaxation = method.relaxation(plan)
        self.arch.moment = self._moment(plan)
        method.shape_(self.arch, self.pairs, self.weight_optimizer, plan)
        if not self.progress.plan:
            evidence = Evidence(
                self.arch.moment, length, self.folder.records, self._validation_accuracy, plan["temperature"]
            )
            with self.arch.using(method.evaluation(plan)):  # decisions do not depend on one batch's draws
                self.progress.plan = {**plan, **method.decide(self.arch, evidence)}
        self.model.train()

    def step(self, batch: Any) -> None:
        train, val = map(self.parallel.shard, batch)
        self.arch.moment = moment = self._moment(self.progress.plan)
        audits = self.config.execution
        if audits.audit_every and moment.step % audits.audit_every == 0:
            self.progress.audits += self._audit(moment, val)
        trains_alphas = self.method.trains_alphas(self.epoch, self.config.size.epochs)
        images = len(batch[0][1]) + trains_alphas * len(batch[1][1])
        self.search_step.seconds.clear()
        losses = torch.stack([*self.search_step(train, val, alphas=trains_alphas)])
        self.parallel.average([losses, *(b for b in self.model.buffers() if b.is_floating_point())])
        train_loss, val_loss = losses.tolist()
        kind = "sparse" if moment.phi else "smooth"
        seconds = {f"{kind} {update} seconds": value for update, value in self.search_step.seconds.items()}
        self.progress.add(loss=train_loss, val_loss=val_loss, sparse=moment.phi, images=images, **seconds)

    def _moment(self, plan: Plan) -> Moment:
        """The moment of the next batch: seed, epoch, step and phi."""
        moment = Moment(self.config.run.seed, self.epoch, self.progress.step)
        return replace(moment, phi=self.method.phi(moment, plan))

    def running(self) -> dict[str, Any]:
        plan, progress = self.progress.plan, self.progress
        losses = {"train_loss": progress.mean("loss"), "val_loss": progress.mean("val_loss")}
        return {**plan, **losses, "entropy": self.arch.entropy(plan["temperature"])}

    def shown(self, record: Mapping[str, Any]) -> dict[str, Any]:
        if len(self.folder.records) < 2:
            return {**record}
        return {**record, "changed": changed_rows(record["alphas"], self.folder.records[-2]["alphas"])}

    def commands(self) -> dict[str, str]:
        retrain = {} if self.retrain is None else {"train what it found": self.retrain(self.folder.path)}
        return {**super().commands(), **retrain}

    def stops(self) -> bool:
        return self.method.stops(self.folder.records)

    def check_finite(self) -> None:
        self.arch.check_finite()
        losses = {name: self.progress.totals.get(name, 0.0) for name in ("loss", "val_loss")}
        if not all(map(math.isfinite, losses.values())):
            raise FloatingPointError(
                f"the losses of epoch {self.epoch + 1} add up to {losses['loss']} (weights) and {losses['val_loss']} "
                f"(alphas): start anew with a lower learning rate than {self.config.optimization.weight_lr}; the "
                f"last checkpoint is from before that"
            )

    def same_everywhere(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((f"alpha of {label!r}", alpha) for label, alpha in self.arch.named_parameters())
        yield from ((f"beta of {label!r}", beta) for label, beta in self.arch.named_betas())
        yield from super().same_everywhere()

    def record(self) -> dict[str, Any]:
        config, arch, progress, plan = self.config.measurement, self.arch, self.progress, self.progress.plan
        genotype = self.read_out(arch, plan["temperature"])
        betas = {label: beta.item() for label, beta in arch.named_betas()}
        allowed = {label: [*op.allowed_names] for label, (op, *_) in arch.rows.items() if op.is_restricted}
        is_trained = self.method.ever_trains_alphas(self.config.size.epochs)  # alphas that are set are decided
        close = undecided(arch, plan["temperature"]) if is_trained else None
        record = {
            "epoch": self.epoch,
            "sparse_share": progress.mean("sparse"),
            "train_loss": progress.mean("loss"),
            "val_loss": progress.mean("val_loss"),
            **plan,
            **self.method.measure(self.search_step, self._measured_batch, plan),
            "entropy": arch.entropy(plan["temperature"]),
            "entropy_at_1": arch.entropy(1.0),
            **({} if close is None else {"undecided": close, "open": len(close)}),
            **({} if genotype.skips is None else {"skips": genotype.skips}),
            **({"audits": progress.audits} if self.config.execution.audit_every else {}),
            "update_seconds": {
                name.removesuffix(" seconds"): total for name, total in progress.totals.items() if "seconds" in name
            },
            "genotype": str(genotype),
            "alphas": {label: alpha.tolist() for label, alpha in arch.named_parameters()},
            **({"betas": betas} if betas else {}),
            **({"allowed": allowed} if allowed else {}),
            **self.judge(genotype),
        }
        is_last = self.epoch + 1 == self.epochs or self.method.stops([*self.folder.records, record])
        return {**record, **(self._evaluate() if is_last or (self.epoch + 1) % config.evaluate_every == 0 else {})}

    def tensors(self) -> dict[str, Tensor]:
        return {f"alpha/{label}": alpha for label, alpha in self.arch.named_parameters()}

    # Measurements. They do not affect the search: batch-norm statistics and random state are restored.

    def _evaluate(self) -> dict[str, Any]:
        """Accuracies and leakage."""
        arch, plan, started = self.arch, self.progress.plan, time.perf_counter()
        relaxation, validation, statistics = self.method.evaluation(plan), self._validation(), self._statistics()
        with self._own_random_state():
            raw = discretization(arch, validation, relaxation)
            renewed = discretization(arch, validation, relaxation, statistics)
            with arch.using(Softmax(plan["temperature"])):
                leaks = leakage(arch, next(iter(statistics))[0])
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

    def _validation_accuracy(self) -> float:
        """Accuracy of the supernet under the relaxation in force, the same in all processes."""
        with self._own_random_state(), renewed_statistics(self.model, self._statistics()):
            measured = torch.tensor(accuracy(self.model, self._validation()), device=self.accelerator.device)
        self.parallel.average([measured])
        return float(measured)

    def _measured_batch(self) -> Shard:
        """A batch of alpha images, of the same size and augmentation as in a step."""
        _, val = next(self.pairs.epoch(self.epoch))
        return self.parallel.shard(val)

    def _validation(self) -> _Repeatable:
        return _Repeatable(self.pairs.validation)

    def _statistics(self) -> _Repeatable:
        return _Repeatable(lambda: self.pairs.statistics(self.config.measurement.statistics_images))

    def _own_random_state(self) -> Any:
        device = self.accelerator.device
        return torch.random.fork_rng([device.index or 0] if device.type == "cuda" else [])

    def _audit(self, moment: Moment, batch: Shard) -> list[dict[str, Any]]:
        at, part = {"step": moment.step, "phi": moment.phi}, (batch, moment.phi)
        return [
            {**at, "threshold": t, **asdict(audit(self.arch, self.search_step.loss, part, t, self.alpha_optimizer))}
            for t in self.config.execution.audit_thresholds
        ]

    # The end

    def summarize(self) -> dict[str, Any]:
        config, every = self.config, self.folder.records
        records = every[: self._result(every) + 1]
        last = {field: value for record in records for field, value in record.items()}  # the latest value of each field
        of_epoch = {
            *(set() if "discretized_accuracy" in records[-1] else _MEASURED),  # they would be of another architecture
            "epoch",
            "sparse_share",
            "audits",
            "alphas",
            "betas",
            "allowed",
            "open",
            "seconds",
            "evaluation_seconds",
            "update_seconds",
        }
        averaged = self._averaged_genotype(records[-config.measurement.average_epochs :])
        with self.reading_result():
            edges = {label: name_or_names(names) for label, names in self.arch.choices().items()}
        summary = {
            "method": config.method.name,
            "seed": config.run.seed,
            "candidates": {label: [*op.names] for label, (op, *_) in self.arch.rows.items()},
            **{key: value for key, value in last.items() if key not in of_epoch},
            "averaged_genotype": str(averaged),
            **{f"averaged_{key}": value for key, value in self.judge(averaged).items()},
            "result_epoch": last["epoch"],
            **({} if config.measurement.best_from is None else {"best_from": config.measurement.best_from}),
            "seconds": sum(record["seconds"] for record in every),
            **({} if self.compilations is None else {"compilations": self.compilations.count}),
        }
        self.folder.write("genotype.json", {"space": self.space, "genotype": summary["genotype"], "edges": edges})
        self.folder.write("summary.json", summary)
        report = shlex.join(["sparsemix", "report", str(self.folder.path), "--figure", "search.png"])
        following = f"its course: {report}"
        if self.retrain is not None:
            following = f"to train it from scratch: {self.retrain(self.folder.path)}\n{following}"
        self.say(closing_lines(summary, len(self.arch.rows), self.folder.path, following))
        return summary

    def _result(self, records: Records) -> int:
        """Index of the record whose architecture is the result."""
        best, begin = None, self.config.measurement.best_from
        if begin is not None:
            best = best_epoch(records, range(math.ceil(begin * len(records)), len(records)))
        return self.method.result(records) if best is None else best

    def reading_result(self) -> AbstractContextManager[None]:
        """Within the context, the alphas and restrictions are those of the result's epoch."""
        record = self.folder.records[self._result(self.folder.records)]
        return self.arch.reading(_rows(record["alphas"]), record.get("allowed", {}))

    def result_weights(self) -> Mapping[str, Any] | None:
        """The supernet's state dict after the result's epoch; None if no checkpoint of that epoch was kept."""
        return self.folder.model_after(self.folder.records[self._result(self.folder.records)]["epoch"])

    def _averaged_genotype(self, records: Records) -> Any:
        """The genotype read out from the mean of the last epochs' alphas, which a late change affects less.

        Alphas that are set rather than trained have no meaningful mean: they name one architecture after another.
        """
        length = self.config.size.epochs
        trained = [record for record in records if self.method.trains_alphas(record["epoch"], length)] or records[-1:]
        alphas = [_rows(record["alphas"]) for record in trained]
        mean = {label: torch.stack([a[label] for a in alphas]).mean(0) for label in self.arch.rows}
        with self.arch.reading(mean, records[-1].get("allowed", {})):
            return self.read_out(self.arch, records[-1]["temperature"])

    # Checkpoints

    def state(self) -> dict[str, Any]:
        return {
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "alpha_gradients": [alpha.grad for alpha in self.arch.parameters()],  # for clipping with the weights' next
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        for alpha, gradient in zip(self.arch.parameters(), state["alpha_gradients"], strict=True):
            alpha.grad = None if gradient is None else gradient.to(alpha)

    def best_epoch(self) -> int | None:
        records, begin = self.folder.records, self.config.measurement.best_from
        if self.method.chooses_result:
            return self.method.result(records) + 1 if records else None
        first = 0 if begin is None else math.ceil(begin * self.epochs)
        best = best_epoch(records, range(first if first < len(records) else 0, len(records)))
        return None if best is None else best + 1


def _rows(alphas: Mapping[str, list[float]]) -> dict[str, Tensor]:
    return {label: torch.tensor(row) for label, row in alphas.items()}


_MEASURED = {
    "supernet_accuracy",
    "discretized_accuracy",
    "discretization_gap",
    "raw_supernet_accuracy",
    "raw_discretized_accuracy",
    "weight_leakage",
    "output_leakage",
}
"""Fields of a record that only evaluated epochs have."""


class _Repeatable:
    """An iterable that calls a function for a new iterator each time."""

    def __init__(self, begin: Callable[[], Iterator[Any]]) -> None:
        self.begin = begin

    def __iter__(self) -> Iterator[Any]:
        return self.begin()
