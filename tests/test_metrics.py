import pytest
import reference
import torch
from torch import nn

from sparsemix import ArchParameterGroup, MixedOp, SparseSmoothSoftmax
from sparsemix.metrics import Leakage, accuracy, discretization, leakage, skip_count
from sparsemix.relaxation import Softmax
from sparsemix.spaces.ops import Zero


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

    arch = ArchParameterGroup(Model(), lambda alpha, phi: torch.tensor([[0.75, 0.25]]))
    assert leakage(arch, torch.ones(1, 4)) == {"op": Leakage(weight=0.25, output=0.25)}
