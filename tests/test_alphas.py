import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsemix import ArchParameterGroup, BatchMixedScheduler, MixedOp, SparseSmoothSoftmax
from sparsemix.relaxations import Softmax
from sparsemix.supernet.gradients import unrolled_alpha_gradient
from sparsemix.supernet.mixed_op import Execution
from sparsemix.supernet.tables import AlphaTables


def tables(**shapes):
    torch.manual_seed(0)
    return {name: (1e-3 * torch.randn(shape)).requires_grad_() for name, shape in shapes.items()}


def test_weights_are_those_of_the_softmax_that_they_replace():
    given = tables(normal=(14, 8), reduce=(14, 8), single=(5,))
    arch = ArchParameterGroup.from_parameters(given, Softmax())
    for name, weights in arch.table_weights().items():
        assert torch.equal(weights, F.softmax(given[name], dim=-1))
    assert torch.equal(arch.weights()["reduce 13"], F.softmax(given["reduce"][13], dim=-1))
    assert arch.parameters() == [*given.values()]


def test_the_scheduler_and_both_temperatures_work_on_them_alone():
    given = tables(normal=(3, 4))
    arch = ArchParameterGroup.from_parameters(given, SparseSmoothSoftmax(1e-3, 1e-2))
    phi = BatchMixedScheduler(arch, epochs=4, steps_per_epoch=20)
    seen = set()
    for step in range(80):
        phi.step_update(step)
        seen.add(arch.phi)
        temperature = 1e-3 if arch.phi else 1e-2
        torch.testing.assert_close(arch.table_weights()["normal"], F.softmax(given["normal"] / temperature, -1))
    assert seen == {False, True}


def test_rows_with_decided_execution_give_what_plain_rows_give():
    given = tables(normal=(2, 2))
    with torch.no_grad():
        given["normal"][0] = torch.tensor([0.0, -0.2])
    op = MixedOp({"skip": nn.Identity(), "conv": nn.Conv2d(2, 2, 3, padding=1)})
    x = torch.randn(1, 2, 4, 4)
    arch = ArchParameterGroup.from_parameters(given, threshold=1e-3)
    arch.phi = True
    decided, plain = arch.operation_weights()["normal"], arch.table_weights()["normal"]
    assert op.executions(decided[0]) == [Execution.FULL, Execution.SKIPPED]  # an exact zero
    assert op.executions(decided[1]) == [Execution.FULL, Execution.FULL]
    for row, weights in zip(decided, plain, strict=True):
        torch.testing.assert_close(op(x, row), op(x, weights))


def test_entropy_and_indices():
    given = tables(normal=(2, 3), reduce=(3,))
    with torch.no_grad():
        given["normal"].copy_(torch.tensor([[0.0, 1.0, 1.0], [2.0, 0.0, 1.0]]))
        given["reduce"].zero_()
    arch = ArchParameterGroup.from_parameters(given)
    assert arch.indices() == {"normal": [1, 0], "reduce": [0]}
    row = torch.softmax(given["normal"].detach() / 0.5, -1)
    by_hand = -(row * row.log()).sum() + torch.tensor(3.0).log()
    assert arch.entropy(0.5) == pytest.approx(float(by_hand))


def test_fixed_alphas_and_a_model():
    model = nn.Sequential(MixedOp({"skip": nn.Identity(), "linear": nn.Linear(2, 2)}), nn.Linear(2, 2))
    model.alphas = nn.Parameter(torch.zeros(1, 2))
    arch = ArchParameterGroup.from_parameters({"normal": model.alphas}, model=model)
    assert {*arch.weight_parameters()} == {*model[0].candidates.parameters(), *model[1].parameters()}
    with arch.fixed_alphas():
        assert not arch.table_weights()["normal"].requires_grad
    assert arch.table_weights()["normal"].requires_grad


def test_bad_input():
    with pytest.raises(ValueError, match="no tables"):
        AlphaTables({})
    with pytest.raises(ValueError, match=r"'normal' must be a leaf .* got shape \(2, 3\), is_leaf=False"):
        AlphaTables({"normal": 2 * torch.zeros(2, 3, requires_grad=True)})
    with pytest.raises(ValueError, match="requires_grad=False"):
        AlphaTables({"normal": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\), got 1"):
        AlphaTables(tables(a=(2, 2)), threshold=1)
    with pytest.raises(ValueError, match="needs the model; give model="):
        AlphaTables(tables(a=(2, 2))).weight_parameters()
    broken = tables(a=(2, 2))
    with torch.no_grad():
        broken["a"][1, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="alpha of 'a' is not finite"):
        AlphaTables(broken).operation_weights()


class Owner(nn.Module):
    """Code that owns its alphas and may replace them."""

    def __init__(self):
        super().__init__()
        self.edge = MixedOp({"skip": nn.Identity(), "conv": nn.Conv2d(2, 2, 3, padding=1)}, has_alpha=False)
        self.alphas = nn.Parameter(1e-3 * torch.randn(1, 2))
        self.plain = (1e-3 * torch.randn(1, 2)).requires_grad_()
        self.arch = ArchParameterGroup.from_parameters({"own": self.alphas, "plain": self.plain}, model=self)

    def forward(self, x):
        weights = self.arch.operation_weights()
        return self.edge(self.edge(x, weights["own"][0]), weights["plain"][0])


def test_a_table_that_the_model_replaces_is_followed():
    """As AutoDL-Projects' set_algo does after the network is built."""
    model = Owner()
    model.alphas = nn.Parameter(torch.tensor([[0.5, 0.1]]))
    model.plain = torch.tensor([[0.1, 0.5]], requires_grad=True)
    assert model.arch.indices() == {"own": [0], "plain": [1]}
    assert model.arch.parameters()[0] is model.alphas
    gradients = torch.autograd.grad(model(torch.randn(1, 2, 4, 4)).square().sum(), [model.alphas, model.plain])
    assert all(gradient.any() for gradient in gradients)
    twin = copy.deepcopy(model)
    assert twin.arch.parameters()[0] is twin.alphas is not model.alphas
    model.alphas = nn.Parameter(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"'own' had the shape \(1, 2\) and was replaced by \(1, 3\) \(Owner.alphas\)"):
        model.arch.weights()


def test_no_parameter_of_such_a_model_is_unused():
    """torch.autograd.grad over network.parameters(), as the original Architect asks for it."""
    model = Owner()
    assert {*model.arch.weight_parameters()} == {*model.edge.parameters()}
    torch.autograd.grad(model(torch.randn(1, 2, 4, 4)).sum(), [*model.parameters()])


class Unrolled(nn.Module):
    """A network of DARTS's own design, in double precision and without batch norm."""

    def __init__(self, alphas):
        super().__init__()
        candidates = {"skip": nn.Identity(), "conv": nn.Conv2d(2, 2, 3, padding=1), "tanh": nn.Tanh()}
        self.edges = nn.ModuleList(MixedOp(candidates, has_alpha=False) for _ in range(2))
        self.head = nn.Linear(2, 3)
        self.alphas = alphas
        self.arch = ArchParameterGroup.from_parameters({"edges": alphas}, Softmax(), model=self)
        self.double()

    def forward(self, x):
        for edge, row in zip(self.edges, self.arch.operation_weights()["edges"], strict=True):
            x = torch.tanh(edge(x, row))
        return self.head(x.mean((2, 3)))


def architect_gradient(network, train, val, eta, momentum, decay, optimizer):
    """The original Architect's unrolled gradient, written after section 2.3 of the DARTS paper."""

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def finite_difference(vector):
        radius = 0.01 / torch.cat([v.flatten() for v in vector]).norm()
        found = []
        for step in (radius, -2 * radius, radius):
            with torch.no_grad():
                for p, v in zip(network.parameters(), vector, strict=True):
                    p.add_(step * v)
            found.append(torch.autograd.grad(loss(network, train), network.alphas)[0])
        return (found[0] - found[1]) / (2 * radius)

    theta = [p.detach().clone() for p in network.parameters()]
    moments = [optimizer.state[p].get("momentum_buffer", torch.zeros_like(p)) for p in network.parameters()]
    gradients = torch.autograd.grad(loss(network, train), [*network.parameters()])
    unrolled = Unrolled(network.alphas.detach().clone().requires_grad_())
    with torch.no_grad():
        for new, w, g, m in zip(unrolled.parameters(), theta, gradients, moments, strict=True):
            new.copy_(w - eta * (momentum * m + g + decay * w))
    value = loss(unrolled, val)
    outer, *vector = torch.autograd.grad(value, [unrolled.alphas, *unrolled.parameters()])
    return outer - eta * finite_difference(vector)


def test_second_order_on_a_table_is_the_original_architect_s():
    torch.manual_seed(0)
    network = Unrolled(torch.randn(2, 3, dtype=torch.float64, requires_grad=True))
    batches = [(torch.randn(6, 2, 5, 5, dtype=torch.float64), torch.randint(3, (6,))) for _ in range(2)]
    optimizer = torch.optim.SGD(network.arch.weight_parameters(), lr=0.1, momentum=0.9, weight_decay=3e-3)

    def loss(batch):
        return F.cross_entropy(network(batch[0]), batch[1])

    for _ in range(2):  # fill the momentum
        optimizer.zero_grad()
        loss(batches[0]).backward()
        optimizer.step()
    expected = architect_gradient(network, *batches, 0.1, 0.9, 3e-3, optimizer)
    [actual], _ = unrolled_alpha_gradient(network.arch, loss, optimizer, *batches)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)
