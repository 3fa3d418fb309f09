import pytest
import timm
import torch
from torch import nn

from sparsemix import ArchParameterGroup, MixedOp, SparseSmoothSoftmax
from sparsemix.inject import mix_
from sparsemix.measure import CostTable, CostTerm, macs, measure_costs, parameters, seconds
from sparsemix.relaxations import Softmax


def supernet(label=None):
    def op(channels):
        return MixedOp(
            {
                "skip": nn.Identity(),
                "conv1": nn.Conv2d(channels, channels, 1, bias=False),
                "conv3": nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            },
            label,
        )

    return nn.Sequential(nn.Conv2d(3, 4, 1), op(4), nn.Conv2d(4, 2, 1, stride=2), op(2))


X = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("unit", "fixed", "first", "second"),
    [
        ("parameters", 3 * 4 + 4 + 4 * 2 + 2, [0, 16, 144], [0, 4, 36]),
        ("macs", 3 * 4 * 64 + 4 * 2 * 16, [0, 16 * 64, 144 * 64], [0, 4 * 16, 36 * 16]),
    ],
)
def test_costs_counted_by_hand(unit, fixed, first, second):
    arch = ArchParameterGroup(supernet())
    table = measure_costs(arch, X, unit)
    assert [[*row.values()] for row in table.rows.values()] == [first, second]
    assert table.fixed == fixed
    assert (table.cheapest, table.most_expensive) == (fixed, fixed + first[2] + second[2])
    assert table.of({"1": "conv1", "3": "conv3"}) == fixed + first[1] + second[2]
    shared = measure_costs(ArchParameterGroup(supernet("all")), X, unit)
    assert [*shared.rows["all"].values()] == [a + b for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize(("unit", "measure"), [("parameters", parameters), ("macs", macs)])
def test_the_table_is_the_cost_of_the_network_that_is_cut_out(unit, measure):
    model = timm.create_model("mobilenetv3_small_100", num_classes=5)
    x = torch.zeros(1, 3, 64, 64)
    mix_(model, "kernel", example=x)
    arch = ArchParameterGroup(model)
    table = measure_costs(arch, x, unit)
    torch.manual_seed(3)
    with torch.no_grad():
        for alpha in arch.parameters():
            alpha.normal_()
    assert table.of(arch.genotype()) == measure(arch.discretize(), x)


def test_seconds_are_measured():
    arch = ArchParameterGroup(supernet())
    table = measure_costs(arch, torch.zeros(8, 3, 32, 32), "seconds")
    assert all(cost > 0 for row in table.rows.values() for cost in row.values())
    assert seconds(arch.model, torch.zeros(8, 3, 32, 32), repeats=1) > 0


def test_measuring_changes_nothing():
    arch = ArchParameterGroup(supernet())
    before = {name: value.clone() for name, value in arch.model.state_dict().items()}
    measure_costs(arch, X)
    assert arch.model.training
    assert all(torch.equal(before[name], value) for name, value in arch.model.state_dict().items())
    assert not any(op._forward_pre_hooks for op in arch.operations)


def test_expected_cost_and_its_gradient():
    arch = ArchParameterGroup(supernet().double(), Softmax())
    table = measure_costs(arch, X.double())
    term = CostTerm(arch, table, weight=0.5)

    def by_hand(*alphas):
        rows = zip(alphas, table.rows.values(), strict=True)
        expected = sum(sum(a * c for a, c in zip(alpha.softmax(0), row.values(), strict=True)) for alpha, row in rows)
        return 0.5 * (table.fixed + expected) / table.most_expensive

    alphas = arch.parameters()
    torch.testing.assert_close(term(), by_hand(*alphas))
    for ours, theirs in zip(
        torch.autograd.grad(term(), alphas), torch.autograd.grad(by_hand(*alphas), alphas), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    with arch.fixed_alphas():
        assert not term().requires_grad


def test_a_budget_is_followed_and_then_forgotten():
    arch = ArchParameterGroup(supernet(), SparseSmoothSoftmax())
    table = measure_costs(arch, X)
    with torch.no_grad():
        for alpha in arch.parameters():
            alpha.copy_(torch.tensor([0.0, 0.0, 2e-3]))
    term = CostTerm(arch, table, budget=0.3 * table.most_expensive)
    optimizer = torch.optim.Adam(arch.parameters(), lr=3e-4)
    assert table.of(arch.genotype()) > term.budget
    for step in range(200):
        arch.phi = step % 2 == 1
        optimizer.zero_grad()
        term().backward()
        optimizer.step()
    arch.phi = True
    assert table.of(arch.genotype()) <= term.budget
    assert term().item() == 0


def test_bad_input():
    arch = ArchParameterGroup(supernet())
    rows = {"1": {"skip": 0.0, "conv1": 2.0, "conv3": 5.0}, "3": {"skip": 1.0, "conv1": 1.0, "conv3": 2.0}}
    table = CostTable("macs", 10.0, rows)
    with pytest.raises(
        ValueError, match="no choice keeps a budget of 10 macs; the cheapest costs 11, the most expensive 17"
    ):
        CostTerm(arch, table, budget=10)
    with pytest.raises(ValueError, match="weight must not be negative, nor infinite, got -1"):
        CostTerm(arch, table, weight=-1)
    other = CostTable("macs", 10.0, {**rows, "3": {"skip": 1.0, "conv1": 1.0}})
    with pytest.raises(ValueError, match="in row '3' it prices skip, conv1, the candidates are skip, conv1, conv3"):
        CostTerm(arch, other)
    with pytest.raises(ValueError, match="unit must be one of parameters, macs, seconds, got 'flops'"):
        measure_costs(arch, X, "flops")


def test_an_operation_that_runs_in_training_alone_has_parameters_all_the_same():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = MixedOp({"skip": nn.Identity(), "conv": nn.Conv2d(3, 3, 1, bias=False)})

        def forward(self, x):
            return self.op(x) if self.training else x

    model = Auxiliary()
    assert measure_costs(ArchParameterGroup(model), X, "parameters").rows == {"op": {"skip": 0, "conv": 9}}
    assert measure_costs(ArchParameterGroup(model), X, "macs").rows == {"op": {"skip": 0, "conv": 0}}


def test_attention_is_counted_whatever_computes_it():
    counts = set()
    for fused in (False, True):
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
        model.blocks[0].attn.fused_attn = fused
        counts.add(macs(model, torch.zeros(1, 3, 32, 32)))
    assert len(counts) == 1


@pytest.mark.parametrize("unit", ["macs", "seconds"])
def test_costs_are_of_an_image_whatever_a_candidate_sees(unit):
    """Windows: the candidates' first dimension is not that of the images. In double precision."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = MixedOp({"skip": nn.Identity(), "linear": nn.Linear(4, 4, bias=False)})

        def forward(self, x):
            return self.op(x.reshape(-1, 4)).view(x.shape)

    model = Windows().double()
    table = measure_costs(ArchParameterGroup(model), torch.zeros(3, 8, 4), unit)
    if unit == "macs":
        assert table.rows == {"op": {"skip": 0, "linear": 8 * 16}}
        assert table.fixed == 0


def test_what_is_no_group():
    with pytest.raises(TypeError, match="needs the model's ArchParameterGroup first, got a Sequential"):
        measure_costs(supernet(), X)


def test_nested_mixed_operations_have_no_table():
    inner = MixedOp({"k1": nn.Conv2d(4, 4, 1), "k3": nn.Conv2d(4, 4, 3, padding=1)})
    model = nn.Sequential(MixedOp({"skip": nn.Identity(), "block": nn.Sequential(inner, nn.ReLU())}))
    with pytest.raises(ValueError, match="candidate 'block' of row '0' holds a mixed operation"):
        measure_costs(ArchParameterGroup(model), torch.zeros(1, 4, 8, 8))


def test_parameters_that_are_shared():
    def supernet(*labels):
        conv = nn.Conv2d(3, 3, 1, bias=False)
        return nn.Sequential(*(MixedOp({"conv": conv, "skip": nn.Identity()}, label) for label in labels))

    with pytest.raises(ValueError, match="'conv' of row '1' shares parameters with one of row '0'"):
        measure_costs(ArchParameterGroup(supernet(None, None)), X, "parameters")
    table = measure_costs(ArchParameterGroup(supernet("row", "row")), X, "parameters")
    assert table == CostTable("parameters", 0.0, {"row": {"conv": 9, "skip": 0}})
    pixels = X.shape[-1] ** 2
    table = measure_costs(ArchParameterGroup(supernet(None, None)), X, "macs")
    assert table.rows == {label: {"conv": 9 * pixels, "skip": 0} for label in "01"}


def test_a_fused_attention_layer_is_not_free():
    layer = nn.MultiheadAttention(16, 2, batch_first=True)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = layer

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    tokens, channels = 10, 16
    projections, products = 4 * tokens * channels**2, 2 * tokens**2 * channels
    assert macs(Attention(), torch.zeros(1, tokens, channels)) == projections + products
    assert torch.backends.mha.get_fastpath_enabled()
