import copy
import io

import pytest
import reference
import torch
from timm.utils.model import reparameterize_model
from torch import nn

from sparsemix import ArchParameterGroup, MixedOp, SparseSmoothSoftmax
from sparsemix._utils.modes import restoring
from sparsemix.spaces.primitives import Noise, Zero
from sparsemix.supernet.group import tie_alphas_


@pytest.fixture
def x():
    return torch.randn(2, 2, 6, 6)


def choose(model, **choices):
    """Make these candidates the strongest of their rows."""
    arch = ArchParameterGroup(model)
    with torch.no_grad():
        for label, ops in arch.rows.items():
            if label in choices:
                ops[0].alpha.copy_(torch.tensor([float(name == choices[label]) for name in ops[0].names]))
    return arch


def test_the_split_is_disjoint_and_complete(plain_supernet):
    model = plain_supernet()
    arch = ArchParameterGroup(model)
    alphas, weights = {id(p) for p in arch.parameters()}, {id(p) for p in arch.weight_parameters()}
    assert not alphas & weights
    assert alphas | weights == {id(p) for p in model.parameters()}
    assert [tuple(a.shape) for a in arch.parameters()] == [(2,), (4,)]


def test_rows_are_found_by_label_or_path(plain_supernet):
    arch = ArchParameterGroup(plain_supernet())
    assert {label: len(ops) for label, ops in arch.rows.items()} == {"shared": 2, "4": 1}
    assert arch.rows["shared"][0].alpha is arch.rows["shared"][1].alpha


def test_alphas_are_parameters_in_the_state_dict(plain_supernet):
    model, other = plain_supernet(), plain_supernet()
    arch, other_arch = ArchParameterGroup(model), ArchParameterGroup(other)
    assert {"1.alpha", "3.alpha", "4.alpha"} <= set(model.state_dict())
    other.load_state_dict(model.state_dict())
    for a, b in zip(arch.parameters(), other_arch.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_are_the_relaxation_of_each_row(plain_supernet):
    arch = ArchParameterGroup(plain_supernet(), SparseSmoothSoftmax(1e-3, 1e-2))
    for arch.phi, temperature in ((True, 1e-3), (False, 1e-2)):
        for label, alpha in arch.named_parameters():
            expected = torch.tensor(reference.softmax(alpha.tolist(), temperature))
            torch.testing.assert_close(arch.weights()[label], expected)


def test_phi_decides_what_the_model_computes(plain_supernet, x):
    model = plain_supernet()
    arch = ArchParameterGroup(model)
    outputs = []
    for phi in (True, False):
        arch.phi = phi
        outputs.append(model(x))
        explicit = x
        for module in model:
            row = next((label for label, ops in arch.rows.items() if module in ops), None)
            explicit = module(explicit, arch.weights()[row]) if row else module(explicit)
        torch.testing.assert_close(outputs[-1], explicit)
    assert not torch.allclose(*outputs)


def test_rows_are_relaxed_once_a_forward(plain_supernet, x):
    calls = []

    def relaxation(alpha, moment):
        calls.append(alpha.shape)
        return alpha.softmax(-1)

    model = plain_supernet()
    ArchParameterGroup(model, relaxation)
    model(x)
    assert calls == [(2, 4)]


def test_parts_of_the_model_can_be_called_alone(plain_supernet, x):
    model = plain_supernet()
    arch = ArchParameterGroup(model)
    whole = model(x)
    arch.phi = True
    parts = x
    for module in model:
        parts = module(parts)
    assert not torch.allclose(whole, parts)
    torch.testing.assert_close(model(x), parts)


def test_fixed_alphas_are_constants(plain_supernet, x):
    model = plain_supernet()
    arch = ArchParameterGroup(model)
    with arch.fixed_alphas():
        model(x).sum().backward()
    assert all(a.grad is None for a in arch.parameters())
    model(x).sum().backward()
    assert all(a.grad is not None for a in arch.parameters())


def test_entropy_is_taken_at_the_temperature_asked_for(plain_supernet):
    arch = ArchParameterGroup(plain_supernet())
    for temperature in (1.0, 1e-3):
        rows = [reference.softmax(alpha.tolist(), temperature) for alpha in arch.parameters()]
        assert arch.entropy(temperature) == pytest.approx(reference.entropy(rows), rel=1e-5)


@pytest.mark.parametrize("temperature", [0, -1])
def test_entropy_at_no_temperature(plain_supernet, temperature):
    with pytest.raises(ValueError, match="must be positive and finite"):
        ArchParameterGroup(plain_supernet()).entropy(temperature)


def test_genotype_ties_go_to_the_lower_index(plain_supernet):
    arch = ArchParameterGroup(plain_supernet())
    with torch.no_grad():
        arch.parameters()[1].copy_(torch.tensor([0.0, 0.5, 0.5, 0.1]))
        arch.parameters()[0].zero_()
    assert arch.genotype() == {"shared": "skip", "4": "conv1"}


def test_reading_other_alphas(plain_supernet):
    arch = ArchParameterGroup(plain_supernet())
    before = {label: alpha.tolist() for label, alpha in arch.named_parameters()}
    last = {label: [0.0] * (len(row) - 1) + [1.0] for label, row in before.items()}
    with arch.reading(last):
        assert arch.genotype() == {label: ops[0].names[-1] for label, ops in arch.rows.items()}
    assert {label: alpha.tolist() for label, alpha in arch.named_parameters()} == before


def test_discretize_leaves_an_ordinary_module(plain_supernet, x):
    model = plain_supernet()
    arch = choose(model, shared="skip", **{"4": "conv3"})
    before = copy.deepcopy(model.state_dict())
    final = arch.discretize()
    assert not any(isinstance(m, MixedOp) for m in final.modules())
    assert not final._forward_hooks
    assert not final._forward_pre_hooks
    assert isinstance(final[1], nn.Identity)
    assert final[4].kernel_size == (3, 3)
    with torch.no_grad(), arch.discretized():
        torch.testing.assert_close(final(x), model(x))
    buffer = io.BytesIO()
    torch.save(final, buffer)  # nothing of the search is left to pickle
    nn.init.zeros_(final[4].weight)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    model(x).sum().backward()  # still bound
    assert arch.parameters()[0].grad is not None


def test_discretize_meets_nested_mixed_operations():
    inner = MixedOp({"tanh": nn.Tanh(), "relu": nn.ReLU()})
    outer = MixedOp({"branch": nn.Sequential(nn.Linear(3, 3), inner), "skip": nn.Identity()})
    model = nn.Sequential(outer)
    arch = choose(model, **{"0": "branch", "0.candidates.branch.1": "relu"})
    final = arch.discretize()
    assert [type(m).__name__ for m in final[0]] == ["Linear", "ReLU"]
    assert not any(isinstance(m, MixedOp) for m in final.modules())


def test_discretize_meets_an_inner_operation_that_shares_the_row_of_an_earlier_one():
    def pair():
        return MixedOp({"tanh": nn.Tanh(), "relu": nn.ReLU()}, label="row")

    model = nn.Sequential(pair(), MixedOp({"branch": nn.Sequential(nn.Linear(3, 3), pair()), "skip": nn.Identity()}))
    final = choose(model, **{"1": "branch", "row": "relu"}).discretize()
    assert [type(m).__name__ for m in (final[0], *final[1])] == ["ReLU", "Linear", "ReLU"]


def test_discretize_of_a_lone_mixed_operation():
    op = MixedOp({"tanh": nn.Tanh(), "relu": nn.ReLU()})
    assert type(ArchParameterGroup(op).discretize()) in (nn.Tanh, nn.ReLU)


def test_timm_discretises_by_reparameterisation(plain_supernet, x):
    model = plain_supernet().eval()
    arch = choose(model, shared="conv", **{"4": "pool"})
    with torch.no_grad():
        torch.testing.assert_close(reparameterize_model(model)(x), arch.discretize()(x))


def test_a_copied_model_has_a_group_of_its_own(plain_supernet, x):
    model = plain_supernet()
    ArchParameterGroup(model)
    model(x).sum().backward()
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x), model(x))
    with torch.no_grad():
        twin[1].alpha.copy_(torch.tensor([5.0, -5.0]))
    assert twin[1].group.model is twin
    assert twin[1].alpha is twin[3].alpha
    assert not torch.allclose(twin(x), model(x))


def test_the_last_group_holds_the_model(plain_supernet, x):
    model = plain_supernet()
    first, second = ArchParameterGroup(model), ArchParameterGroup(model, SparseSmoothSoftmax(1e-4, 1.0))
    first.phi = True
    smooth = model(x)
    second.phi = True
    assert not torch.allclose(model(x), smooth)
    assert len(model._forward_pre_hooks) == 1


def test_the_released_group_still_reads_out_but_does_not_take_the_model_back(plain_supernet):
    model = plain_supernet()
    first, second = ArchParameterGroup(model), ArchParameterGroup(model)
    assert first.genotype() == second.genotype()
    assert not any(isinstance(m, MixedOp) for m in first.discretize().modules())
    first.release()
    assert all(m.group is second for m in model.modules() if isinstance(m, MixedOp))
    assert len(model._forward_pre_hooks) == 1


def test_a_part_of_a_model_that_has_a_group(plain_supernet):
    model = plain_supernet()
    arch = ArchParameterGroup(model)
    with pytest.raises(ValueError, match="are held by the group of another module, Sequential; release"):
        ArchParameterGroup(model[4])
    arch.release()
    ArchParameterGroup(model[4])


def test_a_copy_of_a_part_says_that_it_has_no_group(plain_supernet, x):
    model = plain_supernet()
    ArchParameterGroup(model)
    stray = copy.copy(model[4])  # as DataParallel replicates modules
    with pytest.raises(RuntimeError, match="that its group does not know: a replica of DataParallel"):
        stray(torch.randn(2, 4, 6, 6))


def test_ties_that_were_broken_are_noticed(plain_supernet):
    model = plain_supernet()
    arch = ArchParameterGroup(model)
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    with pytest.raises(RuntimeError, match="alphas of row 'shared' are no longer one parameter"):
        arch.weight_parameters()


def test_a_label_that_is_a_path():
    pair = {"a": nn.Identity(), "b": nn.Tanh()}
    for model in (
        nn.Sequential(MixedOp(pair), MixedOp(pair, label="0")),
        nn.Sequential(MixedOp(pair, label="1"), MixedOp(pair)),
    ):
        with pytest.raises(ValueError, match="is also the path of a mixed operation without a label"):
            ArchParameterGroup(model)


def test_activations_of_a_mixed_operation_can_be_checkpointed_with_explicit_weights(plain_supernet):
    model = plain_supernet()
    arch = ArchParameterGroup(model)
    op, x = model[4], torch.randn(2, 4, 6, 6)
    gradients = []
    for run in (lambda w: op(x, w), lambda w: torch.utils.checkpoint.checkpoint(op, x, w, use_reentrant=False)):
        arch.phi = False
        value = run(arch.weights()["4"]).square().sum()
        arch.phi = True
        gradients.append(torch.autograd.grad(value, [op.alpha])[0])
    torch.testing.assert_close(*gradients)


def test_release(plain_supernet):
    model = plain_supernet()
    ArchParameterGroup(model).release()
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert all(m.group is None for m in model.modules() if isinstance(m, MixedOp))


def test_the_hook_survives_an_error_in_forward(plain_supernet, x):
    model = plain_supernet()
    arch = ArchParameterGroup(model)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5, 6, 6))
    arch.phi = True
    torch.testing.assert_close(model(x), nn.Sequential(*model)(x))


def test_no_mixed_operation():
    with pytest.raises(ValueError, match="no MixedOp among the 3 modules of Sequential"):
        ArchParameterGroup(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_a_label_for_different_candidates():
    model = nn.Sequential(
        MixedOp({"a": nn.Identity(), "b": nn.Tanh()}, label="row"), MixedOp({"a": nn.Identity()}, label="row")
    )
    with pytest.raises(ValueError, match="'row' must name the same candidates: a, b at first, a at '1'"):
        tie_alphas_(model)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_alpha_that_is_not_finite(plain_supernet, bad):
    arch = ArchParameterGroup(plain_supernet())
    arch.check_finite()
    with torch.no_grad():
        arch.parameters()[1][2] = bad
    with pytest.raises(FloatingPointError, match="alpha of '4' is not finite"):
        arch.check_finite()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_restoring_leaves_torchscript_lazy_modules_and_counters_alone():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen = self.seen + 1
            return x

    model = nn.Sequential(torch.jit.script(nn.BatchNorm1d(3)), Counter(), nn.LazyLinear(2))
    before = {name: value.clone() for name, value in model[:2].state_dict().items()}
    with restoring(model):
        model(torch.randn(5, 3))
        model[1].seen.fill_(7)
    assert all(torch.equal(value, before[name]) for name, value in model[:2].state_dict().items())
    assert model[2].weight.shape == (2, 3)


def test_compiling_a_whole_supernet_leaves_gradients_on(plain_supernet):
    arch = ArchParameterGroup(model := plain_supernet())
    with arch.fixed_alphas():
        out = torch.compile(model, backend="eager")(torch.randn(2, 2, 4, 4))
    assert torch.is_grad_enabled()
    assert out.requires_grad


def test_dry_run_shows_disagreement_and_leaves_no_trace():
    def build(second):
        return nn.Sequential(nn.BatchNorm2d(3), MixedOp({"skip": nn.Identity(), "second": second}), nn.Dropout())

    model = build(Noise())
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    x, random_state = torch.randn(4, 3, 8, 8), torch.get_rng_state()
    ArchParameterGroup(model).dry_run(x)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, True, False]
    for other in (nn.MaxPool2d(2), Zero(stride=2)):  # one that adds nothing is looked at as well
        with pytest.raises(ValueError, match="'skip' and 'second' disagree"):
            ArchParameterGroup(build(other)).dry_run(torch.randn(4, 3, 8, 8))
    first = nn.Sequential(MixedOp({"none": Zero(stride=2), "skip": nn.Identity()}))
    with pytest.raises(ValueError, match="'none' and 'skip' disagree"):
        ArchParameterGroup(first).dry_run(torch.randn(4, 3, 8, 8))


@pytest.mark.parametrize("phi", [False, True])
def test_relaxation_and_alphas_stay_in_float32_under_autocast(phi):
    torch.manual_seed(0)
    model = nn.Sequential(
        MixedOp({"conv1": nn.Conv2d(4, 4, 1), "conv3": nn.Conv2d(4, 4, 3, padding=1), "skip": nn.Identity()}),
        nn.Flatten(),
    )
    arch = ArchParameterGroup(model, threshold=0.3)  # some run, some are scored
    arch.phi = phi
    x = torch.randn(2, 4, 4, 4)
    [exact] = torch.autograd.grad(model(x).square().mean(), arch.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert arch.weights()["0"].dtype == torch.float32
        loss = model(x).float().square().mean()
    [gradient] = torch.autograd.grad(loss, arch.parameters())
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))


def test_mixed_operations_added_later_are_not_weights():
    model = nn.Sequential(MixedOp({"skip": nn.Identity(), "tanh": nn.Tanh()}))
    arch = ArchParameterGroup(model)
    model.append(MixedOp({"skip": nn.Identity(), "tanh": nn.Tanh()}))
    with pytest.raises(RuntimeError, match="added after the group was made: 1; make a new group"):
        arch.weight_parameters()


class ReadTwice(nn.Module):
    """A residual block of which the skip connection is searched, followed by a module that works in place."""

    def __init__(self, op: MixedOp) -> None:
        super().__init__()
        self.op = op
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.relu(self.op(x))


@pytest.mark.parametrize("chosen", ["skip", "linear"])
def test_a_chosen_skip_connection_is_not_overwritten(chosen):
    arch = ArchParameterGroup(ReadTwice(MixedOp({"skip": nn.Identity(), "linear": nn.Linear(3, 3)}, "row")))
    arch.restrict("row", [chosen])
    x = torch.randn(2, 3)
    found = arch.discretize()
    torch.testing.assert_close(found(x.clone()), arch.model(x))
    assert found.relu.inplace == (chosen == "linear")  # memory is spent only where needed
    assert arch.model.relu.inplace


def test_a_dry_run_finds_a_candidate_that_changes_its_input():
    model = nn.Sequential(MixedOp({"skip": nn.Identity(), "relu": nn.ReLU(inplace=True)}))
    with pytest.raises(ValueError, match="candidate 'relu' changes its input in place"):
        ArchParameterGroup(model).dry_run(torch.randn(2, 3))
    alone = nn.Sequential(MixedOp({"relu": nn.ReLU(inplace=True)}))
    ArchParameterGroup(alone).dry_run(torch.randn(2, 3))


def test_a_dry_run_passes_all_inputs_on():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = MixedOp({"skip": nn.Identity(), "wrong": nn.AvgPool1d(2)})

        def forward(self, x, y, *, scale):
            return scale * self.op(x + y)

    with pytest.raises(ValueError, match="candidates 'skip' and 'wrong' disagree"):
        ArchParameterGroup(Sum()).dry_run(torch.zeros(1, 4), torch.zeros(1, 4), scale=2)


def test_a_compiled_model_is_given_by_itself():
    model = nn.Sequential(MixedOp({"skip": nn.Identity(), "tanh": nn.Tanh()}))
    with pytest.raises(ValueError, match="make the group of the model itself, and compile it afterwards"):
        ArchParameterGroup(torch.compile(model, backend="eager"))


def test_a_model_that_holds_its_group():
    model = nn.Sequential(MixedOp({"skip": nn.Identity(), "tanh": nn.Tanh()}))
    model.arch = ArchParameterGroup(model)
    assert model.arch.discretize().arch is None
    assert model.arch.model is model


@pytest.mark.parametrize("tables", [[torch.zeros(2, 3)], torch.zeros(2, 3)], ids=["list", "tensor"])
def test_tables_without_names(tables):
    with pytest.raises(TypeError, match=r"needs a mapping such as \{'normal': alphas_normal\}, got a "):
        ArchParameterGroup.from_parameters(tables)
