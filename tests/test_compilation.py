import copy

import pytest
import timm
import torch
from torch import nn

import sparsemix.models  # noqa: F401
from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.methods import SearchStep
from sparsemix.relaxations import Softmax
from sparsemix.spaces.cells import DenseCell, TwoInputCell
from sparsemix.spaces.compiled_cells import compile_cells
from sparsemix.spaces.primitives import MaxPool, SepConv
from sparsemix.supernet.compilation import compile_operations
from sparsemix.supernet.partial import widen_channels_


def supernet():
    def block(size):
        return nn.Sequential(nn.Conv2d(4, 4, size, padding=size // 2), nn.BatchNorm2d(4), nn.ReLU())

    def mixed():
        return MixedOp({"skip": nn.Identity(), "conv1": block(1), "conv3": block(3)})

    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    return nn.Sequential(stem, mixed(), nn.ModuleList([mixed(), block(3)])[0], nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture(autouse=True)
def _forget():
    torch._dynamo.reset()
    limits = torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit
    yield
    torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit = limits
    torch._dynamo.reset()


def search(model, compilations=None):
    """Steps with changing sets of operations, at changing temperatures; the number of graphs after each."""
    arch = ArchParameterGroup(model, threshold=1e-2)
    torch.manual_seed(1)
    x, y = torch.randn(8, 3, 8, 8), torch.randint(4, (8,))
    weights = torch.optim.SGD(arch.weight_parameters(), lr=0.1, momentum=0.9)
    step = SearchStep(
        arch,
        lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        weights,
        torch.optim.Adam(arch.parameters(), lr=1e-3),
    )
    counts = []
    for i in range(10):
        arch.phi = i % 2 == 1
        arch.relaxation.sparse = 1e-3 * (1 + i / 10)
        with torch.no_grad():
            for alpha in arch.parameters():
                alpha.copy_(5e-3 * torch.randn_like(alpha))
        step((x, y), (x, y))
        if compilations is not None:
            counts.append(compilations.count)
    return counts


def test_a_changing_set_of_operations_is_not_compiled_anew():
    torch.manual_seed(0)
    plain = supernet()
    compiled = copy.deepcopy(plain)
    compilations = compile_operations(compiled, backend="aot_eager")
    assert compilations.units == 5  # four blocks, one stem; not the identities
    search(plain)
    counts = search(compiled, compilations)
    assert counts[1] == counts[-1] == 5  # blocks of one shape share theirs: 2 and a stem in full, 2 scored
    for (name, a), b in zip(plain.state_dict().items(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    found = ArchParameterGroup(compiled).discretize()
    assert all(module._compiled_call_impl is None for module in found.modules())


def test_compiled_candidates_of_a_reference_supernet():
    torch.manual_seed(0)
    model = timm.create_model("sparsemix_nb201_supernet", channels=4, cells=1, num_classes=4).eval()
    compiled = copy.deepcopy(model)
    compilations = compile_operations(compiled, backend="eager")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    assert 0 < compilations.count < compilations.units


# Whole cells


def cells_and_a_copy(after=1, **settings):
    """A supernet, and a copy of it whose cells are compiled."""
    torch.manual_seed(0)
    plain = timm.create_model("sparsemix_nb201_supernet", channels=4, num_classes=4, **settings)
    compiled = copy.deepcopy(plain)
    return plain, compiled, compile_cells(compiled, backend="eager", after=after)


def steps(model, sets, x):
    """A step for each set of operations, which have all the weight; returns what ran in the last forward."""
    arch = ArchParameterGroup(model, Softmax(1e-3), threshold=1e-2)
    step = SearchStep(
        arch,
        lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        torch.optim.SGD(arch.weight_parameters(), lr=0.01, momentum=0.9),
        torch.optim.Adam(arch.parameters(), lr=1e-5),
    )
    batch = x, torch.arange(len(x)) % 4
    for names in sets:
        with torch.no_grad():
            for alpha in arch.parameters():
                alpha.fill_(-1.0)[list(names)] = 0.0
        step(batch, batch)
    return {label: [op.ran for op in ops] for label, ops in arch.rows.items()}


def assert_equal_states(plain, compiled):
    for (name, a), b in zip(plain.state_dict().items(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


EVERYTHING = range(5)


def test_compiled_cells_take_the_same_steps():
    plain, compiled, compilations = cells_and_a_copy(cells=2)
    x = torch.randn(4, 3, 8, 8)
    sets = [EVERYTHING] * 2 + [(1, 3)] * 2 + [EVERYTHING]
    assert steps(plain, sets, x) == steps(compiled, sets, x)
    assert_equal_states(plain, compiled)
    assert compilations.units == 6
    assert (
        compilations.count == 2 * 3 * 2
    )  # two sets in three widths, in two updates; the cells of a stage share theirs
    found = ArchParameterGroup(compiled).discretize()
    assert found.stages[0][0].forward.__func__ is DenseCell.forward


@pytest.mark.parametrize("names", [(0,), (1,), (0, 3)], ids=str)
def test_compiled_cells_with_idle_edges(names):
    """Partial channels, a drop path, and edges that are left out."""
    plain, compiled, _ = cells_and_a_copy(cells=1, channel_parts=2, drop_path_rate=0.2, after=0)
    x = torch.randn(4, 3, 8, 8)
    for model in (plain, compiled):
        arch = ArchParameterGroup(model)
        arch.restrict("3<-2", ())
        torch.manual_seed(1)
        steps(model, [names], x)
    assert_equal_states(plain, compiled)
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)


def test_compiled_cells_of_two_inputs():
    def edge():
        return MixedOp({"skip": nn.Identity(), "sep": SepConv(4, 3, 1, affine=False), "pool": MaxPool()})

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = TwoInputCell({"2<-0": edge(), "2<-1": edge(), "3<-2": edge()}, [2, 3], (3, 3), 4, True, False)

        def forward(self, x):
            return self.cell(x, x[:, :, ::2, ::2]).mean((2, 3))

    torch.manual_seed(0)
    plain = Model()
    compiled = copy.deepcopy(plain)
    compilations = compile_cells(compiled, backend="eager", after=0)
    x = torch.randn(4, 3, 8, 8)
    for model in (plain, compiled):
        steps(model, [range(3), (1,), (0,)], x)
    assert_equal_states(plain, compiled)
    assert compilations.count == 3 * 2


def test_only_sets_that_recur_are_compiled():
    _, compiled, compilations = cells_and_a_copy(cells=1, after=2)
    x = torch.randn(2, 3, 8, 8)
    steps(compiled, [(1,), (2,), (3,), (1,), (2,), (3,)], x)
    assert compilations.count == 0
    steps(compiled, [(1,)], x)
    assert compilations.count == 3 * 2


def test_forwards_that_are_not_compiled():
    plain, compiled, compilations = cells_and_a_copy(cells=1, after=0)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), plain(x))
    torch.testing.assert_close(compiled.eval()(x), plain.eval()(x))
    compiled.train()
    cell = compiled.stages[0][0]
    cell(compiled.stem(x), weights=cell.operation_weights())
    seen = []
    for op in ArchParameterGroup(compiled).operations:
        op.candidates["nor_conv_3x3"].register_forward_hook(lambda *_: seen.append(1))
    compiled(x)
    assert len(seen) == 3 * 6
    plain, compiled, compilations = cells_and_a_copy(cells=1, after=0)
    for model in (plain, compiled):
        model.set_grad_checkpointing(True)
        steps(model, [EVERYTHING], x)
    assert_equal_states(plain, compiled)
    assert compilations.count == 0


def test_cells_that_grow_are_compiled_anew():
    plain, compiled, compilations = cells_and_a_copy(cells=1, after=0, channel_parts=2)
    x = torch.randn(2, 3, 8, 8)
    for model in (plain, compiled):
        steps(model, [EVERYTHING], x)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        widen_channels_(model, 1, torch.Generator().manual_seed(0), optimizer)
    before = compilations.count
    for model in (plain, compiled):
        steps(model, [EVERYTHING], x)
    assert compilations.count == 2 * before
    assert_equal_states(plain, compiled)


def test_a_model_without_cells():
    with pytest.raises(ValueError, match="Sequential has no cells; use compile_operations"):
        compile_cells(nn.Sequential(MixedOp({"skip": nn.Identity()})))
