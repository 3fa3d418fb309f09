"""GDAS: one sampled operation per edge runs, the same in both updates of a step.

Source: Dong and Yang, "Searching for a Robust Neural Architecture in Four GPU Hours". Presets are their published code,
AutoDL-Projects.

The published code draws anew in every forward, and adds to the output the weights of the operations that do not run
(0 in the forward), so that these weights receive gradients, too. Here both updates use the same draw, and the alphas
receive gradients only through the operation that ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..relaxations import NEVER, Argmax, Moment, StraightThrough
from ..supernet.group import ArchParameterGroup
from .darts import SETTINGS
from .method import Columns, Method, Part, Plan

__all__ = ["GDAS", "METHODS", "GumbelArgmax", "with_gumbel_noise"]


class GumbelArgmax(nn.Module):
    """A sample of the softmax of the alphas: weight 1 for one candidate of a row, 0 for the rest.

    ``one_hot(argmax l) + s - stopgrad(s)`` with ``s = softmax(l / tau)``, ``l = log softmax(alpha) + g`` and Gumbel
    noise g, one number for each entry of each row, determined by the moment alone (Eq. 3 and 4).

    Args:
        tau: temperature of the gradient; the samples do not depend on it.

    Raises:
        ValueError: tau is not positive.

    Example:
        >>> relax = GumbelArgmax(tau=10.0)
        >>> relax(torch.zeros(2, 3), Moment(seed=0, epoch=0, step=1))
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """

    def __init__(self, tau: float) -> None:
        super().__init__()
        if not tau > 0:
            raise ValueError(f"GumbelArgmax: tau must be positive, got {tau}")
        self.tau = tau
        self.hard = StraightThrough(tau)

    def forward(self, alpha: Tensor, moment: Moment = NEVER) -> Tensor:
        return self.hard(with_gumbel_noise(alpha, moment))

    def extra_repr(self) -> str:
        return f"tau={self.tau:g}"


def with_gumbel_noise(alpha: Tensor, moment: Moment) -> Tensor:
    """``log softmax(alpha) + g``, with Gumbel noise g, one number for each entry, determined by the moment alone."""
    uniform = torch.rand(alpha.shape, generator=moment.generator("gumbel"), dtype=torch.float64)
    gumbel = -(-uniform.clamp_min(torch.finfo(torch.float64).tiny).log()).log()
    return alpha.log_softmax(-1) + gumbel.to(alpha)


@dataclass(frozen=True)
class GDAS(Part):
    """At every step, one operation per edge is sampled; the temperature tau of the gradient falls linearly."""

    tau_first: float = 10.0
    """Temperature tau of the gradient in the first epoch."""
    tau_last: float = 0.1
    """Temperature tau of the gradient in the last epoch."""

    mixes: ClassVar[bool] = False
    columns: ClassVar[Columns] = {"tau": ("tau", "{:.2f}".format)}

    def __post_init__(self) -> None:
        if not self.tau_first >= self.tau_last > 0:
            raise ValueError(
                f"GDAS: temperatures must be positive and fall, got tau_first={self.tau_first}, "
                f"tau_last={self.tau_last}"
            )

    def plan(self, arch: ArchParameterGroup, epoch: int, epochs: int) -> Plan:
        progress = min(1.0, epoch / max(epochs - 1, 1))
        return {"tau": self.tau_first + (self.tau_last - self.tau_first) * progress}

    def relaxation(self, plan: Plan) -> GumbelArgmax:
        return GumbelArgmax(plan["tau"])

    def evaluation(self, plan: Plan) -> Argmax:
        """Weight 1 for the strongest operation of each row: mixtures were never trained."""
        return Argmax()


# configs/nas-benchmark/algos/GDAS.config and scripts-search/NAS-Bench-201-algos/GDAS.sh
_NB201: dict[str, Any] = {
    **SETTINGS,
    "epochs": 250,
    "clip_alphas": True,
    "split": "benchmark",
    "sampling": "replacement",
}
# configs/search-opts/GDAS-NASNet-CIFAR.config and scripts-search/NASNet-space-search-by-GDAS.sh
_DARTS: dict[str, Any] = {
    **_NB201,
    "batch_size": 256,
    "weight_decay": 5e-4,
    "nesterov": True,
}

METHODS = (
    Method(
        "gdas",
        (GDAS(),),
        "one sampled operation an edge, straight-through gradient",
        {
            "nb201": {"nas-bench-201": {"*": _NB201}},
            "darts": {"original": {"*": {**_DARTS, "space": "darts-none"}}, "proxy": {"*": _DARTS}},
            "robust": {"original": {"*": _DARTS}},
            "timm": {"default": {"*": SETTINGS}},
        },
    ),
)
