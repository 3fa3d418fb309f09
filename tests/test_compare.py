"""Comparisons of methods: the runs, the table, what is repeated and what is not, and what is said of failures."""

import csv
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsemix import MixedOp
from sparsemix.cli import main, nb201
from sparsemix.compare import _in_the_middle, compare
from sparsemix.data import open_pairs
from sparsemix.methods import SearchStep
from sparsemix.methods.method import Method, Part
from sparsemix.report.comparison import Compared, comparison_table
from sparsemix.report.records import FinishedRun, load_run
from sparsemix.runs import several
from sparsemix.runs.launching import Interrupted
from sparsemix.runs.search import Search
from sparsemix.spaces.nb201 import NB201Genotype

TINY = [
    "--preset",
    "proxy",
    "--device",
    "cpu",
    "--channels",
    "4",
    "--cells",
    "1",
    "--epochs",
    "2",
    "--batch-size",
    "40",
]
TINY += ["--limit", "400", "--image-size", "8", "--sampling", "shuffled", "--split", "halves"]
TINY += ["--evaluate-limit", "40", "--statistics-images", "40"]


class Here:
    """A run in this process, since starting another takes longer than the run."""

    def __init__(self, command, log, jobs):
        self.status = 0
        try:
            main([*command])
        except SystemExit as ended:
            self.status = ended.code

    def poll(self):
        return self.status

    def terminate(self):
        pass


@pytest.fixture
def _here(monkeypatch):
    monkeypatch.setattr(several, "start", Here)


def sparsemix_compare(output, *words, methods=("darts", "gdas"), seeds=(0, 1), flags=()):
    own = ["nb201", "--methods", *methods, "--seeds", *map(str, seeds), "--output", str(output)]
    main(["compare", *own, *words, "--", *TINY, *map(str, flags)])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table that knows every cell."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    names = "architecture,cifar10_valid,cifar10_test,cifar100_test,imagenet16_120_test\n"
    rows = "".join(f"{cell},{i / 300},{i / 200},{i / 300},{i / 400}\n" for i, cell in enumerate(NB201Genotype.all()))
    path.write_text(names + rows)
    return path


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def rows_of(output):
    with (output / "comparison.csv").open(newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def contents(output):
    files = [file for file in output.rglob("*") if file.parent != output and file.is_file()]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.mark.usefixtures("_here")
def test_a_comparison_from_beginning_to_end_and_again(tmp_path, table, capsys):
    output, judged = tmp_path / "compare", ["--table", table, "--table-dataset", "cifar10"]
    sparsemix_compare(output, "--time-steps", "1", flags=judged)
    shown = capsys.readouterr().out
    assert "| method | n | cifar10 validation, % | cifar10 test, % | cifar100 test, % |" in shown
    assert "darts-seed0 begins, 3 of 4 wait" in shown
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
    rows = rows_of(output)
    for method in ("darts", "gdas"):
        found = [summary(output / f"{method}-seed{seed}") for seed in (0, 1)]
        for dataset, of in (("cifar10", "valid"), ("cifar10", "test"), ("imagenet16-120", "test")):
            values = [each["true_accuracies"][dataset][of] for each in found]
            assert float(rows[method][f"true_{dataset}_{of}_mean"]) == pytest.approx(sum(values) / 2)
            deviation = abs(values[0] - values[1]) / 2**0.5
            assert float(rows[method][f"true_{dataset}_{of}_deviation"]) == pytest.approx(deviation)
        for name in ("discretized_accuracy", "discretization_gap", "entropy", "skips"):
            assert float(rows[method][f"{name}_mean"]) == pytest.approx(statistics.fmean(each[name] for each in found))
        assert (rows[method]["n"], rows[method]["epochs_mean"]) == ("2", "2.0")
        valid = [each["true_accuracies"]["cifar10"]["valid"] for each in found]
        assert f"| {method} | 2 | {statistics.mean(valid):.2f} ± {statistics.stdev(valid):.2f} |" in shown
    assert (rows["darts"]["step_time"], rows["darts"]["step_memory"]) == ("1.0", "1.0")
    assert (rows["darts"]["step_full"], rows["gdas"]["step_full"]) == ("1.0", "0.2")
    assert float(rows["gdas"]["step_time"]) < 1
    assert float(rows["gdas"]["step_dense"]) < 1
    assert (output / "comparison.md").read_text().startswith("| method |")
    with (output / "runs.csv").open() as file:
        every = [*csv.DictReader(file)]
    assert [(run["method"], run["seed"]) for run in every] == [
        ("darts", "0"), ("darts", "1"), ("gdas", "0"), ("gdas", "1"),
    ]  # fmt: skip
    for run in every:
        found = summary(output / f"{run['method']}-seed{run['seed']}")
        assert run["genotype"] == found["genotype"]
        assert float(run["true_cifar10_test"]) == found["true_accuracies"]["cifar10"]["test"]

    before = contents(output)
    sparsemix_compare(output, flags=judged)
    assert contents(output) == before, "nothing is repeated"
    assert "begins" not in capsys.readouterr().out
    assert rows_of(output)["gdas"]["true_cifar10_test_mean"] == rows["gdas"]["true_cifar10_test_mean"]
    with pytest.raises(SystemExit, match="2"):
        sparsemix_compare(output, flags=[*judged, "--weight-lr", "0.1"])
    assert "holds a run with another configuration: weight_lr was 0.025 and is now 0.1" in capsys.readouterr().err


@pytest.mark.usefixtures("_here")
def test_what_fails_or_is_interrupted_does_not_end_the_others_and_goes_on(tmp_path, monkeypatch, capsys):
    output, calls, step = tmp_path / "compare", [], SearchStep.__call__

    def troubled(self, *batches, **keywords):
        calls.append(1)
        if len(calls) == 7:  # the second epoch of the first run
            os.kill(os.getpid(), signal.SIGINT)
        if len(calls) == 8:
            raise RuntimeError("this one breaks")
        return step(self, *batches, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(SearchStep, "__call__", troubled)
        with pytest.raises(SystemExit, match="1"):
            sparsemix_compare(output, methods=["darts"], seeds=(0, 1, 2))
    shown = capsys.readouterr()
    assert "darts-seed0 ended with status 130" in shown.out
    assert "| darts | 1 of 3 |" in shown.out
    assert "± - |" in shown.out, "one seed has no deviation"
    for seed in (0, 1):
        assert f"darts-seed{seed} failed: {output / f'darts-seed{seed}.log'} says why" in shown.err
    before = contents(output / "darts-seed2")
    sparsemix_compare(output, "--dry-run", methods=["darts"], seeds=(0, 1, 2))
    lines = capsys.readouterr().out.splitlines()
    assert ["--resume" in line for line in lines] == [True, True], "a finished run is left out"
    sparsemix_compare(output, methods=["darts"], seeds=(0, 1, 2))
    shown = capsys.readouterr().out
    assert "resumed in epoch 2 after step 2 of 5" in shown
    assert "| darts | 3 |" in shown
    assert contents(output / "darts-seed2") == before


@pytest.mark.usefixtures("_here")
def test_commands_of_a_dry_run_do_the_same_as_a_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    only = {"methods": ["gdas"], "seeds": [3]}
    sparsemix_compare(Path("by hand"), "--dry-run", **only)
    [line] = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "by hand").exists()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))
    subprocess.run(line, shell=True, check=True, capture_output=True)
    assert shlex.split(line)[0] == sys.executable
    sparsemix_compare(Path("compare"), **only)
    sparsemix_compare(Path("by hand"), **only)
    shown = capsys.readouterr().out
    assert shown.count("begins") == 1
    first, second = (summary(Path(folder) / "gdas-seed3") for folder in ("by hand", "compare"))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_processes_have_their_status_and_log(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))
    statuses = several.run_processes({"lists": [], "fails": ["serch", "nb201"]}, tmp_path, jobs=2)
    assert statuses == {"lists": 0, "fails": 2}
    assert "sparsemix search nb201" in (tmp_path / "lists.log").read_text()
    assert "did you mean 'search nb201'" in (tmp_path / "fails.log").read_text()


def test_processes_run_so_many_at_a_time_and_are_stopped_together(tmp_path, monkeypatch, capsys):
    class Sleeper:
        most, alive, stopped = 0, set(), []

        def __init__(self, command, log, jobs):
            self.name, self.polls = command[0], 0
            self.alive.add(self.name)
            Sleeper.most = max(Sleeper.most, len(self.alive))

        def poll(self):
            self.polls += 1
            if self.name == "c" and self.polls == 2:
                os.kill(os.getpid(), signal.SIGINT)
            if self.polls < 3 and self.name not in self.stopped:
                return None
            self.alive.discard(self.name)
            return 3 if self.name == "b" else 0

        def terminate(self):
            self.stopped.append(self.name)

    monkeypatch.setattr(several, "start", Sleeper)
    with pytest.raises(Interrupted, match="stopped with 3 of 5 runs left: the same command goes on"):
        several.run_processes({name: [name] for name in "abcde"}, tmp_path, jobs=2)
    assert Sleeper.most == 2
    assert sorted(Sleeper.stopped) == ["c", "d"], "e never began"
    assert "b ended with status 3" in capsys.readouterr().out
    with pytest.raises(ValueError, match="got jobs 0"):
        several.run_processes({}, tmp_path, jobs=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "gdass"], "there is no method 'gdass'; did you mean gdas?"),
        (["--methods", "gdas", "gdas"], "method gdas is named twice"),
        (
            ["--methods", "gdas", "--time-steps", "2"],
            "step times are relative to darts, which is not among the methods",
        ),
        (["--methods", "darts", "gdas", "--", "--sparse", "1"], "--sparse"),
        (["--methods", "darts", "--", "--seed", "4"], "compare gives each run its --seed"),
        (["--methods", "darts", "--epochs", "3"], "unrecognized arguments: --epochs 3"),
        (["--methods", "darts", "--jobs", "0"], "got jobs 0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "nb201", "--output", str(tmp_path / "compare"), *words])
    assert message in " ".join(capsys.readouterr().err.split())
    assert not [*tmp_path.glob("compare/*")]


def test_methods_whose_presets_are_of_different_spaces(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "darts", "--methods", "darts", "sp-darts", "--output", str(tmp_path)])
    assert "here it is darts darts-none, sp-darts darts: give all of them one by --space" in capsys.readouterr().err


class Supernet(nn.Sequential):
    """A user's."""

    def __init__(self):
        edges = [MixedOp({"skip": nn.Identity(), "conv": nn.Conv2d(4, 4, 3, padding=1)}) for _ in range(2)]
        super().__init__(nn.Conv2d(1, 4, 3), *edges, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def test_a_supernet_of_a_user(tmp_path, monkeypatch):
    def pairs(seed):
        return open_pairs("digits", batch_size=40, limit=120, seed=seed)

    mine = Method("mine", (Part(),))
    given = {"output": tmp_path, "settings": {"epochs": 2, "statistics_images": 40}, "seeds": (0, 1)}
    made, broken = [], Search.run

    def build():
        made.append(torch.rand(1).item())
        return Supernet()

    def breaking(self):
        if self.folder.path.name == "darts-seed0":
            raise RuntimeError("this one breaks")
        return broken(self)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "run", breaking)
        with pytest.raises(RuntimeError, match=r"1 of 4 runs failed: darts-seed0 \(RuntimeError: this one breaks"):
            compare(build, pairs, ["darts", mine], **given)
    assert "this one breaks" in (tmp_path / "darts-seed0.log").read_text()
    assert made[:2] == made[2:], "methods begin with the same weights"
    assert len({*made}) == 2
    table = compare(build, pairs, ["darts", mine], time_steps=1, **given)
    assert len(made) == 4 + 1 + 2
    assert [row[:2] for row in table.rows] == [["darts", "2"], ["mine", "2"]]
    darts, own = rows_of(tmp_path).values()
    assert darts["discretized_accuracy_mean"] == own["discretized_accuracy_mean"], "they are the same"
    assert darts["step_time"] == "1.0"
    with pytest.raises(RuntimeError, match=r"pc-darts has the supernet built with \{.*\} \(.*let the function"):
        compare(build, pairs, ["pc-darts"], output=tmp_path, seeds=[0])
    with pytest.raises(ValueError, match="SearchConfig has no setting epoch;"):
        compare(build, pairs, ["darts"], output=tmp_path, settings={"epoch": 2})


def test_numbers_that_are_missing():
    def run(**found):
        return FinishedRun("run", "search of own", "darts", "digits", {}, found, [{}])

    table = comparison_table(
        [
            Compared("a", 2, [run(entropy=1.0, skips=1), run(entropy=2.0)], {"time": 1.0}),
            Compared("b", 2, []),
        ]
    )
    assert table.headings == ["method", "n", "entropy", "skips", "epochs run", "search time (darts: 1)"]
    assert table.rows == [
        ["a", "2", "1.50 ± 0.71", "1.0 ± - (n 1)", "1 ± 0", "1.00"],
        ["b", "0 of 2", "-", "-", "-", "-"],
    ]


def test_steps_are_timed_under_what_was_learnt_and_decided_by_then(tmp_path):
    tiny = ["--preset", "proxy", "--device", "cpu", "--channels", "4", "--epochs", "7", "--limit", "120"]
    tiny += ["--batch-size", "60", "--image-size", "8", "--evaluate-every", "9", "--frozen-epochs", "1"]
    tiny += ["--first-decision", "1", "--decision-every", "1", "--method", "sgas+pc-darts"]
    config = nb201.configure([*tiny, "--output", str(tmp_path / "run")])
    nb201.search(config)
    records = load_run(tmp_path / "run").records
    search = _in_the_middle(nb201.make_search, config, tmp_path / "timed", [records])()
    record = records[7 // 2 - 1]
    assert len(record["allowed"]) == 2, "decided in the epochs 1 and 2"
    restricted = {label: ops[0].allowed_names for label, ops in search.arch.rows.items() if ops[0].is_restricted}
    assert restricted == {label: tuple(names) for label, names in record["allowed"].items()}
    assert {label: alpha.tolist() for label, alpha in search.arch.named_parameters()} == record["alphas"]
    assert {label: beta.item() for label, beta in search.arch.named_betas()} == record["betas"]


@pytest.mark.parametrize("space", ["darts", "s4"])
def test_other_spaces_are_compared_too(space, tmp_path, monkeypatch, capsys):
    """To the table; each search runs here, where a comparison starts a process."""

    def run_here(commands, logs, jobs):
        for words in commands.values():
            main([*words])
        return dict.fromkeys(commands, 0)

    monkeypatch.setattr("sparsemix.cli.compare.run_processes", run_here)
    tiny = ["--preset", "proxy", "--channels", "4", "--cells", "3", "--epochs", "1", "--limit", "80"]
    words = ["compare", space, "--methods", "sp-darts", "--seeds", "0", "--output", str(tmp_path)]
    main([*words, "--", *tiny, "--batch-size", "20"])
    assert "| sp-darts | 1 |" in capsys.readouterr().out
