import json
import shutil
import sys

import matplotlib.image
import pytest

from sparsemix.cli.report import main
from sparsemix.report.figures import draw_audits, draw_runs
from sparsemix.report.records import load_run, middle_and_high
from sparsemix.report.tables import Table, audit_table, steadiness_table, table

CELL = "|none~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|"
CONFIG = {"space": "nb201", "dataset": "cifar10", "image_size": 16, "limit": 640, "weight_lr": 0.05, "sparse": 1e-3}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Reports of several runs are written to the present folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runs(tmp_path):
    """Three finished runs: two seeds of one method, one of another."""
    folders = []
    for name, accuracy in {"sp-darts-0": 0.5, "sp-darts-1": 0.7, "darts-0": 0.1}.items():
        folder = tmp_path / name
        folder.mkdir()
        record = {
            "epoch": 0,
            "discretized_accuracy": accuracy,
            "supernet_accuracy": 0.6,
            "discretization_gap": 0.6 - accuracy,
            "temperature": 1e-3,
            "entropy": 1.25,
            "output_leakage": {"1<-0": 0.25, "2<-0": 0.75},
            "skips": 2,
            "genotype": CELL,
            "seconds": 3.0,
        }
        method, seed = name.rsplit("-", 1)
        record |= {"method": method, "seed": int(seed)}
        (folder / "config.json").write_text(json.dumps({**CONFIG, "method": method, "seed": int(seed)}))
        (folder / "records.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({**record, "epoch": 1}) + "\n")
        (folder / "summary.json").write_text(json.dumps(record))
        folders.append(folder)
    return folders


def loaded(folders):
    return [load_run(folder) for folder in folders]


def test_a_row_for_each_run_and_a_mean_for_each_method(runs):
    lines = table(loaded(runs)).markdown().splitlines()
    headings = (
        "| run | method | data | supernet | discretised | gap | entropy | output leakage | skips | seconds | found |"
    )
    assert lines[0] == headings
    data, found = "cifar10 16x16, 640 images", CELL.replace("|", r"\|")
    assert lines[2] == rf"| sp-darts-0 | sp-darts | {data} | 60.0% | 50.0% | +10.0% | 1.25 | 0.50 | 2 | 3 | {found} |"
    assert lines[5].startswith("| sp-darts, 2 runs |  |  | 60.0% ± 0.0% | 60.0% ± 14.1% | +0.0% ± 14.1% |")
    assert len(lines) == 6


def test_plain_text_for_a_terminal(runs):
    text, found = table(loaded(runs)).plain().split("\n\n")
    shown = text.splitlines()
    assert len({len(line) for line in shown}) == 1
    assert found.splitlines()[0].split() == ["sp-darts-0", CELL]
    assert shown[1].split()[:6] == ["sp-darts-0", "sp-darts", "cifar10", "16x16,", "640", "images"]
    assert shown[1].split()[6:] == ["60.0%", "50.0%", "+10.0%", "1.25", "0.50", "2", "3"]
    long = Table(["run", "error", "found"], [["a", "1", "x" * 50], ["all", "1", ""]]).plain()
    assert long.splitlines() == ["run  error", "a        1", "all      1", "", f"a    {'x' * 50}"]


def test_runs_of_different_kinds_have_tables_of_their_own(runs, tmp_path, monkeypatch, capsys):
    config = json.loads((runs[1] / "config.json").read_text())
    (runs[1] / "config.json").write_text(json.dumps({**config, "space": "s1"}))
    training = tmp_path / "train"
    training.mkdir()
    outcome = {"genotype": "DARTS_V2", "model": None, "error": 0.03, "best_error": 0.02, "parameters": 3_349_342}
    (training / "summary.json").write_text(json.dumps({**outcome, "macs": 5, "seconds": 2.0}))
    (training / "config.json").write_text(json.dumps({"dataset": "svhn"}))
    (training / "records.jsonl").write_text("")
    monkeypatch.setattr(sys, "argv", ["report", *map(str, [*runs, training])])
    main()
    sections = capsys.readouterr().out.split("### ")[1:]
    assert [section.splitlines()[0] for section in sections] == ["search of nb201", "search of s1", "training"]
    assert [sum("darts-" in line for line in section.splitlines()) for section in sections] == [2, 1, 0]
    assert "| train | svhn | 3.00% | 2.00% | 3,349,342 | 5 | 2 | DARTS_V2 |" in sections[2]
    with pytest.raises(SystemExit, match="2"):
        main([str(training), "--figure", str(tmp_path / "figure.png")])
    assert "draw searches, and all of these runs are trainings" in capsys.readouterr().err
    assert not (tmp_path / "figure.png").exists()


def test_a_figure(runs, tmp_path):
    draw_runs(loaded(runs), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    draw_runs(loaded(runs), tmp_path / "entropy.png", ["entropy"])
    all_of_it, entropy = (matplotlib.image.imread(tmp_path / f"{name}.png").shape for name in ("figure", "entropy"))
    assert entropy[1] == all_of_it[1] / 2, "one panel instead of two beside each other"
    draw_runs(loaded(runs), tmp_path / "three.png", ["entropy", "leakage", "supernet_accuracy"])
    with pytest.raises(ValueError, match="cannot draw loss: the fields are supernet_accuracy, "):
        draw_runs(loaded(runs), tmp_path / "loss.png", ["loss"])


def test_a_run_that_has_not_finished(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"epochs": 25}))
    (tmp_path / "records.jsonl").write_text("{}\n{}\n")
    with pytest.raises(FileNotFoundError, match=r"has not finished \(2 of 25 epochs\): continue it \(resume\)"):
        load_run(tmp_path)


def test_a_figure_that_cannot_be_written(runs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(runs[0]), "--figure", str(tmp_path / "none" / "x.png")])
    assert "x.png cannot be written: there is no folder" in capsys.readouterr().err


def test_a_run_of_an_older_version(runs):
    """Its accuracies and entropies were measured in another way."""
    record = json.loads((runs[0] / "summary.json").read_text())
    del record["temperature"]
    (runs[0] / "summary.json").write_text(json.dumps(record))
    (runs[0] / "config.json").write_text(json.dumps({"version": "0.1.0"}))
    with pytest.raises(ValueError, match=r"sp-darts-0 holds a search by version 0\.1\.0, whose records are others"):
        load_run(runs[0])


def test_unfinished_runs_are_left_out(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", str(runs[0]), str(tmp_path / "none")])
    main()
    shown = capsys.readouterr()
    assert "sp-darts-0" in shown.out
    assert "left out: " in shown.err
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        main()


def test_runs_with_other_settings_are_not_averaged(runs):
    config = json.loads((runs[1] / "config.json").read_text())
    (runs[1] / "config.json").write_text(json.dumps({**config, "weight_lr": 0.1}))
    assert "runs" not in table(loaded(runs)).markdown()
    other = json.loads((runs[0] / "config.json").read_text())
    (runs[2] / "config.json").write_text(json.dumps(other))
    summary = json.loads((runs[2] / "summary.json").read_text())
    (runs[2] / "summary.json").write_text(json.dumps({**summary, "method": "sp-darts"}))
    assert "| sp-darts, weight_lr 0.05, 2 runs |  |  | 60.0% ± 0.0% | 30.0% ± 28.3% |" in table(loaded(runs)).markdown()


def test_audits_as_a_table_and_a_figure(runs, tmp_path):
    assert audit_table(loaded(runs)) is None
    with pytest.raises(ValueError, match="no run recorded an audit: search with --audit-every"):
        draw_audits(loaded(runs), tmp_path / "figure.png")
    lines = (runs[0] / "records.jsonl").read_text().splitlines()
    audit = {"phi": True, "threshold": 1e-3, "output": 0.0, "update": 0.5, "executed": 0.4}
    audits = [{**audit, "loss": e, "gradient": 2 * e, "cosine": 1 - e} for e in (0.01, 0.02, 0.09)]
    (runs[0] / "records.jsonl").write_text(json.dumps({**json.loads(lines[0]), "audits": audits}) + "\n")
    assert audit_table(loaded(runs)).markdown().splitlines()[2:] == [
        "| sparse | 0.001 | 3 | 40% | 2.00%, 9.00% | 0.00%, 0.00% | 4.00%, 18.00% | 50.00%, 50.00% | 2.0e-02, 9.0e-02 |"
    ]
    draw_audits(loaded(runs), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_percentiles():
    assert middle_and_high([3.0]) == (3.0, 3.0)
    assert middle_and_high([2.0, 1.0]) == (1.5, 2.0)
    assert middle_and_high([float(i) for i in range(101)]) == (50.0, 95.0)


def test_how_steady_the_end_was(runs):
    """By hand: six epochs, one late change, alphas of the last epoch one and three t_sp apart."""
    assert steadiness_table(loaded(runs)) is None
    record = json.loads((runs[0] / "records.jsonl").read_text().splitlines()[0])
    cells = ["a", "a", "a", "b", "b", "b"]
    alphas = [{"1<-0": [0.001, 0.0], "2<-0": [0.0, 0.003]}] * 5 + [{"1<-0": [0.001, 0.0], "2<-0": [0.0, 0.001]}]
    lines = [
        json.dumps({**record, "epoch": i, "genotype": cell, "alphas": row})
        for i, (cell, row) in enumerate(zip(cells, alphas, strict=True))
    ]
    (runs[0] / "records.jsonl").write_text("\n".join(lines))
    run = load_run(runs[0])
    assert run.summary["late_changes"] == 1
    assert run.summary["lead"] == pytest.approx(1)
    assert run.summary["drift"] == pytest.approx(2 * 1 / (5 * 4))  # two alphas of one row moved by t_sp, once
    assert run.summary["early_drift"] == 0
    row = steadiness_table([run]).rows[0]
    assert row == ["sp-darts-0", "sp-darts", "cifar10 16x16, 640 images", "1", "1.0", "0.00", "0.10", "no"]


def test_runs_in_folders_of_one_name_are_told_apart(runs, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    again = shutil.copytree(runs[0], tmp_path / "other" / "sp-darts-0")
    main([str(runs[0]), str(again), str(runs[1])])
    shown = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if "| sp-darts |" in line]
    assert shown[:3] == [f"{tmp_path.name}/sp-darts-0", "other/sp-darts-0", "sp-darts-1"]


def test_a_damaged_run_is_named_and_the_same_run_counts_once(runs, capsys):
    main([str(runs[0]), f"{runs[0]}/", str(runs[1])])
    assert capsys.readouterr().out.count("| sp-darts-0 |") == 1
    (runs[0] / "records.jsonl").write_text('{"epoch": 0')
    main([str(runs[0]), str(runs[1])])
    assert f"left out: a file in {runs[0]} is damaged" in capsys.readouterr().err


def test_nothing_to_watch(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "typo"), "--watch", "2"])
    assert f"there is no folder {tmp_path / 'typo'}" in capsys.readouterr().err
