import copy
import re

import pytest
import reference
import torch
from torch import nn

from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.methods.fair_darts import Sigmoid, StrongerThan
from sparsemix.spaces.nb201 import OPERATIONS
from sparsemix.spaces.primitives import AvgPool, ReLUConvBN, SepConv, Zero
from sparsemix.supernet.alphas import decided
from sparsemix.supernet.mixed_op import Weights, fan_out


class Counting(nn.Module):
    """Twice the input; counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return 2 * x


def nb201_edge(channels=4, affine=False, label=None):
    return MixedOp({name: make(channels, affine) for name, make in OPERATIONS.items()}, label)


def test_explicit_weights_are_used_as_they_are():
    op = nb201_edge().double()
    x, weights = torch.randn(3, 4, 6, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    twin = copy.deepcopy(op)
    torch.testing.assert_close(op(x, weights), reference.mixed(twin.candidates.values(), weights, x))


def test_alone_it_is_darts():
    op = MixedOp({"skip": nn.Identity(), "twice": Counting()})
    with torch.no_grad():
        op.alpha.copy_(torch.tensor([0.5, -0.5]))
    first, second = reference.softmax([0.5, -0.5], 1.0)
    torch.testing.assert_close(op(torch.ones(2, 3)), torch.full((2, 3), first + 2 * second))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_edges_of_one_source_share_work_exactly(affine, training):
    """Outputs, gradients of input, weights and alphas, and running statistics, against each operation on its own."""
    edges = nn.ModuleList([nb201_edge(affine=affine) for _ in range(3)]).double()
    for module in edges.modules():
        if isinstance(module, nn.BatchNorm2d) and affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    edges.train(training)
    slow = copy.deepcopy(edges)
    x = torch.randn(4, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    x_slow = x.detach().clone().requires_grad_()
    shared = fan_out(x, list(edges))
    apart = [reference.mixed(e.candidates.values(), e.alpha.softmax(-1), x_slow) for e in slow]
    target = torch.randn_like(x)
    sum((out * target * (i + 1)).sum() for i, out in enumerate(shared)).backward()
    sum((out * target * (i + 1)).sum() for i, out in enumerate(apart)).backward()
    for out, expected in zip(shared, apart, strict=True):
        torch.testing.assert_close(out, expected)
    torch.testing.assert_close(x.grad, x_slow.grad)
    for (name, p), q in zip(edges.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    for (name, b), c in zip(edges.named_buffers(), slow.buffers(), strict=True):
        torch.testing.assert_close(b, c, msg=name)


def test_edges_with_different_candidates_share_what_they_can():
    edges = [
        MixedOp({"a": ReLUConvBN(4, 4, 3, affine=False), "b": nn.Identity()}),
        MixedOp({"c": ReLUConvBN(4, 4, 3, affine=False), "d": Zero(), "e": nn.AvgPool2d(3, 1, 1)}),
        nn.Conv2d(4, 4, 1),
        MixedOp({"only": nn.Conv2d(4, 4, 1)}),
    ]
    x = torch.randn(2, 4, 6, 6)
    for together, alone in zip(fan_out(x, edges), [edge(x) for edge in copy.deepcopy(edges)], strict=True):
        torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("make", [ReLUConvBN, SepConv])
def test_one_module_on_several_edges(make):
    module = make(4, 4, 3, affine=False) if make is ReLUConvBN else make(4, 3, 1, affine=False)
    edges = nn.ModuleList(MixedOp({"skip": nn.Identity(), "conv": module, "again": module}) for _ in range(2))
    alone = copy.deepcopy(edges)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(fan_out(x, list(edges)), [sum_of(edge, x) for edge in alone])
    torch.testing.assert_close(edges.state_dict(), alone.state_dict())


def sum_of(edge, x):
    return sum(w * candidate(x) for w, candidate in zip(edge.alpha.softmax(0), edge.candidates.values(), strict=True))


class Halved(ReLUConvBN):
    def forward(self, x):
        return super().forward(x) / 2


class HalvedSepConv(SepConv):
    def forward(self, x):
        return super().forward(x) / 2


def changed(**options):
    op = ReLUConvBN(4, 4, 3)
    op.conv = nn.Conv2d(4, 4, 3, padding=1, **options)
    return op


@pytest.mark.parametrize(
    "candidate",
    [
        Halved(4, 4, 3),
        HalvedSepConv(4, 3, 1),
        changed(bias=True),
        changed(bias=False, groups=2),
        changed(bias=False, padding_mode="reflect"),
    ],
    ids=["subclass", "sepconv subclass", "bias", "groups", "padding"],
)
def test_a_changed_primitive_computes_what_it_says(candidate):
    candidate.eval()
    edges = [MixedOp({"skip": nn.Identity(), "conv": candidate}), MixedOp({"conv": ReLUConvBN(4, 4, 3), "z": Zero()})]
    edges[1].eval()
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(fan_out(x, edges), [sum_of(edge, x) for edge in edges])


def test_what_follows_an_edge_of_one_convolution_may_work_in_place():
    model = nn.Sequential(MixedOp({"none": Zero(), "conv": ReLUConvBN(4, 4, 3)}), nn.ReLU(inplace=True))
    x = torch.randn(2, 4, 6, 6)
    expected = sum_of(copy.deepcopy(model[0]), x).relu()
    torch.testing.assert_close(model(x), expected)


def test_an_edge_that_someone_watches_is_called_on_its_own():
    edges, seen = [nb201_edge(), nb201_edge()], []
    edges[1].register_forward_hook(lambda op, args, out: seen.append(out))
    x = torch.randn(2, 4, 6, 6)
    [_, watched] = fan_out(x, edges)
    assert len(seen) == 1
    assert seen[0] is watched


def test_hooks_on_candidates_and_inside_them_see_them_run():
    edges, seen = [nb201_edge(), nb201_edge(), nb201_edge()], []
    x = torch.randn(2, 4, 6, 6)
    expected = [edge(x) for edge in copy.deepcopy(edges)]
    edges[0].candidates["nor_conv_3x3"].register_forward_hook(lambda *_: seen.append("candidate"))
    edges[1].candidates["nor_conv_1x1"].conv.register_forward_hook(lambda *_: seen.append("conv"))
    edges[2].candidates["none"].register_forward_hook(lambda *_: seen.append("none"))
    torch.testing.assert_close(fan_out(x, edges), expected)
    assert sorted(seen) == ["candidate", "conv", "none"]


def test_weights_asked_for_earlier():
    edges = [nb201_edge(), nn.Tanh()]
    x, weights = torch.randn(2, 4, 6, 6), torch.rand(5)
    mixed, plain = fan_out(x, edges, [Weights(weights.unbind()), None])
    torch.testing.assert_close(mixed, copy.deepcopy(edges[0])(x, weights))
    torch.testing.assert_close(plain, x.tanh())


def test_synchronised_batch_norm_is_left_alone():
    """A converted norm is no plain BatchNorm2d: the operation is called as it is, not run by a formula of another."""
    op = ReLUConvBN(4, 4, 3)
    assert op.sharing_key is not None
    assert nn.SyncBatchNorm.convert_sync_batchnorm(op).sharing_key is None


def test_one_candidate_is_called_directly():
    only = Counting()
    op = MixedOp({"only": only})
    x = torch.ones(2)
    assert torch.equal(op(x), 2 * x)
    assert torch.equal(op(x, torch.tensor([0.25])), 0.5 * x)


def test_without_gradients_zero_weights_do_not_run():
    strong, weak = Counting(), Counting()
    model = nn.Sequential(MixedOp({"strong": strong, "weak": weak}))
    with torch.no_grad():
        model[0].alpha.copy_(torch.tensor([1.0, 0.0]))
    arch = ArchParameterGroup(model)
    with torch.no_grad(), arch.discretized():
        assert torch.equal(model(torch.ones(2)), torch.full((2,), 2.0))
    assert (strong.calls, weak.calls) == (1, 0)


def test_nothing_has_the_right_shape():
    model = nn.Sequential(MixedOp({"none": Zero(stride=2), "pool": nn.AvgPool2d(2)}))
    with torch.no_grad():
        model[0].alpha.copy_(torch.tensor([1.0, 0.0]))
    arch = ArchParameterGroup(model)
    with torch.no_grad(), arch.discretized():
        assert torch.equal(model(torch.ones(1, 2, 4, 4)), torch.zeros(1, 2, 2, 2))


def test_all_weights_zero():
    model = nn.Sequential(MixedOp({"skip": nn.Identity(), "twice": Counting()}))
    ArchParameterGroup(model, lambda alpha, moment: torch.zeros_like(alpha))
    x = torch.ones(2, requires_grad=True)
    out = model(x)
    assert out.tolist() == [0, 0]
    assert model[0]["twice"].calls == 0
    [gradient] = torch.autograd.grad(out.sum(), x)
    assert gradient.tolist() == [0, 0], "of zero, as in the dense sum, and not none"


def test_disagreeing_shapes_name_both_candidates():
    op = MixedOp({"conv3": nn.Conv2d(16, 16, 3, padding=1), "pool": nn.AvgPool2d(2)})
    message = "MixedOp: candidates 'conv3' and 'pool' disagree for input (2, 16, 8, 8): (2, 16, 8, 8) and (2, 16, 4, 4)"
    with pytest.raises(ValueError, match=re.escape(message)):
        op(torch.randn(2, 16, 8, 8))


@pytest.mark.parametrize("threshold", [0, 0.9], ids=["in full", "scored"])
def test_a_candidate_may_not_change_what_others_read(threshold):
    op = MixedOp({"skip": nn.Identity(), "relu": nn.ReLU(inplace=True)})
    [weights] = decided(torch.tensor([[0.8, 0.2]], requires_grad=True), threshold)
    with pytest.raises(ValueError, match="candidate 'relu' changes its input in place"):
        op(torch.randn(2, 3), weights)
    with torch.inference_mode():
        op(torch.randn(2, 3).clone(), torch.tensor([1.0, 0.0]))  # such tensors do not count their changes


def test_what_is_no_tensor():
    op = MixedOp({"lstm": nn.LSTM(3, 3), "linear": nn.Linear(3, 3)})
    with pytest.raises(TypeError, match="'lstm' must return a tensor, got a tuple"):
        op(torch.zeros(2, 3))
    with pytest.raises(TypeError, match="the input must be a tensor, got a list; pass further inputs"):
        op([torch.zeros(2, 3)])


def test_shapes_that_would_broadcast_disagree_as_well():
    op = MixedOp({"skip": nn.Identity(), "squeeze": nn.AdaptiveAvgPool2d(1)})
    with pytest.raises(ValueError, match="'skip' and 'squeeze' disagree"):
        op(torch.randn(2, 4, 8, 8))


@pytest.mark.parametrize("weights", [torch.ones(3), torch.ones(2, 2), torch.tensor(1.0)])
def test_weights_of_the_wrong_shape(weights):
    op = MixedOp({"skip": nn.Identity(), "twice": Counting()})
    message = f"expected weights of shape (2,), one for each of skip, twice; got shape {tuple(weights.shape)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        op(torch.ones(2), weights)


def test_a_row_of_a_wider_table():
    [weights] = decided(torch.full((1, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"weights of shape \(2,\), one for each of skip, twice; got shape \(3,\)"):
        MixedOp({"skip": nn.Identity(), "twice": Counting()})(torch.ones(2), weights)


def test_no_candidates():
    with pytest.raises(ValueError, match="no candidates"):
        MixedOp({})


def test_candidates_without_names():
    with pytest.raises(TypeError, match="must be a mapping name -> module, got a list"):
        MixedOp([nn.Identity()])


def test_a_candidate_that_is_no_module():
    with pytest.raises(TypeError, match="candidate 'relu' must be a"):
        MixedOp({"relu": torch.relu})


def test_fuse_returns_the_chosen_candidate_and_ties_go_to_the_first():
    op = MixedOp({"a": nn.Identity(), "b": nn.Tanh(), "c": nn.Sigmoid()})
    with torch.no_grad():
        op.alpha.copy_(torch.tensor([0.0, 1.0, 1.0]))
    assert op.choice() == "b"
    assert op.fuse() is op.candidates["b"]


@pytest.mark.parametrize("name", ["conv.3", "", "double", "forward", "training"])
def test_a_name_that_no_module_can_have(name):
    with pytest.raises(ValueError, match=f"{name!r} cannot name a module"):
        MixedOp({"skip": nn.Identity(), name: nn.Tanh()})


def test_a_watched_edge_uses_the_weights_that_it_is_handed():
    """As in a forward that is run again: the weights of then, whatever the group would say now."""
    op = MixedOp({"skip": nn.Identity(), "negative": Negative()})
    group = ArchParameterGroup(nn.Sequential(op))
    then = op.operation_weights()
    with torch.no_grad():
        group.parameters()[0].copy_(torch.tensor([0.0, 100.0]))
    op.register_forward_hook(lambda module, args, out: None)
    x = torch.randn(1, 2, 4, 4)
    [handed] = fan_out(x, [op], [then])
    torch.testing.assert_close(handed, x * (then.scalars[0] - then.scalars[1]))
    torch.testing.assert_close(fan_out(x, [op])[0], -x)


class Negative(nn.Module):
    def forward(self, x):
        return -x


def test_candidates_are_found_by_name_and_position():
    op = nb201_edge()
    assert op["skip_connect"] is op[1] is op[-4] is op.candidates["skip_connect"]
    assert [*op] == [*op.candidates.values()]
    assert len(op) == 5
    for which in ("conv", 5):
        with pytest.raises((KeyError, IndexError)):
            op[which]


def test_a_mixed_op_without_an_alpha_of_its_own():
    op = MixedOp({"skip": nn.Identity(), "twice": nn.Linear(2, 2)}, has_alpha=False)
    assert not any("alpha" in name for name, _ in op.named_parameters())
    x, weights = torch.ones(1, 2), torch.tensor([0.5, 0.5], requires_grad=True)
    torch.autograd.grad(op(x, weights).sum(), [weights, *op.parameters()])  # none is unused
    for use in (lambda: op(x), op.choice, op.fuse):
        with pytest.raises(ValueError, match=r"MixedOp of skip, twice has no alpha .*: call it with weights"):
            use()
    with pytest.raises(ValueError, match="no MixedOp among the"):
        ArchParameterGroup(nn.Sequential(op))


def test_the_weight_of_a_single_candidate_counts():
    x = torch.ones(1, 3)
    op = MixedOp({"only": nn.Identity()}, has_alpha=False)
    [row] = decided(torch.tensor([[0.25]]))
    assert torch.equal(fan_out(x, [op], [row])[0], 0.25 * x)
    with pytest.raises(ValueError, match="has no alpha"):
        op(x)


def test_a_single_candidate_that_need_not_be_kept_has_its_weight():
    model = nn.Sequential(MixedOp({"only": nn.Identity()}))
    arch = ArchParameterGroup(model, Sigmoid())
    arch.discretization = StrongerThan(0.5)
    with torch.no_grad():
        model[0].alpha.fill_(-1.0)
    x = torch.ones(1, 3)
    assert torch.allclose(model(x), torch.sigmoid(torch.tensor(-1.0)) * x)
    with arch.discretized(), torch.no_grad():
        assert torch.equal(model(x), arch.discretize()(x))


def test_a_subclass_of_a_pooling_runs_itself():
    class Sevens(AvgPool):
        def forward(self, x):
            return torch.full_like(x, 7.0)

    op = MixedOp({"pool": AvgPool(), "sevens": Sevens()})
    x = torch.zeros(1, 2, 4, 4)
    assert torch.equal(op(x, torch.tensor([0.5, 0.5])), torch.full_like(x, 3.5))
    assert torch.equal(MixedOp({"s": Sevens(), "p": AvgPool()})(x, torch.tensor([0.5, 0.5])), torch.full_like(x, 3.5))


@pytest.mark.parametrize("affine", [False, True])
def test_alphas_may_have_a_higher_precision_than_weights(affine):
    op = MixedOp({"1x1": ReLUConvBN(3, 3, 1, affine=affine), "3x3": ReLUConvBN(3, 3, 3, affine=affine)}).bfloat16()
    op.alpha.data = op.alpha.data.float()
    out = op(torch.randn(2, 3, 5, 5, dtype=torch.bfloat16))
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert op.alpha.grad.dtype == torch.float32


@pytest.mark.parametrize("label", [0, ""])
def test_a_label_that_is_no_name(label):
    with pytest.raises(TypeError, match="the label must be a non-empty string or None, got"):
        MixedOp({"skip": nn.Identity()}, label=label)
