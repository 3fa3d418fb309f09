"""The DARTS space: wiring, operations, reading out, and the networks of a genotype."""

import copy
import json
import math
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sparsemix.models  # noqa: F401
from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.measure.cost import network_cost
from sparsemix.methods import SearchStep
from sparsemix.relaxations import Softmax
from sparsemix.spaces import darts
from sparsemix.spaces import primitives as ops
from sparsemix.spaces.darts import PUBLISHED, DartsGenotype, read_genotype, robust
from sparsemix.spaces.darts.read_out import _strengths
from sparsemix.speed.published import PublishedDarts
from sparsemix.supernet.mixed_op import Source

SPACES = ["darts", "darts-none", "s1", "s2", "s3", "s4"]
CHOICES = [name for name in DartsGenotype.OPERATIONS if name not in ("none", "noise")]


def supernet(space="darts", **options):
    return timm.create_model("sparsemix_darts_supernet", **{"space": space, "channels": 4, "cells": 3, **options})


def network(genotype, name="sparsemix_darts_cifar", **options):
    return timm.create_model(name, genotype=genotype, **{"channels": 4, "cells": 3, **options})


@st.composite
def genotypes(draw, operations=tuple(CHOICES)):
    def cell():
        return tuple(
            (draw(st.sampled_from(operations)), source)
            for node in range(2, 6)
            for source in draw(st.permutations(range(node)))[:2]
        )

    return DartsGenotype(cell(), (2, 3, 4, 5), cell(), (2, 3, 4, 5))


# Sizes


# Parameters without the auxiliary classifier, and multiply-accumulates of convolutions and classifier, of the networks
# that the published DARTS code makes of these genotypes: CIFAR-10 with C 36, 20 cells; ImageNet with C 48, 14 cells.
PUBLISHED_COUNTS = {
    "NASNet": ((3_830_950, 603_452_448), (5_564_320, 604_031_616)),
    "AmoebaNet": ((3_145_078, 488_931_552), (4_627_360, 526_746_624)),
    "AmoebaNet_B": ((2_746_342, 412_954_848), (4_026_208, 442_789_632)),  # counted here: that code lacks operations
    "PNAS": ((4_481_110, 706_026_528), (6_394_912, 696_738_048)),
    "ENAS": ((4_020_166, 622_142_496), (5_908_768, 630_336_384)),
    "DARTS_V1": ((3_169_414, 500_987_520), (4_510_432, 505_864_704)),
    "DARTS_V2": ((3_349_342, 528_359_040), (4_718_752, 529_911_552)),
    "PC_DARTS_cifar": ((3_634_678, 556_670_592), (5_270_560, 571_137_408)),
    "PC_DARTS_image": ((3_721_510, 570_466_944), (5_342_464, 581_627_328)),
    "DrNAS_cifar10": ((4_099_294, 635_135_616), (5_738_464, 633_832_320)),
    "DrNAS_imagenet": ((4_048_750, 617_938_560), (5_726_368, 624_405_504)),
    "SP_DARTS": ((3_488_446, 549_177_984), (4_973_440, 552_951_744)),
    "GDAS": ((3_368_782, 519_428_736), (4_969_216, 537_597_888)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_parameters_and_macs_of_the_published_code(name):
    for model, size, expected in zip(("cifar", "imagenet"), (32, 224), PUBLISHED_COUNTS[name], strict=True):
        network = timm.create_model(f"sparsemix_darts_{model}", genotype=name, auxiliary=True)
        counted = network_cost(network.to("meta"), torch.zeros(1, 3, size, size, device="meta"))
        assert (counted.parameters, counted.macs) == expected


def test_published_sizes_are_those_of_the_papers():
    """In millions, for CIFAR-10, within 1 % or the rounding of the paper's table; remarks say why others differ."""
    for name, published in PUBLISHED.items():
        if published.parameters is not None and not published.remark:
            millions = PUBLISHED_COUNTS[name][0][0] / 1e6
            assert abs(millions - published.parameters) < max(0.01 * published.parameters, 0.1), name


def test_auxiliary_classifiers_have_the_published_size():
    """That for ImageNet lacks the second batch norm."""
    for model, classes, parameters in (("cifar", 10, 476_426), ("imagenet", 1000, 1_260_776)):
        network = timm.create_model(
            f"sparsemix_darts_{model}", genotype="DARTS_V2", num_classes=classes, auxiliary=True
        )
        assert sum(p.numel() for p in network.auxiliary.parameters()) == parameters


def test_the_supernet_has_the_size_of_the_published_one():
    """1.930618 M for 8 cells, C 16, plus the alphas of 28 rows of 7 operations."""
    model = timm.create_model("sparsemix_darts_supernet")
    assert sum(p.numel() for p in model.parameters()) == 1_930_618 + 28 * 7


def test_shapes_through_the_cells():
    """By hand, 6 cells, C 4: reductions at 2 and 4; 4 C, 4 C, 8 C, 8 C, 16 C, 16 C channels."""
    model = supernet(cells=6)
    seen = []
    for module in model.cells:
        module.register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape[1:])))
    model(torch.randn(2, 3, 16, 16))
    assert seen == [(16, 16, 16), (16, 16, 16), (32, 8, 8), (32, 8, 8), (64, 4, 4), (64, 4, 4)]


def test_a_cell_computes_its_graph():
    """Node 2 = s0 + s1, node 3 = max(node 2) + s1, node 4 = node 3, by two edges, node 5 = s0 + node 4."""
    skip, pool = "skip_connect", "max_pool_3x3"
    pairs = ((skip, 0), (skip, 1), (pool, 2), (skip, 1), (skip, 3), (skip, 3), (skip, 0), (skip, 4))
    cell = darts.cell(DartsGenotype(pairs, (2, 4, 5), pairs, (5,)), "normal", (3, 5), 4, halved=False)
    a, b = torch.randn(2, 3, 6, 6), torch.randn(2, 5, 6, 6)
    out = cell(a, b)
    s0, s1 = cell.input_0(a), cell.input_1(b)
    n2 = s0 + s1
    n4 = 2 * (F.max_pool2d(n2, 3, 1, 1) + s1)
    torch.testing.assert_close(out, torch.cat([n2, n4, s0 + n4], dim=1))


def test_spaces_are_as_published():
    sizes = {
        name: {len(row) for cell in space.values() for row in cell.values()} for name, space in robust.SPACES.items()
    }
    assert sizes == {"s1": {2}, "s2": {2}, "s3": {3}, "s4": {2}}
    assert all(set(cell) == set(darts.EDGES) for space in robust.SPACES.values() for cell in space.values())
    assert robust.S1["normal"]["5<-3"] == ("dil_conv_3x3", "dil_conv_5x5")
    assert robust.S1["reduce"]["4<-1"] == ("max_pool_3x3", "sep_conv_3x3")
    assert robust.S4["reduce"]["2<-0"] == ("noise", "sep_conv_3x3")
    assert set(darts.OPERATIONS) == set(DartsGenotype.OPERATIONS)


# Operations


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", darts.OPERATIONS)
def test_operations_keep_channels_and_follow_the_stride(name, stride):
    for search in (False, True):
        op = darts.OPERATIONS[name](6, stride, search)
        assert op(torch.randn(2, 6, 8, 8)).shape == (2, 6, 8 // stride, 8 // stride)
        affine = [m.affine for m in op.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(a != search for a in affine)


def test_factorized_reduction_sees_every_pixel():
    """With kernels of one, even and odd pixels are both there."""
    op = ops.FactorizedReduce(1, 2, affine=False)
    with torch.no_grad():
        op.conv_a.weight.fill_(1)
        op.conv_b.weight.fill_(1)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    expected = torch.stack([x[0, 0, ::2, ::2], x[0, 0, 1::2, 1::2]])
    torch.testing.assert_close(op.halves(x)[0], expected)


def test_noise_ignores_its_input():
    op = ops.Noise(stride=2)
    torch.manual_seed(0)
    first = op(torch.zeros(64, 4, 16, 16))
    torch.manual_seed(0)
    assert torch.equal(op(torch.full((64, 4, 16, 16), math.inf)), first)
    assert abs(first.mean()) < 0.02
    assert abs(first.std() - 1) < 0.02


@pytest.mark.parametrize("training", [True, False])
def test_pooled_values_are_normalised_once_and_statistics_are_each_edge_s_own(training):
    torch.manual_seed(0)
    shared = [ops.NormalizedPool(ops.AvgPool(), 3).train(training) for _ in range(2)]
    for op in shared:
        op.bn.running_mean.normal_()
        op.bn.running_var.uniform_(0.5, 2)
    alone = copy.deepcopy(shared)
    x = torch.randn(4, 3, 5, 5)
    ones = [torch.ones(())] * 2
    for op, (value, weight) in zip(alone, shared[0].contributions(shared, Source(x), ones), strict=True):
        torch.testing.assert_close(value * weight, op(x))
    for a, b in zip(shared, alone, strict=True):
        torch.testing.assert_close(a.bn.state_dict(), b.bn.state_dict())


# The supernet against the published formulation


@pytest.mark.parametrize("space", SPACES[:-1])
def test_several_steps_follow_the_dense_formulation(space):
    """Losses, weights, alphas and running statistics, in float64."""
    torch.manual_seed(0)
    model = supernet(space).double()
    dense = PublishedDarts(model, temperature=0.01)
    arch = ArchParameterGroup(model, Softmax(0.01))

    def loss(batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    step = SearchStep(
        arch,
        loss,
        torch.optim.SGD(arch.weight_parameters(), 0.05, momentum=0.9, weight_decay=3e-4),
        torch.optim.Adam(arch.parameters(), 3e-4, betas=(0.5, 0.999)),
    )
    sgd = torch.optim.SGD(dense.weight_parameters(), 0.05, momentum=0.9, weight_decay=3e-4)
    adam = torch.optim.Adam(dense.alphas.parameters(), 3e-4, betas=(0.5, 0.999))
    for _ in range(3):
        train, val = ((torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.randint(10, (8,))) for _ in ("train", "val"))
        ours = step(train, val)
        theirs = []
        for (x, y), optimizer in ((train, sgd), (val, adam)):
            dense.zero_grad()
            value = F.cross_entropy(dense(x), y)
            value.backward()
            if optimizer is sgd:
                nn.utils.clip_grad_norm_(dense.weight_parameters(), 5.0)
            optimizer.step()
            theirs.append(value.detach())
        torch.testing.assert_close(torch.stack(ours), torch.stack(theirs))
    for label, alpha in zip(dense.labels, dense.alphas, strict=True):
        torch.testing.assert_close(arch.rows[label][0].alpha, alpha)
    reference = dict(dense.net.named_buffers()) | dict(dense.net.named_parameters())
    searched = [(name, b) for name, b in model.named_buffers() if not name.endswith("allowed")]
    for name, value in [*searched, *model.named_parameters()]:
        if not name.endswith("alpha"):
            torch.testing.assert_close(value, reference[published_name(model, name)], msg=name)


def published_name(model, name):
    """cells.0.edges.2<-0.candidates.skip_connect.x -> cells.0.edges.2<-0.ops.3.x"""
    parts = name.split(".candidates.")
    if len(parts) == 1:
        return name
    op = model.get_submodule(parts[0])
    candidate, rest = parts[1].split(".", 1)
    return f"{parts[0]}.ops.{op.names.index(candidate)}.{rest}"


def test_skipped_operations_do_not_run():
    model = supernet("s3")
    arch = ArchParameterGroup(model, Softmax(1e-3))
    with torch.no_grad():
        for alpha in arch.parameters():
            alpha.copy_(torch.tensor([1.0, 0.0, 0.0]))  # none everywhere: an edge costs nothing
    for module in model.modules():
        if isinstance(module, MixedOp):
            for candidate in module.candidates.values():
                candidate.register_forward_hook(lambda m, args, out: pytest.fail(f"{m} ran"))
            module.candidates["none"]._forward_hooks.clear()
    model(torch.randn(2, 3, 8, 8)).sum().backward()


# Reading out


def rows(*alphas, names=("max_pool_3x3", "skip_connect", "sep_conv_3x3")):
    return [darts.Candidate(names[: len(alpha)], torch.tensor(alpha, dtype=torch.float64)) for alpha in alphas]


def test_the_two_strongest_edges_the_stronger_first():
    assert darts.select(rows([0, 3, 0], [0, 0, 1], [2, 0, 0]), 1.0) == [("skip_connect", 0), ("max_pool_3x3", 2)]


def test_saturated_weights_are_still_ranked():
    """At t = 1e-3 all three winners weigh 1.0 in float64; the gaps tell them apart."""
    alphas = rows([0.0, 0.3, 0.0], [0.0, 0.2, 0.0], [0.0, 0.4, 0.0])
    assert {float(torch.softmax(alpha / 1e-3, 0).max()) for _, alpha, *_ in alphas} == {1.0}
    assert [source for _, source in darts.select(alphas, 1e-3)] == [2, 0]


def test_the_authors_rule_rounds_and_takes_the_later_edge():
    alphas = rows([0.0, 0.3, 0.0], [0.0, 0.2, 0.0], [0.0, 0.4, 0.0])
    assert [source for _, source in darts.select(alphas, 1e-3, darts.READ_OUTS["authors"])] == [2, 1]
    assert [source for _, source in darts.select(alphas, 1e-3, darts.READ_OUTS["authors-robust"])] == [0, 1]


def test_operation_ties():
    tied = rows([1.0, 1.0, 0.0], [0.0, 0.0, 0.0])
    assert [name for name, _ in darts.select(tied, 1.0)] == ["max_pool_3x3", "max_pool_3x3"]
    assert [name for name, _ in darts.select(tied, 1.0, darts.READ_OUTS["authors-robust"])] == [
        "skip_connect", "sep_conv_3x3",
    ]  # fmt: skip


def test_none_is_never_chosen_but_weighs_in():
    names = ("none", "skip_connect", "sep_conv_3x3")
    alphas = rows([5.0, 4.0, 0.0], [0.0, 0.0, 1.0], [0.0, 2.0, 0.0], names=names)
    assert darts.select(alphas, 1.0) == [("skip_connect", 2), ("sep_conv_3x3", 1)]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.floats(0.5, 2))
def test_log_odds_rank_as_weights_do(alpha, temperature):
    scores = torch.tensor(alpha, dtype=torch.float64) / temperature
    weights = torch.softmax(scores, 0)
    expected = (weights / (1 - weights)).log()
    assert _strengths(scores, darts.ReadOut()) == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_supernet_s_genotype():
    arch = ArchParameterGroup(supernet())
    with torch.no_grad():
        for label, alpha in arch.named_parameters():
            alpha.zero_()
            if label in ("normal 2<-0", "normal 2<-1", "normal 5<-2", "normal 5<-4"):
                alpha[2] = float(label[-1]) + 1  # skip_connect
    found = darts.genotype(arch, temperature=1.0)
    assert found.normal[:2] == (("skip_connect", 1), ("skip_connect", 0))
    assert found.normal[6:] == (("skip_connect", 4), ("skip_connect", 2))
    assert found.skips == 4
    assert found.reduce[0] == ("max_pool_3x3", 0)


# Genotypes


@given(genotypes())
def test_notation_and_json_round_trip(genotype):
    assert DartsGenotype.parse(str(genotype)) == genotype
    assert DartsGenotype.from_dict(json.loads(json.dumps(genotype.as_dict()))) == genotype


def test_notation_of_darts_code():
    text = str(read_genotype("DARTS_V2")).replace("[2, 3, 4, 5]", "range(2, 6)")
    assert DartsGenotype.parse(text) == read_genotype("DARTS_V2")
    assert DartsGenotype.parse(text.replace("range(2, 6)", "list(range(2, 6))")) == read_genotype("DARTS_V2")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("'sep_conv_3x3', 0", "'sep_conv_9x9', 0", "unknown operation 'sep_conv_9x9' at node 2 of the normal cell"),
        ("'sep_conv_3x3', 0", "'none', 0", "'none' cannot be chosen at node 2 of the normal cell"),
        ("'sep_conv_3x3', 0", "'sep_conv_3x3', 2", "node 2 of the normal cell reads node 2; it may read 0 to 1"),
        ("'sep_conv_3x3', 0", "'sep_conv_3x3', -1", "node 2 of the normal cell reads node -1"),
        ("normal=[", "normal=[('sep_conv_3x3', 0), ", "the normal cell must have two edges a node, got 9"),
        ("reduce_concat=[2, 3, 4, 5]", "reduce_concat=[2, 6]", "concatenates [2, 6]; it has the nodes 2, 3, 4, 5"),
        ("reduce_concat=[2, 3, 4, 5]", "reduce_concat=[]", "the reduce cell concatenates []"),
        ("reduce_concat=[2, 3, 4, 5]", "reduce_concat=7", "no lists of pairs and of nodes"),
        (", reduce_concat=[2, 3, 4, 5]", "", "expected the fields normal, normal_concat, reduce, reduce_concat, got"),
        ("'sep_conv_3x3', 0", "'sep_conv_3x3', print(0)", "DartsGenotype: expected Genotype"),
        ("Genotype(", "print(", "DartsGenotype: expected Genotype"),
        ("Genotype(", "Genotype([], ", "DartsGenotype: expected Genotype"),
        ("Genotype(", "__import__('os').system('false') or Genotype(", "DartsGenotype: expected Genotype"),
        ("[2, 3, 4, 5]", "range(10**9)", "DartsGenotype: expected Genotype"),
    ],
)  # fmt: skip
def test_genotypes_that_are_none(old, new, message):
    text = str(read_genotype("DARTS_V2"))
    assert old in text
    with pytest.raises(ValueError, match=re.escape(message)):
        DartsGenotype.parse(text.replace(old, new, 1))


@pytest.mark.parametrize("text", ["(" * 9_000, "[" * 100_000, "Genotype(" * 50, "", "\0"])
def test_hostile_text_is_refused(text):
    with pytest.raises(ValueError, match="DartsGenotype: expected Genotype"):
        DartsGenotype.parse(text)


def test_reading_a_genotype(tmp_path):
    genotype = read_genotype("GDAS")
    path = tmp_path / "g.json"
    path.write_text(json.dumps(genotype.as_dict()))
    assert read_genotype(path) == read_genotype(str(path)) == read_genotype(str(genotype)) == genotype
    path.write_text(json.dumps({"space": "s2", "genotype": str(genotype), "edges": {}}))
    assert read_genotype(path) == genotype
    with pytest.raises(ValueError, match="unknown genotype 'DARTS_V3': give the notation"):
        read_genotype("DARTS_V3")
    with pytest.raises(FileNotFoundError, match="no genotype file"):
        read_genotype(tmp_path / "other.json")
    path.write_text(json.dumps({"space": "nb201", "genotype": "|none~0|+|none~0|none~1|"}))
    with pytest.raises(ValueError, match="holds a cell of NAS-Bench-201"):
        read_genotype(path)
    for content, message in (
        ("[", "is no JSON"),
        ("[1]", "holds no genotype but a list"),
        ("{}", "expected the fields"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_genotype(path)


# Networks


@settings(max_examples=8, deadline=None)
@given(genotypes(darts.PRIMITIVES))
def test_the_fused_supernet_and_the_final_network_are_one(genotype):
    """The supernet's chosen operations, loaded into the built network: same outputs."""
    torch.manual_seed(0)
    model = supernet()
    model(torch.randn(8, 3, 8, 8))  # give the running statistics something to say
    arch = ArchParameterGroup(model)
    with torch.no_grad():
        for label, alpha in arch.named_parameters():
            kind, edge = label.split()
            names = arch.rows[label][0].names
            alpha.zero_()[names.index(genotype.edges(kind).get(edge, names[0]))] = 1.0
    fused = arch.discretize().eval()
    for module, kind in zip(fused.cells, ("normal", "reduce", "reduce"), strict=True):
        for edge in set(module.edges) - set(genotype.edges(kind)):
            module.edges[edge] = ops.Zero(2 if kind == "reduce" and edge[-1] in "01" else 1)
    final = network(genotype, search=True).eval()
    wanted = final.state_dict()
    final.load_state_dict({name: value for name, value in fused.state_dict().items() if name in wanted})
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(final(x), fused(x))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_run(name):
    assert network(name, cells=5)(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_the_auxiliary_classifier_is_for_training_alone():
    model = network("DARTS_V2", auxiliary=True)
    logits, auxiliary = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == auxiliary.shape == (2, 10)
    assert model.eval()(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(ValueError, match="auxiliary classifier needs 8x8 after the second reduction, got"):
        model.train()(torch.randn(2, 3, 16, 16))


def test_sizes_that_the_reductions_cannot_divide():
    with pytest.raises(ValueError, match=r"must be divisible by 4, got an input \(2, 3, 10, 16\)"):
        supernet()(torch.randn(2, 3, 10, 16))
    with pytest.raises(ValueError, match="must be divisible by 32"):
        network("DARTS_V2", "sparsemix_darts_imagenet")(torch.randn(2, 3, 48, 48))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": 2}, "needs at least 3 cells, two of them reductions"),
        ({"channels": 5}, "an even number of channels; got 3 and 5"),
        ({"channels": 0}, "channels and cells must be at least 1"),
        ({"stem": "mnist"}, "the stem must be one of cifar, imagenet, got 'mnist'"),
        ({"space": "s5"}, "unknown space 's5'; choose among darts"),
    ],
)
def test_networks_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        supernet(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"2<-0": ("none",)}, "edge 2<-0 of the normal cell needs an operation other than none"),
        ({"2<-0": ("conv",)}, "edge 2<-0 of the normal cell needs an operation .* got conv"),
        ({"2<-2": ("skip_connect",)}, "the normal cell of a space has the edges 2<-0, .* got"),
    ],
)
def test_tables_that_are_no_space(change, message):
    space = {kind: dict(row) for kind, row in robust.S2.items()}
    space["normal"] |= change
    with pytest.raises(ValueError, match=message):
        supernet(space)


def test_drop_path_rises_by_hand_and_spares_identities():
    pairs = (("skip_connect", 0), ("skip_connect", 1)) * 4
    model = network(DartsGenotype(pairs, (2, 3, 4, 5), pairs, (2, 3, 4, 5)), drop_path_rate=0.5)
    normal = model.cells[0]
    model.set_drop_path(1 - 1e-6)
    a = torch.randn(2, 12, 8, 8)
    torch.manual_seed(0)
    first = normal(a, a)
    torch.testing.assert_close(normal(a, a), first)
    model.set_drop_path(0.0)
    torch.testing.assert_close(normal(a, a), first)
