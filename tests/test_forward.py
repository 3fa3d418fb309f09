"""What is done once a forward of a supernet, against what each mixed operation would do by itself."""

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.relaxations import Softmax, SparseSmoothSoftmax, StraightThrough
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


class Outputs(dict):
    """As the models of other libraries return them: a class of their own, derived from a dictionary."""


WRAPS = {
    "tuple": (lambda a, b: (a, b), lambda out: out),
    "dict": (lambda a, b: {"a": a, "rest": [b, None]}, lambda out: (out["a"], out["rest"][0])),
    "class of dictionaries": (lambda a, b: Outputs(a=a, b=b), lambda out: (out["a"], out["b"])),
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


class Checkpointed(nn.Module):
    """Three mixed operations, whose activations, or those of the whole model, may be computed again."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        edge = {"conv": nn.Conv2d(4, 4, 3, padding=1), "skip": nn.Identity(), "tanh": nn.Tanh()}
        self.ops = nn.ModuleList(MixedOp(copy.deepcopy(edge)) for _ in range(3))
        self.again = False

    def forward(self, x):
        x = self.stem(x)
        for op in self.ops:
            x = checkpoint(op, x, use_reentrant=False) if self.again else op(x)
        return x.pow(2).mean()


def gradients_of(model, loss):
    model.zero_grad()
    loss().backward()
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("alphas", ["trained", "fixed"])
def test_activations_computed_again_after_a_second_forward_under_another_temperature(alphas):
    model, x = Checkpointed().double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    arch = ArchParameterGroup(model, SparseSmoothSoftmax(sparse=0.001, smooth=0.05))

    def both():
        total = torch.zeros((), dtype=torch.float64)
        for arch.phi in (False, True):
            with arch.fixed_alphas() if alphas == "fixed" else nullcontext():
                total = total + model(x)
        return total

    expected = gradients_of(model, both)
    model.again = True
    torch.testing.assert_close(gradients_of(model, both), expected)


def test_a_whole_model_computed_again_runs_under_the_settings_of_its_forward():
    model, x = Checkpointed().double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    arch = ArchParameterGroup(model, SparseSmoothSoftmax(sparse=0.001, smooth=0.05), threshold=1e-2)

    def loss(run):
        with arch.using(Softmax(0.2)), arch.fixed_alphas():
            return run(x)

    expected = gradients_of(model, lambda: loss(model))
    assert expected[0] is not None
    again = gradients_of(model, lambda: loss(lambda x: checkpoint(model, x, use_reentrant=False)))
    torch.testing.assert_close(again, expected)
    assert arch.weights()["ops.0"].requires_grad, "the settings of the past forward are gone with its backward pass"


def test_a_backward_pass_leaves_no_forward_behind():
    """An operation that is computed again on its own takes its own weights, not those of an earlier forward."""
    model = Checkpointed().double()
    arch = ArchParameterGroup(model, Softmax())
    model(torch.randn(2, 3, 5, 5, dtype=torch.float64)).backward()
    with torch.no_grad():
        arch.parameters()[0].copy_(torch.tensor([1.0, 2.0, 3.0]))
    x, found = torch.randn(2, 4, 5, 5, dtype=torch.float64), []
    for run in (model.ops[0], lambda x: checkpoint(model.ops[0], x, use_reentrant=False)):
        found.append(gradients_of(model.ops[0], lambda run=run: run(x).pow(2).sum()))
    torch.testing.assert_close(*found)


class Interrupted(nn.Module):
    def forward(self, x):
        raise KeyboardInterrupt


def mixed_conv():
    return MixedOp({"skip": nn.Identity(), "conv": nn.Conv2d(3, 3, 1)})


@pytest.mark.parametrize("next_model", ["the same", "another"])
def test_a_forward_ended_by_ctrl_c_is_dropped_by_the_next_one(next_model):
    model, x = nn.Sequential(mixed_conv(), Interrupted()), torch.randn(2, 3, 4, 4)
    ArchParameterGroup(model, Softmax())
    with pytest.raises(KeyboardInterrupt):
        model(x)
    if next_model == "the same":
        model[1] = nn.Identity()
    else:
        model = nn.Sequential(mixed_conv())
        ArchParameterGroup(model, Softmax())
    model(x)
    alone = mixed_conv()
    alone.restrict_(["skip"])
    alone(x).sum().backward()
    assert alone["conv"].weight.grad is not None, "a forward is still running, which owes the gradient"


def test_a_model_that_calls_itself_ends_both_forwards():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = MixedOp({"conv": ReLUConvBN(3, 3, 1), "pool": ReLUConvBN(3, 3, 3)})

        def forward(self, x, inner=False):
            if not inner:
                x = x + self(x.flip(-1), inner=True)
            return self.op(x)

    model, x = Twice(), torch.randn(2, 3, 4, 4)
    ArchParameterGroup(model, Softmax())
    model(x)
    assert Forward.of(model) is None
    assert [norm.num_batches_tracked for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)] == [2, 2]


def test_one_model_in_several_threads():
    model, x = Checkpointed(), torch.randn(2, 3, 5, 5)
    ArchParameterGroup(model, Softmax())

    def run(_):
        with torch.no_grad():
            return model(x)

    with ThreadPoolExecutor(4) as threads:
        found = [*threads.map(run, range(40))]
    with torch.no_grad():
        assert all(torch.equal(value, model(x)) for value in found)


def test_what_only_an_idle_candidate_reads_by_keyword_gets_a_zero_gradient():
    class Skip(nn.Module):
        def forward(self, x, context):
            return x

    class Cross(nn.Module):
        def forward(self, x, context):
            return x + context

    op = MixedOp({"skip": Skip(), "cross": Cross()})
    ArchParameterGroup(op, StraightThrough())
    with torch.no_grad():
        op.alpha.copy_(torch.tensor([1.0, 0.0]))
    context = torch.ones(2, 4, requires_grad=True)
    op(torch.ones(2, 4), context=context).sum().backward()
    assert torch.equal(context.grad, torch.zeros(2, 4))


def test_a_parameter_that_is_returned_keeps_no_hooks():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = MixedOp({"skip": nn.Identity(), "linear": nn.Linear(4, 4)})
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.op(x), self.scale

    model = Scaled()
    ArchParameterGroup(model)
    for _ in range(3):
        y, scale = model(torch.ones(2, 4))
        (scale * y.sum()).backward()
    assert not model.scale._backward_hooks


def test_parameters_without_a_shape_yet_get_no_gradient():
    op = MixedOp({"skip": nn.Identity(), "linear": nn.LazyLinear(3)})
    x = torch.randn(2, 3, requires_grad=True)
    for model in (op, nn.Sequential(op)):
        if model is not op:
            ArchParameterGroup(model)
        op.restrict_(["skip"])
        model(x).sum().backward()
        assert op.alpha.grad is not None
    assert op.candidates["linear"].weight.grad is None
