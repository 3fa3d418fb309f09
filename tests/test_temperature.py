import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from sparsemix import ArchParameterGroup, MixedOp, SparseSmoothSoftmax
from sparsemix.methods import EntropySchedule, suggest, temperature_of_entropy
from sparsemix.relaxations import Moment, entropy, softmax


def arch(*widths, scale=1e-3):
    model = nn.ModuleList(MixedOp({f"op{i}": nn.Identity() for i in range(width)}) for width in widths)
    group = ArchParameterGroup(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for alpha in group.parameters():
            alpha.normal_(0, scale)
    return group


@given(
    st.lists(st.integers(2, 7), min_size=1, max_size=5),
    st.floats(0.02, 0.98),
    st.floats(1e-6, 1e3),
    st.integers(0, 1000),
)
@example([6], 0.25, 1.0, 153)  # its two greatest differ by a millionth
def test_the_temperature_has_the_entropy(widths, share, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = [scale * torch.randn(width, generator=generator, dtype=torch.float64) for width in widths]
    alphas = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-torch.inf)
    temperature = temperature_of_entropy(alphas, share)
    greatest = sum(map(math.log, widths))
    assert float(entropy(softmax(alphas, temperature))) == pytest.approx(share * greatest, rel=1e-6)


def test_equal_alphas_have_no_such_temperature():
    assert temperature_of_entropy(torch.zeros(3, 4), 0.5) is None
    group = arch(3, scale=0)
    before = group.relaxation
    EntropySchedule(group, epochs=5).step(0)
    assert group.relaxation is before


def test_the_schedule_follows_the_entropy_whatever_the_scale():
    for scale in (1e-3, 10.0):
        group = arch(3, 5, 5, scale=scale)
        schedule = EntropySchedule(group, epochs=5, start=0.6, end=0.2)
        for epoch, share in enumerate([0.6, 0.5, 0.4, 0.3, 0.2, 0.2]):
            schedule.step(epoch)
            assert group.entropy(group.relaxation.sparse) == pytest.approx(share * math.log(3 * 5 * 5), rel=1e-4)
            assert group.relaxation.smooth == pytest.approx(10 * group.relaxation.sparse)


def test_the_schedule_counts_only_what_is_allowed():
    group = arch(4, 5, 3)
    group.restrict("0", ["op0", "op3"])
    group.restrict("2", ())
    EntropySchedule(group, epochs=5, start=0.4, end=0.2).step(0)
    assert group.entropy(group.relaxation.sparse) == pytest.approx(0.4 * math.log(2 * 5), rel=1e-4)


def test_the_suggestion_by_hand():
    found = suggest(arch(3, 5), steps=2500, lr=3e-4)
    assert isinstance(found, SparseSmoothSoftmax)
    assert found.sparse == pytest.approx(3e-4 * 50 / (3 * math.log(4 * 99)))
    assert found.smooth == pytest.approx(10 * found.sparse)
    # a row whose winner leads by a third of the way leaves one hundredth to the losers
    row = torch.tensor([3e-4 * 50 / 3, 0, 0, 0, 0], dtype=torch.float64)
    assert float(1 - found(row, Moment(phi=True))[0]) == pytest.approx(0.01)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 10, "lr": 0.0}, {"steps": 10, "leftover": 0.5}])
def test_a_suggestion_needs_sensible_numbers(wrong):
    with pytest.raises(ValueError, match="suggest: need steps >= 1, lr > 0 and 0 < leftover"):
        suggest(arch(2), **wrong)


@pytest.mark.parametrize(
    "wrong", [{"start": 1.0}, {"end": 0.0}, {"start": 0.1, "end": 0.2}, {"epochs": 0}, {"ratio": 1}]
)
def test_a_schedule_needs_sensible_numbers(wrong):
    with pytest.raises(ValueError, match="EntropySchedule: need 0 < end <= start < 1"):
        EntropySchedule(arch(2), **{"epochs": 5, **wrong})


def test_alphas_that_other_code_owns():
    normal, reduce = (torch.randn(3, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    tables = ArchParameterGroup.from_parameters({"normal": normal, "reduce": reduce})
    assert suggest(tables, steps=2500).sparse == suggest(arch(4), steps=2500).sparse
    EntropySchedule(tables, epochs=5, start=0.4, end=0.2).step(0)
    assert tables.entropy(tables.relaxation.sparse) == pytest.approx(0.4 * 6 * math.log(4), rel=1e-4)
