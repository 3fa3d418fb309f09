"""A search in float64 without batch norm, for test_parallel.py: launched in one process and in two.

parallel_search.py OUTPUT ORDER FAULT METHOD: FAULT is ``none``, ``drift`` (an alpha of the last process changes) or
``raise``.
"""

import sys
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import nn

from sparsemix import ArchParameterGroup, MixedOp, SparseSmoothSoftmax
from sparsemix.data import open_pairs
from sparsemix.runs.config import SearchConfig, configured
from sparsemix.runs.launching import make_accelerator
from sparsemix.runs.search import Search


class Choice(dict):
    skips = 0


class Double(nn.Module):
    def forward(self, x):
        return x.double()


def mixed(channels):
    return MixedOp(
        {
            "conv1": nn.Conv2d(channels, channels, 1),
            "conv3": nn.Conv2d(channels, channels, 3, padding=1),
            "skip": nn.Identity(),
            "pool": nn.MaxPool2d(3, 1, 1),
        }
    )


def supernet(channels=4):
    stem = nn.Sequential(Double(), nn.Conv2d(1, channels, 3, padding=1))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    return nn.Sequential(stem, mixed(channels), nn.ReLU(), mixed(channels), head).double()


def main(output, order, fault, method="sp-darts"):
    settings = {"epochs": 3, "batch_size": 31, "limit": 434, "order": order, "device": "cpu", "output": Path(output)}
    mixed = {"p_low": 0.5} if method == "sp-darts" else {}
    config = configured(SearchConfig(), {**settings, "method": method, **mixed})
    accelerator = make_accelerator("cpu")
    set_seed(0)
    pairs = open_pairs("digits", batch_size=31, limit=434)  # 7 pairs an epoch, of odd size
    arch = ArchParameterGroup(supernet(), SparseSmoothSoftmax(), threshold=0.0 if method == "darts-es" else 1e-3)
    last = accelerator.process_index == accelerator.num_processes - 1
    if fault != "none" and last:
        step = Search.step

        def struck(self, batch):
            now = self.epoch * len(self.data) + self.progress.step
            if now == 10 and fault == "raise":
                raise ArithmeticError("the last process fails")
            if now == 10:
                with torch.no_grad():
                    arch.parameters()[1][2] += 1e-12
            step(self, batch)

        Search.step = struck
    Search(config, arch, pairs, accelerator, "test", lambda arch, temperature: Choice(arch.genotype())).run()
    torch.save([alpha.detach() for alpha in arch.parameters()], Path(output) / f"alphas-{accelerator.process_index}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
