"""Every method takes steps on supernets of other kinds than NAS-Bench-201's, and goes on in the middle of an epoch."""

import copy
from dataclasses import replace
from itertools import islice

import pytest
import timm
import torch
from torch import nn

import sparsemix.models  # noqa: F401  (registers the supernets)
from sparsemix import MixedOp
from sparsemix.data import open_pairs
from sparsemix.inject import mix_
from sparsemix.methods.registry import methods
from sparsemix.runs.custom import custom_config, custom_search


def darts_space(**options):
    """The smallest: three operations an edge."""
    return timm.create_model("sparsemix_darts_supernet", space="s3", channels=8, cells=3, in_chans=1, **options)


class Ragged(nn.Module):
    """A user's supernet: rows of two and three candidates; two edges compete for one node, one leads to another."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.first = self.edge("2<-0", "2", pool=True)
        self.second = self.edge("2<-1", "2", pool=False)
        self.third = self.edge("3<-2", "3", pool=True)
        self.head = nn.Linear(4, 10)

    def edge(self, label, node, pool):
        conv = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        return MixedOp({"skip": nn.Identity(), "conv": conv, **({"pool": nn.AvgPool2d(3, 1, 1)} if pool else {})},
                       label=label, node=node)  # fmt: skip

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.third(self.first(x) + self.second(x.relu())).mean((2, 3)))


def timm_model():
    model = timm.create_model("resnet10t", in_chans=1, num_classes=10)
    mix_(model, "activation", "layer1*", example=torch.zeros(1, 1, 32, 32))
    return model


ALL_CHANNELS = {"channel_parts": 1, "frozen_epochs": 0, "stage_parts": (1,), "drop_path": 0.0}
BUILT = {
    "darts": (darts_space, 8, {"frozen_epochs": 0, "channel_parts": 4}),
    "ragged": (Ragged, 8, ALL_CHANNELS),
    "timm": (timm_model, 32, ALL_CHANNELS),
}
WITHOUT_ALPHAS = {"random-search", "single-path"}  # they choose by chance


def make(name, kind, folder, resume=False):
    build, size, settings = BUILT[kind]
    config = custom_config(name)
    given = {"epochs": 100, "batch_size": 8, "device": "cpu", "output": folder, "resume": resume, "products": 3}
    known = {setting: value for setting, value in {**given, **settings}.items() if setting in config.settings}
    return custom_search(build, pairs(size), custom_config(name, known))


def pairs(size):
    return open_pairs("digits", batch_size=8, limit=64, image_size=size)


@pytest.mark.parametrize("kind", BUILT)
@pytest.mark.parametrize("name", methods())
def test_steps_and_a_resumed_one(name, kind, tmp_path):
    if kind == "timm" and "pc-darts" in name:
        with pytest.raises(ValueError, match=r"weigh_edges_: none of the rows .* names the node"):
            make(name, kind, tmp_path / "run")
        return
    search = make(name, kind, tmp_path / "run")
    batches = [*islice(search.pairs.epoch(0), 2)]
    search.begin_epoch()
    before = [
        copy.deepcopy([*parameters]) for parameters in (search.arch.parameters(), search.arch.weight_parameters())
    ]
    search.step(batches[0])
    search.progress.step += 1
    after = search.arch.parameters(), search.arch.weight_parameters()
    alphas_moved, weights_moved = (
        any(not torch.equal(a, b) for a, b in zip(old, new, strict=True))
        for old, new in zip(before, after, strict=True)
    )
    assert weights_moved
    assert alphas_moved == (name not in WITHOUT_ALPHAS and search.method.trains_alphas(0, 100))
    search.check_finite()
    search.save()
    again = make(name, kind, tmp_path / "run", resume=True)
    for each in (search, again):
        torch.manual_seed(1)
        each.begin_epoch()
        each.step(batches[1])
    ours, theirs = search.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(value, theirs[entry]) for entry, value in ours.items())
    assert without_time(again.progress) == without_time(search.progress)


def without_time(progress):
    totals = {name: total for name, total in progress.totals.items() if "seconds" not in name}
    return replace(progress, seconds=0, totals=totals)
