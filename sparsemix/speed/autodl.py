"""The supernets of AutoDL-Projects, the code of NAS-Bench-201, from a checkout of it.

Source: https://github.com/D-X-Y/AutoDL-Projects, ``xautodl/models/cell_searchs``; its searches are
``exps/NAS-Bench-201-algos/DARTS-V1.py`` and ``GDAS.py``.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ..spaces.nb201 import OPERATIONS

__all__ = ["AutoDLSupernet", "check_autodl"]

_MODELS = {"DARTS": "TinyNetworkDarts", "GDAS": "TinyNetworkGDAS"}


class AutoDLSupernet(nn.Module):
    """A supernet of AutoDL-Projects, called and updated like :class:`~sparsemix.speed.published.PublishedSupernet`.

    Args:
        checkout: folder of AutoDL-Projects, see :func:`check_autodl`.
        method: ``"DARTS"``, whose candidates all run, or ``"GDAS"``, which runs one an edge.
        channels, cells, classes: of the supernet.
    """

    def __init__(self, checkout: Path, method: str, channels: int, cells: int, classes: int) -> None:
        super().__init__()
        sys.path.insert(0, str(checkout))
        try:
            models: Any = importlib.import_module("xautodl.models.cell_searchs")
        finally:
            sys.path.remove(str(checkout))
        supernet = getattr(models, _MODELS[method])
        # batch norms as ours: no scale and shift, but running statistics (the scripts' --track_running_stats 1)
        self.net = supernet(channels, cells, 4, classes, [*OPERATIONS], affine=False, track_running_stats=True)

    @property
    def alphas(self) -> nn.Parameter:
        return self.net.arch_parameters

    def forward(self, x: Tensor) -> Tensor:
        _, logits = self.net(x)
        return cast(Tensor, logits)

    def weight_parameters(self) -> list[nn.Parameter]:
        return [*self.net.get_weights()]


def check_autodl(checkout: Path) -> None:
    """Check that a folder is a checkout of AutoDL-Projects.

    Raises:
        ValueError: it is not.
    """
    models = checkout / "xautodl" / "models" / "cell_searchs"
    if not models.is_dir():
        raise ValueError(
            f"{checkout} is no checkout of AutoDL-Projects: {models} is not there; "
            f"git clone https://github.com/D-X-Y/AutoDL-Projects"
        )
