"""Every method by the same rules, and the seams through which methods change a search."""

import json
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.cli import nb201 as nb201_cli
from sparsemix.measure import best_epoch
from sparsemix.methods import SearchStep
from sparsemix.methods.gdas import GDAS, GumbelArgmax
from sparsemix.methods.method import Evidence, Method, Part, Phase
from sparsemix.methods.pt import PT
from sparsemix.methods.registry import find_method, methods
from sparsemix.methods.settle import Settle, in_question
from sparsemix.relaxations import Moment, Softmax
from sparsemix.report.records import load_run
from sparsemix.runs.checkpoints import Checkpoints
from sparsemix.runs.config import SearchConfig, configured
from sparsemix.runs.launching import Interrupted
from sparsemix.runs.search import Search
from sparsemix.spaces.nb201 import NB201Genotype
from sparsemix.supernet.mixed_op import Execution

TINY = ["--preset", "proxy", "--device", "cpu", "--channels", "4", "--epochs", "2", "--batch-size", "40"]
TINY += ["--limit", "400", "--image-size", "8", "--seed", "1", "--sampling", "shuffled", "--split", "halves"]
TINY += ["--evaluate-limit", "40", "--statistics-images", "40"]


def search(output, *flags):
    return nb201_cli.search(nb201_cli.configure([*TINY, "--output", str(output), *flags]))


def records(output):
    lines = map(json.loads, (output / "records.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "evaluation_seconds", "update_seconds")}
        for line in lines
    ]


def small_arch(**keywords):
    torch.manual_seed(0)
    ragged = [{"a": nn.Identity(), "b": nn.Tanh(), "c": nn.Sigmoid()}, {"a": nn.Identity(), "b": nn.Tanh()}]
    return ArchParameterGroup(nn.Sequential(*map(MixedOp, ragged)).double(), **keywords)


# name -> (how many of a row's weights are not zero; None: any number, flags of a tiny search)
METHODS = {
    "darts": (None, []),
    "darts-v2": (None, []),
    "darts-0.1": (None, []),
    "sp-darts": (None, []),
    "sp-darts-fixed-p": (None, []),
    "sp-darts-both": (None, []),
    "sp-darts-sparsemax": (None, []),
    "gdas": (1, []),
    "pt": (None, ["--tuning-epochs", "1"]),
    "straight-through": (1, []),
    "snas": (None, []),
    "drnas": (None, ["--kl", "1e-3", "--stage-parts", "4", "2", "--stage-operations", "5", "3"]),
    "gaea-bilevel": (None, ["--epochs", "2"]),
    "gaea-erm": (None, ["--split", "whole"]),
    "gaea-pc-darts": (None, ["--frozen-epochs", "1"]),
    "pc-darts": (None, ["--frozen-epochs", "1"]),
    "sdarts-rs": (None, []),
    "sdarts-adv": (None, ["--attack-steps", "2"]),
    "darts-es": (None, ["--products", "3"]),
    "darts-plus": (None, ["--max-skips", "7"]),
    "r-darts-l2": (None, []),
    "r-darts-dp": (None, ["--drop-path", "0", "--cutout", "4"]),
    "sgas": (None, ["--first-decision", "1", "--decision-every", "1", "--epochs", "7"]),
    "sgas-2": (None, ["--first-decision", "1", "--decision-every", "1", "--epochs", "7"]),
    "sgas+pt": (None, ["--first-decision", "1", "--decision-every", "1", "--epochs", "7"]),
    "random-search": (1, []),
    "single-path": (1, ["--samples", "2"]),
    "fair-darts": (None, []),
    "settle": (None, []),
}
NOT_ON_THE_SIMPLEX = {"fair-darts"}


def test_every_method_is_in_the_table():
    assert METHODS.keys() == methods().keys()


@pytest.mark.parametrize("name", METHODS)
def test_the_relaxation_of(name):
    nonzero, _ = METHODS[name]
    method, arch = find_method(name), small_arch()
    for epoch in (0, 3):
        plan = method.plan(arch, epoch, 4)
        json.dumps(plan)
        arch.relaxation = method.relaxation(plan)
        for step in range(3):
            moment = Moment(7, epoch, step)
            arch.moment = replace(moment, phi=method.phi(moment, plan))
            weights = arch.weights()
            again = ArchParameterGroup(arch.model, arch.relaxation)
            again.moment = arch.moment
            arch._bind()
            for label, row in weights.items():
                assert (row >= 0).all()
                assert name in NOT_ON_THE_SIMPLEX or row.sum().item() == pytest.approx(1)
                assert nonzero is None or int((row != 0).sum()) == nonzero
                assert torch.equal(row, again.weights()[label]), "draws follow from the moment"
        assert torch.equal(*(method.evaluation(plan)(torch.arange(3.0), Moment(step=s)) for s in (0, 1)))


@pytest.mark.parametrize(("name", "stop_at"), [*((name, 3) for name in METHODS), ("pt", 6)])
def test_interrupted_and_resumed_is_as_if_never_interrupted(name, stop_at, tmp_path, interrupted):
    """Within the second epoch, and while PT tunes between two decisions."""
    flags = ["--method", name, "--accumulate", "2", "--limit", "160", "--evaluate-every", "9", *METHODS[name][1]]
    search(tmp_path / "whole", *flags)
    with interrupted(SearchStep, "__call__", stop_at), pytest.raises(Interrupted):
        search(tmp_path / "parts", *flags)
    search(tmp_path / "parts", *flags, "--resume")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    parts, whole = (Checkpoints(tmp_path / folder).load()["model"] for folder in ("parts", "whole"))
    assert all(torch.equal(value, whole[name]) for name, value in parts.items())


# GDAS


def test_gdas_samples_from_the_softmax():
    alpha = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    relax, draws = GumbelArgmax(tau=5.0), 4000
    counts = sum(relax(alpha, Moment(step=step)) for step in range(draws)) / draws
    expected = torch.softmax(alpha, -1)
    assert (counts - expected).abs().max() < 4 * 0.5 / draws**0.5
    assert counts[0, 3] == 0


def test_gdas_has_the_gradient_of_the_soft_sample():
    """The estimator that it states, softmax((log softmax alpha + g) / tau), by finite differences at the same noise."""
    alpha = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.5, 0.2]], dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], dtype=torch.float64)
    moment, tau = Moment(3, 1, 4), 0.7
    hard = GumbelArgmax(tau)(alpha, moment)
    [gradient] = torch.autograd.grad((hard * upstream).sum(), alpha)
    uniform = torch.rand(2, 3, generator=moment.generator("gumbel"), dtype=torch.float64)
    noise = -torch.log(-torch.log(uniform))

    def soft(alpha):
        return (torch.softmax((torch.log_softmax(alpha, -1) + noise) / tau, -1) * upstream).sum()

    difference = torch.zeros(2, 3, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            step = torch.zeros(2, 3, dtype=torch.float64)
            step[i, j] = 1e-6
            difference[i, j] = (soft(alpha.detach() + step) - soft(alpha.detach() - step)) / 2e-6
    assert torch.allclose(gradient, difference, atol=1e-8)
    strongest = (torch.log_softmax(alpha, -1) + noise).argmax(-1)
    assert torch.equal(hard, torch.nn.functional.one_hot(strongest, 3).double())


def test_gdas_runs_one_operation_an_edge_and_the_same_in_both_updates(tmp_path, monkeypatch):
    ran, update = [], {name: getattr(SearchStep, name) for name in ("update_weights", "update_alphas")}

    def watching(name):
        def watched(self, *batches):
            loss = update[name](self, *batches)
            assert all(Counter(op.ran)[Execution.FULL] == 1 for op in self.arch.operations)
            assert all(Counter(op.ran)[Execution.SCORED] == 0 for op in self.arch.operations)
            ran.append([op.ran for op in self.arch.operations])
            return loss

        return watched

    for name in update:
        monkeypatch.setattr(SearchStep, name, watching(name))
    search(tmp_path / "run", "--method", "gdas")
    assert ran[::2] == ran[1::2]
    assert len({str(step) for step in ran[::2]}) == len(ran) / 2, "every step draws anew"
    assert [line["tau"] for line in records(tmp_path / "run")] == [10.0, pytest.approx(0.1)]


# PT


class TwoCells(nn.Module):
    """Two kinds of cells; node 3 of each has three edges."""

    def __init__(self):
        super().__init__()
        for kind in ("normal", "reduce"):
            for edge in ("2<-0", "2<-1", "3<-0", "3<-1", "3<-2"):
                candidates = {"a": nn.Identity(), "b": nn.Tanh(), "c": nn.Sigmoid()}
                label, node = f"{kind} {edge}", f"{kind} {edge[0]}"
                self.add_module(label.replace(" ", "_"), MixedOp(candidates, label=label, node=node))


def test_pt_asks_what_is_lost_without_each_and_does_not_normalise_again():
    arch = ArchParameterGroup(TwoCells(), Softmax())
    part, seen = PT(tuning_epochs=2, edges_per_node=2), []

    def accuracy():
        """The supernet needs candidate b of every edge, and edges from node 1 least."""
        weights = arch.weights()
        seen.append({label: row.sum().item() for label, row in weights.items()})
        return sum(row[1].item() * (0.1 if label.endswith("<-1") else 1) for label, row in weights.items())

    phases = part.phases(arch, epochs=3)
    assert [phase.epochs for phase in phases] == [3, 2 * (5 + 1 - 1) + 1]
    counts = []
    for epoch in range(sum(phase.epochs for phase in phases)):
        decided = part.decide(arch, Evidence(Moment(0, epoch), 3, accuracy=accuracy))
        assert bool(decided) == (epoch >= 3 and (epoch - 3) % 2 == 0)
        counts += [len(decided["decided"])] if decided else []
    assert counts == [2, 4, 6, 8, 10, 10], "an edge of each kind at a time, and then a node of each"
    assert arch.choices() == {label: () if label.endswith("3<-1") else ("b",) for label in arch.rows}, (
        "what is needed most, and the node's edges that are needed least are gone"
    )
    asked = [sum(total < 0.999 for total in totals.values()) for totals in seen]
    assert asked[: 2 * 3] == [1] * 6, "one row lacks one weight, the others keep theirs"
    again = ArchParameterGroup(TwoCells(), Softmax())
    for epoch in range(3, 14):
        part.decide(again, Evidence(Moment(0, epoch), 3, accuracy=lambda: 0.5))
    assert {names for names in again.choices().values()} == {("a",), ()}, "a tie goes to the first"


def test_pt_decides_all_edges_of_a_search(tmp_path):
    summary = search(tmp_path / "run", "--method", "darts+pt", "--tuning-epochs", "1", "--epochs", "1")
    lines = records(tmp_path / "run")
    assert len(lines) == 1 + 6
    assert [len(line["decided"]) for line in lines[1:]] == [1, 2, 3, 4, 5, 6]
    state = Checkpoints(tmp_path / "run").load()["model"]
    allowed = [value for name, value in state.items() if name.endswith("allowed")]
    assert all(int(value.sum()) == 1 for value in allowed)
    assert summary["undecided"] == {}
    assert lines[-1]["entropy"] == 0
    assert lines[-1]["supernet_accuracy"] == lines[-1]["discretized_accuracy"], "nothing is left to cut out"


@pytest.mark.parametrize("method", ["pt", "sp-darts+pt"])
def test_pt_goes_on_after_a_decision_was_cut_short(method, tmp_path, monkeypatch):
    flags = ["--method", method, "--tuning-epochs", "1", "--epochs", "1"]
    search(tmp_path / "whole", *flags)
    calls, measured = [], Search._validation_accuracy

    def failing(self):
        calls.append(1)
        if len(calls) == 8:  # the third candidate of the second decision
            raise RuntimeError("killed")
        return measured(self)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "_validation_accuracy", failing)
        with pytest.raises(RuntimeError, match="killed"):
            search(tmp_path / "parts", *flags)
    assert len(records(tmp_path / "parts")) == 2
    search(tmp_path / "parts", *flags, "--resume")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


# Settling


def test_cells_in_question():
    close = {"a": ["x", "y"], "b": ["x", "y", "z"], "c": ["y", "z"]}
    assert in_question(close, most=4) == [
        {"a": "x", "c": "y"}, {"a": "x", "c": "z"}, {"a": "y", "c": "y"}, {"a": "y", "c": "z"},
    ]  # fmt: skip
    assert len(in_question(close, most=12)) == 12
    assert in_question({}, most=4) == [{}]


def test_undecided_rows_are_settled_by_what_is_measured():
    """Two rows are tied; the supernet does best with the one's second operation and the other's first."""
    arch = small_arch(relaxation=Softmax(0.1))
    with torch.no_grad():
        for alpha, values in zip(arch.parameters(), ([1.0, 0.95, 0.0], [0.5, 0.45]), strict=True):
            alpha.copy_(torch.tensor(values))
    seen = []

    def accuracy():
        cell = {label: op[0].names[int(row.argmax())] for (label, op), row in zip(
            arch.rows.items(), arch.weights().values(), strict=True)}  # fmt: skip
        assert all(sorted(row.tolist())[-1] == 1 and row.sum() == 1 for row in arch.weights().values())
        seen.append(cell)
        return {"ba": 0.6, "aa": 0.5}.get("".join(cell.values()), 0.1)

    settle = Settle(settle_epochs=2)
    assert settle.decide(arch, Evidence(Moment(epoch=7), 10, accuracy=accuracy, temperature=0.1)) == {}
    decided = settle.decide(arch, Evidence(Moment(epoch=8), 10, accuracy=accuracy, temperature=0.1))
    assert decided["settled"] == {"0": "b", "1": "a"} == {label: names[0] for label, names in arch.choices().items()}
    assert (decided["settled_accuracy"], len(decided["settled_among"])) == (0.6, 4)
    assert ["".join(cell.values()) for cell in seen] == ["aa", "ab", "ba", "bb"], "first what the alphas say"
    assert all(len(op[0].allowed_names) == 1 for op in arch.rows.values())
    again = settle.decide(arch, Evidence(Moment(epoch=8), 10, accuracy=accuracy, temperature=0.1))
    assert again == {"settled": {}}, "nothing is open any more"


def test_a_search_that_settles_is_the_same_until_then(tmp_path):
    flags = ["--epochs", "3", "--alpha-lr", "1e-4", "--method"]
    search(tmp_path / "plain", *flags, "sp-darts")
    summary = search(tmp_path / "settled", *flags, "sp-darts+settle")
    plain, settled = records(tmp_path / "plain"), records(tmp_path / "settled")
    assert plain[:2] == settled[:2]
    among = settled[2]["settled_among"]
    assert len(among) > 1
    assert settled[2]["settled_accuracy"] == max(each["accuracy"] for each in among)
    assert settled[2]["allowed"] == {row: [name] for row, name in settled[2]["settled"].items()}
    assert all(row not in summary["undecided"] for row in settled[2]["settled"])


def test_the_result_is_the_best_epoch_of_the_second_half(tmp_path):
    flags = ["--epochs", "4", "--alpha-lr", "0.1", "--limit", "200"]
    last = search(tmp_path, *flags)
    found = records(tmp_path)
    best = search(tmp_path, *flags, "--best-from", "0.5", "--resume")
    assert records(tmp_path) == found, "a finished search is only read out again"
    accuracies = [record["discretized_accuracy"] for record in found]
    epoch = max((2, 3), key=lambda epoch: (accuracies[epoch], epoch))
    assert best["result_epoch"] == epoch
    assert best["genotype"] == found[epoch]["genotype"]
    assert best["discretized_accuracy"] == accuracies[epoch] >= last["discretized_accuracy"]


def test_epochs_that_can_be_the_best():
    evaluated = [{"discretized_accuracy": accuracy} for accuracy in (0.9, 0.1, 0.5, 0.5)]
    assert best_epoch(evaluated, range(2, 4)) == 3, "of equals the last"
    assert best_epoch(evaluated, range(4)) == 0
    assert best_epoch([*evaluated[:3], {}], range(2, 4)) == 2
    assert best_epoch([{}, {}], range(2)) is None


def test_a_share_after_which_epochs_can_be_the_best(tmp_path):
    with pytest.raises(ValueError, match=r"best_from must be in \[0, 1\), got 1"):
        configured(SearchConfig(), {"best_from": 1})
    with pytest.raises(ValueError, match=r"best_from=0.5: darts-es chooses its result itself; set it to None"):
        search(tmp_path, "--method", "darts-es", "--best-from", "0.5")


def test_what_settling_needs():
    with pytest.raises(ValueError, match="settle_epochs=3 leaves nothing of a search of 3 epochs"):
        Settle(settle_epochs=3).check(small_arch(), 3)
    with pytest.raises(ValueError, match="need settle_epochs >= 1, settle_within > 0 and settle_cells >= 2"):
        Settle(settle_cells=1)
    with pytest.raises(ValueError, match="Settle settles rows whose alphas have been trained, and GDAS never"):
        find_method("gdas+settle")


def test_architectures_drawn_at_random_have_no_mean(tmp_path):
    summary = search(tmp_path / "run", "--method", "random-search", "--limit", "120")
    assert len({line["genotype"] for line in records(tmp_path / "run")}) == 2
    assert summary["averaged_genotype"] == summary["genotype"]


def test_pt_with_alphas_that_are_never_trained(tmp_path):
    search(tmp_path / "run", "--method", "pt", "--tuning-epochs", "1", "--epochs", "2", "--fixed-alphas")
    alphas = [line["alphas"] for line in records(tmp_path / "run")]
    assert all(row == alphas[0] for row in alphas)


# Compositions


def test_parts_that_fill_the_same_place():
    with pytest.raises(ValueError, match=r"SPDarts and GDAS cannot be combined, since both define relaxation, "):
        find_method("sp-darts+gdas")

    @dataclass(frozen=True)
    class Other(Part):
        tau_first: float = 1.0

    with pytest.raises(ValueError, match="both have the setting tau_first"):
        Method("both", (GDAS(), Other()))


def test_a_pair_that_makes_no_sense_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"gdas\+pt: PT measures a mixture .*, and GDAS never trains mixtures"):
        find_method("gdas+pt")


def test_an_unknown_method():
    with pytest.raises(ValueError, match=r"no method 'gdass'; did you mean gdas\?"):
        find_method("gdass")


def test_a_composition_has_the_presets_of_the_first_and_the_settings_of_both():
    both = find_method("sp-darts+pt")
    assert both.presets["darts"]["paper"]["*"]["edges_per_node"] == 2
    assert both.presets["darts"]["paper"]["*"]["batch_size"] == 80
    assert both.presets["nb201"].keys() == find_method("sp-darts").presets["nb201"].keys()
    assert "edges_per_node" not in both.presets["nb201"]["paper"]["*"]
    config = nb201_cli.configure(["--method", "sp-darts+pt", "--tuning-epochs", "3", "--sparse", "2e-3"])
    assert (config.method.settings["tuning_epochs"], config.method.settings["sparse"]) == (3, 2e-3)


def test_all_methods_can_be_listed(capsys):
    with pytest.raises(SystemExit, match="0"):
        nb201_cli.configure(["--list-methods"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*methods(), "a+b"]
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)


def test_flags_are_those_of_the_method(capsys):
    with pytest.raises(SystemExit):
        nb201_cli.configure(["--method", "gdas", "--sparse", "1e-3"])
    assert "sparse" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        nb201_cli.configure(["--method", "gdas", "--tau-last", "0"])
    assert "temperatures must be positive and fall" in capsys.readouterr().err


def test_a_published_length_does_not_reach_a_laptop():
    assert nb201_cli.configure(["--method", "gdas"]).size.epochs == 250
    assert nb201_cli.configure(["--method", "gdas", "--preset", "proxy"]).size.epochs == 25


# The seams


def run_with(monkeypatch, part, output, *flags, watch=None):
    """A tiny search under a method of one part."""
    config = nb201_cli.configure([*TINY, "--method", "darts", "--output", str(output), *flags])
    searches = []
    init = Search.__init__

    def keeping(self, *args, **keywords):
        searches.append(self)
        init(self, *args, **keywords)

    monkeypatch.setattr(Search, "__init__", keeping)
    nb201_cli.search(replace(config, method=Method("trial", (part,))))
    return searches[0]


def test_a_search_that_stops_by_its_records(monkeypatch, tmp_path):
    class Stopper(Part):
        def stops(self, records):
            return len(records) == 1

    run_with(monkeypatch, Stopper(), tmp_path / "run", "--epochs", "5")
    assert len(records(tmp_path / "run")) == 1
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_search_is_measured_where_it_stops(monkeypatch, tmp_path):
    class Stopper(Part):
        def stops(self, records):
            return len(records) == 3

    run_with(monkeypatch, Stopper(), tmp_path / "run", "--epochs", "5", "--evaluate-every", "2")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    lines = records(tmp_path / "run")
    assert ["discretized_accuracy" in line for line in lines] == [False, True, True]
    assert summary["discretized_accuracy"] == lines[2]["discretized_accuracy"]
    assert summary["genotype"] == lines[2]["genotype"]


def test_a_result_from_before_anything_was_measured(monkeypatch, tmp_path, capsys):
    class First(Part):
        def result(self, records):
            return 0

    run_with(monkeypatch, First(), tmp_path / "run", "--epochs", "2", "--evaluate-every", "9")
    assert "accuracies were not measured in epoch 1, whose architecture is the result" in capsys.readouterr().out
    found = load_run(tmp_path / "run")
    assert "discretized_accuracy" not in found.summary
    assert found.summary["genotype"] == found.records[0]["genotype"]


def test_an_earlier_result_is_read_under_what_was_allowed_then(monkeypatch, tmp_path):
    class Restricted(Part):
        def result(self, records):
            return 0

        def decide(self, arch, evidence):
            if evidence.moment.epoch == 1:
                arch.restrict("1<-0", [arch.rows["1<-0"][0].ranked()[-1]])
            return {}

    run_with(monkeypatch, Restricted(), tmp_path / "run", "--epochs", "2")
    found = json.loads((tmp_path / "run" / "genotype.json").read_text())
    first = records(tmp_path / "run")[0]
    assert found["genotype"] == first["genotype"] == str(NB201Genotype.from_edges(found["edges"]))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["averaged_genotype"] == summary["genotype"]


def test_phases_begin_afresh(monkeypatch, tmp_path):
    class Twice(Part):
        def phases(self, arch, epochs):
            return [Phase(epochs), Phase(2, lr=0.1)]

        def trains_alphas(self, epoch, epochs):
            return epoch < epochs

    rates, begin = [], Search.begin_epoch

    def watching(self):
        begin(self)
        rates.append(self.weight_optimizer.param_groups[0]["lr"])
        assert bool(self.weight_optimizer.state) == (self.epoch not in (0, 2)), "momentum ends with its phase"

    monkeypatch.setattr(Search, "begin_epoch", watching)
    run = run_with(monkeypatch, Twice(), tmp_path / "run", "--weight-lr", "0.05", "--weight-lr-min", "0.001")
    assert run.epochs == len(records(tmp_path / "run")) == 4
    half = [0.001 + (rate - 0.001) / 2 for rate in (0.05, 0.005)]  # of a cosine over two epochs
    assert rates == pytest.approx([0.05, half[0], 0.005, half[1]])
    moved = [line["alphas"] for line in records(tmp_path / "run")]
    assert moved[0] != moved[1] == moved[2] == moved[3]


def test_penalties_optimizers_and_contexts(monkeypatch, tmp_path):
    entered = []

    class Everything(Part):
        def prepare_(self, arch):
            with torch.no_grad():
                for alpha in arch.parameters():
                    alpha.fill_(0.5)

        def alpha_optimizer(self, arch, settings):
            return torch.optim.SGD(arch.parameters(), lr=1.0)

        def penalty(self, arch, plan):
            return 100 * sum(alpha.sum() for alpha in arch.parameters())

        def around_weights(self, step, batch, plan):
            entered.append(len(batch[1]))
            return step.arch.using(Softmax(2.0))

    run = run_with(monkeypatch, Everything(), tmp_path / "run", "--epochs", "1", "--accumulate", "2")
    assert entered == [40] * 5, "the context is of the whole batch"
    alphas = torch.stack([alpha for _, alpha in run.arch.named_parameters()])
    assert alphas.mean().item() == pytest.approx(0.5 - 5 * 100, rel=1e-3)  # the loss's gradient of a row sums to 0


def test_edges_that_compete_are_searched_recorded_and_restored(monkeypatch, tmp_path):
    class Weighed(Part):
        def prepare_(self, arch):
            arch.weigh_edges_()

    run = run_with(monkeypatch, Weighed(), tmp_path / "run", "--epochs", "2")
    first, last = (line["betas"] for line in records(tmp_path / "run"))
    assert first.keys() == run.arch.rows.keys()
    assert first != last == {label: beta.item() for label, beta in run.arch.named_betas()}
    again = run_with(monkeypatch, Weighed(), tmp_path / "run", "--epochs", "2", "--resume")
    assert {label: beta.item() for label, beta in again.arch.named_betas()} == last


def test_what_a_method_insists_on_is_said_before_there_is_a_folder(tmp_path):
    config = configured(nb201_cli.configure([*TINY, "--output", str(tmp_path / "run")]), {"warmup_epochs": 9})
    with pytest.raises(ValueError, match="the warm-up must be shorter than the search"):
        nb201_cli.search(config)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="this method is not searched at several temperatures"):
        SearchConfig().method.__class__("plain", (Part(),)).at_temperature(1e-3)


def test_the_order_of_a_composition_keeps_settings_of_a_data_set():
    one, other = (find_method(name).presets["nb201"] for name in ("sp-darts+darts-es", "darts-es+sp-darts"))
    settings = {"sparse": 1.3e-3, "smooth": 1.3e-2, "p_up": 0.9}
    for presets in (one, other):
        first = next(iter(presets.values()))
        assert settings.items() <= {**first["*"], **first["cifar100"]}.items()


def test_another_temperature_scales_all_temperatures():
    authors = find_method("sp-darts").with_settings({"sparse": 1e-3, "smooth": 1e-2, "warmup_smooth": 5e-3})
    found = authors.at_temperature(2e-2).settings
    assert (found["sparse"], found["smooth"], found["warmup_smooth"]) == pytest.approx((2e-2, 0.2, 0.1))


def test_decisions_are_made_under_the_evaluation_s_relaxation(tmp_path, monkeypatch):
    """PT's measurements must not depend on the draws of one batch."""
    seen = []

    def decide(self, arch, evidence):
        seen.append(arch.relaxation)
        return {}

    monkeypatch.setattr(PT, "decide", decide)
    search(tmp_path, "--method", "drnas+pt", "--tuning-epochs", "1")
    assert seen
    assert {type(relaxation).__name__ for relaxation in seen} == {"DirichletMean"}


def test_rows_that_are_set_are_not_undecided(tmp_path):
    summary = search(tmp_path, "--method", "random-search")
    assert not {"undecided", "open"} & summary.keys()
