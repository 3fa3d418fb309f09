"""The commands, as a user types them."""

import json
import subprocess
import sys

import pytest

from sparsemix.cli import COMMANDS, main

TINY = ["--preset", "proxy", "--channels", "4", "--epochs", "2", "--limit", "120", "--batch-size", "40"]


def sparsemix(folder, *words):
    command = [sys.executable, "-m", "sparsemix", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def test_search_report_train_in_an_empty_folder(tmp_path):
    found = sparsemix(tmp_path, "search", "s2", *TINY, "--cells", "3", "--output", "runs/s")
    assert found.returncode == 0, found.stderr
    following = found.stdout.split("to train it from scratch: sparsemix ")[1].splitlines()[0].split()
    sizes = ["--channels", "4", "--cells", "3", "--epochs", "1", "--limit", "200", "--output", "runs/t"]
    trained = sparsemix(tmp_path, *following, *sizes)
    assert trained.returncode == 0, trained.stderr
    shown = sparsemix(tmp_path, "report", "runs/s", "runs/t", "--figure", "search.png")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("### ") == 2
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [[], ["--help"], ["search"], ["search", "--help"]])
def test_what_there_is(words, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(words)
    shown = capsys.readouterr().out
    assert all(f"sparsemix {name}" in shown for name in COMMANDS)


@pytest.mark.parametrize("name", ["search nb201", "search darts", "search s3", "search timm", "train", "pick"])
def test_every_command_explains_its_flags(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*name.split(), "--help"])
    shown = capsys.readouterr().out
    assert "usage: sparsemix" in shown
    assert "--epochs" in shown


def test_a_command_that_does_not_exist(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["search", "s5", "--preset", "proxy"])
    assert capsys.readouterr().err.startswith("there is no command 'search s5'; did you mean 'search s")


def test_a_space_of_its_own_for_each_of_the_four(tmp_path):
    main(["search", "s4", *TINY, "--cells", "3", "--epochs", "1", "--output", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["space"] == "s4"


def test_a_space_is_named_only_once(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["search", "s2", "--space", "s3"])
    assert capsys.readouterr().err == "sparsemix search s2 sets --space s2 itself: leave --space out\n"


@pytest.mark.parametrize("words", [("pick", "--help"), ("search", "nb201", "--list-methods")])
def test_nobody_reads_the_output_to_its_end(words):
    """As ``sparsemix pick --help | head`` does."""
    command = [sys.executable, "-u", "-m", "sparsemix", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_package_that_only_the_commands_need(monkeypatch, capsys):
    def without_tyro(module):
        raise ModuleNotFoundError("No module named 'tyro'", name="tyro")

    monkeypatch.setattr("sparsemix.cli.import_module", without_tyro)
    with pytest.raises(SystemExit, match="2"):
        main(["search", "nb201"])
    assert capsys.readouterr().err == "error: tyro is not installed: pip install 'sparsemix[search,plots]'\n"


def test_the_table_command(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["table", "convert", str(tmp_path / "none"), str(tmp_path / "out.csv")])
    assert capsys.readouterr().err.startswith("error: convert_nats_bench: ")
