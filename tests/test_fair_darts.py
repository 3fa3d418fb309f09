"""Fair DARTS: what it keeps, how that is written down, and the networks that are built of it."""

import json

import pytest
import torch
from timm import create_model
from torch import nn

from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.cli import darts as darts_search
from sparsemix.cli import nb201 as nb201_search
from sparsemix.cli import timm_model
from sparsemix.cli import train as train_command
from sparsemix.inject import choices, choose_, mix_
from sparsemix.measure.cost import measure_costs
from sparsemix.measure.undecided import undecided
from sparsemix.methods.fair_darts import FairDARTS, Sigmoid, StrongerThan, separation
from sparsemix.methods.registry import find_method
from sparsemix.relaxations import Argmax
from sparsemix.spaces import darts
from sparsemix.spaces.darts import DartsGenotype, read_genotype

TINY = ["--preset", "proxy", "--channels", "2", "--cells", "3", "--epochs", "1", "--limit", "120", "--batch-size", "60"]


def supernet(keep_from=0.85, most=None):
    torch.manual_seed(0)
    model = create_model("sparsemix_darts_supernet", channels=2, cells=3, num_classes=10)
    arch = ArchParameterGroup(model, Sigmoid())
    arch.discretization = StrongerThan(keep_from, most)
    return arch


def set_alphas(arch, kept):
    """Row -> operations of weight 0.9; all others weigh 0.1, edges from node 1 a little more."""
    with torch.no_grad():
        for label, alpha in arch.named_parameters():
            alpha.fill_(-2.2 + 0.1 * label.endswith("<-1"))
            for place, name in enumerate(kept.get(label, ())):
                alpha[arch.rows[label][0].names.index(name)] = 2.2 - 0.01 * place


def test_the_zero_one_loss_by_hand():
    """Weights 0.5, 0.8 and 0.2: -(0 + 0.09 + 0.09) / 3, and ten times that in the loss."""
    logits = torch.tensor([0.8, 0.2], dtype=torch.float64).logit()
    model = nn.Sequential(MixedOp({"a": nn.Identity()}), MixedOp({"a": nn.Identity(), "b": nn.Tanh()})).double()
    arch = ArchParameterGroup(model)
    with torch.no_grad():
        arch.rows["0"][0].alpha.zero_()
        arch.rows["1"][0].alpha.copy_(logits)
    penalty = FairDARTS().penalty(arch, {})
    assert penalty.item() == pytest.approx(-10 * 0.06)
    penalty.backward()
    gradient = arch.rows["1"][0].alpha.grad
    assert gradient[0] < 0 < gradient[1], "a step against the gradient drives 0.8 up and 0.2 down"
    assert separation(torch.tensor([0.0, 1.0])).item() == -0.25
    assert FairDARTS(zero_one=0).penalty(arch, {}) is None


def test_what_passes_the_threshold():
    alpha = torch.tensor([[2.0, 1.0, 3.0], [1.0, 1.0, -torch.inf], [2.0, 2.0, 2.0]])
    assert StrongerThan(0.85)(alpha).tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 1]]
    assert StrongerThan(0.85, most=1)(alpha).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert StrongerThan(0.5, most=2)(alpha).tolist() == [[1, 0, 1], [1, 1, 0], [1, 1, 0]]


def test_three_operations_on_an_edge_and_none():
    arch = supernet()
    set_alphas(
        arch,
        {
            "normal 2<-0": ("skip_connect", "sep_conv_3x3", "dil_conv_5x5"),
            "normal 3<-2": ("max_pool_3x3",),
            "normal 4<-0": ("sep_conv_5x5",),
            "normal 4<-1": ("sep_conv_3x3",),
            "normal 4<-3": ("skip_connect", "avg_pool_3x3"),
            "reduce 2<-1": ("skip_connect",),
            "reduce 5<-3": ("skip_connect",),
        },
    )
    found = darts.genotype(arch, 1.0)
    assert found.normal == (
        ("skip_connect", 2, 0),
        ("sep_conv_3x3", 2, 0),
        ("dil_conv_5x5", 2, 0),
        ("max_pool_3x3", 3, 2),
        ("sep_conv_5x5", 4, 0),
        ("sep_conv_3x3", 4, 1),
    ), "of three edges that tie, node 4 has the two from the earlier nodes"
    assert found.normal_concat == (2, 3, 4), "nothing leads to node 5"
    assert (found.reduce, found.reduce_concat) == ((("skip_connect", 2, 1),), (2,)), (
        "node 5 read node 3, which has none"
    )
    assert found.skips == 1
    assert DartsGenotype.parse(str(found)) == found
    assert DartsGenotype.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_the_network_computes_what_the_supernet_s_kept_operations_do():
    """On a cell whose kept operations are those of the supernet, edge for edge."""
    kept = {
        f"{kind} {edge}": operations
        for kind in ("normal", "reduce")
        for edge, operations in {
            "2<-0": ("skip_connect", "sep_conv_3x3", "dil_conv_5x5"),
            "3<-2": ("max_pool_3x3",),
            "4<-0": ("sep_conv_5x5",),
            "5<-4": ("dil_conv_3x3", "avg_pool_3x3"),
            "5<-3": ("skip_connect",),
        }.items()
    }
    arch = supernet()
    arch.model(torch.randn(8, 3, 8, 8))  # give the running statistics something to say
    set_alphas(arch, kept)
    genotype = darts.genotype(arch, 1.0)
    fused = arch.discretize().eval()
    final = create_model(
        "sparsemix_darts_cifar", genotype=genotype, search=True, channels=2, cells=3, num_classes=10
    ).eval()
    weights = fused.state_dict()
    for cell in range(3):
        seen = {}
        for edge, operation in genotype.edges("normal" if cell == 0 else "reduce").items():
            place = f"cells.{cell}.edges."
            plain = edge.rstrip("'")
            several = f"{place}{plain}.candidates.{operation}."
            source = several if any(name.startswith(several) for name in weights) else f"{place}{plain}."
            seen |= {place + edge + "." + n.removeprefix(source): v for n, v in weights.items() if n.startswith(source)}
        weights |= seen
    final.load_state_dict({name: weights[name] for name in final.state_dict()})
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected, with_all_edges = final(x), fused(x)
        with arch.discretized():
            relaxed = arch.model.eval()(x)
    torch.testing.assert_close(with_all_edges, expected)
    torch.testing.assert_close(relaxed, expected)


def test_what_is_chosen_stays_so_without_the_group():
    arch = supernet()
    set_alphas(arch, {})
    assert {*arch.choices().values()} == {()}
    arch.release()
    assert {*arch.choices().values()} == {()}


def test_a_discretization_that_keeps_one_says_so():
    arch = supernet()
    assert not arch.keeps_one
    assert undecided(arch, 1.0) is None
    arch.discretization = Argmax()
    assert arch.keeps_one
    assert len(undecided(arch, 1.0)) == 28
    assert len(darts.genotype(arch, 1.0).normal) == 8


def test_triples_that_pairs_can_say_are_pairs():
    published = read_genotype("DARTS_V2")
    triples = tuple((operation, 2 + i // 2, source) for i, (operation, source) in enumerate(published.normal))
    assert DartsGenotype(triples[::-1], (2, 3, 4, 5), published.reduce, published.reduce_concat).normal != triples
    assert DartsGenotype(triples, (2, 3, 4, 5), published.reduce, published.reduce_concat) == published


@pytest.mark.parametrize(
    ("normal", "concat", "message"),
    [
        ([("skip_connect", 3, 2)], [3], "node 3 of the normal cell reads node 2, to which nothing leads"),
        ([("skip_connect", 2, 0)], [2, 3], r"concatenates \[2, 3\]; it has the nodes 2, each once"),
        ([("skip_connect", 1, 0)], [2], "an edge of the normal cell leads to node 1; nodes count from 2"),
        ([("skip_connect", 2, 0), ("skip_connect", 1)], [2], r"must be pairs \(operation, predecessor\) or triples"),
        ([], [2], r"concatenates \[2\]; it has no edges"),
    ],
)
def test_triples_that_are_none(normal, concat, message):
    with pytest.raises(ValueError, match=message):
        DartsGenotype(normal, concat, normal, concat)


def test_search_and_train_several_operations_an_edge(tmp_path):
    flags = ["--method", "fair-darts", "--keep-from", "0.5", "--most-an-edge", "None", "--alpha-lr", "0.1"]
    summary = darts_search.search(darts_search.configure([*TINY, *flags, "--output", str(tmp_path / "search")]))
    genotype = read_genotype(tmp_path / "search" / "genotype.json")
    assert str(genotype) == summary["genotype"]
    assert "undecided" not in summary
    edges = genotype.edges("normal")
    assert max(sum(edge.rstrip("'") == other.rstrip("'") for other in edges) for edge in edges) > 1
    kept = json.loads((tmp_path / "search" / "genotype.json").read_text())["edges"]
    assert any(isinstance(names, list) and len(names) > 1 for names in kept.values())
    training = [
        "--genotype",
        str(tmp_path / "search" / "genotype.json"),
        *TINY,
        "--limit",
        "400",
        "--output",
        str(tmp_path / "train"),
    ]
    trained = train_command.train(train_command.configure(training))
    assert trained["genotype"] == str(genotype)


def test_a_search_that_keeps_nothing(tmp_path):
    flags = ["--method", "fair-darts", "--keep-from", "0.99", "--output", str(tmp_path / "search")]
    summary = darts_search.search(darts_search.configure([*TINY, *flags]))
    assert summary["genotype"] == "Genotype(normal=[], normal_concat=[], reduce=[], reduce_concat=[])"
    training = ["--genotype", str(tmp_path / "search" / "genotype.json"), *TINY, "--output", str(tmp_path / "train")]
    with pytest.raises(ValueError, match="the normal cell of this genotype keeps no operation"):
        train_command.train(train_command.configure(training))
    assert not (tmp_path / "train").exists()


def test_a_space_of_one_operation_an_edge(tmp_path):
    tiny = ["--preset", "proxy", "--channels", "4", "--epochs", "1", "--limit", "120", "--batch-size", "60"]
    flags = [*tiny, "--method", "fair-darts", "--output", str(tmp_path / "run")]
    with pytest.raises(ValueError, match=r"one operation on each edge, and edge 1<-0 keeps 4: .*keep at most one"):
        nb201_search.search(nb201_search.configure([*flags, "--most-an-edge", "None"]))
    assert not (tmp_path / "run").exists()
    summary = nb201_search.search(nb201_search.configure([*flags, "--keep-from", "0.99"]))
    assert summary["genotype"] == "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"


def test_layers_of_a_timm_model(tmp_path):
    flags = ["--model", "resnet10t", "--mix", "activation", "--where", "layer1*", "--most-an-edge", "None"]
    flags += ["--preset", "proxy", "--limit", "64", "--epochs", "1", "--batch-size", "32", "--image-size", "32"]
    flags += ["--method", "fair-darts", "--keep-from", "0.5", "--alpha-lr", "0.1", "--output", str(tmp_path / "run")]
    summary = timm_model.search(timm_model.configure(flags))
    choice = json.loads((tmp_path / "run" / "choice.json").read_text())
    assert any(isinstance(names, list) for names in choice.values())
    assert " + " in summary["genotype"] or ": -" in summary["genotype"]
    network = create_model("resnet10t", num_classes=10, in_chans=1)
    choose_(network, "activation", choice, example=torch.zeros(1, 1, 32, 32))
    network.load_state_dict(torch.load(tmp_path / "run" / "weights.pt", weights_only=True))


def test_several_or_none_of_a_mixed_layer_are_built_again():
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())

    model, x = build(), torch.randn(2, 3, 8, 8)
    mix_(model, "kernel", example=x)
    arch = ArchParameterGroup(model, Sigmoid())
    arch.discretization = StrongerThan(0.85)
    with torch.no_grad():
        for alpha, value in zip(arch.parameters(), (3.0, -3.0), strict=True):
            alpha.fill_(value)
    chosen = choices(model)
    assert [type(names) for names in chosen.values()] == [list, list]
    assert len(chosen["0"]) > 1
    assert chosen["2"] == []
    table = measure_costs(arch, x)
    assert table.fixed == 0
    assert table.of(arch.choices()) == sum(table.rows["0"].values())
    found, again = arch.discretize().eval(), build()
    choose_(again, "kernel", json.loads(json.dumps(chosen)), example=x)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again.eval()(x), found(x))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("pc-darts", "PCDARTS weighs edges by what their operations' weights sum to"),
        ("pt", "FairDARTS keeps what passes a threshold, and PT decides"),
        ("sgas", "FairDARTS keeps what passes a threshold, and SGAS decides"),
        ("sdarts-rs", "SDARTS normalises perturbed weights"),
        ("sdarts-adv", "SDARTS normalises perturbed weights"),
        ("gdas", "cannot be combined, since both define relaxation"),
    ],
)
def test_what_it_cannot_be_combined_with(other, reason):
    with pytest.raises(ValueError, match=reason):
        find_method(f"fair-darts+{other}")


def test_settings_that_are_none():
    with pytest.raises(ValueError, match=r"need zero_one >= 0, keep_from in \(0, 1\) and most_an_edge at least 1"):
        FairDARTS(keep_from=1.0)
