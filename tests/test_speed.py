"""The speed benchmark at toy sizes: that it measures what it says, not how fast anything is."""

import json
from dataclasses import replace

import pytest
import timm
import torch

import sparsemix.models  # noqa: F401  (registers the supernets)
from sparsemix import ArchParameterGroup
from sparsemix.methods.registry import find_method, methods
from sparsemix.relaxations import Moment
from sparsemix.spaces.nb201 import NB201Genotype
from sparsemix.speed.dense import dense
from sparsemix.speed.dispatch import count_dispatched
from sparsemix.speed.measurement import Options, measure_speed


def test_every_comparison_is_measured(tmp_path, capsys):
    options = Options(
        cells=(1,),
        darts_cells=3,
        candidates=(2,),
        models=("mobilenetv3_small_100",),
        channels=4,
        image_size=8,
        batch_size=8,
        rounds=1,
        schedule_cells=1,
        schedule_epochs=2,
        schedule_images=64,
        json=tmp_path / "speed.json",
    )
    rows = measure_speed(options)
    assert json.loads((tmp_path / "speed.json").read_text()) == rows
    comparisons = {}
    for row in rows:
        comparisons.setdefault(row["comparison"], []).append(row)
    assert len(comparisons) == 13
    assert all(variants[0]["ratio"] == 1 for variants in comparisons.values())
    step = {row["variant"]: row["operations"] for row in comparisons["NAS-Bench-201, N 1: step"]}
    assert step["smooth"] == "30, 30"
    assert step["sparse, 8 of 30 active, two 3x3"] == "8, 8 and 22 scored"
    assert {row["operations"] for row in comparisons["N 1: one operation"]} == {"6, 6"}
    published, *ours = comparisons["NAS-Bench-201, N 1: step"]
    assert all(0 < row["dispatched"] < published["dispatched"] for row in ours)
    assert all(row["dispatched_ratio"] == row["dispatched"] / published["dispatched"] for row in ours)
    dense, *sparse = comparisons["DARTS space: weights update"]
    assert all(row["peak_memory"] < dense["peak_memory"] for row in sparse)
    for row in comparisons["N 1: 2 epochs of 4 steps"]:
        assert NB201Genotype.parse(row["genotype"])
        assert 0 <= row["accuracy"] <= 1
    assert "| DARTS space: step | smooth | 196, 196 |" in capsys.readouterr().out


AUTODL = """
import torch

class Network(torch.nn.Module):
    def __init__(self, C, N, max_nodes, num_classes, search_space, affine, track_running_stats):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, C, 3)
        self.classifier = torch.nn.Linear(C, num_classes)
        self.arch_parameters = torch.nn.Parameter(torch.zeros(C, len(search_space)))

    def get_weights(self):
        return [*self.stem.parameters(), *self.classifier.parameters()]

    def forward(self, x):
        x = self.stem(x).mean((2, 3)) * self.arch_parameters.softmax(1).max(1)[0]
        return x, self.classifier(x)

class TinyNetworkDarts(Network):
    pass

class TinyNetworkGDAS(Network):
    pass
"""


def test_supernets_of_a_checkout_are_measured_beside_ours(tmp_path):
    package = tmp_path / "xautodl" / "models" / "cell_searchs"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(AUTODL)
    small = Options(only="AutoDL", cells=(1,), channels=4, image_size=8, batch_size=4, rounds=1)
    with pytest.raises(ValueError, match="elsewhere is no checkout of AutoDL-Projects"):
        measure_speed(replace(small, autodl=tmp_path / "elsewhere"))
    rows = measure_speed(replace(small, autodl=tmp_path))
    assert {row["comparison"] for row in rows} == {"AutoDL-Projects, N 1: step"}
    darts, gdas, *ours = rows
    assert [row["variant"] for row in (darts, gdas)] == ["AutoDL-Projects, DARTS", "AutoDL-Projects, GDAS"]
    assert [row["operations"] for row in ours] == ["30, 30", *["8, 8 and 22 scored"] * 2]
    assert 0 < darts["dispatched"] == gdas["dispatched"]


def test_operators_and_synchronizations_are_counted_forward_and_backward():
    x = torch.ones(3, requires_grad=True)

    def step():
        loss = (x.view(3, 1) * 2).sum()
        loss.backward()
        return loss.item(), bool(loss > 0)

    counts = count_dispatched(step)
    assert counts.operators["aten.mul.Tensor"] == 2  # and its gradient
    assert not any("view" in name or "expand" in name for name in counts.operators)
    assert counts.total == counts.operators.total()
    assert counts.synchronizations == 2


@pytest.mark.parametrize("name", methods())
def test_every_method_in_the_dense_formulation_is_the_same(name):
    """Outputs, and gradients of alphas, edge weights and network weights."""
    torch.manual_seed(0)
    method = find_method(name)
    options = {"channels": 8, "cells": 1, **method.supernet()}
    model = timm.create_model("sparsemix_nb201_supernet", **options).double()
    arch = ArchParameterGroup(model)
    method.prepare_(arch)
    with torch.no_grad():
        for alpha in arch.parameters():
            alpha.normal_()
    arch.restrict("2<-0", ["skip_connect", "nor_conv_3x3"])
    plan, x = method.plan(arch, 1, 3), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    arch.relaxation = method.relaxation(plan)
    learnt_otherwise = {"gdas", "straight-through"}  # where an operation of weight 0 tells its alpha nothing
    alphas = arch.parameters() if name not in learnt_otherwise else []
    parameters = [*alphas, *arch.weight_parameters()]

    def run():
        loss = model(x).square().sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [loss, *(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True))]

    for moment in (Moment(3, 1, step) for step in range(2)):
        arch.moment = replace(moment, phi=method.phi(moment, plan))
        with dense(model):
            expected = run()
        for ours, theirs in zip(run(), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
