"""``sparsemix reproduce`` at its smallest scale, and the numbers of the paper that it prints."""

import csv
import json
from argparse import Namespace
from pathlib import Path

import pytest

from sparsemix.cli import darts, main, nb201, pick, train
from sparsemix.cli.reproduce import TABLES
from sparsemix.cli.reproduce.common import chosen_rows
from sparsemix.cli.reproduce.networks import STAND_IN, _pick_words, _train_words
from sparsemix.cli.reproduce.searches import search_words
from sparsemix.reproduction.experiments import COLUMNS, EXPERIMENTS, SCALES
from sparsemix.reproduction.networks import NETWORK_SCALES, NETWORK_TABLES
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
        if command[0] == "search":
            assert command[1] == "nb201"
            nb201.main([*command[2:]])
        else:
            {"pick": pick, "train": train}[command[0]].main([*command[1:]])
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


def test_figures_show_what_the_paper_s_do():
    assert [EXPERIMENTS[name].drawn for name in ("fig3", "fig3a", "fig3b")] == [
        (),
        ("entropy",),
        ("discretized_accuracy",),
    ]
    assert EXPERIMENTS["fig3a"].rows == EXPERIMENTS["fig3b"].rows == EXPERIMENTS["fig3"].rows, "they share their runs"


def test_search_times(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sparsemix.cli.reproduce.searches.ROUNDS", 1)
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
            config = nb201.configure(search_words(row, scale, 0, tmp_path / "run", ["--table", "t.csv"]))
            assert config.measurement.table_dataset == row.settings["dataset"]
            if row.run:
                settings = {**config.settings, "asked": row.settings["dataset"]}
                assert seen.setdefault(row.run, settings) == settings
    assert all(one != other for a, one in seen.items() for b, other in seen.items() if a != b)


def test_the_scales():
    row = next(row for row in EXPERIMENTS["table1"].rows if row.name == "SP-DARTS")
    paper, reduced = (nb201.configure(search_words(row, scale, 0, Path("run"), [])) for scale in ("paper", "reduced"))
    assert (paper.preset, paper.size.cells, paper.data.image_size, paper.size.epochs) == ("paper", 5, None, 50)
    assert (reduced.preset, reduced.size.cells, reduced.data.image_size, reduced.size.epochs) == ("fast", 1, 16, 50)
    assert reduced.size.batch_size == paper.size.batch_size == 256
    for row in EXPERIMENTS["table1"].rows:
        proxy = nb201.configure(search_words(row, "proxy", 0, Path("run"), []))
        assert (proxy.size.cells, proxy.data.image_size, proxy.size.epochs, proxy.data.limit) == (1, 16, 25, 12800)


@pytest.mark.parametrize("words", [["table3"], ["table5", "--only", "S1, cifar10"]])
def test_every_method_takes_a_step_at_the_smallest_scale(words, tmp_path, capsys, monkeypatch):
    table = NETWORK_TABLES[words[0]]
    searched = tuple(entry for entry in table.entries if table.networks[entry.network].search)
    monkeypatch.setitem(NETWORK_TABLES, words[0], table._replace(entries=searched))
    reproduce(*words, "--scale", "smoke", "--dry-run", "--output", tmp_path)
    assert "about" in capsys.readouterr().out


@pytest.mark.parametrize("scale", ["smoke", "proxy"])
def test_every_method_s_schedule_fits_into_a_smaller_scale(scale, tmp_path):
    digits = [] if scale == "smoke" else ["--dataset", "digits"]
    rows = [row for experiment in EXPERIMENTS.values() if not experiment.is_timed for row in experiment.rows]
    for row in {row.settings["method"]: row for row in rows}.values():
        nb201.make_search(nb201.configure(search_words(row, scale, 0, tmp_path / "nb201" / row.run, digits)))
    if scale == "proxy":
        for name, settings in NETWORK_TABLES["table3"].searches.items():
            config = pick.configure(_pick_words(settings, scale, tmp_path / "pick" / name, digits))
            _, search = next(iter(pick.searches(config, tmp_path / name)))
            darts.make_search(search)


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
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*TABLES]


# Tables of trained networks


@pytest.mark.usefixtures("_in_process")
def test_a_network_that_is_searched_picked_and_trained(tmp_path, capsys, monkeypatch):
    table = NETWORK_TABLES["table5"]
    few = [e for e in table.entries if e.column == "SP-DARTS" and e.row == "S4, cifar10"]
    monkeypatch.setitem(NETWORK_TABLES, "table5", table._replace(entries=tuple(few)))
    given = ["--scale", "smoke", "--seeds", "0", "1", "--only", "S4, cifar10", "--output", tmp_path]
    reproduce("table5", *given, "--dry-run")
    assert "1 selections, 0 have finished; 2 trainings, 0 have finished" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]
    reproduce("table5", *given)
    folder = tmp_path / "smoke"
    errors = [
        json.loads((folder / f"train-s4-cifar10-sp-darts-seed{seed}" / "summary.json").read_text())["error"]
        for seed in (0, 1)
    ]
    mean, deviation = 50 * sum(errors), 100 * abs(errors[0] - errors[1]) / 2**0.5
    line = next(line for line in (folder / "table5.md").read_text().splitlines() if line.startswith("| S4, cifar10 |"))
    assert line.endswith(f"| {mean:.2f} ± {deviation:.2f} / 2.60 / {mean - 2.6:+.2f} |")
    picked = json.loads((folder / "s4-cifar10-sp-darts" / "pick.json").read_text())
    with (folder / "table5.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["run"] for row in rows] == [f"train-s4-cifar10-sp-darts-seed{seed}" for seed in (0, 1)]
    assert {row["row"] for row in rows} == {"S4, cifar10"}
    assert {row["genotype"] for row in rows} == {picked["candidates"][0]["genotype"]}
    assert [float(row["error"]) for row in rows] == errors
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    reproduce("table5", *given)
    assert "0 selections, 1 have finished; 0 trainings, 2 have finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*")} == before


@pytest.mark.usefixtures("_in_process")
def test_a_published_cell_and_its_transfer(tmp_path):
    reproduce("table3", "--scale", "smoke", "--seeds", "0", "--only", "NASNet", "--output", tmp_path)
    folder = tmp_path / "smoke"
    trained = {name: json.loads((folder / f"train-{name}-NASNet-seed0" / "summary.json").read_text()) for name in
               ("cifar10", "imagenet")}  # fmt: skip
    line = (folder / "table3.md").read_text().splitlines()[4]
    assert [cell.split(" / ")[0] for cell in line.strip("| ").split(" | ")[1:]] == [
        f"{factor * trained[name][field]:.2f}"
        for name, field, factor in (
            ("cifar10", "error", 100), ("cifar10", "parameters", 1e-6),
            ("imagenet", "error", 100), ("imagenet", "top5_error", 100), ("imagenet", "parameters", 1e-6),
        )
    ]  # fmt: skip


def test_an_unfinished_training_of_an_older_version_is_refused(tmp_path, capsys):
    run = ["table3", "--scale", "smoke", "--seeds", "0", "--only", "NASNet", "--output", tmp_path]
    reproduce(*run)
    folder = tmp_path / "smoke" / "train-cifar10-NASNet-seed0"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "version": "0.1.0"}))
    (folder / "summary.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        reproduce(*run)
    assert stopped.value.code
    assert "train-cifar10-NASNet-seed0 failed" in capsys.readouterr().err
    assert "version was '0.1.0'" in folder.with_suffix(".log").read_text()
    assert "- / 2.65 / -" in (tmp_path / "smoke" / "table3.md").read_text()


def test_imagenet_is_trained_from_the_folders_that_are_named(tmp_path, capsys):
    """And left out where none are; the user's flags are of the other data."""
    network = NETWORK_TABLES["table3"].networks["imagenet-NASNet"]
    chosen = Namespace(scale="paper", imagenet=[tmp_path / "train", tmp_path / "val"])
    config = train.configure(_train_words(network, None, chosen, 3, tmp_path / "run", ["--data", "cifar"]))
    assert (config.preset, config.size.epochs, config.run.seed) == ("imagenet", 250, 3)
    assert (config.data.data, config.data.test_data) == (tmp_path / "train", tmp_path / "val")
    reproduce("table3", "--only", "AmoebaNet", "--output", tmp_path, "--dry-run", "--", "--dataset", "digits")
    assert "3 trainings, 0 have finished" in capsys.readouterr().out


@pytest.mark.parametrize("scale", NETWORK_SCALES)
def test_every_selection_and_training_is_one(scale, tmp_path):
    """Flags that the commands understand, of the paper's protocols at the paper's scale."""
    chosen = Namespace(scale=scale, imagenet=[tmp_path, tmp_path])
    selections, networks = {}, {}
    for table in NETWORK_TABLES.values():
        some = [
            name for name in table.networks if not name.startswith("s") or "s1-cifar10-" in name or "s2-svhn-sp" in name
        ]
        networks |= {name: table.networks[name] for name in some}
        for name in {networks[name].search for name in some} - {None}:
            selections[name] = pick.configure(_pick_words(table.searches[name], scale, tmp_path, []))
    for name, network in networks.items():
        assert (network.search is None) == bool({"genotype", "model"} & {*network.settings})
        genotype = STAND_IN if network.search else None
        trained = train.configure(_train_words(network, genotype, chosen, 0, tmp_path / name, []))
        if scale == "paper" and network.search and not network.is_transfer:
            assert (trained.size.epochs, trained.data.dataset) == (600, selections[network.search].data.dataset)
    if scale == "paper":
        found = [selections[name] for name in ("s2-svhn-sp-darts", "cifar10-sp-darts")]
        assert {config.preset for config in found} == {"paper"}
        assert [config.selection.temperatures for config in found] == [(4e-4, 5e-4, 6e-4, 7e-4), ()]
        assert [config.selection.seeds for config in found] == [(0,), (0, 1, 2, 3, 4)]


def test_what_the_paper_prints_of_networks():
    third = {(e.row, e.column): e.printed for e in NETWORK_TABLES["table3"].entries}
    assert third["AmoebaNet-B", "CIFAR-10 error, %"] == (2.55, 0.05)
    assert third["GAEA-PC-DARTS", "ImageNet top-1 error, %"] == (24.3,)
    fifth = {(e.row, e.column): e.printed for e in NETWORK_TABLES["table5"].entries}
    assert fifth["S4, cifar10", "DARTS"] == (7.20,)
    assert fifth["S2, cifar100", "SDARTS-ADV"] == (20.56,)
    assert fifth["S3, svhn", "DARTS+PT (fixed)"] == (2.32,)
    assert len(fifth) == 12 * 10


def test_a_row_whose_name_begins_another():
    rows = {"S4, cifar10": 1, "S4, cifar100": 2, "S3, svhn": 3}
    assert chosen_rows(rows, "S4, cifar10") == [1]
    assert chosen_rows(rows, "S4") == [1, 2]
    assert chosen_rows(rows, None) == [1, 2, 3]


def test_a_row_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        reproduce("table3", "--scale", "smoke", "--only", "ResNet", "--output", tmp_path)
    assert "no row contains 'ResNet': the rows are DenseNet-BC (no cutout), NASNet-A," in capsys.readouterr().err


def test_a_seed_counts_once(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        reproduce("table1", "--scale", "smoke", "--seeds", 0, 0, "--output", tmp_path)
    assert "seed 0 is named twice, among 0, 0" in capsys.readouterr().err
