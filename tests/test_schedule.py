import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsemix import BatchMixedScheduler
from sparsemix._utils.streams import seeded_generator
from sparsemix.methods.schedule import sparse_probability


def schedule(**changes):
    settings = {"epochs": 50, "steps_per_epoch": 100, **changes}
    return BatchMixedScheduler(SimpleNamespace(moment=None), **settings)


@given(st.integers(1, 100), st.data())
def test_p_is_equation_20(epochs, data):
    warmup = data.draw(st.integers(0, epochs - 1))
    low, up = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    for epoch in range(epochs + 1):
        expected = reference.sparse_probability(epoch, epochs, low, up, warmup)
        assert sparse_probability(epoch, epochs, low, up, warmup) == pytest.approx(expected)


def test_p_at_its_ends():
    """The last trained epoch has p_up, as Eq. 20 with epochs from 1 to I; values of the published code."""
    assert [round(sparse_probability(epoch, 50), 4) for epoch in (0, 1, 25, 49)] == [0, 0.0204, 0.5102, 1]
    assert sparse_probability(1, 50, p_low=0.2) == pytest.approx(0.2 + 0.8 / 49)
    assert sparse_probability(60, 50, p_up=0.9) == pytest.approx(0.9)
    assert sparse_probability(0, 1, warmup_epochs=0) == 1


def test_a_p_up_above_1_reaches_1_before_the_end():
    """Published code for S1 to S4: min(1, 0.8 + 0.006 (e + 1))."""
    p = [sparse_probability(epoch, 50, 0.8, 1.1, 0) for epoch in range(50)]
    assert p == pytest.approx([min(1, 0.8 + 0.006 * (epoch + 1)) for epoch in range(50)])
    assert (p[32], p[33]) == (pytest.approx(0.998), 1)


def test_hold_epoch_freezes_p():
    """CIFAR-100 in published code: from epoch 45 on p is that of epoch 44."""
    held = schedule(p_up=0.9, hold_epoch=45)
    assert held.probability(43) < held.probability(44) == held.probability(45) == held.probability(49)
    assert held.probability(49) == pytest.approx(0.9 * 44 / 49)


@pytest.mark.parametrize(("epoch", "p"), [(13, 13 / 49), (25, 25 / 49), (45, 45 / 49)])
def test_phi_has_the_frequency_p(epoch, p):
    """4 standard deviations of a binomial over 4,000 draws."""
    n = 4000
    phis = schedule()
    share = sum(phis.draw(epoch, step) for step in range(n)) / n
    assert abs(share - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_phi_is_never_drawn_in_the_warmup_and_always_at_the_end():
    phis = schedule(warmup_epochs=3)
    assert not any(phis.draw(epoch, step) for epoch in range(3) for step in range(100))
    assert all(phis.draw(49, step) for step in range(100))


def test_phi_is_a_pure_function_of_seed_epoch_and_step():
    one, two, other = schedule(seed=1), schedule(seed=1), schedule(seed=2)
    keys = [(epoch, step) for epoch in range(10, 40) for step in range(20)]
    forwards = [one.draw(*key) for key in keys]
    assert forwards == [two.draw(*key) for key in reversed(keys)][::-1]
    assert forwards != [other.draw(*key) for key in keys]


def test_the_global_generator_is_not_touched():
    before = torch.get_rng_state()
    phis = schedule()
    phis.step_update(2345)
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_and_updates_agree():
    phis = schedule()
    for epoch in (0, 7, 31):
        phis.step(epoch)
        assert phis.p == phis.probability(epoch)
        for step in range(100):
            phis.step_update(epoch * 100 + step)
            assert phis.phi == phis.arch.moment.phi == phis.draw(epoch, step)
            assert phis.p == phis.probability(epoch)


def test_timm_loops_may_step_past_the_last_epoch():
    phis = schedule()
    phis.step(50, metric=0.1)
    assert phis.p == 1


def test_state_dict_resumes_and_refuses_another_schedule():
    phis, copy = schedule(seed=3), schedule(seed=3)
    phis.step_update(1234)
    copy.load_state_dict(phis.state_dict())
    assert (copy.num_updates, copy.p, copy.phi) == (1234, phis.p, phis.phi)
    with pytest.raises(ValueError, match="seed was 3 and is 4"):
        schedule(seed=4).load_state_dict(phis.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p_low": 0.6, "p_up": 0.5}, "got p_low=0.6, p_up=0.5"),
        ({"p_low": 1.1, "p_up": 1.2}, "got p_low=1.1, p_up=1.2"),
        ({"p_up": math.inf}, "got p_low=0.0, p_up=inf"),
        ({"p_low": -0.1}, "got p_low=-0.1"),
        ({"warmup_epochs": 50}, "got warmup_epochs=50 of epochs=50"),
        ({"warmup_epochs": -1}, "got warmup_epochs=-1"),
        ({"epochs": 0}, "at least 1, got 0 and 100"),
        ({"hold_epoch": 0}, "hold_epoch needs an epoch before it, got 0"),
        ({"steps_per_epoch": 0}, "at least 1, got 50 and 0"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        schedule(**changes)


@pytest.mark.parametrize("changes", [{"epochs": 2.5}, {"steps_per_epoch": 2.0}])
def test_counts_that_are_not_whole(changes):
    with pytest.raises(TypeError, match="epochs and steps_per_epoch must be whole numbers, got"):
        schedule(**changes)


def test_negative_updates():
    with pytest.raises(ValueError, match="count from 0, got -1"):
        schedule().step_update(-1)


def test_generators_differ_by_every_part_of_their_key():
    draws = {
        torch.rand(1, generator=seeded_generator(*key)).item() for key in [("a", 1), ("b", 1), ("a", 2), ("a", 1, 0)]
    }
    assert len(draws) == 4


def test_what_has_no_phi():
    with pytest.raises(TypeError, match="Linear has no moment to set; give the model's ArchParameterGroup"):
        BatchMixedScheduler(torch.nn.Linear(2, 2), epochs=4, steps_per_epoch=2)


def test_epochs_of_another_length_than_the_loop_s():
    """Steps an epoch given as the number of images, say: p would never rise."""
    phi = BatchMixedScheduler(SimpleNamespace(moment=None), epochs=4, steps_per_epoch=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(3):  # as timm's loops count: the last update of an epoch is the next one's first
            phi.step(epoch)
            for update in range(10 * epoch, 10 * epoch + 11):
                phi.step_update(update)
    phi.step(1)
    with pytest.warns(UserWarning, match=r"step\(1\) began epoch 1, but update 5 is in epoch 0 by steps_per_epoch=10"):
        phi.step_update(5)
    phi.step_update(6)  # said once an epoch


def test_updates_past_the_end_of_the_search():
    phi = schedule(epochs=3, steps_per_epoch=5)
    phi.step_update(15)  # timm's loops end with it
    with pytest.warns(UserWarning, match="update 16 is past the end of the search, 3 epochs of 5 steps; p stays 1"):
        phi.step_update(16)
    assert "epochs=3, steps_per_epoch=5" in repr(phi)


def test_draws_do_not_depend_on_the_kind_of_integer():
    numbers = [torch.rand(1, generator=seeded_generator("phi", kind(3))).item() for kind in (int, np.int64)]
    assert numbers[0] == numbers[1]
    with pytest.raises(TypeError):
        seeded_generator("phi", 3.0)


def test_a_search_of_one_epoch_has_p_up_after_it():
    assert [sparse_probability(epoch, epochs=1) for epoch in (0, 1)] == [0.0, 1.0]
