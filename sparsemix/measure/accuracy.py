"""Accuracy, the discretisation gap, and the batch-norm statistics with which they are measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.modes import evaluating
from .._utils.torch_private import is_batch_norm
from ..supernet.architecture import Architecture

__all__ = ["Discretization", "accuracy", "discretization", "renewed_statistics", "topk_accuracy"]

Batches = Iterable[tuple[Tensor, Tensor]]


def accuracy(model: nn.Module, batches: Batches) -> float:
    """The share of images classified correctly, in [0, 1], in evaluation mode.

    Raises:
        ValueError: there is no image.
    """
    return topk_accuracy(model, batches, (1,))[1]


def topk_accuracy(model: nn.Module, batches: Batches, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """For each k the share of images whose class is among the k most likely, in [0, 1], in evaluation mode.

    Raises:
        ValueError: there is no image.
    """
    correct, count = torch.zeros(len(ks)), 0
    with evaluating(model), torch.no_grad():
        for x, y in batches:
            logits = model(x)
            ranked = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices == y[:, None]
            correct = correct.to(y.device) + torch.stack([ranked[:, :k].sum() for k in ks])
            count += len(y)
    if not count:
        raise ValueError("accuracy: no images to evaluate on")
    return dict(zip(ks, (correct.double() / count).tolist(), strict=True))


@contextmanager
def renewed_statistics(model: nn.Module, batches: Batches) -> Iterator[None]:
    """Context manager: compute the running statistics of batch norms from these batches; restore the old ones on exit.

    During a search, running statistics average over the mixtures of the training batches, at two temperatures and with
    changing weights. The network under evaluation has different statistics. This computes them in one forward pass over
    the batches, without training (the mean of the batches' statistics, as in ``torch.optim.swa_utils.update_bn``).

    Args:
        model: in the state in which it will be evaluated; batch norms that do not run keep their statistics.
        batches: (images, labels).

    Raises:
        ValueError: there is no batch.
    """
    norms = [m for m in model.modules() if is_batch_norm(m) and m.track_running_stats]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    saved, momenta = [buffer.clone() for buffer in buffers], [norm.momentum for norm in norms]
    try:
        with evaluating(model), torch.no_grad():
            for norm in norms:
                norm.train()
            count = 0
            for count, (x, _) in enumerate(batches, 1):
                for norm in norms:
                    norm.momentum = 1 / count  # the mean so far
                model(x)
        if norms and not count:
            raise ValueError(
                "renewed_statistics: no batch to compute statistics from; give batches that can be iterated over "
                "again, such as a list"
            )
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)


@dataclass(frozen=True)
class Discretization:
    """Accuracy of the supernet as trained, and with only the chosen operations of each row."""

    supernet: float
    discretized: float

    @property
    def gap(self) -> float:
        """The discretisation gap, the supernet's accuracy minus that of its discretisation, on the same batches."""
        return self.supernet - self.discretized


def discretization(
    arch: Architecture, batches: Batches, relaxation: Any = None, statistics: Batches | None = None
) -> Discretization:
    """Measure the accuracy lost when only the chosen operations are kept, without retraining (Fig. 3b).

    Args:
        arch: the supernet's architecture parameters.
        batches: (images, labels); iterated over twice.
        relaxation: the relaxation under which the supernet is evaluated; by default the group's present one.
        statistics: training batches on which batch-norm statistics are renewed before each of the two evaluations, see
            :func:`renewed_statistics`; None: running statistics as training left them.
    """

    def measured() -> float:
        with nullcontext() if statistics is None else renewed_statistics(arch.model, statistics):
            return accuracy(arch.model, batches)

    with arch.using(relaxation or arch.relaxation):
        supernet = measured()
    with arch.discretized():
        return Discretization(supernet, measured())
