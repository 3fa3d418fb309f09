"""Which operations run, and that leaving the others out changes what it says and nothing else."""

import contextlib
import copy
import math

import pytest
import timm
import timm.optim
import torch
import torch.nn.functional as F
from torch import nn

import sparsemix.models  # noqa: F401
from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.measure import audit
from sparsemix.methods import SearchStep
from sparsemix.relaxations import Softmax, StraightThrough
from sparsemix.spaces.cells import DenseCell
from sparsemix.spaces.primitives import Noise, ReLUConvBN, Zero
from sparsemix.supernet.alphas import decided
from sparsemix.supernet.gradients import alpha_gradient
from sparsemix.supernet.mixed_op import Execution, Weights, fan_out


class Scaled(nn.Module):
    """A learnt multiple of the input; counts its calls."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.factor * x


def edge(weights, always_run=False):
    """A model of one mixed operation whose softmax at temperature 1 gives these weights."""
    candidates = {name: Scaled(i + 2) for i, name in enumerate("abcdefgh"[: len(weights)])}
    model = nn.Sequential(MixedOp(candidates, always_run=always_run))
    with torch.no_grad():
        model[0].alpha.copy_(torch.tensor(weights).log().clamp(min=-200.0))
    return model


def calls(model):
    counts = [candidate.calls for candidate in model[0].candidates.values()]
    for candidate in model[0].candidates.values():
        candidate.calls = 0
    return counts


def plain_model(always_run):
    """Two mixed edges of plain convolutions with batch norm; alphas that leave exact zeros at temperature 1e-3."""
    torch.manual_seed(3)

    def conv(size):
        return nn.Sequential(nn.Conv2d(4, 4, size, padding=size // 2), nn.BatchNorm2d(4))

    def mixed():
        return MixedOp({"skip": nn.Identity(), "conv1": conv(1), "conv3": conv(3)}, always_run=always_run)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), mixed(), nn.Tanh(), mixed(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        model[1].alpha.copy_(torch.tensor([0.0005, -0.2, 0.0]))
        model[3].alpha.copy_(torch.tensor([-0.3, 0.0, -0.2]))
    return model


OPTIMIZERS = {
    "sgd": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda w: torch.optim.AdamW(w, lr=0.01, weight_decay=0.1),
    "lamb": lambda w: timm.optim.Lamb(w, lr=0.01, weight_decay=0.1),
    "muon": lambda w: timm.optim.create_optimizer_v2(w, "muon", lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_zero_weights_leave_the_trajectory_of_the_dense_computation(optimizer, autocast, device, monkeypatch):
    """Bit for bit, over several steps: losses, weights, alphas, and the state of both optimizers."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    runs = []
    for always_run in (True, False):
        model = plain_model(always_run).to(device)
        arch = ArchParameterGroup(model, Softmax(1e-3))

        def loss(batch, model=model):
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                return F.cross_entropy(model(batch[0]).float(), batch[1])

        weights = optimizer(arch.weight_parameters())
        alphas = torch.optim.Adam(arch.parameters(), lr=3e-4, betas=(0.5, 0.999))
        step = SearchStep(arch, loss, weights, alphas)
        generator = torch.Generator().manual_seed(0)
        losses = []
        for _ in range(5):
            batches = [
                (torch.randn(6, 3, 6, 6, generator=generator), torch.randint(4, (6,), generator=generator))
                for _ in "ab"
            ]
            losses += step(*((x.to(device), y.to(device)) for x, y in batches))
        states = [v for o in (weights, alphas) for s in o.state.values() for v in s.values() if torch.is_tensor(v)]
        runs.append([*losses, *model.parameters(), *states])
        skipped = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.num_batches_tracked == 0]
        assert len(skipped) == (0 if always_run else 2)
    assert len(runs[0]) == len(runs[1])
    for dense, sparse in zip(*runs, strict=True):
        assert torch.equal(dense, sparse)


def test_skipped_parameters_get_zeros_and_none_is_left_without_a_gradient():
    model = edge([0.9, 0.1, 0.0])
    arch = ArchParameterGroup(model, Softmax())
    model(torch.ones(3)).sum().backward()
    assert calls(model) == [1, 1, 0]
    assert model[0].candidates["c"].factor.grad == 0
    assert all(p.grad is not None for p in (*arch.weight_parameters(), *arch.parameters()))


def test_a_weights_update_runs_what_is_above_the_threshold():
    model = edge([0.9, 0.0995, 0.0005])
    arch = ArchParameterGroup(model, Softmax(), threshold=1e-3)
    with arch.fixed_alphas():
        out = model(torch.ones(3))
    assert calls(model) == [1, 1, 0]
    torch.testing.assert_close(out, torch.full((3,), 0.9 * 2 + 0.0995 * 3))
    assert (out - (0.9 * 2 + 0.0995 * 3 + 0.0005 * 4)).abs().max() <= 1e-3 * 2 * 4  # the bound of the docstring


def test_an_alpha_update_scores_what_is_below_it():
    """The output and the edge's own alpha gradient are the dense ones."""
    weights, x = [0.9, 0.0995, 0.0005], torch.randn(5)
    gradients, outputs = [], []
    for threshold in (0.0, 1e-3):
        model = edge(weights)
        arch = ArchParameterGroup(model, Softmax(), threshold=threshold)
        outputs.append(model(x))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), arch.parameters())[0])
        assert calls(model) == [1, 1, 1]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)


def test_what_scoring_drops_is_the_gradient_through_the_weak_operations():
    """By hand: d sum(y) / dx is sum_m a_m c_m; with scoring the weak operation's a_m c_m is missing, no more."""
    x = torch.randn(5, requires_grad=True)
    for threshold, expected in ((0.0, 0.9 * 2 + 0.0995 * 3 + 0.0005 * 4), (1e-3, 0.9 * 2 + 0.0995 * 3)):
        model = edge([0.9, 0.0995, 0.0005])
        ArchParameterGroup(model, Softmax(), threshold=threshold)
        [gradient] = torch.autograd.grad(model(x).sum(), [x])
        torch.testing.assert_close(gradient, torch.full((5,), expected))


def test_shared_operations_are_scored_alike():
    """In a supernet whose edges run together: values and alpha gradients of scoring, against the plain threshold 0."""
    supernet = timm.create_model("sparsemix_nb201_supernet", channels=4, cells=1).double()
    arch = ArchParameterGroup(supernet, Softmax(1e-3))
    batch = torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.randint(10, (8,))

    def loss(batch):
        return F.cross_entropy(supernet(batch[0]), batch[1])

    dense, value = alpha_gradient(arch, loss, batch)
    arch.threshold = 0.1
    scored, same = alpha_gradient(arch, loss, batch)
    torch.testing.assert_close(value, same)
    for label, exact, close in zip(arch.rows, dense, scored, strict=True):
        assert F.cosine_similarity(exact, close, dim=0) > 0.9, label
    assert any(not torch.equal(a, b) for a, b in zip(dense, scored, strict=True))


def test_scored_operations_keep_no_graph_and_are_idle_in_a_single_level_search():
    """One backward pass for both: their parameters get zeros, as in a weights update, the alphas their gradient."""
    model = edge([0.9, 0.0995, 0.0005])
    arch = ArchParameterGroup(model, Softmax(), threshold=1e-3)
    x = torch.randn(5)
    model(x).sum().backward()
    assert [candidate.factor.grad for candidate in model[0].candidates.values()] == [
        pytest.approx(0.9 * x.sum().item(), rel=1e-5),
        pytest.approx(0.0995 * x.sum().item(), rel=1e-5),
        0,
    ]
    outputs = torch.tensor([2, 3, 4]) * x.sum()
    weights = torch.tensor([0.9, 0.0995, 0.0005])
    torch.testing.assert_close(arch.parameters()[0].grad, weights * (outputs - weights @ outputs))


@pytest.mark.parametrize("supernet", ["sparsemix_nb201_supernet", "sparsemix_darts_supernet"])
def test_a_search_step_reads_from_the_device_once_a_forward(supernet, monkeypatch):
    """On the meta device, where any other read of a value raises; on a GPU it would keep the host waiting."""
    reads = []

    def weights(tensor):
        reads.append(tensor.device.type)
        return [(0.3, 1e-5)[i % 2] for i in range(tensor.numel())]

    model = timm.create_model(supernet, channels=8, cells=1 if "nb201" in supernet else 3).to("meta")
    arch = ArchParameterGroup(model, threshold=1e-3)
    sgd = torch.optim.SGD(arch.weight_parameters(), lr=0.1, momentum=0.9)
    adam = torch.optim.Adam(arch.parameters(), lr=3e-4, betas=(0.5, 0.999))
    step = SearchStep(arch, lambda batch: F.cross_entropy(model(batch[0]), batch[1]), sgd, adam)
    batch = torch.empty(8, 3, 16, 16, device="meta"), torch.empty(8, dtype=torch.long, device="meta")
    monkeypatch.setattr(torch.Tensor, "tolist", weights)
    for arch.phi in (False, True):
        step(batch, batch)
    assert reads == ["meta"] * 4
    assert all(weight.grad is not None for weight in arch.weight_parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="what the profiler sees of a GPU")
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_a_search_step_on_a_gpu_waits_once_a_forward(autocast):
    model = timm.create_model("sparsemix_nb201_supernet", channels=4, cells=1).cuda()
    arch = ArchParameterGroup(model, threshold=1e-3)
    sgd = torch.optim.SGD(arch.weight_parameters(), lr=0.1, momentum=0.9)

    def loss(batch):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            return F.cross_entropy(model(batch[0]).float(), batch[1])

    step = SearchStep(arch, loss, sgd, torch.optim.Adam(arch.parameters(), lr=3e-4, betas=(0.5, 0.999)))
    batch = torch.randn(8, 3, 16, 16, device="cuda"), torch.randint(10, (8,), device="cuda")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    for arch.phi in (False, True):
        step(batch, batch)  # what is done once, is done
        with torch.profiler.profile(activities=activities) as profile:
            losses = step(batch, batch)
        waits = [event.name for event in profile.events() if event.name == "cudaStreamSynchronize"]
        assert len(waits) == 2
        assert all(bool(value.isfinite()) for value in losses)


def test_the_strongest_always_runs():
    model = edge([0.4, 0.3, 0.3])
    arch = ArchParameterGroup(model, Softmax(), threshold=0.5)
    with arch.fixed_alphas():
        model(torch.ones(1))
    assert calls(model) == [1, 0, 0]


def test_a_strong_negative_weight_is_not_weak():
    model = edge([0.4, 0.3, 0.3])
    arch = ArchParameterGroup(model, lambda alpha, moment: torch.tensor([[0.9, -0.8, 1e-4]]), threshold=1e-3)
    with arch.fixed_alphas():
        model(torch.ones(1))
    assert calls(model) == [1, 1, 0]


def test_always_run():
    model = edge([0.9, 0.1, 0.0], always_run=True)
    arch = ArchParameterGroup(model, Softmax(), threshold=0.5)
    with arch.fixed_alphas():
        model(torch.ones(1))
    assert calls(model) == [1, 1, 1]


def test_forwards_without_gradients_leave_out_zeros_only():
    model = edge([0.9, 0.0999, 0.0001, 0.0])
    ArchParameterGroup(model, Softmax(), threshold=0.05)
    with torch.no_grad():
        model(torch.ones(1))
    assert calls(model) == [1, 1, 1, 0]


def test_a_hard_relaxation_runs_only_what_it_chose():
    model = edge([0.2, 0.5, 0.3])
    arch = ArchParameterGroup(model, StraightThrough())
    out = model(torch.ones(2))
    assert calls(model) == [0, 1, 0]
    assert torch.equal(out, torch.full((2,), 3.0))
    [gradient] = torch.autograd.grad(out.sum(), arch.parameters())
    soft = torch.tensor([0.2, 0.5, 0.3])
    torch.testing.assert_close(gradient, 2 * 3 * 0.5 * (torch.tensor([0.0, 1.0, 0.0]) - soft))  # (Eq. 10), by hand


@pytest.mark.parametrize("threshold", [-0.1, 1, math.nan])
def test_thresholds_that_are_none(threshold):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\), got"):
        ArchParameterGroup(edge([0.5, 0.5]), threshold=threshold)


def test_weights_that_are_not_finite():
    model = edge([0.5, 0.5])
    arch = ArchParameterGroup(model)
    with torch.no_grad():
        arch.parameters()[0][1] = math.nan
    with pytest.raises(FloatingPointError, match="alpha of '0' is not finite"):
        model(torch.ones(1))
    ArchParameterGroup(edge_model := edge([0.5, 0.5]), lambda alpha, moment: alpha / 0)
    with pytest.raises(FloatingPointError, match="the relaxation gave weights that are not finite"):
        edge_model(torch.ones(1))


def test_audit_measures_the_deviation_and_leaves_no_trace():
    model = edge([0.9, 0.0995, 0.0005])
    arch = ArchParameterGroup(model, Softmax())
    optimizer = torch.optim.Adam(arch.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())

    def loss(x):
        return model(x).sum()

    x = torch.tensor([1.0, 3.0])
    nothing = audit(arch, loss, x, 0.0, optimizer)
    assert (nothing.loss, nothing.output, nothing.gradient, nothing.update, nothing.executed) == (0, 0, 0, 0, 1)
    something = audit(arch, loss, x, 1e-3, optimizer)
    missing = 0.0005 * 4 / (0.9 * 2 + 0.0995 * 3 + 0.0005 * 4)
    assert something.loss == pytest.approx(missing, rel=1e-3)
    assert something.output == pytest.approx(missing, rel=1e-3)
    assert something.gradient == pytest.approx(0, abs=1e-6)
    assert something.cosine == pytest.approx(1)
    assert something.executed == pytest.approx(2 / 3)
    assert arch.threshold == 0
    assert not optimizer.state
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_audit_with_outputs_in_containers_replaced_buffers_and_another_order_of_alphas():
    class Counting(Scaled):
        def __init__(self, factor):
            super().__init__(factor)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen = self.seen + 1
            return super().forward(x)

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.ops = nn.ModuleList([MixedOp({"a": Counting(2), "b": Counting(3)}) for _ in range(2)])

        def forward(self, x):
            first, second = (op(x) for op in self.ops)
            return {"both": first + second, "each": (first, [second, None]), "best": first.argmax(), "name": "heads"}

    model = Heads()
    arch = ArchParameterGroup(model, Softmax())
    with torch.no_grad():
        for alpha, lag in zip(arch.parameters(), (5.0, 9.0), strict=True):
            alpha.copy_(torch.tensor([0.0, -lag]))
    buffers = list(model.buffers())
    x = torch.tensor([1.0, 3.0])
    audits = [
        audit(arch, lambda x: model(x)["both"].square().sum(), x, 1e-2, torch.optim.SGD(order, lr=1.0, momentum=0.9))
        for order in (arch.parameters(), arch.parameters()[::-1])
    ]
    assert audits[0] == audits[1]
    assert audits[0].output > 0
    assert audits[0].update == pytest.approx(audits[0].gradient, rel=1e-3)
    with pytest.raises(ValueError, match="the optimizer does not hold 1 of 2 alphas"):
        audit(arch, lambda x: model(x)["both"].sum(), x, 1e-2, torch.optim.SGD(arch.parameters()[:1]))
    assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))
    assert not any(buffer.any() for name, buffer in model.named_buffers() if name.endswith("seen"))


@pytest.mark.parametrize("candidates", ["plain", "shared"])
def test_what_follows_may_work_in_place_beside_idle_operations(candidates):
    torch.manual_seed(0)
    if candidates == "plain":
        op = MixedOp({"sigmoid": nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sigmoid()), "idle": nn.Conv2d(2, 2, 1)})
    else:  # by one batch norm that has applied the weight
        op = MixedOp({"conv": ReLUConvBN(2, 2, 3), "idle": ReLUConvBN(2, 2, 1)})
    weights = Weights(torch.tensor([0.7, 0.3]).unbind(), sizes=(1.0, 0.0))
    x = torch.randn(2, 2, 5, 5)
    gradients = {}
    for in_place in (False, True):
        op.zero_grad()
        F.relu(
            op(x, weights) - 0.1 if not in_place else op(x, weights).sub_(0.1), inplace=in_place
        ).square().sum().backward()
        gradients[in_place] = {name: p.grad for name, p in op.candidates.named_parameters()}
    for name, gradient in gradients[True].items():
        assert torch.equal(gradient, gradients[False][name]), name
        assert bool(gradient.any()) != name.startswith("idle"), name


def test_idle_operations_of_an_edge_get_zeros_though_its_siblings_lead_nowhere():
    edges = [MixedOp({"skip": nn.Identity(), "conv": ReLUConvBN(4, 4, 3)}) for _ in range(2)]
    weights = [Weights(torch.tensor([1.0, 0.0]).unbind(), sizes=(1.0, 0.0))] * 2
    for used, unused in ([0, 1], [1, 0]):
        for edge in edges:
            edge.zero_grad()
        fan_out(torch.randn(2, 4, 4, 4), edges, weights)[used].sum().backward()
        gradient = edges[used].candidates["conv"].conv.weight.grad
        assert torch.equal(gradient, torch.zeros(4, 4, 3, 3))
        assert edges[unused].candidates["conv"].conv.weight.grad is None


@pytest.mark.parametrize("nothing", [Zero(), Noise()])
@pytest.mark.parametrize("fixed", [True, False])
def test_where_nothing_passes_gradients_are_zero_and_not_missing(nothing, fixed):
    stem = nn.Conv2d(3, 4, 1)
    arch = ArchParameterGroup(nn.Sequential(stem, MixedOp({"none": nothing, "conv": nn.Conv2d(4, 4, 1)})), Softmax())
    with torch.no_grad():
        arch.parameters()[0].copy_(torch.tensor([200.0, 0.0]))
    with arch.fixed_alphas() if fixed else contextlib.nullcontext():
        out = arch.model(torch.randn(2, 3, 4, 4))
    out.sum().backward()
    assert torch.equal(stem.weight.grad, torch.zeros(4, 3, 1, 1))
    gradient = arch.parameters()[0].grad
    assert gradient is None if fixed else torch.equal(gradient, torch.zeros(2))


def test_alphas_of_an_edge_that_passes_nothing_are_part_of_the_graph():
    arch = ArchParameterGroup(nn.Sequential(MixedOp({"none": Zero(), "skip": nn.Identity()})), Softmax())
    with torch.no_grad():
        arch.parameters()[0].copy_(torch.tensor([200.0, 0.0]))
    [gradient] = torch.autograd.grad(arch.model(torch.randn(2, 3, 4, 4)).sum(), arch.parameters())
    assert not gradient.any()


def test_alphas_of_other_code_run_what_always_runs():
    table = torch.tensor([[1.0, 0.0]], requires_grad=True)
    arch = ArchParameterGroup.from_parameters({"table": table}, Softmax(1e-3), threshold=1e-3)
    op = MixedOp({"skip": nn.Identity(), "norm": nn.BatchNorm1d(3)}, always_run=True)
    [weights] = arch.operation_weights()["table"]
    op(torch.randn(4, 3), weights)
    fan_out(torch.randn(4, 3), [op], [weights])
    assert op.candidates["norm"].num_batches_tracked == 2


class Gate(nn.Module):
    """A primitive of one's own that applies the weight itself; sigmoid keeps its output for the backward pass."""

    sharing_key = ("gate",)

    def forward(self, x):
        return x.sigmoid()

    def contributions(self, ops, source, weights):
        return [(torch.sigmoid(source.x + weight.logit(eps=1e-6)), None) for weight in weights]


class Same(nn.Module):
    sharing_key = ("same",)

    def forward(self, x):
        return x

    def contributions(self, ops, source, weights):
        return [(source.x, None) for _ in ops]


@pytest.mark.parametrize("primitive", [Gate(), Same()])
@pytest.mark.parametrize("in_a_group", [False, True])
def test_what_a_primitive_returns_is_not_changed_in_place(primitive, in_a_group):
    op = MixedOp({"own": primitive, "idle": nn.Linear(3, 3)})
    x = torch.randn(3, requires_grad=True)
    if in_a_group:
        model = nn.Sequential(op, nn.ReLU(inplace=True))
        ArchParameterGroup(model, Softmax(1e-3))
        with torch.no_grad():
            op.alpha.copy_(torch.tensor([1.0, 0.0]))
        out = model(x)
    else:
        out = op(x, Weights(torch.tensor([1.0, 0.0]).unbind(), sizes=(1.0, 0.0)))
        out.relu_()
    out.sum().backward()
    assert x.grad is not None
    assert not op.candidates["idle"].weight.grad.any()


def test_second_derivatives_through_scores():
    model = edge([0.9, 1e-4]).double()
    arch, dense = (ArchParameterGroup(copy.deepcopy(model), Softmax(), threshold=t) for t in (1e-3, 0.0))
    x = torch.randn(3, dtype=torch.float64)
    penalties = []
    for a in (arch, dense):
        [gradient] = torch.autograd.grad(a.model(x).square().sum(), a.parameters(), create_graph=True)
        gradient.square().sum().backward()
        penalties.append(a.parameters()[0].grad)
    torch.testing.assert_close(*penalties, rtol=2e-3, atol=1e-12)


def test_scores_in_another_precision_or_complex():
    """Under autocast a convolution's output is narrower than a skip's: the sum is as wide as the dense one."""

    def model(casts):
        torch.manual_seed(0)
        return nn.Sequential(MixedOp({f"{i}": nn.Sequential(Scaled(i + 2), cast) for i, cast in enumerate(casts)}))

    class To(nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.dtype = dtype

        def forward(self, x):
            return x.to(self.dtype)

    bf16, real, complex_ = torch.bfloat16, torch.float32, torch.complex64
    for casts in ((bf16, bf16, real), (complex_, complex_), (real, complex_)):
        found = []
        for threshold in (0.0, 1e-2):
            net = model(map(To, casts))
            arch = ArchParameterGroup(net, Softmax(), threshold=threshold)
            with torch.no_grad():
                net[0].alpha.copy_(torch.tensor([0.0, -6.0, -6.0][: len(casts)]))
            out = net(torch.tensor([1.0, 2.0, 3.0]))
            out.abs().square().sum().backward()
            found.append((out.detach(), arch.parameters()[0].grad))
        (dense, dense_gradient), (scored, gradient) = found
        assert scored.dtype == dense.dtype
        torch.testing.assert_close(scored, dense)
        torch.testing.assert_close(gradient, dense_gradient, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("fixed", [True, False])
def test_functional_gradients_are_those_of_autograd(fixed):
    arch = ArchParameterGroup(model := plain_model(False), Softmax(1e-1), threshold=0.2)
    x = torch.randn(2, 3, 6, 6)
    parameters = dict(model.named_parameters())
    with arch.fixed_alphas() if fixed else contextlib.nullcontext():
        expected = torch.autograd.grad(model(x).square().sum(), [*parameters.values()], allow_unused=True)
        functional = torch.func.grad(lambda *state: torch.func.functional_call(model, state, x).square().sum())
        actual = functional(parameters, dict(model.named_buffers()))
    for value, other in zip(actual.values(), expected, strict=True):
        torch.testing.assert_close(value, torch.zeros_like(value) if other is None else other)


# Where "none" wins


def alphas_of(arch, rows):
    with torch.no_grad():
        for alpha, row in zip(arch.parameters(), rows, strict=True):
            alpha.copy_(torch.tensor(row).log())


def test_what_little_passes_beside_none_is_not_cut():
    """A batch norm behind scales it up again: all that is within the threshold of it stays."""
    torch.manual_seed(0)
    op = MixedOp({"none": Zero(), "skip": nn.Identity(), "conv": ReLUConvBN(4, 4, 3), "pool": nn.AvgPool2d(3, 1, 1)})
    model = nn.Sequential(op, nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)).double()
    arch = ArchParameterGroup(model, Softmax(), threshold=1e-3)
    alphas_of(arch, [[0.9995, 3e-4, 2e-4, 1e-8]])
    x = torch.randn(8, 4, 6, 6, dtype=torch.float64)
    outputs, gradients = {}, {}
    for arch.threshold in (1e-3, 0.0):
        with arch.fixed_alphas():
            outputs[arch.threshold] = model(x).detach()
        [gradients[arch.threshold]] = torch.autograd.grad(model(x).square().mean(), arch.parameters())
    arch.threshold = 1e-3
    ways = op.executions(arch.operation_weights(op))
    assert ways == [Execution.FULL, Execution.FULL, Execution.FULL, Execution.SCORED]
    for measured in (outputs, gradients):
        torch.testing.assert_close(
            measured[1e-3], measured[0.0], rtol=1e-3, atol=1e-3 * float(measured[0.0].abs().max())
        )


def test_beside_an_edge_that_passes_the_remainder_of_another_may_be_cut():
    """Node 1 has one edge, which none holds almost wholly; node 2 has a second one, a skip."""
    torch.manual_seed(0)

    def edge(name):
        candidates = {"none": Zero(), "skip": nn.Identity(), "conv": ReLUConvBN(4, 4, 3)}
        return MixedOp(candidates, label=name)

    cell = DenseCell(3, edge).double()
    arch = ArchParameterGroup(cell, Softmax(), threshold=1e-3)
    almost_none = [0.9995, 3e-4, 2e-4]
    alphas_of(arch, [almost_none, [1e-5, 0.9999, 1e-5], almost_none])
    x = torch.randn(8, 4, 6, 6, dtype=torch.float64)
    with arch.fixed_alphas():
        ways = {name: cell.edges[name].executions(weights) for name, weights in cell.operation_weights().items()}
        sparse = cell(x)
    full, skipped = Execution.FULL, Execution.SKIPPED
    assert ways == {
        "1<-0": [full, full, full],
        "2<-0": [skipped, full, skipped],
        "2<-1": [full, skipped, skipped],
    }
    arch.threshold = 0.0
    torch.testing.assert_close(sparse, cell(x), rtol=0, atol=5e-3)


def test_the_strongest_that_adds_something_runs_beside_none():
    op = MixedOp({"none": Zero(), "skip": nn.Identity(), "conv": nn.Conv2d(2, 2, 1)})
    arch = ArchParameterGroup(op, Softmax(), threshold=0.5)
    alphas_of(arch, [[0.998, 1.2e-3, 0.8e-3]])
    assert op.executions(arch.operation_weights(op)) == [Execution.FULL, Execution.FULL, Execution.SCORED]
    hard = ArchParameterGroup(op, StraightThrough())
    assert op.executions(hard.operation_weights(op)) == [Execution.FULL, Execution.SKIPPED, Execution.SKIPPED]


@pytest.mark.parametrize("requires_grad", [True, False])
def test_weights_of_other_code_are_decided_for_all_rows_at_once(requires_grad):
    table = torch.tensor([[1.0, 0.0], [0.9995, 5e-4]], requires_grad=requires_grad)
    op = MixedOp({"skip": nn.Identity(), "conv": nn.Conv2d(2, 2, 3, padding=1)}, has_alpha=False)
    weak = Execution.SCORED if requires_grad else Execution.SKIPPED
    x = torch.randn(1, 2, 4, 4)
    rows = decided(table, threshold=1e-3)
    assert [op.executions(row) for row in rows] == [[Execution.FULL, Execution.SKIPPED], [Execution.FULL, weak]]
    torch.testing.assert_close(op(x, rows[0]), x)
    if requires_grad:
        torch.testing.assert_close(op(x, rows[1]), op(x, table[1]))
    with pytest.raises(FloatingPointError, match="not finite"):
        decided(torch.tensor([[torch.nan, 1.0]]))
