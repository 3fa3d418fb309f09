"""Partial channels that grow: candidates, momentum, state dicts, and DrNAS's stages."""

import json
from itertools import pairwise

import pytest
import timm
import torch
from torch import nn

from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.cli import darts as darts_search
from sparsemix.cli import nb201 as nb201_search
from sparsemix.methods import SearchStep
from sparsemix.methods.drnas import Progressive
from sparsemix.relaxations import Softmax
from sparsemix.runs.checkpoints import Checkpoints
from sparsemix.runs.launching import Interrupted
from sparsemix.runs.search import Search
from sparsemix.spaces.nb201 import NB201Genotype
from sparsemix.spaces.primitives import SepConv
from sparsemix.supernet.partial import PartialChannels, check_partial, widen_channels_
from sparsemix.supernet.widening import widen_

TINY = ["--device", "cpu", "--limit", "160", "--batch-size", "40", "--split", "halves", "--evaluate-limit", "40"]
TINY += ["--statistics-images", "40", "--evaluate-every", "9", "--sampling", "shuffled"]
DRNAS = ["--method", "drnas", "--epochs", "4", "--stage-parts", "4", "2", "--frozen-epochs", "1"]
DRNAS += ["--stage-operations", "5", "3", "--preset", "proxy", "--channels", "4", "--image-size", "8"]


def supernet(channel_parts=4):
    torch.manual_seed(0)
    return timm.create_model("sparsemix_darts_supernet", channels=8, cells=3, channel_parts=channel_parts)


def generator():
    return torch.Generator().manual_seed(0)


def candidates(channels):
    return {"skip": nn.Identity(), "sep": SepConv(channels, 3, 1, affine=True)}


def test_what_was_there_stays_and_the_rest_are_copies():
    op = MixedOp(candidates(2))
    narrow = {name: value.clone() for name, value in op.candidates["sep"].state_dict().items()}
    with torch.no_grad():  # a batch norm that tells its channels apart
        for name, value in op.candidates["sep"].named_buffers():
            if value.dim():
                value.copy_(torch.tensor([1.0, 2.0]))
                narrow[name] = value.clone()
    parameters = [*op.candidates["sep"].parameters()]
    widened = widen_(op, candidates(5), generator())
    wide = op.candidates["sep"].state_dict()
    assert [id(parameter) for parameter in op.candidates["sep"].parameters()] == [*map(id, parameters)]
    assert {*widened} == {*parameters}
    copied = [*(wide["bn.running_mean"] - 1).int().tolist()]  # which of the two each channel is
    assert copied[:2] == [0, 1]
    for name, value in wide.items():
        expected = narrow[name]
        for dim, (before, after) in enumerate(zip(expected.shape, value.shape, strict=True)):
            if before != after:
                expected = expected[(slice(None),) * dim + (copied,)]
        assert torch.equal(value, expected), name
    assert op(torch.randn(2, 5, 6, 6)).shape == (2, 5, 6, 6), "groups and sizes are those of five channels"


def test_momentum_grows_with_its_parameters():
    model = supernet()
    arch = ArchParameterGroup(model, Softmax())
    optimizer = torch.optim.SGD(arch.weight_parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    before = {p: (p.detach().clone(), s["momentum_buffer"].clone()) for p, s in optimizer.state.items()}
    widen_channels_(model, 2, generator(), optimizer)
    assert arch.weight_parameters() == [*optimizer.param_groups[0]["params"]]
    grown = 0
    for parameter, (weight, momentum) in before.items():
        now = optimizer.state[parameter]["momentum_buffer"]
        assert now.shape == parameter.shape
        corner = tuple(slice(size) for size in weight.shape)
        assert torch.equal(parameter.detach()[corner], weight)
        assert torch.equal(now[corner], momentum)
        if parameter.shape != weight.shape:
            grown += 1
            for i in range(len(weight), len(parameter)):  # the same channel was copied of both
                [same] = [j for j in range(len(weight)) if torch.equal(parameter[i], parameter[j])][:1]
                assert torch.equal(now[i], now[same])
    assert grown > 100
    optimizer.zero_grad()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()


def test_a_state_dict_of_wider_operations():
    model, x = supernet(), torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    widen_channels_(model, 2, generator(), optimizer)
    again = supernet()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model.eval()(x))
    old = {name: value for name, value in supernet().state_dict().items() if not name.endswith(".parts")}
    narrow = supernet()
    narrow.load_state_dict(old)
    assert {cell.channel_parts for cell in narrow.cells} == {4}
    with pytest.raises(ValueError, match=r"one in 2 of the channels is mixed, which can become more .* got K = 4"):
        again.load_state_dict(supernet().state_dict())
    assert not any(name.endswith(".parts") for name in supernet(1).state_dict()), "others stay as they were"


def test_all_channels_at_last():
    """What was found with K = 1 fits a supernet that is built with all channels, and the other way round."""
    model, x = supernet(), torch.randn(2, 3, 8, 8)
    widen_channels_(model, 1, generator(), torch.optim.SGD(model.parameters(), lr=0.1))
    plain = supernet(1)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.eval()(x), model.eval()(x))
    model.load_state_dict(plain.state_dict())
    arch = ArchParameterGroup(model)
    found = arch.discretize()
    again = ArchParameterGroup(supernet(1)).discretize(arch.genotype())
    again.load_state_dict(found.state_dict())
    assert torch.equal(again.eval()(x), found.eval()(x))


def test_what_was_chosen_does_not_grow():
    found = ArchParameterGroup(supernet()).discretize()
    wide = supernet(2)
    with pytest.raises(ValueError, match=r"what was chosen of .* build the supernet with channel_parts=2"):
        found.load_state_dict(ArchParameterGroup(wide).discretize().state_dict())


def test_edges_of_ones_own():
    def build(parts):
        return {"skip": nn.Identity(), "conv": nn.Conv2d(8 // parts, 8 // parts, 3, padding=1)}

    torch.manual_seed(0)
    edge = PartialChannels(MixedOp(build(4)), 4, build)
    check_partial(edge, (4, 1), "here")
    widen_channels_(edge, 1, generator(), torch.optim.SGD(edge.parameters(), lr=0.1))
    assert edge(torch.randn(2, 8, 4, 4)).shape == (2, 8, 4, 4)
    assert edge.op["conv"].weight.shape == (8, 8, 3, 3)
    finished = PartialChannels(MixedOp(build(4)), 4)
    with pytest.raises(ValueError, match="the candidates are finished modules; give build="):
        check_partial(finished, (4, 2), "here")


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ({"other": nn.Conv2d(4, 4, 1)}, "the candidates are conv, got other"),
        ({"conv": nn.Conv2d(1, 1, 1)}, r"weight of candidate 'conv' has the shape \(2, 2, 1, 1\), and cannot grow to"),
        ({"conv": nn.Conv2d(4, 4, 1, bias=False)}, r"bias of candidate 'conv' has the shape \(2,\), .* grow to None"),
    ],
)
def test_candidates_that_do_not_fit(candidates, message):
    with pytest.raises(ValueError, match=message):
        widen_(MixedOp({"conv": nn.Conv2d(2, 2, 1)}), candidates, generator())


# DrNAS's stages


def search(output, *flags):
    return nb201_search.search(nb201_search.configure([*DRNAS, *TINY, "--output", str(output), *flags]))


def records(output):
    lines = map(json.loads, (output / "records.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "evaluation_seconds", "update_seconds")}
        for line in lines
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search of two stages of two epochs of two steps, and its learning rates."""
    rates, begin = [], Search.begin_epoch

    def watching(self):
        begin(self)
        rates.append(self.weight_optimizer.param_groups[0]["lr"])
        assert bool(self.weight_optimizer.state) == (self.epoch > 0), "momentum goes on into the next stage"

    folder = tmp_path_factory.mktemp("stages") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "begin_epoch", watching)
        search(folder)
    return folder, rates


def test_the_stages_of_a_search(whole):
    folder, rates = whole
    lines = records(folder)
    assert [line["channel_parts"] for line in lines] == [4, 4, 2, 2]
    assert [{len(names) for names in line.get("kept", {}).values()} for line in lines] == [set(), set(), {3}, set()]
    assert rates == sorted(rates, reverse=True), "one cosine over both stages"
    for label, names in lines[2]["kept"].items():
        alphas = dict(zip(NB201Genotype.OPERATIONS, lines[1]["alphas"][label], strict=True))
        assert names == sorted(alphas, key=alphas.get, reverse=True)[:3]
    moved = [first["alphas"] != second["alphas"] for first, second in pairwise(lines)]
    assert moved == [True, False, True], "frozen in the first epoch of a stage"
    state = Checkpoints(folder).load()["model"]
    assert state["stages.0.0.edges.1<-0.candidates.nor_conv_3x3.bn.running_mean"].shape == (2,)


@pytest.mark.parametrize("stop_at", [4, 5, 6])
def test_interrupted_around_the_widening(stop_at, whole, tmp_path, interrupted):
    """In the last step of the first stage, in the first of the second one, and in the one after that."""
    with interrupted(SearchStep, "__call__", stop_at), pytest.raises(Interrupted):
        search(tmp_path / "parts")
    search(tmp_path / "parts", "--resume")
    assert records(tmp_path / "parts") == records(whole[0])
    parts, expected = (Checkpoints(folder).load()["model"] for folder in (tmp_path / "parts", whole[0]))
    assert all(torch.equal(value, expected[name]) for name, value in parts.items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--frozen-epochs", "2"], "the alphas must train in each of 2 stages, got frozen_epochs=2 and 4 epochs"),
        (["--stage-parts", "4", "3"], "3 parts do not divide 4 channels"),
    ],
)
def test_stages_that_do_not_fit_the_search(flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        search(tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage_parts": (2, 4)}, r"stage_parts must be at least 1 and must not rise, got \(2, 4\)"),
        ({"stage_parts": ()}, "stage_parts must be at least 1"),
        ({"stage_operations": (3, 2)}, "one number for each of the 1 stages of stage_parts"),
        ({"frozen_epochs": -1}, "frozen_epochs must not be negative"),
    ],
)
def test_stages_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        Progressive(**settings)


def test_finished_candidates_are_refused():
    model = nn.Sequential(MixedOp({"skip": nn.Identity(), "conv": nn.Conv2d(3, 3, 1)}))
    arch = ArchParameterGroup(model)
    with pytest.raises(
        ValueError, match=r"Progressive, stage_parts: mixes 1/4 .* the candidates of Sequential .* or set it to 1"
    ):
        Progressive(stage_parts=(4, 2)).check(arch, 10)
    Progressive().check(arch, 10)


def test_the_published_stages():
    original = darts_search.configure(["--method", "drnas"]).method.settings
    assert (original["stage_parts"], original["stage_operations"]) == ((6, 4), (7, 4))
    progressive = nb201_search.configure(["--method", "drnas", "--preset", "progressive"])
    assert progressive.method.settings["stage_parts"] == (4, 2)
    assert progressive.size.epochs == 100
