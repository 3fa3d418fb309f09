"""Base class of all sets of architecture parameters: those of a group, and tables that other code owns."""

from __future__ import annotations

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.modes import evaluating, having, restoring, work_out_of_place_
from .._utils.torch_private import version
from ..relaxations import NEVER, Argmax, Moment, Relaxation, Softmax, SparseSmoothSoftmax, entropy
from .architecture import Architecture, Genotype
from .chosen import Chosen
from .execution import Execution, Weights, changed_in_place, check_same_shape
from .mixed_op import MixedOp, call_arguments

__all__ = ["Alphas", "decided"]


class Alphas(Architecture, ABC):
    """Architecture parameters with their relaxation and phi, the choice of operations to run, and the read-out.

    Subclasses define where the alphas are stored and which mixed operations use them. The interface that other code
    relies on is :class:`~sparsemix.supernet.architecture.Architecture`.

    Attributes:
        moment: the moment of the next batch; :class:`~sparsemix.BatchMixedScheduler` sets it.
        phi: whether the next batch is sparse (Eq. 15); part of the moment.
        relaxation: ``(alpha, moment) -> weights``.
        discretization: the relaxation of the final choice: weight 1 for chosen candidates, 0 for the others; initially
            :class:`~sparsemix.relaxations.Argmax`. A replacement that chooses exactly one candidate per row must set
            ``keeps_one = True``.
        threshold: see :class:`~sparsemix.ArchParameterGroup`.
    """

    def __init__(self, relaxation: Relaxation | None, threshold: float) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"{type(self).__name__}: the threshold must be in [0, 1), got {threshold}")
        self.threshold: float = threshold
        self.relaxation: Relaxation = SparseSmoothSoftmax() if relaxation is None else relaxation
        self.discretization: Relaxation = Argmax()
        self._moment, self._is_spent, self._was_warned = NEVER, False, False
        self._alphas_fixed = False

    @property
    def moment(self) -> Moment:
        return self._moment

    @moment.setter
    def moment(self, value: Moment) -> None:
        self._moment, self._is_spent = value, False

    @property
    def phi(self) -> bool:
        return self._moment.phi

    @phi.setter
    def phi(self, value: bool) -> None:
        self.moment = replace(self._moment, phi=value)

    def spend_moment(self) -> None:
        """Record that a search step uses the present moment; warn once if a step has used it before and phi matters."""
        if self._is_spent and not self._was_warned and self._depends_on_phi():
            self._was_warned = True
            warnings.warn(
                f"a second search step under phi={self.phi}: nobody draws phi. Call "
                f"BatchMixedScheduler.step_update(update) before every step; for a single temperature use "
                f"sparsemix.relaxations.Softmax(temperature)",
                stacklevel=3,
            )
        self._is_spent = True

    def _depends_on_phi(self) -> bool:
        with torch.no_grad():
            smooth, sparse = (self._weights_at(replace(self._moment, phi=phi)) for phi in (False, True))
        return not all(map(torch.equal, smooth.values(), sparse.values()))

    # The parameters

    @abstractmethod
    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The alphas with their names, in order."""

    def named_betas(self) -> list[tuple[str, nn.Parameter]]:
        """The logits of weighed edges with their rows' labels, in order."""
        return []

    def parameters(self) -> list[nn.Parameter]:
        """The alphas and then the betas, for their own optimizer."""
        return [parameter for _, parameter in (*self.named_parameters(), *self.named_betas())]

    # The model

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The supernet."""

    @property
    @abstractmethod
    def rows(self) -> Mapping[str, Sequence[MixedOp]]:
        """Label -> the mixed operations that share that row of alphas."""

    @abstractmethod
    def row_alphas(self) -> dict[str, Tensor]:
        """The present alphas of every row, detached; ``-inf`` where a candidate is not allowed: label -> ``(M,)``."""

    @property
    def operations(self) -> list[MixedOp]:
        """The mixed operations, row by row."""
        return [op for ops in self.rows.values() for op in ops]

    # The relaxed weights

    @abstractmethod
    def _relaxed(self, relaxation: Relaxation, moment: Moment) -> Tensor:
        """All rows of alphas, relaxed together as one table ``(rows, widest row)``."""

    @abstractmethod
    def _weights_at(self, moment: Moment) -> dict[str, Tensor]:
        """The operation weights of a moment, label -> ``(M,)``."""

    def weights(self) -> dict[str, Tensor]:
        """The operation weights of every row under the present relaxation and moment: label -> tensor ``(M,)``."""
        with self._gradients_wanted():
            return self._weights_at(self.moment)

    def relaxed_rows(self) -> Tensor:
        """The operation weights before edges are weighted: a table ``(rows, widest row)``, padded with 0."""
        with self._gradients_wanted():
            return self._relaxed(self.relaxation, self.moment)

    def using(self, relaxation: Relaxation) -> AbstractContextManager[None]:
        """Within the context, the model runs under another relaxation (for evaluation at another temperature, say)."""
        return having(self, relaxation=relaxation)

    @property
    def keeps_one(self) -> bool:
        """Whether candidates compete for their row, of which exactly one is chosen."""
        return bool(getattr(self.discretization, "keeps_one", False))

    def discretized(self) -> AbstractContextManager[None]:
        """Within the context, the model runs with only the chosen operations of each row (Fig. 3b).

        Without gradients the others are not executed.
        """
        return self.using(self.discretization)

    def fixed_alphas(self) -> AbstractContextManager[None]:
        """Within the context, relaxed weights are constants: a weights update then computes no alpha gradient."""
        return having(self, _alphas_fixed=True)

    @property
    def has_model(self) -> bool:
        """Whether the model is known, and with it its weights and its mixed operations."""
        return True

    def check_bound(self) -> None:
        """Check that the model still uses these alphas; a group, which can be released, overrides this."""

    def check_finite(self) -> None:
        """Check that all alphas and betas are finite.

        Raises:
            FloatingPointError: one is NaN or infinite; the message names the first such row and shows its values.
        """
        parameters = self.parameters()
        if bool(torch.cat([parameter.detach().flatten() for parameter in parameters]).isfinite().all()):  # one transfer
            return
        for kind, named in (("alpha", self.named_parameters()), ("beta", self.named_betas())):
            for label, parameter in named:
                if not bool(parameter.isfinite().all()):
                    raise FloatingPointError(
                        f"{kind} of {label!r} is not finite: {parameter.tolist()}; lower the learning rates, or resume "
                        f"from the last checkpoint"
                    )

    def dry_run(self, *inputs: Any, **keywords: Any) -> None:
        """Run the model once without gradients and without changing any state, to find errors before training.

        Args:
            inputs, keywords: of the model's forward; usually one small batch.

        Raises:
            ValueError: candidates of some mixed operation disagree in shape; both are named. Or one of several
                candidates changes its input in place.
        """

        def check(op: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            x, _, keywords = call_arguments(*args, **given)
            shapes, before = [], version(x)
            for name, candidate in op.candidates.items():  # even none, which mix() does not run
                shapes.append(candidate(x, **keywords).shape)
                if len(op) > 1 and version(x) != before:
                    raise changed_in_place([name])
            for name, shape in zip(op.names, shapes, strict=True):
                check_same_shape(op.names[0], shapes[0], name, shape, x.shape)

        operations = [module for module in self.model.modules() if isinstance(module, MixedOp)]
        hooks = [op.register_forward_pre_hook(check, with_kwargs=True) for op in operations]
        try:
            with restoring(self.model), evaluating(self.model), torch.no_grad(), self.using(Softmax()):
                self.model(*inputs, **keywords)
        finally:
            for hook in hooks:
                hook.remove()

    # The read-out

    def entropy(self, temperature: float | None = None) -> float:
        """Information entropy summation over the rows, in nats (Eq. 21).

        Args:
            temperature: temperature of a softmax of the alphas; the paper prints Eq. 21 with 1. None takes the weights
                that the relaxation gives in a sparse batch, at the method's own training temperature (t_sp for
                SP-DARTS, as its code logs it; 1 for DARTS). Use None to compare methods.
        """
        relaxation: Relaxation = self.relaxation if temperature is None else Softmax(temperature)
        with torch.no_grad():
            return float(entropy(self._relaxed(relaxation, replace(self.moment, phi=True))))

    @abstractmethod
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The candidates chosen in every row: label -> names, strongest first; usually one, ``()`` if there is none."""

    def genotype(self) -> dict[str, str]:
        """The strongest candidate of every row: label -> name (Eq. 4); an exact tie goes to the earlier candidate.

        Rows without a chosen candidate are left out. If a row has several, only the strongest is given;
        :meth:`choices` gives all of them.
        """
        return {label: names[0] for label, names in self.choices().items() if names}

    def discretize(self, genotype: Genotype | None = None) -> nn.Module:
        """A copy of the model in which each mixed operation is replaced by its chosen candidate or candidates.

        The copy is an ordinary module without alphas, hooks or discarded candidates; the model itself is unchanged. To
        restore the network that a search found, pass the saved genotype to a newly built supernet, then load the
        network's weights. A mixed operation returns a new tensor, but a chosen skip connection returns its input.
        So that nothing overwrites it, modules of the copy then work out of place (``inplace=False``); functions such as
        ``out += x`` must be written out of place in the model itself.

        Args:
            genotype: label -> name, as returned by :meth:`genotype`, or label -> names, as returned by :meth:`choices`.
                Several candidates are summed without weights, and ``()`` gives zeros
                (:class:`~sparsemix.supernet.chosen.Chosen`). By default the current choice.

        Raises:
            ValueError: the genotype lacks a row, or names a row or a candidate that does not exist.

        Example:
            >>> from sparsemix import ArchParameterGroup
            >>> build = lambda: nn.Sequential(MixedOp({"skip": nn.Identity(), "linear": nn.Linear(4, 4)}))
            >>> arch = ArchParameterGroup(build())
            >>> found, genotype = arch.discretize(), arch.genotype()
            >>> again = ArchParameterGroup(build()).discretize(genotype)
            >>> again.load_state_dict(found.state_dict())
            <All keys matched successfully>
            >>> type(arch.discretize({"0": ("skip", "linear")})[0]).__name__
            'Chosen'
        """
        return self._copied({}, self.choices() if genotype is None else self._checked(genotype))

    def _copied(self, memo: dict[int, Any], chosen: Mapping[str, tuple[str, ...]]) -> nn.Module:
        """A deep copy of the model with each mixed operation replaced by its chosen candidates."""
        labels = {op: label for label, ops in self.rows.items() for op in ops}
        operations = [module for module in self.model.modules() if isinstance(module, MixedOp)]
        # modules() lists outer ones first, so that in reverse the inner ones are chosen before they are copied.
        for op in reversed([op for op in operations if op in labels]):
            memo[id(op)] = self._plain(op, chosen[labels[op]], memo)
        found = copy.deepcopy(self.model, memo)
        if any(_may_return_input(op, chosen[label]) for op, label in labels.items()):
            work_out_of_place_(found)
        return found

    def _plain(self, op: MixedOp, names: tuple[str, ...], memo: dict[int, Any]) -> nn.Module:
        """A copy of a mixed operation's chosen candidates, as the module that replaces it."""
        return Chosen({name: copy.deepcopy(op.candidates[name], memo) for name in names or op.names}, names)

    def _checked(self, genotype: Genotype) -> dict[str, tuple[str, ...]]:
        """Check that a genotype fits these rows; return the names chosen in each row."""
        if missing := [label for label in self.rows if label not in genotype]:
            raise ValueError(
                f"the genotype lacks {', '.join(missing)}; it has {', '.join(genotype) or 'nothing'} (a row of which "
                f"nothing is chosen has ())"
            )
        if others := [label for label in genotype if label not in self.rows]:
            raise ValueError(f"the genotype names rows that the model lacks: {', '.join(others)}")
        chosen = {label: (names,) if isinstance(names, str) else tuple(names) for label, names in genotype.items()}
        for label, names in chosen.items():
            known = self.rows[label][0].names
            for name in names:
                if name not in known:
                    raise ValueError(f"row {label!r} has no candidate {name!r}; it has {', '.join(known)}")
        return chosen

    def _gradients_wanted(self) -> AbstractContextManager[None]:
        return torch.no_grad() if self._alphas_fixed else nullcontext()

    def _decide(self) -> dict[str, Weights]:
        """The weights of every row, with the values on the host that determine which operations run; one transfer."""
        rows = self.weights()
        weak = Execution.SKIPPED if self._alphas_fixed else Execution.SCORED
        try:
            return dict(zip(rows, _on_host([*rows.values()], self.threshold, weak), strict=True))
        except FloatingPointError:
            self.check_finite()  # whose message says more
            raise


def _may_return_input(op: MixedOp, names: tuple[str, ...]) -> bool:
    """Whether the chosen candidate, having no parameters, may return its input itself, as ``nn.Identity`` does."""
    return len(names) == 1 and next(op.candidates[names[0]].parameters(), None) is None


def decided(weights: Tensor, threshold: float = 0.0) -> list[Weights]:
    """Turn weights relaxed by other code into rows for ``MixedOp(...)(x, row)`` that skip negligible candidates.

    With a plain tensor as row, every candidate runs. Call this once per forward: all rows share one transfer to the
    host.

    Args:
        weights: the relaxed weights, ``(edges, M)``.
        threshold: candidates with a smaller weight are scored if the weights require gradients, and skipped if not, as
            in a weights update on ``weights.detach()``. 0 skips only weights of exactly zero.

    Example:
        >>> op = MixedOp({"skip": nn.Identity(), "pool": nn.AvgPool2d(3, 1, 1)}, has_alpha=False)
        >>> [row] = decided(torch.tensor([[1.0, 0.0]]))
        >>> [execution.value for execution in op.executions(row)]
        ['full', 'skipped']
    """
    return _on_host([*weights], threshold, Execution.SCORED if weights.requires_grad else Execution.SKIPPED)


def _on_host(rows: list[Tensor], threshold: float, weak: Execution) -> list[Weights]:
    flat = torch.cat([row.detach() for row in rows]).abs().tolist()
    if not all(map(math.isfinite, flat)):
        raise FloatingPointError(f"the relaxation gave weights that are not finite: {flat}")
    values = iter(flat)
    threshold = threshold if torch.is_grad_enabled() else 0.0
    return [Weights(row.unbind(), [next(values) for _ in range(len(row))], threshold, weak) for row in rows]
