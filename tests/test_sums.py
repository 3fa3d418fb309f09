"""Sums and scores of many edges at once, against one multiplication after another."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsemix.supernet import sums
from sparsemix.supernet.forward import Forward
from sparsemix.supernet.sums import Sums, add_each


@pytest.fixture(autouse=True, params=["together", "one by one"])
def both_ways(request, monkeypatch):
    """Small values are brought together, large ones on a CPU are added one by one."""
    monkeypatch.setattr(sums, "FEW_NUMBERS", 2**16 if request.param == "together" else -1)


SHAPES = {"image": (2, 3, 4, 5), "tokens": (2, 3, 4), "rows": (2, 3), "vector": (4,), "scalar": ()}


def value(shape, is_channels_last=False, requires_grad=False):
    tensor = torch.randn(shape, dtype=torch.float64)
    if is_channels_last:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor.requires_grad_(requires_grad)


def totals_of(plan, values, weights):
    """A plan is a list of (edge, index of a value, whether it is scored); weight (edge, value)."""
    gathered = Sums(Forward())
    for edge, index, scored in plan:
        if scored:
            gathered.score(edge, values[index], weights[edge, index])
        else:
            gathered.add_weighted(edge, values[index], weights[edge, index])
    return gathered.totals()


def slowly(plan, values, weights):
    totals = {}
    for edge, index, scored in plan:
        term = weights[edge, index] * (values[index].detach() if scored else values[index])
        totals[edge] = totals[edge] + term if edge in totals else term
    return totals


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans()), min_size=1, max_size=10),
    st.sampled_from([*SHAPES.values()]),
    st.booleans(),
)
def test_sums_gradients_and_scores(plan, shape, is_channels_last):
    """Any values on any edges, some more than once; gradients of a loss that is not linear."""
    results = []
    values = [value(shape, is_channels_last and len(shape) == 4) for _ in range(4)]
    weights = {(edge, index): torch.randn((), dtype=torch.float64) for edge in range(3) for index in range(4)}
    for compute in (slowly, totals_of):
        leaves = [v.clone().requires_grad_() for v in values]
        scales = {key: weight.clone().requires_grad_() for key, weight in weights.items()}
        totals = compute(plan, leaves, scales)
        totals = {edge: getattr(total, "value", total) for edge, total in totals.items()}
        loss = sum((edge + 1) * total.square().sum() for edge, total in totals.items())
        gradients = torch.autograd.grad(loss, [*leaves, *scales.values()], allow_unused=True)
        zeros = [
            torch.zeros_like(t) if g is None else g for g, t in zip(gradients, [*leaves, *scales.values()], strict=True)
        ]
        results.append((totals, zeros))
    (expected, expected_gradients), (actual, gradients) = results
    assert actual.keys() == expected.keys()
    for edge in expected:
        torch.testing.assert_close(actual[edge], expected[edge])
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("scored", [False, True])
def test_derivatives_of_the_first_and_second_order(scored):
    values = [value(SHAPES["image"], i == 1, requires_grad=not scored) for i in range(3)]
    weights = [torch.randn((), dtype=torch.float64, requires_grad=True) for _ in range(6)]

    def run(*tensors):
        plan = [(edge, index, scored) for edge in range(2) for index in range(3)]
        table = {(edge, index): tensors[3 * edge + index] for edge in range(2) for index in range(3)}
        first = tensors[6:]
        gathered = Sums(Forward())
        if scored:
            gathered.add_weighted(0, first[0] ** 2, tensors[0])  # a total to which scored values are added
        for edge, index, _ in plan:
            put = gathered.score if scored else gathered.add_weighted
            put(edge, values[index] if scored else first[index], table[edge, index])
        return tuple(total.value for total in gathered.totals().values())

    inputs = (*weights, *([value(SHAPES["image"], requires_grad=True)] if scored else values))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_values_side_by_side_and_one_after_another():
    side_by_side, alone = value((2, 6, 2, 2), requires_grad=True), value((2, 3, 2, 2))
    gathered = Sums(Forward())
    gathered.add([4, 1], side_by_side)
    gathered.add_weighted(1, alone, None)
    gathered.add([1, 1], side_by_side)  # two values on one edge
    first, second = side_by_side.chunk(2, dim=1)
    totals = gathered.totals()
    torch.testing.assert_close(totals[4].value, first)
    torch.testing.assert_close(totals[1].value, second + alone + first + second)
    assert all(total.passes_gradients for total in totals.values())


def test_what_an_edge_s_sum_is_made_of():
    """Whether it may be changed in place, and whether gradients flow back to the node."""
    x, noise, w = value((2, 3, 2, 2), requires_grad=True), value((2, 3, 2, 2)), torch.ones((), requires_grad=True)
    gathered = Sums(Forward())
    gathered.add_weighted(0, x, None)
    gathered.add_weighted(1, noise, w)
    gathered.add_weighted(2, x, w)
    gathered.score(3, x, w)
    totals = gathered.totals()
    assert {edge: (t.is_own, t.passes_gradients) for edge, t in totals.items()} == {
        0: (False, True),
        1: (True, False),
        2: (True, True),
        3: (True, False),
    }
    totals[3].value.mul_(2).sum().backward()
    torch.testing.assert_close(w.grad, 2 * x.detach().sum(), check_dtype=False)


@pytest.mark.parametrize("edges", [1, 3])
def test_totals_of_other_nodes_are_added_and_kept_nowhere(edges):
    totals = [value((2, 3), requires_grad=True) for _ in range(edges)]
    others = [value((2, 3), requires_grad=True) for _ in range(edges)]
    found = add_each(totals, others)
    torch.testing.assert_close(found, [a + b for a, b in zip(totals, others, strict=True)])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        found = add_each(totals, others)
    assert kept == []
    found[-1].sum().backward()
    assert (
        [t.grad is not None for t in totals] == [t.grad is not None for t in others] == [*[False] * (edges - 1), True]
    )
