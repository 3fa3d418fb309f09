"""What a run prints: whole lines that fit, and at a terminal the running epoch beneath them."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from sparsemix.cli.nb201 import TRUE
from sparsemix.methods.registry import find_method, methods
from sparsemix.runs.display import Display
from sparsemix.runs.epoch_table import EpochTable, closing_lines, search_columns, training_columns


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, legacy_windows=False, _environ={"TERM": "xterm"})


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return Text.from_ansi(console.file.getvalue()).plain


@pytest.mark.parametrize("name", [*methods(), "sdarts-rs+pc-darts"])
def test_the_lines_of_every_method_fit_a_terminal(name):
    columns = find_method(name).columns
    table = EpochTable(250, search_columns(columns, TRUE, has_skips=True))
    planned = dict.fromkeys(columns, 9.99)
    row = {
        "epoch": 249,
        **planned,
        "train_loss": 2.345,
        "val_loss": 12.345,
        "entropy": 12.34,
        "discretized_accuracy": 0.999,
        "discretization_gap": -0.999,
        "open": 100,
        "skips": 100,
        "true_accuracy": 93.75,
        "changed": 100,
        "images_per_second": 12345,
        "seconds": 3599,
        "left": 359999,
    }
    line = table.line(row)
    assert len(line) == len(table.heading()) <= 120
    assert "250/250" in line
    assert "93.8%" in line


def test_a_row_shows_what_it_has_and_a_dash_for_the_rest():
    table = EpochTable(5, training_columns(has_top5=False, has_ema=False))
    assert table.heading().split() == ["epoch", "lr", "loss", "error", "img/s", "time", "left"]
    assert table.line({"epoch": 1, "lr": 0.025, "loss": 2.0, "seconds": 4.0}).split() == [
        "2/5", "0.0250", "2.000", "-", "-", "4.0s", "-",
    ]  # fmt: skip


def test_a_terminal_shows_the_running_epoch_under_its_heading(terminal):
    with Display(True, "epoch  loss", terminal) as display:
        display.show(lambda: "  3/4  0.25", 5, 20)
    assert "epoch  loss" in written(terminal)
    assert "3/4  0.25" in written(terminal)
    assert "25%, step 5 of 20" in written(terminal)


def test_steps_that_follow_quickly_are_not_drawn(terminal):
    with Display(True, "epoch", terminal) as display:
        display.show(lambda: "first", 1, 2)
        display.show(lambda: pytest.fail("was drawn"), 2, 2)


def test_printed_lines_stay_whole_above_the_running_epoch(terminal, capsys):
    with Display(True, "epoch  loss", terminal) as display:
        display.show(lambda: "1/2  0.5", 1, 2)
        print("a line that stays")
    assert "a line that stays\n" in written(terminal)
    assert capsys.readouterr().out == ""  # it went through the console, which knows what is drawn


@pytest.mark.parametrize(("shows", "is_terminal"), [(True, False), (False, True)])
def test_logs_and_other_processes_get_no_running_epoch(shows, is_terminal):
    console = Console(file=io.StringIO(), force_terminal=is_terminal)
    with Display(shows, "epoch", console) as display:
        display.show(lambda: pytest.fail("was drawn"), 1, 2)
    assert written(console) == ""


@pytest.mark.parametrize("read_out", [{}, {"best_from": 0.5}], ids=["last", "best"])
def test_the_end_names_what_is_undecided_and_what_to_do(read_out):
    found = {"genotype": "cell", "averaged_genotype": "cell", "result_epoch": 4, "seconds": 9.0}
    summary = {**found, **read_out, "undecided": {"1<-0": ["skip", "conv"]}}
    lines = " ".join(closing_lines(summary, 6, Path("runs/x"), "next").split())
    assert "undecided: 1 of 6 rows, whose best operations are within two temperatures: 1<-0 (skip or conv);" in lines
    assert (", or take the most accurate epoch instead of the last: --best-from 0.5" in lines) is not bool(read_out)
    assert ("taken from epoch 5, the most accurate in the last 50% of the search" in lines) is bool(read_out)
