"""PyTorch's private names: what this project relies on, so that a change of PyTorch shows here first."""

import collections
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparsemix._utils import torch_private as private

ROOT = Path(private.__file__).parent.parent


def test_hooks_are_seen():
    assert not private.has_forward_hooks(nn.ReLU())
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        module = nn.ReLU()
        handle = getattr(module, register)(lambda *_: None)
        assert private.has_forward_hooks(module)
        assert len(private.forward_pre_hooks(module)) == ("pre" in register)
        handle.remove()
        assert not private.has_forward_hooks(module)


def test_compilation_is_seen():
    module = nn.Linear(2, 2)
    assert not private.is_compiled(module)
    assert private.is_compiled(torch.compile(module, backend="eager"))
    module.compile(backend="eager")
    assert private.is_compiled(module)


@pytest.mark.parametrize(
    "module", [nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.Sequential(nn.Linear(2, 2)), nn.ReLU()]
)
def test_parameters_of_a_module(module):
    assert [*private.own_parameters(module)] == [*module.parameters()]


def test_buffers_can_be_put_back():
    norm = nn.BatchNorm1d(2)
    before = norm.running_mean
    norm.running_mean = torch.ones(2)
    private.buffers_of(norm)["running_mean"] = before
    assert norm.running_mean is before


def test_changes_in_place_are_counted():
    x = torch.zeros(2)
    before = private.version(x)
    x + 1
    assert private.version(x) == before
    x.add_(1)
    assert private.version(x) > before


def test_a_recomputation_knows_that_it_is_one():
    seen = []

    def watched(x):
        seen.append(private.in_backward_pass())
        return x.square()

    x = torch.ones(2, requires_grad=True)
    checkpoint(watched, x, use_reentrant=False).sum().backward()
    assert seen == [False, True]
    assert not private.in_backward_pass()


def test_what_is_called_at_the_end_of_a_backward_pass():
    seen = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda gradient: seen.append("leaf"))
    y = x.square()
    y.register_hook(lambda gradient: private.at_end_of_backward(lambda: seen.append("end")))
    y.sum().backward()
    assert seen == ["leaf", "end"]


def test_calls_of_a_module_on_the_stack():
    class Nested(nn.Module):
        def forward(self, depth):
            return [private.calls_running(self), *(self(depth - 1) if depth else [])]

    module = Nested()
    assert nn.Sequential(module)(2) == [1, 2, 3]
    assert private.calls_running(module) == 0


def test_many_tensors_at_once():
    tensors, others = [torch.zeros(2), torch.ones(3)], [torch.full((2,), 3.0), torch.full((3,), 4.0)]
    assert [float(norm) for norm in private.norms(tensors)] == [0, pytest.approx(3**0.5)]
    private.add_(tensors, others)
    private.add_(tensors, 1)
    assert [tensor.tolist() for tensor in tensors] == [[4, 4], [6, 6, 6]]
    private.lerp_(tensors, others, 0.5)
    assert [tensor.tolist() for tensor in tensors] == [[3.5, 3.5], [5, 5, 5]]
    private.copy_(tensors, iter(others))
    assert all(map(torch.equal, tensors, others))


def test_lists_are_added_one_by_one():
    tensors, others = [torch.ones(2), torch.ones(3)], [torch.full((2,), 3.0), torch.full((3,), 4.0)]
    assert [tensor.tolist() for tensor in private.added(tensors, others)] == [[4, 4], [5, 5, 5]]
    assert private.added([], []) == []


def test_tensors_of_any_structure_are_replaced():
    @dataclasses.dataclass(frozen=True)
    class Output:
        logits: torch.Tensor
        states: list
        name: str = "output"

    class Results(dict):
        """As the outputs of other libraries: a dictionary that also has attributes."""

        @property
        def logits(self):
            return self["logits"]

    class Stages(list):
        pass

    results = Results(logits=torch.ones(5), stages=Stages([torch.ones(6)]))
    doubled = private.map_tensors(lambda tensor: 2 * tensor, results)
    assert (type(doubled), type(doubled["stages"])) == (Results, Stages)
    assert [len(tensor) for tensor in private.tensors_in(doubled)] == [5, 6]
    assert bool((doubled.logits == 2).all() and (results.logits == 1).all())
    assert bool((doubled["stages"][0] == 2).all() and (results["stages"][0] == 1).all())

    pair = collections.namedtuple("Pair", ["x", "rest"])
    given = pair(torch.ones(1), {"a": [torch.ones(2), 3], "b": Output(torch.ones(3), [torch.ones(4), None])})
    doubled = private.map_tensors(lambda tensor: 2 * tensor, given)
    assert type(doubled) is pair
    assert [len(tensor) for tensor in private.tensors_in(doubled)] == [1, 2, 3, 4]
    assert all(bool((tensor == 2).all()) for tensor in private.tensors_in(doubled))
    assert all(bool((tensor == 1).all()) for tensor in private.tensors_in(given)), "the structure that was given stays"
    assert (doubled.rest["a"][1], doubled.rest["b"].name, doubled.rest["b"].states[1]) == (3, "output", None)
    module = nn.Linear(1, 1)
    assert private.map_tensors(lambda tensor: 2 * tensor, module) is module


def test_a_hook_anywhere_inside_is_seen():
    module = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential())
    assert not private.is_watched(module)
    handle = module[0][0].register_forward_hook(lambda *_: None)
    assert private.is_watched(module)
    handle.remove()
    assert not private.is_watched(module)


def test_the_compiler_s_backends_and_limits():
    graph = torch.fx.symbolic_trace(nn.ReLU())
    assert private.compiler_backend("eager")(graph, [torch.ones(1)])(torch.tensor([-1.0])) is not None
    assert private.compiler_limits().recompile_limit > 0
    assert private.compiler_limits().accumulated_recompile_limit > 0


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(1), nn.BatchNorm2d(1), nn.BatchNorm3d(1), nn.SyncBatchNorm(1)])
def test_every_batch_norm_is_one(norm):
    assert private.is_batch_norm(norm)
    assert not private.is_batch_norm(nn.GroupNorm(1, 1))


def test_views_are_told_from_kernels():
    aten = torch.ops.aten
    assert all(map(private.is_view, [aten.view.default, aten.t.default, aten.detach.default, aten.split.Tensor]))
    assert not any(
        map(
            private.is_view,
            [aten.add.Tensor, aten.add_.Tensor, aten.clone.default, aten.mul.out, aten._foreach_add_.Scalar],
        )
    )


def test_no_other_file_knows_private_names():
    """Of torch, or of modules and tensors that are not the file's own."""
    names = re.compile(
        r"\btorch\._(?!_)\w+|(?<!self)(?<!cls)\._(version|buffers|parameters|modules|forward_\w+|compiled_\w+)\b"
    )
    for path in ROOT.rglob("*.py"):
        if path.name != "torch_private.py":
            assert not names.search(path.read_text()), path
