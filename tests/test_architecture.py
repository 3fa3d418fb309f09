"""What may be chosen: forbidden candidates, removed and weighed edges, none or several; and alphas of other code."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import sparsemix.models  # noqa: F401
from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.measure import audit, discretization, leakage, measure_costs
from sparsemix.measure.cost import CostTerm
from sparsemix.methods import SearchStep
from sparsemix.relaxations import Moment, Softmax
from sparsemix.spaces import darts, nb201
from sparsemix.spaces.cells import Cell
from sparsemix.supernet.chosen import Chosen
from sparsemix.supernet.mixed_op import Execution

X = torch.randn(3, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def edge(label, node=None):
    candidates = {
        "skip": nn.Identity(),
        "conv1": nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        "conv3": nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)),
    }
    return MixedOp(candidates, label=label, node=node)


class Small(Cell):
    """Node 2 reads 0 and 1, node 3 reads all three."""

    NAMES = ("2<-0", "2<-1", "3<-0", "3<-1", "3<-2")

    def __init__(self):
        super().__init__({name: edge(name, node=name[0]) for name in self.NAMES})

    def forward(self, x):
        values = self.nodes([x, x.tanh()])
        return values[2] + values[3]


def small():
    torch.manual_seed(0)
    model = Small().double()
    with torch.no_grad():
        for op in model.edges.values():
            op.alpha.normal_()
    return model


def by_hand(model, weights):
    """The same cell with every candidate run and every weight multiplied out."""

    def run(name, x):
        return sum(w * candidate(x) for w, candidate in zip(weights[name], model.edges[name], strict=True))

    first, second = X, X.tanh()
    third = run("2<-0", first) + run("2<-1", second)
    return third + run("3<-0", first) + run("3<-1", second) + run("3<-2", third)


def gradients(out, parameters):
    return torch.autograd.grad(out.square().sum(), parameters)


# Allowed candidates


def test_forbidden_candidates_do_not_exist_to_a_softmax():
    model = small()
    arch = ArchParameterGroup(model, Softmax(0.7))
    arch.restrict("3<-1", ["skip", "conv3"])
    alpha = model.edges["3<-1"].alpha
    kept = F.softmax(alpha[[0, 2]] / 0.7, 0)
    weights = arch.weights()
    torch.testing.assert_close(weights["3<-1"], torch.stack([kept[0], kept.new_zeros(()), kept[1]]))
    expected = {name: F.softmax(op.alpha / 0.7, 0) for name, op in model.edges.items()} | {"3<-1": weights["3<-1"]}
    parameters = arch.parameters()
    ours, theirs = gradients(model(X), parameters), gradients(by_hand(model, expected), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert ours[3][1] == 0
    assert model.edges["3<-1"].ran[1] is Execution.SKIPPED


def test_the_choice_is_among_what_is_allowed_and_travels_in_the_state_dict():
    model = small()
    arch = ArchParameterGroup(model)
    before = arch.genotype()["2<-0"]
    others = [name for name in ("skip", "conv1", "conv3") if name != before]
    arch.restrict("2<-0", others)
    arch.restrict("2<-1", ())
    assert arch.genotype()["2<-0"] in others
    assert arch.choices()["2<-1"] == ()
    assert "2<-1" not in arch.genotype()
    again = small()
    twin = ArchParameterGroup(again)
    again.load_state_dict(model.state_dict())
    assert twin.choices() == arch.choices()
    assert torch.equal(again(X), model(X))
    older = {name: value for name, value in model.state_dict().items() if not name.endswith("allowed")}
    again.load_state_dict(older)
    assert twin.genotype()["2<-0"] == before, "a state dict that says nothing allows all"
    arch.restrict("2<-0", ["skip", "conv1", "conv3"])
    assert arch.genotype()["2<-0"] == before


def test_mistakes_name_what_there_is():
    arch = ArchParameterGroup(small())
    with pytest.raises(ValueError, match="cannot restrict row '9<-1'; the rows are 2<-0, "):
        arch.restrict("9<-1", ["skip"])
    with pytest.raises(ValueError, match="cannot allow 'pool'; the candidates are skip, conv1, conv3"):
        arch.restrict("2<-0", ["pool"])
    with pytest.raises(ValueError, match="weigh_edges_: none of the rows 0 names the node"):
        ArchParameterGroup(nn.Sequential(edge(None))).weigh_edges_()


# Removed edges


def test_a_removed_edge_does_not_run_and_its_weights_go_on_decaying():
    model = small()
    arch = ArchParameterGroup(model, Softmax())
    arch.restrict("2<-1", ())
    expected = {name: F.softmax(op.alpha, 0) for name, op in model.edges.items()}
    expected["2<-1"] = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(model(X), by_hand(model, expected), rtol=1e-12, atol=1e-12)
    assert model.edges["2<-1"].ran == [Execution.SKIPPED] * 3
    model(X).square().sum().backward()
    removed = [*model.edges["2<-1"].parameters()]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in removed)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_what_feeds_only_removed_edges_has_gradients_of_zero():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.before = nn.Conv2d(4, 4, 1)
            self.cell = Small()

        def forward(self, x):
            return self.cell.nodes([x, self.before(x)])[3]

    model = Two().double()
    arch = ArchParameterGroup(model)
    for name in ("2<-1", "3<-1"):
        arch.restrict(name, ())
    [gradient] = gradients(model(X), [model.before.weight])
    assert not gradient.any()


def test_a_removed_operation_outside_of_a_cell_gives_zeros_of_the_right_shape():
    down = {"conv": nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8)), "other": nn.Conv2d(4, 8, 1, 2)}
    model = nn.Sequential(MixedOp(down, "only")).double()
    arch = ArchParameterGroup(model)
    arch.restrict("only", ())
    seen = model[0]["conv"][1].num_batches_tracked.clone()
    out = model(X)
    assert out.shape == (3, 8, 3, 3)
    assert not out.any()
    assert torch.equal(model[0]["conv"][1].num_batches_tracked, seen), "statistics stay"
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_feeds_only_edges_that_were_cut_out_has_gradients_of_zero():
    network = ArchParameterGroup(small()).discretize(
        {"2<-0": "skip", "2<-1": (), "3<-0": "conv1", "3<-1": (), "3<-2": "skip"}
    )
    second = X.tanh().requires_grad_()
    [gradient] = gradients(network.nodes([X, second])[3], [second])
    assert not gradient.any()


def test_the_only_candidate_of_an_edge_can_be_removed():
    model = nn.Sequential(MixedOp({"conv": nn.Conv2d(4, 4, 1)}, "only")).double()
    arch = ArchParameterGroup(model)
    assert model(X).any()
    arch.restrict("only", ())
    assert not model(X).any()


def test_outside_of_a_group_restrictions_hold_as_well():
    op = edge("row").double()
    op.restrict_(["conv1", "conv3"])
    expected = F.softmax(op.alpha[1:], 0)
    torch.testing.assert_close(op(X), expected[0] * op["conv1"](X) + expected[1] * op["conv3"](X))
    assert op.ran[0] is Execution.SKIPPED
    op.restrict_(())
    assert not op(X).any()
    with pytest.raises(ValueError, match=r"no candidate is allowed, or none is chosen; see choices\(\)"):
        op.choice()
    with pytest.raises(ValueError, match="has no alpha"):
        MixedOp({"skip": nn.Identity()}, has_alpha=False).restrict_(["skip"])


def test_operations_that_are_tied_are_restricted_as_the_first_one():
    ops = nn.ModuleList(edge("row") for _ in range(2))
    ops[0].restrict_(["skip"])
    ArchParameterGroup(ops)
    assert ops[1].allowed_names == ("skip",)


@pytest.mark.parametrize("supernet", ["sparsemix_nb201_supernet", "sparsemix_darts_supernet"])
def test_restrictions_and_edge_weights_are_not_read_from_the_device(supernet, monkeypatch):
    """On the meta device, where any other read of a value raises."""
    reads = []

    def weights(tensor):
        reads.append(tensor.device.type)
        return [0.3] * tensor.numel()

    model = timm.create_model(supernet, channels=4, cells=1 if "nb201" in supernet else 3)
    arch = ArchParameterGroup(model, threshold=1e-3)
    arch.weigh_edges_()
    for label, ops in arch.rows.items():
        arch.restrict(label, ops[0].names[1:])
    model.to("meta")
    monkeypatch.setattr(torch.Tensor, "tolist", weights)
    model(torch.empty(2, 3, 16, 16, device="meta"))
    assert reads == ["meta"]


# Edges that compete


def test_betas_are_in_the_state_dict_and_unknown_where_edges_are_not_weighed():
    model, twin = small(), small()
    ArchParameterGroup(model).weigh_edges_()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*edges.2<-0.beta"):
        twin.load_state_dict(model.state_dict())
    ArchParameterGroup(twin).weigh_edges_()
    twin.load_state_dict(model.state_dict())
    again = ArchParameterGroup(copy.deepcopy(model))  # a new group goes on with the betas that are there
    assert [label for label, _ in again.named_betas()] == [*again.rows]
    assert sum(weight.item() for label, weight in again.edge_weights().items() if label[0] == "2") == pytest.approx(1)


def test_what_is_drawn_for_edges_is_not_what_is_drawn_for_operations():
    drawn = []

    def noisy(alpha, moment):
        drawn.append(torch.rand(2, generator=moment.generator("noise")))
        return alpha.softmax(-1)

    arch = ArchParameterGroup(small(), noisy)
    arch.weigh_edges_(noisy)
    arch.moment = Moment(step=5)
    for _ in range(2):
        arch.weights()
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])


def test_discretised_accuracy_is_that_of_what_is_cut_out_though_edges_are_weighed():
    model = small().eval()
    arch = ArchParameterGroup(model)
    arch.weigh_edges_()
    with torch.no_grad(), arch.discretized():
        inside = model(X)
    torch.testing.assert_close(inside, arch.discretize()(X), rtol=1e-12, atol=1e-12)


def test_edges_that_are_weighed_after_the_optimizers_were_made():
    model = small()
    arch = ArchParameterGroup(model, Softmax())
    adam = torch.optim.Adam(arch.parameters(), 1e-2)
    step = SearchStep(
        arch, lambda batch: model(batch).square().mean(), torch.optim.SGD(arch.weight_parameters(), 0.01), adam
    )
    arch.weigh_edges_()
    with pytest.raises(ValueError, match="alpha's optimizer lacks 5 of 10 alphas"):
        step(X, X)


def test_betas_are_not_decayed_with_the_weights():
    model = timm.create_model("sparsemix_nb201_supernet", channels=4, cells=1)
    ArchParameterGroup(model).weigh_edges_()
    assert {name.rsplit(".", 1)[1] for name in model.no_weight_decay()} == {"alpha", "beta"}


def test_costs_of_what_is_removed():
    arch = ArchParameterGroup(small().float())
    table = measure_costs(arch, X.float())
    chosen = arch.genotype()
    arch.restrict("2<-0", ())
    assert (
        table.of(arch.genotype()) == table.of(arch.choices()) == table.of(chosen) - table.rows["2<-0"][chosen["2<-0"]]
    )
    with pytest.raises(ValueError, match="CostTable: no row is called 9<-1; there are 2<-0"):
        table.of({"9<-1": "skip"})


def test_edge_weights_are_folded_in_as_if_multiplied_out():
    model = small()
    arch = ArchParameterGroup(model, Softmax())
    torch.manual_seed(3)
    arch.weigh_edges_()
    with torch.no_grad():
        for _, beta in arch.named_betas():
            beta.normal_()
    betas = dict(arch.named_betas())
    expected, nodes = {}, {"2": Small.NAMES[:2], "3": Small.NAMES[2:]}
    for names in nodes.values():
        edges = F.softmax(torch.stack([betas[name] for name in names]), 0)
        expected |= {n: w * F.softmax(model.edges[n].alpha, 0) for n, w in zip(names, edges, strict=True)}
    parameters = [*arch.parameters(), *arch.weight_parameters()]
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters()}
    assert len(arch.parameters()) == 10
    torch.testing.assert_close(model(X), by_hand(model, expected), rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(model(X), parameters), gradients(by_hand(model, expected), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert sum(w.item() for n, w in arch.edge_weights().items() if n[0] == "3") == pytest.approx(1)


def test_removed_edges_do_not_compete_and_weighed_ones_train():
    model = small()
    arch = ArchParameterGroup(model, Softmax(), threshold=1e-3)
    arch.weigh_edges_()
    arch.restrict("3<-0", ())
    weights = {name: weight.item() for name, weight in arch.edge_weights().items()}
    assert weights["3<-0"] == 0
    assert weights["3<-1"] + weights["3<-2"] == pytest.approx(1)
    before = [beta.item() for _, beta in arch.named_betas()]
    step = SearchStep(
        arch,
        lambda batch: model(batch).square().mean(),
        torch.optim.SGD(arch.weight_parameters(), 0.01),
        torch.optim.Adam(arch.parameters(), 1e-2),
    )
    step(X, X)
    moved = [name for (name, beta), old in zip(arch.named_betas(), before, strict=True) if beta.item() != old]
    assert moved == ["2<-0", "2<-1", "3<-1", "3<-2"]


def test_an_edge_of_weight_zero_does_not_run():
    model = small()
    arch = ArchParameterGroup(model, Softmax())
    arch.weigh_edges_(lambda betas, moment: F.one_hot(betas.argmax(-1), betas.shape[-1]).to(betas))
    model(X)
    assert sum(op.ran == [Execution.SKIPPED] * 3 for op in model.edges.values()) == 3


def test_the_darts_read_out_ranks_edges_by_both_weights():
    arch = ArchParameterGroup(timm.create_model("sparsemix_darts_supernet", channels=2, cells=3))
    with torch.no_grad():
        for label, alpha in arch.named_parameters():
            alpha.copy_(torch.tensor([1.0, *[0.0] * (len(alpha) - 1)]) * (3 if label.endswith("<-0") else 1))
    assert {source for _, source in darts.genotype(arch, 1.0).normal[2:4]} == {0, 1}
    arch.weigh_edges_()
    with torch.no_grad():
        for label, beta in arch.named_betas():
            beta.fill_(5.0 if label.endswith(("<-1", "<-2")) else -5.0)
    assert {source for _, source in darts.genotype(arch, 1.0).normal[2:4]} == {1, 2}
    arch.restrict("normal 3<-2", ())
    arch.restrict("normal 3<-1", ["sep_conv_3x3"])
    assert darts.genotype(arch, 1.0).normal[2:4] == (("sep_conv_3x3", 1), ("max_pool_3x3", 0))


def test_a_removed_edge_of_nas_bench_201_is_none():
    arch = ArchParameterGroup(timm.create_model("sparsemix_nb201_supernet", channels=2, cells=1))
    arch.restrict("2<-1", ())
    assert nb201.genotype(arch).by_edge()["2<-1"] == "none"


def test_rounding_an_edge_s_share_does_not_choose_another_operation():
    """Both operations of the faint edge round to the same product; the stronger one is chosen all the same."""
    alpha = torch.tensor([0.4, 0.6], dtype=torch.float64).log()
    names = ("skip_connect", "sep_conv_3x3")
    edges = [darts.Candidate(names, alpha, weight=weight) for weight in (0.9999, 0.0001)]
    rule = darts.READ_OUTS["authors-robust"]
    assert darts.select(edges, 1.0, rule) == [("sep_conv_3x3", 0), ("sep_conv_3x3", 1)]
    first = darts.ReadOut(decimals=3)
    assert darts.select(edges, 1.0, first) == [("sep_conv_3x3", 0), ("sep_conv_3x3", 1)]


# None or several


def test_several_or_none_are_summed_in_what_is_cut_out():
    model = small()
    arch = ArchParameterGroup(model)
    several = {"2<-0": ("skip", "conv3"), "2<-1": (), "3<-0": "conv1", "3<-1": ("skip",), "3<-2": ("conv1", "conv3")}
    network = arch.discretize(several)
    weights = {
        name: [float(c in ((chosen,) if isinstance(chosen, str) else chosen)) for c in model.edges[name].names]
        for name, chosen in several.items()
    }
    network.eval()
    model.eval()
    torch.testing.assert_close(network(X), by_hand(model, weights), rtol=1e-12, atol=1e-12)
    assert isinstance(network.edges["2<-0"], Chosen)
    assert isinstance(network.edges["3<-0"], nn.Sequential)
    assert not any(isinstance(module, MixedOp) for module in network.modules())
    with pytest.raises(ValueError, match="row '2<-0' has no candidate 'pool'"):
        arch.discretize({**several, "2<-0": ("skip", "pool")})


# Alphas of other code


class Owner(nn.Module):
    """Code that owns its alphas, as tables, and calls our mixed operations with rows of them."""

    def __init__(self, relaxation):
        super().__init__()
        torch.manual_seed(0)
        self.ops = nn.ModuleList(MixedOp(dict(edge(None).candidates.items()), has_alpha=False) for _ in range(5))
        self.first = nn.Parameter(torch.randn(2, 3))
        self.second = nn.Parameter(torch.randn(3, 3))
        self.head = nn.Linear(4, 3)
        self.arch = ArchParameterGroup.from_parameters(
            {"first": self.first, "second": self.second}, relaxation, threshold=1e-3, model=self
        )

    def forward(self, x):
        weights = self.arch.operation_weights()
        for op, row in zip(self.ops, [*weights["first"], *weights["second"]], strict=True):
            x = op(x, row)
        return self.head(x.mean((2, 3)))


class Ours(nn.Module):
    """The same under a group."""

    def __init__(self, owner):
        super().__init__()
        self.ops = nn.ModuleList()
        rows = [*owner.first.detach(), *owner.second.detach()]
        labels = [f"first {i}" for i in range(2)] + [f"second {i}" for i in range(3)]
        for op, row, label in zip(owner.ops, rows, labels, strict=True):
            mixed = MixedOp(copy.deepcopy(dict(op.candidates.items())), label)
            mixed.alpha.data = row.clone()
            self.ops.append(mixed)
        self.head = copy.deepcopy(owner.head)

    def forward(self, x):
        for op in self.ops:
            x = op(x)
        return self.head(x.mean((2, 3)))


def test_measures_and_costs_take_alphas_of_other_code():
    owner = Owner(Softmax(0.3))
    ours = Ours(owner)
    arch = ArchParameterGroup(ours, Softmax(0.3), threshold=1e-3)
    with pytest.raises(ValueError, match="run the model once"):
        owner.arch.rows  # noqa: B018
    x = X.float()
    owner.arch.dry_run(x)
    assert owner.arch.rows.keys() == arch.rows.keys()
    assert owner.arch.genotype() == arch.genotype()
    assert owner.arch.entropy() == pytest.approx(arch.entropy())
    batches = [(x, torch.tensor([0, 1, 2]))]
    assert discretization(owner.arch, batches, statistics=batches) == discretization(arch, batches, statistics=batches)
    theirs, own = leakage(owner.arch, x), leakage(arch, x)
    assert theirs.keys() == own.keys()
    for label in own:
        assert theirs[label].output == pytest.approx(own[label].output, rel=1e-5)
    costs, expected = measure_costs(owner.arch, x), measure_costs(arch, x)
    assert (costs.fixed, costs.rows) == (expected.fixed, expected.rows)
    assert CostTerm(owner.arch, costs)().item() == pytest.approx(CostTerm(arch, expected)().item())
    audits = [
        audit(a, lambda batch, m=model: F.cross_entropy(m(batch[0]), batch[1]), batches[0], 1e-2)
        for a, model in ((owner.arch, owner), (arch, ours))
    ]
    assert audits[0].executed == audits[1].executed
    assert audits[0].gradient == pytest.approx(audits[1].gradient, rel=1e-3, abs=1e-6)
    torch.testing.assert_close(owner.arch.discretize()(x), arch.discretize()(x))


def test_tables_are_relaxed_together():
    """Draws of a stochastic relaxation differ from table to table."""

    def noisy(alpha, moment):
        return torch.softmax(alpha + torch.rand(alpha.shape, generator=moment.generator("noise")), -1)

    tables = {name: torch.zeros(2, 3, requires_grad=True) for name in ("normal", "reduce")}
    arch = ArchParameterGroup.from_parameters(tables, noisy)
    arch.moment = Moment(step=3)
    weights = arch.table_weights()
    assert not torch.equal(weights["normal"], weights["reduce"])
    assert torch.equal(weights["reduce"], arch.table_weights()["reduce"])


def test_a_table_of_other_code_has_rows_that_nothing_uses():
    """They cost nothing, and are no part of the genotype."""

    class Spare(Owner):
        def forward(self, x):
            return self.head(self.ops[0](x, self.arch.operation_weights()["first"][0]).mean((2, 3)))

    owner = Spare(Softmax())
    x = X.float()
    owner.arch.dry_run(x)
    assert [*owner.arch.genotype()] == ["first 0"]
    assert CostTerm(owner.arch, measure_costs(owner.arch, x))().requires_grad
