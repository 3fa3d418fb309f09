import copy

import pytest
import reference
import timm
import torch
from torch import nn

import sparsemix.models  # noqa: F401
from sparsemix import ArchParameterGroup, MixedOp, SparseSmoothSoftmax
from sparsemix.measure import Leakage, accuracy, discretization, leakage, renewed_statistics, topk_accuracy
from sparsemix.relaxations import Softmax
from sparsemix.spaces.primitives import Zero
from sparsemix.spaces.skips import skip_count


class Constant(nn.Module):
    """Logits for one class, whatever the input."""

    def __init__(self, index, strength=1.0):
        super().__init__()
        self.register_buffer("logits", strength * nn.functional.one_hot(torch.tensor(index), 3).float())

    def forward(self, x):
        return self.logits.expand(len(x), 3)


def batches(*labels):
    return [(torch.zeros(len(batch), 2), torch.tensor(batch)) for batch in labels]


def test_accuracy_counts_over_uneven_batches():
    assert accuracy(Constant(1), batches([1, 1, 0, 2], [1])) == 3 / 5


def test_accuracy_is_taken_in_evaluation_mode_and_the_mode_is_put_back():
    model = nn.Sequential(nn.Dropout(1.0), Constant(0))
    model[0].eval()
    accuracy(model, batches([0]))
    assert [m.training for m in model] == [False, True]


def test_accuracy_of_nothing():
    with pytest.raises(ValueError, match="no images"):
        accuracy(Constant(0), [])


def test_topk_accuracy():
    """The true class is the first, the second and the third of three by strength."""
    model = nn.Identity()
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    measured = topk_accuracy(model, [(logits, torch.tensor([0, 1, 2]))], (1, 2, 5))
    assert measured == pytest.approx({1: 1 / 3, 2: 2 / 3, 5: 1.0})


# Batch-norm statistics


def normalised(channels=2):
    model = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(2, channels, 1), nn.BatchNorm2d(channels), nn.Flatten())
    for x in torch.randn(3, 4, 2, 5, 5):
        model(x)
    return model


def test_renewed_statistics_are_those_of_update_bn_and_are_put_back():
    model, reference_model = normalised(), nn.Sequential()
    batches = [(torch.randn(n, 2, 5, 5) + n, torch.zeros(n)) for n in (8, 8, 8)]
    reference_model = copy.deepcopy(model)
    reference_model[0].p = 0.0  # it is off while statistics are renewed
    torch.optim.swa_utils.update_bn((x for x, _ in batches), reference_model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with renewed_statistics(model, batches):
        assert [m.training for m in model] == [True] * 4
        torch.testing.assert_close(model[2].running_mean, reference_model[2].running_mean)
        torch.testing.assert_close(model[2].running_var, reference_model[2].running_var)
    assert model[2].momentum == 0.1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_statistics_are_put_back_after_an_error():
    model = normalised()
    before = model[2].running_mean.clone()

    def broken():
        yield torch.randn(4, 2, 5, 5), None
        raise RuntimeError("no more images")

    with pytest.raises(RuntimeError, match="no more images"), renewed_statistics(model, broken()):
        pass
    assert torch.equal(model[2].running_mean, before)
    assert (model[2].momentum, model.training) == (0.1, True)


def test_a_discretisation_is_judged_with_statistics_of_its_own():
    """The stronger candidate's statistics are far off; renewed, it gives what the classifier was made for."""
    norm = nn.BatchNorm2d(1, affine=False)
    norm.running_mean.fill_(1e3)
    model = nn.Sequential(
        MixedOp({"norm": norm, "other": nn.BatchNorm2d(1, affine=False)}), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    head = nn.Linear(1, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        head.bias.zero_()
        model[0].alpha.copy_(torch.tensor([0.5, 0.0]))
    model.append(head)
    arch = ArchParameterGroup(model)
    x = torch.cat([torch.full((4, 1, 2, 2), -1.0), torch.full((4, 1, 2, 2), 1.0)])
    batches = [(x, torch.tensor([0] * 4 + [1] * 4))]
    assert discretization(arch, batches, Softmax(0.01)).discretized == 0.5  # everything seems to be of class 0
    renewed = discretization(arch, batches, Softmax(0.01), statistics=batches)
    assert (renewed.supernet, renewed.discretized) == (1.0, 1.0)
    assert norm.running_mean == 1e3


def test_shared_batch_norms_are_renewed_as_single_ones():
    """NAS-Bench-201's supernet runs wide batch norms; its own statistics are those of its discretisation, by itself."""
    supernet = timm.create_model("sparsemix_nb201_supernet", channels=4, cells=1)
    arch = ArchParameterGroup(supernet)
    batches = [(torch.randn(8, 3, 8, 8), torch.zeros(8)) for _ in range(2)]
    single = arch.discretize()
    torch.optim.swa_utils.update_bn((x for x, _ in batches), single)
    single.eval()
    with arch.discretized(), renewed_statistics(supernet, batches):
        supernet.eval()
        torch.testing.assert_close(supernet(batches[0][0]), single(batches[0][0]), rtol=1e-4, atol=1e-5)


def test_leakage_is_measured_with_the_statistics_of_the_batch():
    """As in training: running statistics play no part."""
    leaks = []
    for mean in (0.0, 50.0):
        norm = nn.BatchNorm1d(2, affine=False)
        norm.running_mean.fill_(mean)
        model = nn.Sequential(MixedOp({"norm": norm, "skip": nn.Identity()}))
        arch = ArchParameterGroup(model, lambda alpha, moment: torch.full_like(alpha, 0.5))
        leaks.append(leakage(arch, torch.tensor([[1.0, 2.0], [3.0, 5.0]]))["0"].output)
    assert leaks[0] == leaks[1] > 0


def test_the_gap_is_what_the_discarded_operations_gave():
    """The strongest operation says class 0; the two others together, class 1."""
    model = nn.Sequential(MixedOp({"a": Constant(0), "b": Constant(1, 2.0), "c": Constant(1, 2.0)}))
    with torch.no_grad():
        model[0].alpha.copy_(torch.tensor([0.1, 0.0, 0.0]))
    arch = ArchParameterGroup(model)
    measured = discretization(arch, batches([1, 1, 1, 0]), Softmax(1.0))
    assert (measured.supernet, measured.discretized, measured.gap) == (0.75, 0.25, 0.5)


@pytest.mark.parametrize("phi", [True, False])
def test_leakage_is_its_definition(plain_supernet, phi):
    model = plain_supernet().eval()
    arch = ArchParameterGroup(model, SparseSmoothSoftmax(1e-3, 1e-2))
    arch.phi = phi
    x = torch.randn(4, 2, 6, 6)
    weights = {label: row.tolist() for label, row in arch.weights().items()}
    expected, value = {"shared": [], "4": []}, x
    for module in model:
        if isinstance(module, MixedOp):
            label = module.label or "4"
            expected[label].append(reference.leakage(list(module.candidates.values()), weights[label], value))
        value = module(value)
    for label, leak in leakage(arch, x).items():
        assert leak.weight == pytest.approx(expected[label][0][0], rel=1e-4, abs=1e-6)
        mean = sum(output for _, output in expected[label]) / len(expected[label])
        assert leak.output == pytest.approx(mean, rel=1e-3, abs=1e-6)


def test_leakage_through_none_is_complete_and_of_nothing_is_zero():
    model = nn.Sequential(MixedOp({"none": Zero(), "skip": nn.Identity()}))
    with torch.no_grad():
        model[0].alpha.copy_(torch.tensor([0.002, 0.0]))
    arch = ArchParameterGroup(model)
    assert leakage(arch, torch.ones(1, 1, 2, 2))["0"].output == 1
    assert leakage(arch, torch.zeros(1, 1, 2, 2))["0"].output == 0


def test_leakage_under_explicit_weights_and_of_rows_that_do_not_run():
    class Explicit(nn.Module):
        def __init__(self):
            super().__init__()
            same = {"a": nn.Identity(), "b": nn.Identity(), "c": nn.Identity()}
            self.used, self.unused = MixedOp(same), MixedOp(same)

        def forward(self, x):
            return self.used(x, weights=torch.full((3,), 1 / 3))

    leaks = leakage(ArchParameterGroup(Explicit()), torch.ones(1, 2))
    assert set(leaks) == {"used"}
    assert leaks["used"].weight == pytest.approx(2 / 3)
    assert leaks["used"].output == pytest.approx(2 / 3)


def test_leakage_leaves_the_model_as_it_was(plain_supernet):
    model = plain_supernet()
    arch = ArchParameterGroup(model)
    leakage(arch, torch.randn(4, 2, 6, 6))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules() if isinstance(m, MixedOp))


def test_skip_count():
    assert skip_count({"a": "skip_connect", "b": "skip", "c": "conv", "d": "skipping"}) == 2


def test_leakage_of_operations_with_further_arguments():
    class Scale(nn.Module):
        def forward(self, x, factor=1):
            return factor * x

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = MixedOp({"scale": Scale(), "same": Scale()})

        def forward(self, x):
            return self.op(x, factor=3)

    arch = ArchParameterGroup(Model(), lambda alpha, moment: torch.tensor([[0.75, 0.25]]))
    assert leakage(arch, torch.ones(1, 4)) == {"op": Leakage(weight=0.25, output=0.25)}


def test_statistics_that_can_be_iterated_over_only_once():
    model = nn.Sequential(MixedOp({"skip": nn.Identity(), "norm": nn.BatchNorm1d(4)}), nn.Linear(4, 2))
    data = [(torch.randn(8, 4), torch.randint(2, (8,)))]
    with pytest.raises(ValueError, match="no batch to compute statistics from"):
        discretization(ArchParameterGroup(model), data, statistics=iter(data))
