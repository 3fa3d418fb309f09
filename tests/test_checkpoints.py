import os
import pickle
import subprocess
import sys

import pytest
import torch

from sparsemix.runs.checkpoints import Checkpoints, replace_file
from sparsemix.runs.folder import RunFolder


def saved(folder, epochs, **options):
    checkpoints = Checkpoints(folder)
    for epoch in range(epochs):
        checkpoints.save({"epoch": epoch, "weight": torch.full((3,), float(epoch))}, epoch, 0, **options)
    return checkpoints


def test_the_newest_comes_back_and_the_last_two_stay(tmp_path):
    checkpoints = saved(tmp_path, 5)
    state = checkpoints.load()
    assert state["epoch"] == 4
    assert torch.equal(state["weight"], torch.full((3,), 4.0))
    assert [path.name[:16] for path in checkpoints.paths()] == ["checkpoint-00004", "checkpoint-00003"]


def test_the_best_stays_too(tmp_path):
    checkpoints = saved(tmp_path, 6, best=1)
    assert [int(path.name.split("-")[1]) for path in checkpoints.paths()] == [5, 4, 1]


def test_what_follows_a_damaged_one_is_kept(tmp_path):
    checkpoints = saved(tmp_path, 3)
    newest = checkpoints.paths()[0]
    newest.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoints.load()["epoch"] == 1
    for step in (5, 9):  # of the epoch that the lost one was to begin after
        checkpoints.save({"epoch": 1, "step": step}, 1, step)
        assert checkpoints.load()["step"] == step
    assert [path.name[:24] for path in checkpoints.paths()] == ["checkpoint-00001-0000009", "checkpoint-00001-0000005"]
    assert newest.with_suffix(".damaged").exists()


def test_within_an_epoch(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch, step in [(9, 0), (9, 100), (10, 0), (10, 20)]:
        checkpoints.save({"at": [epoch, step]}, epoch, step)
    assert checkpoints.load()["at"] == [10, 20]


def test_none_was_written(tmp_path):
    assert Checkpoints(tmp_path).load() is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:],
    ],
    ids=["half", "last byte", "empty", "one bit"],
)
def test_a_damaged_one_is_passed_over(tmp_path, damage):
    checkpoints = saved(tmp_path, 3)
    newest, before = checkpoints.paths()
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged .* going back to the one before"):
        assert checkpoints.load()["epoch"] == 1
    before.write_bytes(damage(before.read_bytes()))
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match="all 2 checkpoints are damaged; start anew in another folder"),
    ):
        checkpoints.load()


def test_nothing_in_it_is_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"bomb": Bomb()}, 0, 0)  # whoever forges the content can forge the checksum
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        checkpoints.load()
    assert not (tmp_path / "executed").exists()


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    """A real limit on the size of files, in a process of its own."""
    saved(tmp_path, 2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code = f"""
import resource, signal, torch
from pathlib import Path
from sparsemix.runs.checkpoints import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
Checkpoints(Path({str(tmp_path)!r})).save({{"weight": torch.zeros(100_000)}}, 2, 0)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode != 0
    assert "File too large; what was there before is untouched" in shown.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_half_a_file_is_never_met(tmp_path):
    (tmp_path / "file").write_text("old")

    def write(partial):
        partial.write_text("ne")
        assert (tmp_path / "file").read_text() == "old"
        partial.write_text("new")

    replace_file(tmp_path / "file", write)
    assert (tmp_path / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_claimed_by_one_process(tmp_path):
    RunFolder(tmp_path, {}, resume=False).claim()
    RunFolder(tmp_path, {}, resume=True).claim()  # the same process may
    script = "import sys; from pathlib import Path; from sparsemix.runs.folder import RunFolder\n"
    script += "RunFolder(Path(sys.argv[1]), {}, resume=True).claim()"
    other = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert f"another process is running in {tmp_path}" in other.stderr
    again = tmp_path / "again"
    for _ in range(2):  # the claim ends with its process
        if not again.exists():
            RunFolder(again, {}, resume=False)
        subprocess.run([sys.executable, "-c", script, str(again)], check=True)
