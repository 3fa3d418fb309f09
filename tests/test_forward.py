"""What is done once a forward of a supernet, against what each mixed operation would do by itself."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.relaxations import Softmax
from sparsemix.spaces.primitives import DilConv, ReLUConvBN, SepConv
from sparsemix.supernet.forward import Forward, in_forward
from sparsemix.supernet.mixed_op import fan_out


def two_heads(wrap):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.ops = nn.ModuleList(MixedOp({"skip": nn.Identity(), "linear": nn.Linear(3, 3)}) for _ in "ab")

        def forward(self, x):
            first = self.ops[0](x)
            return wrap(first, self.ops[1](first))

    return Model()


WRAPS = {
    "tuple": (lambda a, b: (a, b), lambda out: out),
    "dict": (lambda a, b: {"a": a, "rest": [b, None]}, lambda out: (out["a"], out["rest"][0])),
    "object": (lambda a, b: SimpleNamespace(a=a, b=b, name="x"), lambda out: (out.a, out.b)),
}


@pytest.mark.parametrize(("wrap", "unwrap"), WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("used", [0, 1])
def test_whatever_a_model_returns_idle_operations_get_gradients_of_zero(wrap, unwrap, used):
    model = two_heads(wrap)
    arch = ArchParameterGroup(model, Softmax(1e-3))
    with torch.no_grad():
        for op in model.ops:
            op.alpha.copy_(torch.tensor([1.0, 0.0]))
    with arch.fixed_alphas():
        out = unwrap(model(torch.randn(2, 3, requires_grad=True)))
    out[used].sum().backward()
    for op in model.ops:
        assert torch.equal(op.candidates["linear"].weight.grad, torch.zeros(3, 3))


def test_zeros_have_the_memory_format_of_their_parameters():
    conv = nn.Conv2d(4, 2, 3).to(memory_format=torch.channels_last)
    model = nn.Sequential(MixedOp({"skip": nn.Identity(), "conv": conv, "norm": nn.BatchNorm2d(4).double()}))
    arch = ArchParameterGroup(model, Softmax(1e-3))
    with torch.no_grad():
        model[0].alpha.copy_(torch.tensor([1.0, 0.0, 0.0]))
    model(torch.randn(1, 4, 5, 5)).sum().backward()
    for parameter in arch.weight_parameters():
        assert not parameter.grad.any()
        assert parameter.grad.stride() == parameter.stride()
        assert parameter.grad.dtype == parameter.dtype


def test_a_failed_forward_leaves_nothing_behind():
    model = nn.Sequential(MixedOp({"skip": nn.Identity(), "linear": nn.Linear(3, 3)}))
    arch = ArchParameterGroup(model, Softmax())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.zeros(2, 4))
    with in_forward() as first, in_forward() as second:
        assert first is second
    assert copy.deepcopy(arch) is not None
    assert model(torch.zeros(2, 3)).shape == (2, 3)


def test_a_norm_that_runs_twice_in_a_forward_moves_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = MixedOp({"conv": ReLUConvBN(3, 3, 1), "skip": nn.Identity()})

        def forward(self, x):
            return self.op(self.op(x))

    model = Twice()
    alone = copy.deepcopy(model)
    ArchParameterGroup(model, Softmax())
    with torch.no_grad():
        alone.op.alpha.copy_(model.op.alpha)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(model(x), alone(x))
    bn, of_its_own = model.op["conv"].bn, alone.op["conv"].bn
    assert bn.num_batches_tracked == 2
    torch.testing.assert_close(bn.state_dict(), of_its_own.state_dict())


@pytest.mark.parametrize(
    "make", [lambda: SepConv(4, 3, 1, affine=True), lambda: DilConv(4, 5, 2), lambda: ReLUConvBN(4, 4, 3)]
)
def test_statistics_after_a_forward_are_those_of_every_operation_alone(make):
    torch.manual_seed(0)
    edges = nn.ModuleList(MixedOp({"op": make(), "again": make()}) for _ in range(3)).double()
    for module in edges.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3
            nn.init.normal_(module.weight)
    alone = copy.deepcopy(edges)
    x = torch.randn(4, 4, 6, 6, dtype=torch.float64)
    fan_out(x, list(edges))
    for edge in alone:
        for candidate in edge:
            candidate(x)
    for (name, buffer), expected in zip(edges.named_buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=name)


def test_what_is_computed_once_depends_on_whether_gradients_are_wanted():
    forward, weight = Forward(), torch.ones((), requires_grad=True)
    with torch.no_grad():
        constant = forward.once("double", [weight], lambda: 2 * weight)
    assert not constant.requires_grad
    first, second = (forward.once("double", [weight], lambda: 2 * weight) for _ in "ab")
    assert first is second
    assert first.requires_grad
    assert forward.once("double", [weight], lambda: 4 * weight, "other") is not first


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_part_whose_activations_are_computed_again(reentrant):
    """Its second run is outside of the forward, and gives the same gradients."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            edge = {"conv": ReLUConvBN(4, 4, 3), "skip": nn.Identity(), "idle": ReLUConvBN(4, 4, 1)}
            self.ops = nn.ModuleList(MixedOp(copy.deepcopy(edge)) for _ in "ab")

        def cell(self, x):
            return sum(fan_out(x, list(self.ops)))

        def forward(self, x):
            x = self.stem(x)
            return checkpoint(self.cell, x, use_reentrant=reentrant) if self.again else self.cell(x)

    model = Model().double()
    arch = ArchParameterGroup(model, Softmax(), threshold=1e-3)
    with torch.no_grad():
        for op in model.ops:
            op.alpha.copy_(torch.tensor([0.5, 0.0, -9.0]))
    x, found = torch.randn(2, 3, 5, 5, dtype=torch.float64), []
    for model.again in (False, True):
        model.zero_grad()
        model(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in (*arch.parameters(), *arch.weight_parameters())])
    torch.testing.assert_close(*found)
