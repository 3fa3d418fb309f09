import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsemix.spaces.nb201 import NB201Genotype

genotypes = st.tuples(*[st.sampled_from(NB201Genotype.OPERATIONS)] * 6).map(NB201Genotype)


def test_all_cells_round_trip():
    cells = NB201Genotype.all()
    assert len({str(cell) for cell in cells}) == 15_625
    assert all(NB201Genotype.parse(str(cell)) == cell for cell in cells)


@given(genotypes)
def test_edges_round_trip_in_any_order(cell):
    assert NB201Genotype.from_edges(dict(reversed(cell.by_edge().items()))) == cell


def test_notation_is_the_benchmark_s():
    text = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|skip_connect~1|nor_conv_3x3~2|"
    cell = NB201Genotype.parse(text)
    assert cell.by_edge() == {
        "1<-0": "avg_pool_3x3",
        "2<-0": "nor_conv_1x1",
        "2<-1": "skip_connect",
        "3<-0": "none",
        "3<-1": "skip_connect",
        "3<-2": "nor_conv_3x3",
    }
    assert str(cell) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "node 1 of '' reads '', expected '|op~0|'"),
        ("|none~0|", "a cell has 6 edges"),
        ("|none~0|+|none~0|none~1|", "a cell has 6 edges"),
        ("|none~1|+|none~0|none~1|+|none~0|none~1|none~2|", "node 1 of .* reads '|none~1|'"),
        ("|none~0|+|none~0|none~0|+|none~0|none~1|none~2|", "node 2"),
        ("|none~0|+|none~0|+|none~0|none~1|none~2|", "node 2"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2", "node 3"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|+|none~0|none~1|none~2|none~3|", "got 10 operations"),
        ("|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|", "unknown operation 'conv' on edge 1<-0"),
        ("__import__('os').system('true')", "node 1"),
    ],
)
def test_malformed(text, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        NB201Genotype.parse(text)


@given(
    genotypes,
    st.integers(0, 100),
    st.sampled_from(["", *"|~+0123\u0660 ", "00", "none", "nor_conv_3x3"]),
    st.integers(0, 2),
)
def test_a_changed_notation_is_read_exactly_or_refused(cell, at, inserted, removed):
    """Cut up to two characters out of a valid notation and insert something in their place."""
    text = str(cell)
    changed = text[:at] + inserted + text[at + removed :]
    try:
        read = NB201Genotype.parse(changed)
    except ValueError:
        assert changed.strip() != text
        return
    assert str(read) == changed.strip()


def test_operations_may_be_given_as_a_list():
    assert {NB201Genotype(["none"] * 6)} == {NB201Genotype(("none",) * 6)}


def test_missing_edges():
    with pytest.raises(ValueError, match=r"expected the edges 1<-0, .*, got 1<-0"):
        NB201Genotype.from_edges({"1<-0": "none"})
