import math

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsemix import ArchParameterGroup, BatchMixedScheduler, SparseSmoothSoftmax
from sparsemix.relaxations import Argmax, Moment, OfSoftmax, Softmax, entropy, softmax, sparse_smooth_softmax

rows = st.lists(st.floats(-0.02, 0.02), min_size=1, max_size=9)


@given(rows, st.sampled_from([1e-3, 1e-2, 1.0]))
def test_softmax_is_the_formula(row, temperature):
    expected = torch.tensor(reference.softmax(row, temperature), dtype=torch.float64)
    torch.testing.assert_close(softmax(torch.tensor(row, dtype=torch.float64), temperature), expected)


@given(rows, st.booleans())
def test_of_softmax_is_softmax_twice_and_leaves_padding_out(row, phi):
    once = reference.softmax(row, 1.0)
    expected = [*reference.softmax(once, 1e-3 if phi else 1e-2), 0.0]
    padded = torch.tensor([*row, -math.inf], dtype=torch.float64)
    weights = OfSoftmax(SparseSmoothSoftmax(sparse=1e-3, smooth=1e-2))(padded, Moment(phi=phi))
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


def test_of_softmax_relaxes_small_alphas_of_m_candidates_at_m_times_the_temperature():
    alpha = 1e-4 * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(OfSoftmax(Softmax(1e-3))(alpha), softmax(alpha, 3e-3), rtol=1e-3, atol=0)


@given(rows)
def test_sparse_and_smooth_are_softmax_at_their_temperatures_and_agree_on_the_winner(row):
    alpha = torch.tensor(row, dtype=torch.float64)
    relax = SparseSmoothSoftmax(sparse=1e-3, smooth=1e-2)
    assert torch.equal(relax(alpha, Moment(phi=True)), softmax(alpha, 1e-3))
    assert torch.equal(relax(alpha, Moment(phi=False)), softmax(alpha, 1e-2))
    winner = int(alpha.argmax())
    assert relax(alpha, Moment(phi=True))[winner] == relax(alpha, Moment(phi=True)).max()
    assert relax(alpha, Moment(phi=False))[winner] == relax(alpha, Moment(phi=False)).max()


@pytest.mark.parametrize("phi", [True, False])
def test_gradient(phi):
    alpha = (1e-3 * torch.randn(3, 5, dtype=torch.float64)).requires_grad_()
    # the scale of alpha is the temperature's, so that the finite difference is taken in its units
    assert torch.autograd.gradcheck(lambda a: sparse_smooth_softmax(a * 1e-3, phi, 1e-3, 1e-2), (alpha * 1e3,))


def test_jacobian_is_equation_10():
    alpha, t = torch.tensor([0.0, 0.002, -0.001], dtype=torch.float64), 1e-3
    y = softmax(alpha, t)
    expected = (torch.diag(y) - torch.outer(y, y)) / t
    torch.testing.assert_close(torch.autograd.functional.jacobian(lambda a: softmax(a, t), alpha), expected)


def test_padding_gets_no_weight_and_no_gradient():
    alpha = torch.tensor([[0.001, 0.002, -math.inf]], requires_grad=True)
    weights = SparseSmoothSoftmax()(alpha, Moment(phi=True))
    weights[0, 0].backward()
    assert weights[0, 2] == 0
    assert alpha.grad[0, 2] == 0
    assert bool(alpha.grad.isfinite().all())


def test_small_differences_decide_at_the_sparse_temperature_only():
    alpha = torch.tensor([0.0, 0.01])
    assert SparseSmoothSoftmax(1e-3, 1e-2)(alpha, Moment(phi=True))[1] > 0.9999
    assert SparseSmoothSoftmax(1e-3, 1e-2)(alpha, Moment(phi=False))[1] < 0.74


def test_argmax_gives_ties_to_the_lower_index_and_ignores_padding():
    alpha = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, -math.inf]])
    assert Argmax()(alpha).tolist() == [[0, 1, 0], [1, 0, 0]]


@given(st.lists(st.lists(st.floats(-0.01, 0.01), min_size=5, max_size=5), min_size=1, max_size=6))
def test_entropy_is_equation_21(table):
    weights = softmax(torch.tensor(table, dtype=torch.float64), 1e-3)
    assert float(entropy(weights)) == pytest.approx(reference.entropy(weights.tolist()), abs=1e-12)


def test_entropy_at_its_ends():
    assert float(entropy(torch.full((6, 5), 0.2))) == pytest.approx(6 * math.log(5))
    assert float(entropy(torch.eye(5))) == 0


@pytest.mark.parametrize(
    ("sparse", "smooth", "message"),
    [
        (0, 1e-2, "temperatures must be positive and finite, got sparse=0, smooth=0.01"),
        (1e-3, -1, "temperatures must be positive"),
        (math.nan, 1e-2, "temperatures must be positive"),
        (1e-3, math.inf, "temperatures must be positive and finite"),
        (1e-2, 1e-2, "sparse must be below smooth, got sparse=0.01, smooth=0.01"),
        (1e-1, 1e-2, "sparse must be below smooth"),
    ],
)
def test_bad_temperatures(sparse, smooth, message):
    with pytest.raises(ValueError, match=message):
        SparseSmoothSoftmax(sparse, smooth)


def test_bad_single_temperature():
    with pytest.raises(ValueError, match="must be positive and finite, got 0"):
        Softmax(0)


def test_the_smooth_temperature_follows_the_sparse_one():
    assert SparseSmoothSoftmax(sparse=0.1).smooth == 1.0
    assert SparseSmoothSoftmax().smooth == 1e-2


def test_a_moment_s_draws_depend_on_its_name_and_on_all_of_when():
    def draw(name="noise", **when):
        return torch.rand(2, generator=Moment(**when).generator(name)).tolist()

    before = torch.get_rng_state()
    assert draw() == draw() == draw(phi=True)  # whether a batch is sparse is itself a draw
    assert len({tuple(d) for d in (draw(), draw("other"), draw(seed=1), draw(epoch=1), draw(step=1))}) == 5
    assert torch.equal(torch.get_rng_state(), before)


class Noisy(torch.nn.Module):
    """A relaxation that draws: one number for each entry of each row."""

    def forward(self, alpha, moment):
        noise = torch.rand(alpha.shape, generator=moment.generator("noise"))
        return torch.softmax(alpha + noise, -1)


def test_a_relaxation_that_draws_sees_one_draw_a_step(plain_supernet):
    """The same in both updates and again after a resume; another one in the next step."""
    arch = ArchParameterGroup(plain_supernet(), Noisy())
    phi = BatchMixedScheduler(arch, epochs=4, steps_per_epoch=3, seed=5)
    seen = []
    for update in (0, 1, 7, 7, 1, 0):
        phi.step_update(update)
        assert arch.moment == Moment(5, *divmod(update, 3), phi.draw(*divmod(update, 3)))
        with arch.fixed_alphas():
            in_weights_update = arch.weights()
        assert all(torch.equal(a, b) for a, b in zip(in_weights_update.values(), arch.weights().values(), strict=True))
        seen.append(torch.cat([*in_weights_update.values()]))
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:][::-1], strict=True))
    assert not torch.equal(seen[0], seen[1])
