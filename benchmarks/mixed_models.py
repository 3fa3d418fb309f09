"""Models that this project did not write, mixed: how many layers, which candidates, and what the choices cost.

python benchmarks/mixed_models.py
"""

from __future__ import annotations

import torch

from sparsemix import ArchParameterGroup
from sparsemix.inject import mix_
from sparsemix.measure import macs, measure_costs, parameters
from sparsemix.speed.models import MODELS


def main() -> None:
    print("| model | family | where | layers | candidates", end=" ")
    print("| parameters | parameters of the choices | MACs | MACs of the choices |")
    print("|---|---|---|---|---|---|---|---|---|")
    image = torch.zeros(1, 3, 224, 224)
    for name, (build, family, where, share) in MODELS.items():
        model = build()
        before = parameters(model) / 1e6, macs(model, image) / 1e6
        mixed = mix_(model, family, where, share=share, example=image)
        arch = ArchParameterGroup(model)
        weights, operations = (measure_costs(arch, image, unit) for unit in ("parameters", "macs"))
        candidates = ", ".join(next(iter(mixed.values())).names)
        print(
            f"| {name} | {family} | {where or ''} | {len(mixed)} in {len(arch.rows)} rows | {candidates} "
            f"| {before[0]:.2f} M | {weights.cheapest / 1e6:.2f} to {weights.most_expensive / 1e6:.2f} M "
            f"| {before[1]:.0f} M | {operations.cheapest / 1e6:.0f} to {operations.most_expensive / 1e6:.0f} M |",
            flush=True,
        )


if __name__ == "__main__":
    main()
