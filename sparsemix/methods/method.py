"""Search methods: parts, each of which changes something about a search, and compositions of parts.

A method is a file in this folder. It holds a :class:`Part`, whose fields are the method's settings, and ``METHODS``:
the names under which it can be chosen, with the published settings. No other code needs to refer to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..relaxations import Argmax, Moment, Relaxation, Softmax
from ..supernet.group import ArchParameterGroup
from .bilevel import SearchStep

__all__ = ["Columns", "Evidence", "Method", "Part", "Phase", "Plan", "Presets", "Records", "Step"]

Plan = Mapping[str, Any]
"""A method's values for an epoch, such as its temperature, as numbers, strings and lists that JSON can hold."""

Records = Sequence[Mapping[str, Any]]
"""The records of a search's epochs so far, as ``records.jsonl`` holds them."""

Step = SearchStep[ArchParameterGroup]

Presets = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Preset -> data set (``"*"`` for all) -> settings; the first preset is the default."""

Columns = Mapping[str, tuple[str, Callable[[Any], str]]]
"""Field of a record -> (heading, how its value is written)."""


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs that begins with a fresh optimizer state and a learning-rate schedule of its own.

    Attributes:
        epochs: length of the phase.
        lr: initial learning rate of the weights in this phase, as a share of the search's initial learning rate.
    """

    epochs: int
    lr: float = 1.0


@dataclass(frozen=True)
class Evidence:
    """What a decision before an epoch can be based on.

    Attributes:
        moment: the epoch, for draws.
        epochs: length of the search.
        records: the records of the epochs before.
        accuracy: measures the accuracy of the present supernet on the images used to train the alphas.
        temperature: the temperature at which rows are compared.
    """

    moment: Moment
    epochs: int
    records: Records = ()
    accuracy: Callable[[], float] = lambda: 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Part:
    """One thing that a method changes about a search. The base class changes nothing, which is first-order DARTS.

    Subclasses are frozen dataclasses; their fields are the method's settings, checked in ``__post_init__``. A part
    holds no state. Its values for an epoch are its plan, which is recorded and saved; its draws depend only on the
    moment; its decisions are stored in the supernet's ``state_dict``. A search can therefore be resumed anywhere.

    At most one part of a method may define each name in :attr:`EXCLUSIVE`; everything else is called on all parts.
    """

    EXCLUSIVE: ClassVar[tuple[str, ...]] = (
        "supernet", "phases", "alpha_optimizer", "relaxation", "evaluation", "phi", "passes", "result",
        "at_temperature", "discretization",
    )  # fmt: skip
    columns: ClassVar[Columns] = {}
    """Fields of the plan that are shown for every epoch."""
    mixes: ClassVar[bool] = True
    """Whether the weights are trained in mixtures of operations, and not one operation at a time."""
    needs_mixtures: ClassVar[str | None] = None
    """What this part does with trained mixtures, for error messages; None if it does not need them."""

    def objection(self, other: Part) -> str | None:
        """Why this part cannot be combined with another one; None if it can."""
        if self.needs_mixtures is None or other.mixes:
            return None
        one, another = type(self).__name__, type(other).__name__
        return f"{one} {self.needs_mixtures}, and {another} never trains mixtures"

    # Before the search

    def supernet(self) -> Mapping[str, Any]:
        """Keyword arguments with which the space's supernet is built, such as its share of mixed channels."""
        return {}

    def check(self, arch: ArchParameterGroup, epochs: int) -> None:
        """Check that the settings fit the supernet and the length of the search, before anything is written."""

    def prepare_(self, arch: ArchParameterGroup) -> None:
        """Change the supernet or its alphas, before optimizers are made."""

    def phases(self, arch: ArchParameterGroup, epochs: int) -> Sequence[Phase]:
        """The phases of the search in order; by default one phase of ``epochs`` epochs."""
        return [Phase(epochs)]

    def alpha_optimizer(self, arch: ArchParameterGroup, settings: Any) -> Any:
        """The alphas' optimizer; None: the Adam optimizer of the settings."""
        return None

    def discretization(self) -> Relaxation:
        """Which operations of a row are kept when it is read out; by default the strongest one."""
        return Argmax()

    # An epoch

    def plan(self, arch: ArchParameterGroup, epoch: int, epochs: int) -> Plan:
        """Values for the epoch about to begin; ``temperature`` is the one at which rows are compared and read out."""
        return {}

    def shape_(self, arch: ArchParameterGroup, pairs: Any, optimizer: torch.optim.Optimizer, plan: Plan) -> None:
        """Adjust the supernet, its optimizer's state, and the pairs of batches it is trained on to the epoch's plan.

        Called again when a run is resumed in the middle of an epoch: existing adjustments must then be kept.
        """

    def decide(self, arch: ArchParameterGroup, evidence: Evidence) -> Plan:
        """Decide parts of the architecture before an epoch, by ``arch.restrict(row, names)`` or by setting alphas.

        Called under the method's :meth:`evaluation` relaxation.

        Returns:
            The values to record about the decision.
        """
        return {}

    def trains_alphas(self, epoch: int, epochs: int) -> bool:
        """Whether the alphas are updated in an epoch; all parts of a method must agree."""
        return True

    def relaxation(self, plan: Plan) -> Relaxation:
        """The relaxation of the epoch's batches."""
        return Softmax()

    def evaluation(self, plan: Plan) -> Relaxation:
        """The relaxation under which the supernet is evaluated; it must not draw random numbers."""
        return Softmax()

    # A step

    def phi(self, moment: Moment, plan: Plan) -> bool:
        """Whether the batch is a sparse one (Eq. 15)."""
        return False

    def passes(self, moment: Moment, plan: Plan) -> Sequence[bool]:
        """The values of phi for which the batch runs; the losses are summed. By default only the phi drawn."""
        return [moment.phi]

    def around_weights(self, step: Step, batch: Any, plan: Plan) -> AbstractContextManager[None]:
        """A context for the weights' update only, for instance to use another relaxation there."""
        return nullcontext()

    def penalty(self, arch: ArchParameterGroup, plan: Plan) -> Tensor | None:
        """A term that is added to the alphas' loss; None: no term."""
        return None

    # After an epoch

    def measure(self, step: Step, batch: Any, plan: Plan) -> Plan:
        """Measurements of the supernet to record at the end of an epoch, on a batch of the alphas' images."""
        return {}

    def stops(self, records: Records) -> bool:
        """Whether the search is over, judged by its records alone; called before every epoch."""
        return False

    def result(self, records: Records) -> int:
        """Index of the record whose architecture is the result; by default the last one."""
        return len(records) - 1

    # Variants

    def at_temperature(self, temperature: float) -> Part:
        """A copy with another temperature, and all its other temperatures in the same ratio to it."""
        raise ValueError(f"{type(self).__name__}: this method is not searched at several temperatures")

    @property
    def settings(self) -> dict[str, Any]:
        """Field -> value."""
        return asdict(self)


@dataclass(frozen=True)
class Method:
    """A named composition of parts, with the settings that were published for it.

    Args:
        name: the name by which it is chosen, such as ``"sp-darts"``.
        parts: the parts, each of which changes something about the search.
        summary: one line that describes the method.
        presets: search space -> :data:`Presets`: settings of any field, including those of the parts.

    Raises:
        ValueError: two parts define the same item of :attr:`Part.EXCLUSIVE`, share a field name, or are incompatible.

    Example:
        >>> Method("plain", (Part(),)).plan(arch=None, epoch=0, epochs=1)
        {'temperature': 1.0}
    """

    name: str
    parts: tuple[Part, ...]
    summary: str = ""
    presets: Mapping[str, Presets] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for one, other in combinations(self.parts, 2):
            both = f"{self.name}: {type(one).__name__} and {type(other).__name__} cannot be combined, since both"
            if shared := [seam for seam in Part.EXCLUSIVE if _defines(one, seam) and _defines(other, seam)]:
                raise ValueError(f"{both} define {', '.join(shared)}")
            if shared := [name for name in one.settings if name in other.settings]:
                raise ValueError(f"{both} have the setting {', '.join(shared)}")
            if reason := one.objection(other) or other.objection(one):
                raise ValueError(f"{self.name}: {reason}")

    def __add__(self, other: Method) -> Method:
        """The combination of two methods: presets of this one, plus the other's default settings for its own parts."""
        own = {name for part in other.parts for name in part.settings}
        presets = {
            space: {
                preset: {
                    dataset: {**_only(own, other.default_settings(space, dataset)), **of_preset.get(dataset, {})}
                    for dataset in {**of_preset, **other.default_presets(space)}
                }
                for preset, of_preset in of_space.items()
            }
            for space, of_space in self.presets.items()
        }
        summary = f"{self.summary}; {other.summary}"
        return Method(f"{self.name}+{other.name}", (*self.parts, *other.parts), summary, presets)

    def default_settings(self, space: str, dataset: str = "*") -> Mapping[str, Any]:
        """The settings of the first preset on a space, for one data set or for all."""
        return self.default_presets(space).get(dataset, {})

    def default_presets(self, space: str) -> Mapping[str, Mapping[str, Any]]:
        """The first preset on a space: data set -> settings."""
        return next(iter(self.presets.get(space, {}).values()), {})

    def with_settings(self, settings: Mapping[str, Any]) -> Method:
        """A copy with other values for the parts' fields; names that are not such fields are ignored."""
        parts = (type(part)(**{**part.settings, **_only(part.settings, settings)}) for part in self.parts)
        return Method(self.name, tuple(parts), self.summary, self.presets)

    @property
    def settings(self) -> dict[str, Any]:
        """Field -> value, of all parts."""
        return {name: value for part in self.parts for name, value in part.settings.items()}

    @property
    def columns(self) -> Columns:
        return {name: column for part in self.parts for name, column in part.columns.items()}

    # Combined from all parts

    def check(self, arch: ArchParameterGroup, epochs: int) -> None:
        for part in self.parts:
            part.check(arch, epochs)

    def prepare_(self, arch: ArchParameterGroup) -> None:
        for part in self.parts:
            part.prepare_(arch)

    def plan(self, arch: ArchParameterGroup, epoch: int, epochs: int) -> dict[str, Any]:
        return {"temperature": 1.0, **_merged(part.plan(arch, epoch, epochs) for part in self.parts)}

    def shape_(self, arch: ArchParameterGroup, pairs: Any, optimizer: torch.optim.Optimizer, plan: Plan) -> None:
        for part in self.parts:
            part.shape_(arch, pairs, optimizer, plan)

    def decide(self, arch: ArchParameterGroup, evidence: Evidence) -> dict[str, Any]:
        return _merged(part.decide(arch, evidence) for part in self.parts)

    def trains_alphas(self, epoch: int, epochs: int) -> bool:
        return all(part.trains_alphas(epoch, epochs) for part in self.parts)

    def ever_trains_alphas(self, epochs: int) -> bool:
        """Whether the alphas are updated in any epoch, and not only set."""
        return any(self.trains_alphas(epoch, epochs) for epoch in range(epochs))

    @contextmanager
    def around_weights(self, step: Step, batch: Any, plan: Plan) -> Iterator[None]:
        with ExitStack() as contexts:
            for part in self.parts:
                contexts.enter_context(part.around_weights(step, batch, plan))
            yield

    def measure(self, step: Step, draw: Callable[[], Any], plan: Plan) -> dict[str, Any]:
        """The measurements of all parts; ``draw`` loads the batch, and is called only if a part measures something."""
        measuring = (part for part in self.parts if _defines(part, "measure"))
        return _merged(part.measure(step, draw(), plan) for part in measuring)

    def penalties(self, arch: ArchParameterGroup, plan: Plan) -> list[Tensor]:
        penalties = (part.penalty(arch, plan) for part in self.parts)
        return [penalty for penalty in penalties if penalty is not None]

    def stops(self, records: Records) -> bool:
        return any(part.stops(records) for part in self.parts)

    # Taken from the one part that defines it

    def supernet(self) -> Mapping[str, Any]:
        return self._deciding("supernet").supernet()

    def phases(self, arch: ArchParameterGroup, epochs: int) -> Sequence[Phase]:
        return self._deciding("phases").phases(arch, epochs)

    def alpha_optimizer(self, arch: ArchParameterGroup, settings: Any) -> Any:
        return self._deciding("alpha_optimizer").alpha_optimizer(arch, settings)

    def discretization(self) -> Relaxation:
        return self._deciding("discretization").discretization()

    def relaxation(self, plan: Plan) -> Relaxation:
        return self._deciding("relaxation").relaxation(plan)

    def evaluation(self, plan: Plan) -> Relaxation:
        return self._deciding("evaluation").evaluation(plan)

    def phi(self, moment: Moment, plan: Plan) -> bool:
        return self._deciding("phi").phi(moment, plan)

    def passes(self, moment: Moment, plan: Plan) -> Sequence[bool]:
        return self._deciding("passes").passes(moment, plan)

    def result(self, records: Records) -> int:
        return self._deciding("result").result(records)

    @property
    def chooses_result(self) -> bool:
        """Whether a part chooses the epoch whose architecture is the result."""
        return _defines(self._deciding("result"), "result")

    def at_temperature(self, temperature: float) -> Method:
        """A copy of the method in which the part with a temperature uses ``temperature``.

        Raises:
            ValueError: no part has a temperature that is searched.
        """
        deciding = self._deciding("at_temperature")
        parts = [part.at_temperature(temperature) if part is deciding else part for part in self.parts]
        return Method(self.name, tuple(parts), self.summary, self.presets)

    def _deciding(self, seam: str) -> Part:
        return next((part for part in self.parts if _defines(part, seam)), self.parts[0])


def _defines(part: Part, seam: str) -> bool:
    return getattr(type(part), seam) is not getattr(Part, seam)


def _merged(of_parts: Iterable[Plan]) -> dict[str, Any]:
    return {name: value for of_part in of_parts for name, value in of_part.items()}


def _only(names: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in names}
