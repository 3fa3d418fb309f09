"""``sparsemix reproduce`` at its smallest scale, and the numbers of the paper that it prints."""

import csv
import json
from pathlib import Path

import pytest

from sparsemix.cli import main, nb201
from sparsemix.cli.reproduce import _flags
from sparsemix.reproduction.experiments import COLUMNS, EXPERIMENTS, SCALES
from sparsemix.spaces.nb201 import NB201Genotype


@pytest.fixture
def _in_process(monkeypatch):
    """Searches run here instead of in processes of their own, which would import everything again."""

    class Done:
        def __init__(self, status):
            self.status = status

        def poll(self):
            return self.status

        def terminate(self):
            raise AssertionError("it has ended")

    def started(command, log, jobs):
        assert command[:2] == ["search", "nb201"]
        nb201.main([*command[2:]])
        return Done(0)

    monkeypatch.setattr("sparsemix.runs.several.start", started)


@pytest.fixture
def table(tmp_path):
    cells = NB201Genotype.all()
    path = tmp_path / "nb201.csv"
    header = "architecture,cifar10_test,cifar100_test,imagenet16_120_test\n"
    path.write_text(header + "".join(f"{cell},{i / 200},{i / 300},{i / 400}\n" for i, cell in enumerate(cells)))
    return path


def reproduce(*words):
    main(["reproduce", *map(str, words)])


@pytest.mark.usefixtures("_in_process")
def test_a_table_from_beginning_to_end_and_another_that_shares_its_runs(tmp_path, table, capsys):
    given = ["--scale", "smoke", "--seeds", "0", "1", "--output", tmp_path / "out"]
    reproduce("two-passes", *given, "--", "--table", table)
    shown = capsys.readouterr().out
    assert "4 searches, 0 have finished" in shown
    assert "cifar10-sp-darts: 2 x 2 epochs of 3 steps" in shown
    folder = tmp_path / "out" / "smoke"
    page = (folder / "two-passes.md").read_text()
    with (folder / "two-passes.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [(row["row"], row["seed"]) for row in rows] == [
        ("two passes (Eq. 13)", "0"), ("two passes (Eq. 13)", "1"), ("SP-DARTS", "0"), ("SP-DARTS", "1"),
    ]  # fmt: skip
    summaries = [json.loads((folder / f"cifar10-sp-darts-seed{seed}" / "summary.json").read_text()) for seed in (0, 1)]
    accuracies = [summary["true_accuracies"]["cifar10"]["test"] for summary in summaries]
    assert [float(row["cifar10 test"]) for row in rows[2:]] == accuracies
    mean = sum(accuracies) / 2
    deviation = abs(accuracies[0] - accuracies[1]) / 2**0.5
    assert f"{mean:.2f} ± {deviation:.2f} / 94.01 ± 0.31 / {mean - 94.01:+.2f}" in page
    assert SCALES["smoke"].remark in page
    assert (folder / "two-passes.png").exists()
    reproduce("fixed-p", *given, "--dry-run", "--", "--table", table)
    assert "6 searches, 2 have finished" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    reproduce("two-passes", *given, "--", "--table", table)
    assert "0 searches, 4 have finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*")} == before


def test_search_times(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sparsemix.cli.reproduce.ROUNDS", 1)
    timed = EXPERIMENTS["search-time"]
    monkeypatch.setitem(EXPERIMENTS, "search-time", timed._replace(rows=timed.rows[:2]))
    reproduce("search-time", "--scale", "smoke", "--output", tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "| DARTS-V1 | 1.00 | 1.00 | +0.00 |" in lines
    assert any(line.startswith("| DARTS-V2 | ") and " | 3.08 | " in line for line in lines)


def test_what_the_paper_prints():
    for experiment in EXPERIMENTS.values():
        for row in experiment.rows:
            assert len(row.printed) in (0, len(COLUMNS))
            assert all(0 < mean < 100 and 0 <= deviation < 10 for mean, deviation in row.printed)
    first = {row.name: dict(zip(COLUMNS, row.printed, strict=True)) for row in EXPERIMENTS["table1"].rows}
    assert first["SP-DARTS"]["cifar10", "test"] == (94.01, 0.31)
    assert first["DARTS-V1"]["imagenet16-120", "test"] == (16.32, 0.0)
    assert first["GAEA-ERM, without none"]["cifar100", "valid"] == (73.12, 0.26)


@pytest.mark.parametrize("scale", SCALES)
def test_every_search_is_one(scale, tmp_path):
    """Runs of one name have the same settings, and runs of other names do not."""
    seen = {}
    for experiment in EXPERIMENTS.values():
        for row in experiment.rows:
            config = nb201.configure(_flags(row, scale, 0, tmp_path / "run", ["--table", "t.csv"]))
            assert config.measurement.table_dataset == row.settings["dataset"]
            if row.run:
                settings = {**config.settings, "asked": row.settings["dataset"]}
                assert seen.setdefault(row.run, settings) == settings
    assert all(one != other for a, one in seen.items() for b, other in seen.items() if a != b)


def test_the_scales():
    row = next(row for row in EXPERIMENTS["table1"].rows if row.name == "SP-DARTS")
    paper, reduced = (nb201.configure(_flags(row, scale, 0, Path("run"), [])) for scale in ("paper", "reduced"))
    assert (paper.preset, paper.size.cells, paper.data.image_size, paper.size.epochs) == ("paper", 5, None, 50)
    assert (reduced.preset, reduced.size.cells, reduced.data.image_size, reduced.size.epochs) == ("fast", 1, 16, 50)
    assert reduced.size.batch_size == paper.size.batch_size == 256


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table1"], "table1 is a table of true accuracies: name the file that has them by -- --table FILE"),
        (["table1", "--", "--table", "none.csv"], "none.csv"),
        (["two-passes", "--scale", "smoke", "--", "--seed", "1"], "gives each run its --seed: say --seeds before --"),
        (["table9"], "invalid choice: 'table9'"),
        (["two-passes", "--scale", "smoke", "--", "--epoch", "2"], "--epoch"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        reproduce(words[0], "--output", tmp_path / "out", *words[1:])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_paper_s_scale_on_a_cpu(tmp_path, table, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    small = ["--dataset", "digits", "--channels", "4", "--cells", "1", "--limit", "200", "--batch-size", "40"]
    small += ["--split", "halves", "--table", table]
    with pytest.raises(SystemExit, match="2"):
        reproduce("two-passes", "--scale", "paper", "--output", tmp_path / "out", "--", *small)
    shown = capsys.readouterr()
    assert "50 epochs of 3 steps" in shown.out
    assert "give --yes if you mean it" in shown.err


def test_the_list(capsys):
    reproduce("--list")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*EXPERIMENTS]
