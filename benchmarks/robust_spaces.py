"""Search S1, S2, S3 or S4, the spaces on which DARTS ends in skip connections.

    accelerate launch benchmarks/robust_spaces.py --space s2 --preset proxy                 # embedded digits
    accelerate launch benchmarks/robust_spaces.py --space s3 --dataset cifar100 --download  # the paper's setting

The paper searches with t_sp of 4e-4 to 7e-4 and keeps the best: benchmarks/pick.py does that. Every flag: --help.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from darts_space import DartsConfig, main

from sparsemix.config import config_from_flags
from sparsemix.running import run_script
from sparsemix.spaces import robust


@dataclass(frozen=True)
class RobustConfig(DartsConfig):
    space: Literal["s1", "s2", "s3", "s4"] = "s1"
    """The operations of each edge."""


if __name__ == "__main__":
    run_script(lambda: main(config_from_flags(robust.PRESETS, kind=RobustConfig)))
