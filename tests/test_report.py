import json

import pytest

from sparsemix.report import draw, load_run, table


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
            "entropy_sparse": 1.25,
            "output_leakage": {"1<-0": 0.25, "2<-0": 0.75},
            "skips": 2,
            "genotype": "|none~0|",
            "seconds": 3.0,
        }
        (folder / "records.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({**record, "epoch": 1}) + "\n")
        (folder / "summary.json").write_text(json.dumps(record))
        folders.append(folder)
    return folders


def test_a_row_for_each_run_and_a_mean_for_each_method(runs):
    lines = table(runs).splitlines()
    assert (
        lines[0] == "| run | discretised | supernet | gap | entropy at t_sp | output leakage | skips | seconds | cell |"
    )
    assert lines[2] == r"| sp-darts-0 | 50.0% | 60.0% | +10.0% | 1.25 | 0.50 | 2 | 3 | \|none~0\| |"
    assert lines[5].startswith("| **sp-darts**, 2 runs | 60.0% ± 14.1% | 60.0% ± 0.0% | +0.0% ± 14.1% |")
    assert len(lines) == 6


def test_a_figure(runs, tmp_path):
    draw(runs, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_has_not_finished(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        load_run(tmp_path)
