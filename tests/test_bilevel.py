import copy
import math
import warnings
from contextlib import contextmanager

import pytest
import reference
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sparsemix.models  # noqa: F401
from sparsemix import ArchParameterGroup, BatchMixedScheduler, MixedOp
from sparsemix.methods import SearchStep
from sparsemix.relaxations import Softmax
from sparsemix.spaces.nb201 import OPERATIONS
from sparsemix.speed.published import PublishedSupernet, published_step
from sparsemix.supernet.gradients import alpha_gradient, unrolled_alpha_gradient


@pytest.fixture
def small():
    """A float64 model with batch norm, two mixed edges, its group at temperature 1, and batches for both halves."""
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        MixedOp({name: make(3, False) for name, make in OPERATIONS.items()}),
        nn.Tanh(),
        MixedOp({"skip": nn.Identity(), "conv": nn.Conv2d(3, 3, 3, padding=1)}),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 4),
    ).double()
    arch = ArchParameterGroup(net, Softmax())
    with torch.no_grad():
        for alpha in arch.parameters():
            alpha.copy_(torch.randn_like(alpha))
    batches = [(torch.randn(5, 2, 4, 4, dtype=torch.float64), torch.randint(4, (5,))) for _ in range(2)]
    return arch, lambda batch: F.cross_entropy(net(batch[0]), batch[1]), *batches


def difference_quotient(arch, value, epsilon=1e-5):
    """Gradient of ``value()`` in every alpha by central differences."""
    gradients = []
    for alpha in arch.parameters():
        gradient = torch.zeros_like(alpha)
        for i in range(len(alpha)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    alpha[i] += sign * epsilon
                values.append(value())
                with torch.no_grad():
                    alpha[i] -= sign * epsilon
            gradient[i] = (values[0] - values[1]) / (2 * epsilon)
        gradients.append(gradient)
    return gradients


def test_first_order_gradient_is_the_difference_quotient(small):
    arch, loss, _, val = small
    gradients, value = alpha_gradient(arch, loss, val)
    assert value == loss(val)
    expected = difference_quotient(arch, lambda: loss(val).item())
    torch.testing.assert_close(list(gradients), expected, rtol=1e-5, atol=1e-8)


SGD = {
    "plain": {},
    "maximize": {"maximize": True, "momentum": 0.5},
    "momentum": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
}


@pytest.mark.parametrize("settings", SGD.values(), ids=SGD)
def test_second_order_gradient_is_that_of_the_unrolled_loss(small, settings):
    """Against autograd through the virtual step, differentiated twice: the finite difference is the only error."""
    arch, loss, train, val = small
    optimizer = torch.optim.SGD(arch.weight_parameters(), lr=0.1, **settings)
    for _ in range(2):  # fill the momentum buffers
        optimizer.zero_grad()
        with arch.fixed_alphas():
            loss(train).backward()
        optimizer.step()
    names = {id(p): name for name, p in arch.model.named_parameters()}
    alphas = [names[id(a)] for a in arch.parameters()]
    buffers = {
        names[id(w)]: s["momentum_buffer"] for w, s in optimizer.state.items() if s.get("momentum_buffer") is not None
    }
    expected = reference.unrolled_alpha_gradient(
        copy.deepcopy(arch.model),
        alphas,
        F.cross_entropy,
        train,
        val,
        lr=0.1,
        momentum=settings.get("momentum", 0.0),
        decay=settings.get("weight_decay", 0.0),
        buffers=buffers,
        nesterov=settings.get("nesterov", False),
        sign=-1 if settings.get("maximize") else 1,
    )
    first, _ = alpha_gradient(arch, loss, val)
    states = {w: {name: value.clone() for name, value in s.items()} for w, s in optimizer.state.items() if s}
    before = copy.deepcopy(arch.model.state_dict()), states, torch.get_rng_state()
    gradients, _ = unrolled_alpha_gradient(arch, loss, optimizer, train, val)
    torch.testing.assert_close(list(gradients), list(expected), rtol=2e-3, atol=1e-6)
    assert not torch.allclose(gradients[0], first[0], rtol=2e-3)
    for name, value in arch.model.state_dict().items():
        assert torch.equal(value, before[0][name]), name
    assert {w for w, s in optimizer.state.items() if s} == set(states)
    for weight, state in states.items():
        for name, value in optimizer.state[weight].items():
            assert torch.equal(value, state[name]), name
    assert torch.equal(torch.get_rng_state(), before[2])


def test_second_order_needs_sgd(small):
    arch, loss, train, val = small
    with pytest.raises(TypeError, match=r"needs torch\.optim\.SGD for its virtual step, got AdamW"):
        unrolled_alpha_gradient(arch, loss, torch.optim.AdamW(arch.weight_parameters()), train, val)


def test_second_order_needs_every_weight_in_its_optimizer(small):
    arch, loss, train, val = small
    with pytest.raises(ValueError, match=r"not there: weights of shape \[\(3, 2, 3, 3\)\]"):
        unrolled_alpha_gradient(arch, loss, torch.optim.SGD(arch.weight_parameters()[1:], lr=0.1), train, val)


def test_second_order_sees_one_dropout_mask_on_both_sides():
    """With a loss linear in the weights the finite difference is exact, unless its two sides differ by more than w."""
    dropout = nn.Dropout(0.5)
    net = nn.Sequential(MixedOp({"skip": nn.Identity(), "twice": nn.Tanh()}), nn.Linear(64, 1, bias=False)).double()
    arch = ArchParameterGroup(net, Softmax())
    x = torch.randn(8, 64, dtype=torch.float64)
    optimizer = torch.optim.SGD(arch.weight_parameters(), lr=0.1)

    def loss(masked):
        return net(dropout(x) if masked else x).mean()

    first, _ = alpha_gradient(arch, loss, False)
    spread = []
    for seed in range(4):
        torch.manual_seed(seed)
        gradients, _ = unrolled_alpha_gradient(arch, loss, optimizer, True, False)
        spread.append((gradients[0] - first[0]).abs().max())
    assert max(spread) < 1  # two masks would differ by |loss| / 2 R, some hundreds


def test_second_order_reduces_weight_gradients_before_they_are_used(small):
    arch, loss, train, val = small
    optimizer = torch.optim.SGD(arch.weight_parameters(), lr=0.1)
    reduced = []

    def drop(gradients):
        reduced.append(len(gradients))
        for gradient in gradients:
            gradient.zero_()

    first, _ = alpha_gradient(arch, loss, val)
    gradients, _ = unrolled_alpha_gradient(arch, loss, optimizer, train, val, drop)
    assert reduced == [len(arch.weight_parameters())] * 2
    torch.testing.assert_close(list(gradients), list(first))  # no step, and no vector to multiply the Hessian by


def search_step(arch, loss, **options):
    return SearchStep(
        arch,
        loss,
        torch.optim.SGD(arch.weight_parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
        torch.optim.Adam(arch.parameters(), lr=3e-4, betas=(0.5, 0.999)),
        **options,
    )


class ConvolutionBackward(TorchDispatchMode):
    """Which gradients (input, weight, bias) every convolution's backward pass was asked for."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("order", ["first", "second"])
def test_each_update_computes_its_own_gradients_only(small, order):
    arch, loss, train, val = small
    step = search_step(arch, loss, order=order)
    step.update_weights(train)
    assert all(a.grad is None for a in arch.parameters())
    before = [w.grad.clone() for w in arch.weight_parameters()]
    step.update_alphas(train, val)
    assert all(torch.equal(w.grad, b) for w, b in zip(arch.weight_parameters(), before, strict=True))


def test_the_alpha_update_runs_no_convolution_for_weights(small):
    arch, loss, train, val = small
    step = search_step(arch, loss)
    with ConvolutionBackward() as alpha_update:
        step.update_alphas(train, val)
    with ConvolutionBackward() as weights_update:
        step.update_weights(train)
    assert {mask[1] for mask in alpha_update.masks} == {False}
    assert {mask[1] for mask in weights_update.masks} == {True}


def test_steps_follow_the_published_dense_formulation():
    """Weights, alphas, momentum, Adam's moments and running statistics after several steps, in float64."""
    supernet = timm.create_model("sparsemix_nb201_supernet", channels=4, cells=1, num_classes=3).double()
    dense = PublishedSupernet(supernet, temperature=0.01)
    arch = ArchParameterGroup(supernet, Softmax(0.01))
    step = search_step(arch, lambda batch: F.cross_entropy(supernet(batch[0]), batch[1]))
    dense_weights = torch.optim.SGD(dense.weight_parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    dense_alphas = torch.optim.Adam([dense.alphas], lr=3e-4, betas=(0.5, 0.999))
    for _ in range(3):
        train, val = ((torch.randn(6, 3, 8, 8).double(), torch.randint(3, (6,))) for _ in range(2))
        step(train, val)
        published_step(dense, dense_weights, dense_alphas, train, val)
    torch.testing.assert_close(torch.stack(arch.parameters()), dense.alphas, rtol=1e-8, atol=1e-10)
    for weight, expected in zip(arch.weight_parameters(), dense.weight_parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(
            step.weight_optimizer.state[weight]["momentum_buffer"],
            dense_weights.state[expected]["momentum_buffer"],
            rtol=1e-5,
            atol=1e-8,
        )
    for moment in ("exp_avg", "exp_avg_sq"):
        ours = torch.stack([step.alpha_optimizer.state[a][moment] for a in arch.parameters()])
        torch.testing.assert_close(ours, dense_alphas.state[dense.alphas][moment], rtol=1e-5, atol=1e-10)
    statistics = [buffer for name, buffer in supernet.named_buffers() if not name.endswith("allowed")]
    for buffer, expected in zip(statistics, dense.net.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected)


def test_order_of_the_updates(small):
    arch, loss, train, val = small
    seen = []

    def watched(batch):
        seen.append("train" if batch is train else "val")
        return loss(batch)

    search_step(arch, watched)(train, val)
    search_step(arch, watched, weights_first=False)(train, val)
    assert seen == ["train", "val", "val", "train"]


def test_single_level_is_one_pass_for_both(small):
    arch, loss, train, val = small
    seen = []
    twin = copy.deepcopy(arch)
    step = search_step(arch, lambda batch: seen.append(batch is train) or loss(batch), order="single", max_norm=None)
    first, second = step(train, val)
    assert first == second
    assert seen == [True]
    expected = torch.autograd.grad(
        F.cross_entropy(twin.model(train[0]), train[1]), [*twin.parameters(), *twin.weight_parameters()]
    )
    actual = [p.grad for p in (*arch.parameters(), *arch.weight_parameters())]
    torch.testing.assert_close(actual, list(expected))
    assert all(not torch.equal(a, b) for a, b in zip(arch.parameters(), twin.parameters(), strict=True))


def test_clipping_and_what_it_covers(small):
    arch, loss, train, val = small

    def norm(parameters):
        return float(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters])))

    for clip_alphas in (False, True):
        step = search_step(arch, loss, max_norm=1e-3, clip_alphas=clip_alphas)
        step(train, val)  # leaves alpha's gradient behind
        step.update_weights(train)
        clipped = [*arch.weight_parameters(), *(arch.parameters() if clip_alphas else [])]
        assert norm(clipped) == pytest.approx(1e-3, rel=1e-3)
    assert norm(arch.weight_parameters()) < 0.998e-3  # stale alpha gradients shrink the weights' update


@pytest.mark.parametrize("ratio", [0.5, 1 - 1e-6, 1.0, 1 + 1e-6, 2.0, float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipping_is_torch_s_to_the_last_bit(small, ratio, dtype):
    arch, loss, train, _ = small
    arch.model.to(dtype)
    batch = train[0].to(dtype), train[1]
    weights = arch.weight_parameters()
    with arch.fixed_alphas():
        gradients = torch.autograd.grad(loss(batch), weights)
    norm = float(torch.nn.utils.get_total_norm(gradients))
    scale = ratio if math.isnan(ratio) else 1.0
    max_norm = norm if math.isnan(ratio) else norm / ratio
    search_step(arch, lambda batch: scale * loss(batch), max_norm=max_norm).update_weights(batch)
    expected = [nn.Parameter(torch.empty_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(expected, gradients, strict=True):
        parameter.grad = scale * gradient
    torch.nn.utils.clip_grad_norm_(expected, max_norm)
    for weight, parameter in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, parameter.grad, rtol=0, atol=0, equal_nan=True)


def test_reduce_and_backward_are_called(small):
    arch, loss, train, val = small
    backwards = []

    def reduce(gradients):
        for gradient in gradients:
            gradient.zero_()

    before = [a.detach().clone() for a in arch.parameters()]
    step = search_step(arch, loss, reduce=reduce, backward=lambda value: (backwards.append(value), value.backward()))
    step(train, val)
    assert len(backwards) == 1
    assert all(torch.equal(a, b) for a, b in zip(arch.parameters(), before, strict=True))
    assert all(weight.grad is None or not weight.grad.any() for weight in arch.weight_parameters())


@pytest.mark.parametrize("order", ["first", "second", "single"])
@pytest.mark.parametrize("clip_alphas", [False, True])
def test_parts_of_a_batch_are_one_step(small, order, clip_alphas):
    """Gradient accumulation: the update of the whole batch, and phi once."""
    arch, _, train, val = small
    for module in arch.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # statistics of the parts are not those of the batch

    def loss(batch):
        return nn.functional.cross_entropy(arch.model(batch[0]), batch[1], reduction="sum") / len(train[1])

    def thirds(batch):
        return zip(batch[0].split(3), batch[1].split(3), strict=True)

    before, ends = copy.deepcopy(arch.model.state_dict()), []
    for options in ({}, {"split": thirds}):
        arch.model.load_state_dict(before)
        step = search_step(arch, loss, order=order, clip_alphas=clip_alphas, **options)
        losses = [step(train, val) for _ in range(2)]
        ends.append([*(a.detach().clone() for a in arch.model.parameters()), *losses[-1]])
    for whole, parts in zip(*ends, strict=True):
        torch.testing.assert_close(whole, parts)


def test_a_row_that_the_loss_does_not_reach_keeps_its_alpha(small):
    arch, _, train, val = small
    step = search_step(arch, lambda batch: arch.model[:3](batch[0]).square().mean())
    before = arch.parameters()[1].detach().clone()
    step(train, val)
    assert torch.equal(arch.parameters()[1], before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "third"}, "order must be one of first, second, single, got 'third'"),
        ({"max_norm": 0}, "max_norm must be positive or None, got 0"),
    ],
)
def test_bad_options(small, options, message):
    arch, loss, *_ = small
    with pytest.raises(ValueError, match=message):
        search_step(arch, loss, **options)


# What can be mixed up


def test_optimizers_that_hold_the_wrong_parameters(plain_supernet):
    model = plain_supernet()
    arch = ArchParameterGroup(model)
    weights, alphas = arch.weight_parameters(), arch.parameters()
    sgd, adam = torch.optim.SGD(weights, lr=0.1), torch.optim.Adam(alphas, lr=1e-3)
    with pytest.raises(ValueError, match="the two optimizers are swapped: the weights' optimizer comes first"):
        SearchStep(arch, lambda batch: None, adam, sgd)
    everything = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="the weights' optimizer holds 2 of 2 alphas, which it would train"):
        SearchStep(arch, lambda batch: None, everything, adam)
    with pytest.raises(ValueError, match=f"alpha's optimizer holds {len(weights)} parameters that are no alphas"):
        SearchStep(arch, lambda batch: None, sgd, torch.optim.Adam(model.parameters(), lr=1e-3))
    with pytest.raises(ValueError, match="alpha's optimizer lacks 1 of 2 alphas, which would never move"):
        SearchStep(arch, lambda batch: None, sgd, torch.optim.Adam(alphas[:1], lr=1e-3))
    with pytest.warns(UserWarning, match=f"the weights' optimizer lacks {len(weights) - 2} of {len(weights)} weights"):
        SearchStep(arch, lambda batch: None, torch.optim.SGD(weights[:2], lr=0.1), adam)
    for weight in weights[2:]:
        weight.requires_grad_(False)
    SearchStep(arch, lambda batch: None, torch.optim.SGD(weights[:2], lr=0.1), adam)
    other = ArchParameterGroup(plain_supernet())
    with pytest.raises(ValueError, match="the weights' optimizer holds none of the 2 weights of Sequential"):
        SearchStep(arch, lambda batch: None, torch.optim.SGD(other.weight_parameters(), lr=0.1), adam)


def make_step(arch, model):
    """A step whose loss runs this model."""
    return search_step(arch, lambda batch: F.cross_entropy(model(batch[0]), batch[1]))


@pytest.fixture
def batch():
    return torch.randn(4, 2, 6, 6), torch.randint(3, (4,))


def test_a_loss_that_runs_another_model(plain_supernet, batch):
    arch = ArchParameterGroup(plain_supernet())
    for other in (copy.deepcopy(arch.model), arch.discretize(), plain_supernet()):
        with pytest.raises(ValueError, match=r"the loss depends on no parameter .*: does it run another model"):
            make_step(arch, other).update_alphas(batch, batch)
    with arch.discretized(), pytest.raises(ValueError, match=r"under a relaxation without a gradient \(Argmax\)"):
        make_step(arch, arch.model)(batch, batch)


def test_a_phi_that_nobody_draws(plain_supernet, batch):
    arch = ArchParameterGroup(plain_supernet())
    BatchMixedScheduler(arch, epochs=4, steps_per_epoch=2)  # its step_update is never called
    step = make_step(arch, arch.model)
    step(batch, batch)
    with pytest.warns(UserWarning, match="a second search step under phi=False: nobody draws phi. Call Batch"):
        step(batch, batch)
    step(batch, batch)  # said once


@pytest.mark.parametrize("relaxation", [Softmax(), Softmax(1e-3)])
def test_without_phi_in_the_relaxation_nobody_need_draw_it(plain_supernet, batch, relaxation):
    arch = ArchParameterGroup(plain_supernet(), relaxation)
    step = make_step(arch, arch.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            step(batch, batch)


def test_a_phi_that_is_drawn_alike_twice(plain_supernet, batch):
    arch = ArchParameterGroup(plain_supernet())
    phi = BatchMixedScheduler(arch, epochs=4, steps_per_epoch=2)
    step = make_step(arch, arch.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for update in range(2):  # p is 0 in the first epoch
            phi.step_update(update)
            step(batch, batch)


def test_alphas_that_are_replaced_after_the_optimizers_were_made(plain_supernet, batch):
    arch = ArchParameterGroup(plain_supernet())
    step = make_step(arch, arch.model)
    state = copy.deepcopy(arch.model.state_dict())
    step(batch, batch)
    arch.model.load_state_dict(state, assign=True)
    arch.phi = True
    with pytest.raises(ValueError, match="alpha's optimizer lacks 2 of 2 alphas"):
        step.update_alphas(batch, batch)


def test_losses_have_names(plain_supernet, batch):
    arch = ArchParameterGroup(plain_supernet())
    losses = make_step(arch, arch.model)(batch, batch)
    assert (losses.train, losses.val) == tuple(losses)


def test_a_group_that_another_one_has_replaced(plain_supernet):
    model = plain_supernet()
    first = ArchParameterGroup(model)
    phi = BatchMixedScheduler(first, epochs=2, steps_per_epoch=3)
    step = SearchStep(
        first,
        lambda batch: model(batch).sum(),
        torch.optim.SGD(first.weight_parameters(), lr=0.1),
        torch.optim.Adam(first.parameters(), lr=1e-3),
    )
    ArchParameterGroup(model)
    for use in (lambda: phi.step_update(0), lambda: step(None, None)):
        with pytest.raises(RuntimeError, match="this ArchParameterGroup has been released: Sequential no longer runs"):
            use()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda loss: loss.item(), r"the loss must return a scalar tensor with a graph, .*; got \d"),
        (lambda loss: loss.detach(), r"got a tensor \(\), requires_grad=False"),
        (lambda loss: loss * torch.ones(2), r"got a tensor \(2,\), requires_grad=True"),
    ],
)
def test_a_loss_that_is_none(plain_supernet, batch, value, message):
    arch = ArchParameterGroup(plain_supernet())
    step = search_step(arch, lambda batch: value(F.cross_entropy(arch.model(batch[0]), batch[1])))
    for update in (lambda: step.update_weights(batch), lambda: step.update_alphas(batch, batch)):
        with pytest.raises(TypeError, match=message):
            update()


def test_a_model_in_place_of_its_group(plain_supernet):
    model = plain_supernet()
    arch = ArchParameterGroup(model)
    sgd, adam = torch.optim.SGD(arch.weight_parameters(), lr=0.1), torch.optim.Adam(arch.parameters())
    with pytest.raises(TypeError, match="needs the model's ArchParameterGroup first, got a Sequential"):
        SearchStep(model, lambda batch: None, sgd, adam)
    with pytest.raises(
        TypeError, match=r"needs the model, a torch.nn.Module; got a list \(mix_ changes the model in place"
    ):
        ArchParameterGroup([model])


def test_a_frozen_alpha_is_named_before_the_first_step():
    model = nn.Sequential(MixedOp({"skip": nn.Identity(), "linear": nn.Linear(4, 4)}), nn.Linear(4, 2))
    arch = ArchParameterGroup(model)
    optimizers = torch.optim.SGD(arch.weight_parameters(), lr=0.1), torch.optim.Adam(arch.parameters())
    model[0].alpha.requires_grad_(False)
    with pytest.raises(ValueError, match="1 of 1 alphas have requires_grad=False"):
        SearchStep(arch, lambda batch: model(batch).sum(), *optimizers)


def test_a_single_update_of_both_runs_within_the_context_of_the_weights():
    model = nn.Sequential(MixedOp({"skip": nn.Identity(), "linear": nn.Linear(4, 4)}), nn.Linear(4, 2))
    arch, entered = ArchParameterGroup(model), []
    optimizers = torch.optim.SGD(arch.weight_parameters(), lr=0.1), torch.optim.Adam(arch.parameters())

    @contextmanager
    def around(batch):
        entered.append(batch)
        yield

    step = SearchStep(arch, lambda batch: model(batch).sum(), *optimizers, order="single", around_weights=around)
    batch = torch.randn(3, 4)
    step(batch, batch)
    assert entered == [batch]
