"""Each method's rule against a case worked out by hand, or against a slow reference."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.cli import timm_model
from sparsemix.measure.hessian import dominant_eigenvalue, largest_eigenvalue
from sparsemix.methods import SearchStep
from sparsemix.methods.darts_es import EarlyStopping, local_averages
from sparsemix.methods.darts_plus import SkipStopping
from sparsemix.methods.drnas import DirichletMean, DirichletSample, DrNAS
from sparsemix.methods.fair_darts import Sigmoid
from sparsemix.methods.gaea import GAEA, ExponentiatedGradient, Simplex
from sparsemix.methods.gdas import GumbelArgmax
from sparsemix.methods.method import Evidence, Part
from sparsemix.methods.pc_darts import PCDARTS
from sparsemix.methods.r_darts import RampedAugmentation
from sparsemix.methods.random_search import RandomSearch, choose_at_random_
from sparsemix.methods.registry import find_method
from sparsemix.methods.sdarts import SDARTS, SDARTSAdv, Shaken, attacked, on_simplex
from sparsemix.methods.sgas import SGAS, edge_scores
from sparsemix.methods.single_path import UniformChoice
from sparsemix.methods.snas import SNAS, GumbelSoftmax
from sparsemix.relaxations import Moment, Softmax, SparsemaxSmoothSoftmax, sparsemax
from sparsemix.supernet.partial import PartialChannels, split_channels

ALPHA = torch.tensor([[0.3, -0.2, 0.5, 0.0], [0.1, 0.4, -0.3, -torch.inf]], dtype=torch.float64)
UPSTREAM = torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.5, -1.0, 3.0, 0.0]], dtype=torch.float64)


def finite_differences(function, alpha, h=1e-6):
    """Of a scalar function, by every finite entry."""
    gradient = torch.zeros_like(alpha)
    for i in torch.argwhere(alpha.isfinite()).tolist():
        shift = torch.zeros_like(alpha)
        shift[tuple(i)] = h
        gradient[tuple(i)] = (function(alpha + shift) - function(alpha - shift)) / (2 * h)
    return gradient


def gradient_of(relax, moment):
    alpha = ALPHA.clone().requires_grad_()
    [found] = torch.autograd.grad((relax(alpha, moment) * UPSTREAM).sum(), alpha)
    return found


@pytest.mark.parametrize("relax", [GumbelSoftmax(0.7), DirichletMean(), SparsemaxSmoothSoftmax(0.5), Sigmoid()])
@pytest.mark.parametrize("phi", [True, False])
def test_gradients_by_finite_differences(relax, phi):
    moment = Moment(3, 1, 4, phi)

    def loss(alpha):
        return (relax(alpha, moment) * UPSTREAM).sum()

    assert torch.allclose(gradient_of(relax, moment), finite_differences(loss, ALPHA), atol=1e-7)


def edge(node=None, label=None, channels=2):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, 1, bias=False)
    return MixedOp({"none": nn.AvgPool2d(3, 1, 1), "skip": nn.Identity(), "conv": conv}, label=label, node=node)


def small(relaxation=None, edges=2):
    """A supernet of a few edges in a row, its step, and a batch, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(*(edge() for _ in range(edges)), nn.Flatten(), nn.Linear(32, 3)).double()
    arch = ArchParameterGroup(model, relaxation or Softmax())
    with torch.no_grad():
        for alpha in arch.parameters():
            alpha.normal_()
    step = SearchStep(
        arch,
        lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        torch.optim.SGD(arch.weight_parameters(), lr=0.1),
        torch.optim.Adam(arch.parameters(), lr=1e-3),
    )
    return arch, step, (torch.randn(6, 2, 4, 4).double(), torch.randint(3, (6,)))


# Relaxations


def test_sparsemax_is_the_nearest_point_of_the_simplex():
    torch.manual_seed(0)
    scores = torch.randn(20, 5, dtype=torch.float64)
    weights = sparsemax(scores, temperature=0.5)
    assert torch.allclose(weights.sum(-1), torch.ones(20).double())
    assert (weights >= 0).all()
    assert (weights == 0).any()
    for row, found in zip(scores / 0.5, weights, strict=True):  # tau by bisection
        low, high = row.min() - 1, row.max()
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if (row - middle).clamp_min(0).sum() > 1 else (low, middle)
        assert torch.allclose(found, (row - low).clamp_min(0), atol=1e-9)
    assert sparsemax(ALPHA)[1, 3] == 0


def test_a_gumbel_softmax_at_a_small_temperature_is_the_sample_of_gdas():
    for step in range(5):
        soft, hard = GumbelSoftmax(1e-4)(ALPHA, Moment(step=step)), GumbelArgmax(1.0)(ALPHA, Moment(step=step))
        assert torch.allclose(soft, hard, atol=1e-6)
    plans = [SNAS(tau_first=10, tau_last=1).plan(None, epoch, 10)["tau"] for epoch in (0, 9)]
    assert plans == [10, 1]
    with pytest.raises(ValueError, match=r"must be positive and fall, got tau_first=0.1"):
        SNAS(tau_first=0.1)


def test_dirichlet_draws_have_the_mean_and_the_variance_of_the_distribution():
    many = ALPHA.repeat(4000, 1, 1).flatten(0, 1)  # every row has draws of its own
    draws = DirichletSample()(many, Moment(step=1)).view(4000, *ALPHA.shape)
    shape = torch.nn.functional.elu(ALPHA) + 1
    total = shape.sum(-1, keepdim=True)
    mean = shape / total
    assert torch.allclose(draws.mean(0), mean, atol=0.02)
    assert torch.allclose(draws.var(0), mean * (1 - mean) / (total + 1), atol=0.01)
    assert (draws[:, 1, 3] == 0).all()
    assert torch.equal(DirichletMean()(ALPHA), mean)


def test_the_gradient_of_dirichlet_draws_is_that_of_the_mean_in_expectation():
    alpha = ALPHA.repeat(4000, 1, 1).requires_grad_()
    weights = DirichletSample()(alpha.flatten(0, 1), Moment(step=1)).view_as(alpha)
    [gradients] = torch.autograd.grad((weights * UPSTREAM).sum(), alpha)
    expected = gradient_of(DirichletMean(), Moment())
    assert torch.allclose(gradients.mean(0), expected, atol=4 * float(gradients.std(0).max()) / 4000**0.5)


def test_the_divergence_of_drnas():
    """KL(Dir(2, 1) || Dir(1, 1)) = log Gamma(3) - log Gamma(2) + (2 - 1)(digamma(2) - digamma(3)) = log 2 - 1 / 2."""
    arch = ArchParameterGroup(MixedOp({"a": nn.Identity(), "b": nn.Tanh()}))
    with torch.no_grad():
        arch.parameters()[0].copy_(torch.tensor([1.0, 0.0]))
    assert DrNAS(kl=10.0).penalty(arch, {}).item() == pytest.approx(10 * (math.log(2) - 0.5), rel=1e-5)
    assert DrNAS().penalty(arch, {}) is None


# GAEA


def test_an_update_of_gaea():
    theta, gradient = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([1.0, -2.0, 60.0]).double()
    alpha = theta.log().requires_grad_()
    optimizer = ExponentiatedGradient([[alpha]], lr=0.5, floor=1e-5)
    (Simplex()(alpha) * gradient).sum().backward()
    assert torch.equal(alpha.grad, gradient), "the gradient is that by theta"
    optimizer.step()
    moved = (theta * torch.exp(-0.5 * gradient)).clamp_min(1e-5)
    assert torch.allclose(alpha.softmax(-1), moved / moved.sum(), atol=1e-12)


def test_gaea_keeps_the_edges_of_a_node_on_a_simplex_of_their_own():
    arch = ArchParameterGroup(nn.ModuleList([edge(node="2", label="2<-0"), edge(node="2", label="2<-1")]))
    PCDARTS().prepare_(arch)
    part = GAEA(eta=1.0)
    part.prepare_(arch)
    optimizer = part.alpha_optimizer(arch, None)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 2]
    for beta, gradient in zip(arch.parameters()[2:], (0.0, 1.0), strict=True):
        beta.grad = torch.tensor(gradient)
    optimizer.step()
    weights = [weight.item() for weight in arch.edge_weights().values()]
    assert weights == pytest.approx([1 / (1 + math.exp(-1)), math.exp(-1) / (1 + math.exp(-1))])


# SDARTS


def test_shaken_weights_stay_on_the_simplex_and_near():
    plain = Softmax()(ALPHA)
    for step in range(20):
        weights = Shaken(Softmax(), 0.01)(ALPHA, Moment(step=step))
        assert torch.allclose(weights.sum(-1), torch.ones(2).double())
        assert weights[1, 3] == 0
        assert 0 < (weights - plain).abs().max() < 0.03


def test_an_attack_raises_the_loss_within_its_radius():
    arch, step, batch = small()
    before, weights = step.loss(batch).item(), torch.stack([*arch.weights().values()]).detach()
    state = {name: value.clone() for name, value in arch.model.state_dict().items()}
    with attacked(step, batch, radius=0.05):
        worst, inside = torch.stack([*arch.weights().values()]), step.loss(batch).item()
    assert inside > before
    assert torch.allclose(worst.sum(-1), torch.ones(2).double())
    assert (worst - weights).abs().max() < 3 * 0.05, "normalising moves weights a little further"
    assert step.loss(batch).item() == before
    assert all(torch.equal(value, state[name]) for name, value in arch.model.state_dict().items())


def test_one_ascent_of_an_attack_by_hand():
    """A loss that is linear in the weights: the sign of its gradient is known."""
    arch = ArchParameterGroup(MixedOp({"a": nn.Identity(), "b": nn.Tanh()}).double(), Softmax())
    with torch.no_grad():
        arch.parameters()[0].zero_()

    def loss(batch):
        [row] = arch.weights().values()
        return (row * torch.tensor([1.0, -1.0], dtype=torch.float64)).sum()

    step = SimpleNamespace(
        arch=arch, gradients=lambda batch, tensors: (torch.autograd.grad(loss(batch), tensors), loss(batch).detach())
    )
    with attacked(step, None, radius=0.1, steps=1):
        [row] = arch.weights().values()
        # from anywhere within 0.1, a step of 0.2 and the projection end at 0.5 +- 0.1
        assert row.tolist() == pytest.approx([0.6, 0.4])


def test_the_radius_grows_and_ends_below_the_largest():
    assert [SDARTS().plan(None, epoch, 50)["radius"] for epoch in (0, 25)] == pytest.approx([0.03, 0.165])
    with pytest.raises(ValueError, match="SDARTSAdv: attack_steps must be at least 1, got 0"):
        SDARTSAdv(attack_steps=0)
    with pytest.raises(ValueError, match="SDARTS perturbs the weights of a mixture"):
        find_method("sdarts-rs+gdas")
    assert on_simplex(torch.tensor([[-1.0, -2.0]])).tolist() == [[1.0, 0.0]]


# Stopping


def test_the_largest_eigenvalue_is_the_largest_by_value():
    torch.manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))
    values = torch.linspace(-9, 2, 12, dtype=torch.float64)
    matrix = basis @ values.diag() @ basis.T
    found = largest_eigenvalue(lambda vector: matrix @ vector, torch.randn(12).double(), products=12)
    assert found == pytest.approx(2.0)


def test_the_eigenvalue_of_a_supernet_against_the_explicit_hessian():
    arch, step, batch = small()
    parameters = arch.parameters()
    gradient = torch.cat(torch.autograd.grad(step.loss(batch), parameters, create_graph=True))
    rows = [torch.cat(torch.autograd.grad(entry, parameters, retain_graph=True)) for entry in gradient]
    explicit = torch.linalg.eigvalsh(torch.stack(rows))[-1].item()
    assert dominant_eigenvalue(step.loss(batch), parameters, products=6) == pytest.approx(explicit, rel=1e-6)


def test_where_early_stopping_stops():
    part = EarlyStopping(window=2, back=2, factor=1.3, watch_from=2)
    records = [{"eigenvalue": value} for value in (1.0, 1.0, 1.0, 1.0, 1.2, 2.0, 9.0)]
    assert local_averages([1.0, 2.0, 6.0], 2) == [1.0, 1.5, 4.0]
    assert [part.stops(records[:n]) for n in (4, 5, 6)] == [False, False, True]  # 1.6 against 1.0
    assert part.result(records[:6]) == 5 - 2 - 1
    assert part.result(records[:5]) == 4
    later = EarlyStopping(window=2, back=2, factor=1.3, watch_from=3)
    assert [later.stops(records[:n]) for n in (6, 7)] == [False, True]
    assert later.result(records) == 3, "no earlier epoch than watch_from is returned"


def test_early_stopping_as_published():
    """With an eigenvalue every epoch that grows by a tenth, the published code stops at 16 and returns epoch 10."""
    part, records = EarlyStopping(), [{"eigenvalue": 1.1**epoch} for epoch in range(50)]
    stopped = next(n for n in range(1, 51) if part.stops(records[:n]))
    assert (stopped - 1, part.result(records[:stopped])) == (16, 10)
    assert not EarlyStopping(window=1, back=1, watch_from=1).stops([{"eigenvalue": -1.0}] * 9), "a ratio of 1"


def test_what_early_stopping_needs():
    arch, _, _ = small()
    arch.threshold = 1e-3
    with pytest.raises(ValueError, match=r"needs every operation's graph, got threshold=0.001"):
        EarlyStopping().check(arch, 50)
    arch, _, _ = small()
    arch.model[2].compile()
    with pytest.raises(ValueError, match="compiled operations have no second derivatives"):
        EarlyStopping().check(arch, 50)
    with pytest.raises(ValueError, match="needs second derivatives of a mixture, and GDAS never trains mixtures"):
        find_method("darts-es+gdas")


def test_where_darts_plus_stops():
    part = SkipStopping(max_skips=2, stable_epochs=2)
    changing = [{"skips": 1, "alphas": {"row": [float(i % 2), 0.5]}} for i in range(5)]
    assert not any(part.stops(changing[:n]) for n in range(6))
    assert part.stops([*changing, {"skips": 2, "alphas": {"row": [1.0, 0.5]}}])
    still = [{"skips": 0, "alphas": {"row": [0.1 * i, -0.5]}} for i in range(3)]
    assert [part.stops(still[:n]) for n in (1, 2, 3)] == [False, False, True]


# Decisions


def test_a_score_of_sgas_by_hand():
    none = torch.tensor([True, False, False])
    rows = [torch.tensor([0.0, 2.0, 0.0]), torch.tensor([1.0, 0.5, 0.5]), torch.tensor([0.0, 1.0, 0.0])]
    importance = [1 - row.softmax(0)[0].item() for row in rows]
    shares = [row[1:].softmax(0) for row in rows]
    certainty = [1 + sum(p * math.log(p) for p in share.tolist()) / math.log(2) for share in shares]

    def unit(values):
        return [(v - min(values)) / (max(values) - min(values)) for v in values]

    expected = [a * b for a, b in zip(unit(importance), unit(certainty), strict=True)]
    assert edge_scores(rows, [none] * 3).tolist() == pytest.approx(expected, abs=1e-6)
    history = [[torch.tensor([0.0, 0.0, 2.0]), rows[1], rows[2]]]
    overlap = [torch.minimum(shares[0], shares[0].flip(0)).sum().item(), 1.0, 1.0]
    stable = [a * b for a, b in zip(expected, unit(overlap), strict=True)]
    assert edge_scores(rows, [none] * 3, history).tolist() == pytest.approx(stable, abs=1e-6)


def test_sgas_decides_the_clearest_edge_and_closes_full_nodes():
    edges = {f"normal 3<-{i}": edge(node="normal 3", label=f"normal 3<-{i}") for i in range(3)}
    arch = ArchParameterGroup(nn.ModuleList(edges.values()))
    with torch.no_grad():
        for alpha, best in zip(arch.parameters(), (1.0, 3.0, 2.0), strict=True):
            alpha.copy_(torch.tensor([9.0 if best == 1.0 else 0.0, 0.0, best]))
    part = SGAS(first_decision=1, decision_every=2, edges_per_node=2)
    part.check(arch, epochs=4)
    with pytest.raises(
        ValueError, match=r"2 decisions, every 2 epochs from epoch 1 on, end in epoch 3; .* has 3 epochs"
    ):
        part.check(arch, epochs=3)
    assert part.decide(arch, Evidence(Moment(epoch=0), 4)) == {}
    assert part.decide(arch, Evidence(Moment(epoch=1), 4)) == {"decided": {"normal 3<-1": ["conv"]}}
    part.decide(arch, Evidence(Moment(epoch=3), 4))
    assert arch.choices() == {"normal 3<-0": (), "normal 3<-1": ("conv",), "normal 3<-2": ("conv",)}


def test_random_architectures_follow_from_the_moment():
    arch, _, _ = small(edges=4)
    drawn = []
    for epoch in (0, 1, 0):
        choose_at_random_(arch, Moment(5, epoch))
        drawn.append(arch.choices())
    assert drawn[0] == drawn[2] != drawn[1]
    records = [{"discretized_accuracy": value} for value in (10.0, 50.0, 30.0, 40.0)]
    assert RandomSearch(epochs_each=2).result(records) == 1
    assert RandomSearch().result(records[2:]) == 1
    counts = sum(UniformChoice()(ALPHA, Moment(step=step)) for step in range(3000)) / 3000
    assert torch.allclose(counts[0], torch.full((4,), 0.25).double(), atol=0.04)
    assert torch.allclose(counts[1], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]).double(), atol=0.04)


# Partial channels


def test_a_partial_edge_by_hand():
    op = edge(node="2", channels=2)
    partial, x = PartialChannels(op, parts=2), torch.randn(1, 4, 2, 2)
    with torch.no_grad():
        op.alpha.copy_(torch.tensor([-torch.inf, 0.0, -torch.inf]).clamp_min(-1e4))
    out = partial(x)
    assert torch.allclose(out, x[:, [0, 2, 1, 3]], atol=1e-6), "channels are shuffled: mixed, passed, mixed, passed"
    other = edge(node="2", channels=2)
    arch = ArchParameterGroup(nn.ModuleList([partial, PartialChannels(other, parts=2)]))
    PCDARTS(channel_parts=2).check(arch, 50)
    PCDARTS(channel_parts=2).prepare_(arch)
    with torch.no_grad():
        for beta, value in zip(arch.parameters()[2:], (0.0, math.log(3)), strict=True):
            beta.fill_(value)
    assert torch.allclose(partial(x), 0.25 * out, atol=1e-6), "the edge's weight is that of all its channels"


def test_what_partial_channels_need():
    arch = ArchParameterGroup(edge())
    with pytest.raises(ValueError, match="mixes 1/4 of the channels, and the candidates of MixedOp were built for all"):
        PCDARTS().check(arch, 50)
    with pytest.raises(ValueError, match="names the node that it leads to"):
        PCDARTS().prepare_(arch)
    with pytest.raises(ValueError, match="4 parts do not divide 6 channels"):
        split_channels(torch.zeros(1, 6, 2, 2), 4)
    with pytest.raises(ValueError, match="frozen_epochs=15 of 10 epochs"):
        PCDARTS().check(arch, 10)


# Ablations and regularisers


def test_both_passes_add_up_the_two_losses():
    part = find_method("sp-darts-both")
    assert part.passes(Moment(), {}) == [False, True]
    assert find_method("sp-darts").passes(Moment(phi=True), {}) == [True]
    plan = find_method("sp-darts-fixed-p").plan(None, 0, 10)
    assert plan["p"] == 0.5


def test_augmentation_that_grows():
    part, calls = RampedAugmentation(drop_path=0.4, cutout=8), []
    model = SimpleNamespace(set_drop_path=lambda rate: calls.append(rate))
    pairs = SimpleNamespace(cut_out=lambda side, probability: calls.append((side, probability)))
    for epoch in (0, 5, 10):
        plan = part.plan(None, epoch, 11)
        json.dumps(plan)
        part.shape_(SimpleNamespace(model=model), pairs, None, plan)
    assert calls == [0, (8, 0), 0.2, (8, 0.5), 0.4, (8, 1.0)]
    with pytest.raises(ValueError, match="Sequential has no edges that can be dropped"):
        part.check(SimpleNamespace(model=nn.Sequential()), 10)


def test_a_composition_that_is_a_method_of_its_own():
    assert find_method("sgas+pt").parts == (SGAS(by_accuracy=True),)
    assert [type(part) for part in find_method("gaea-bilevel+pc-darts").parts] == [GAEA, PCDARTS]
    assert Part() in find_method("r-darts-l2").parts


def test_an_attack_is_on_the_training_loss_alone(tmp_path, monkeypatch):
    """The cost of operations is a term of the alphas' loss; the weights' loss, under attack or not, has none."""
    flags = ["--preset", "proxy", "--epochs", "1", "--limit", "64", "--batch-size", "32", "--image-size", "16"]
    flags += ["--model", "resnet10t", "--mix", "kernel", "--where", "layer1*", "--cost-budget", "1", "--device", "cpu"]
    asked = []
    monkeypatch.setattr(timm_model, "CostTerm", lambda arch, *others: lambda: asked.append(arch.relaxation) or 0.0)
    for method in ("darts", "sdarts-adv"):
        asked.clear()
        config = timm_model.configure([*flags, "--method", method, "--output", str(tmp_path / method)])
        search = timm_model.make_search(config)
        search.run()
        assert len(asked) == len(search.pairs), "once a step, for the alphas"


def test_a_single_update_under_attack_trains_the_alphas():
    arch, step, batch = small()
    step.order, step.around_weights = "single", lambda batch: attacked(step, batch, radius=0.1, steps=1)
    before = [alpha.detach().clone() for alpha in arch.parameters()]
    step(batch, batch)
    assert not all(map(torch.equal, before, arch.parameters()))
