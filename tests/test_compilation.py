import copy

import pytest
import timm
import torch
from torch import nn

import sparsemix.models  # noqa: F401
from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.methods import SearchStep
from sparsemix.supernet.compilation import compile_operations


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
