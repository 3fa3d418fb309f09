"""Two processes (gloo) against one, launched by torchrun: accelerate launches several on CPUs through MPI alone."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import parallel_search
import pytest
import torch
from accelerate import Accelerator

from sparsemix.cli.train import configure, train
from sparsemix.runs.processes import Parallel

HERE = Path(__file__).parent
BENCHMARKS = HERE.parent / "benchmarks"
TINY = shlex.split("--preset proxy --device cpu --channels 4 --epochs 2 --batch-size 40 --limit 400 --image-size 8")


def launch(processes, script, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += [str(script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def alphas(folder, rank=0):
    return torch.load(folder / f"alphas-{rank}.pt", weights_only=True)


FIRST = [("first", name) for name in ("sp-darts", "sdarts-adv", "darts-es", "settle")]


@pytest.mark.parametrize(("order", "method"), [*FIRST, ("second", "sp-darts")])
def test_two_processes_follow_one(tmp_path, order, method):
    """Odd batches, so that the shards differ in size; 21 steps of mixed draws; no batch norm, float64."""
    parallel_search.main(tmp_path / "1", order, "none", method)
    shown = launch(2, HERE / "parallel_search.py", tmp_path / "2", order, "none", method)
    assert shown.returncode == 0, shown.stderr
    one, two = alphas(tmp_path / "1"), alphas(tmp_path / "2")
    for a, b, other in zip(one, two, alphas(tmp_path / "2", 1), strict=True):
        assert torch.equal(b, other)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    a, b = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("1", "2"))
    assert a["genotype"] == b["genotype"]
    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-6)
    assert shown.stdout.count(" 1/3 ") == 1  # one of them speaks


def test_a_drift_stops_the_run_and_names_the_tensor(tmp_path):
    shown = launch(2, HERE / "parallel_search.py", tmp_path / "run", "first", "drift")
    assert shown.returncode != 0
    assert "alpha of '3' is no longer the same in all processes: process 1 has" in shown.stderr


def test_a_process_that_fails_stops_the_others(tmp_path):
    started = time.monotonic()
    shown = launch(2, HERE / "parallel_search.py", tmp_path / "run", "first", "raise")
    assert shown.returncode != 0
    assert "ArithmeticError: the last process fails" in shown.stderr
    assert time.monotonic() - started < 90


def test_a_search_with_batch_norm(tmp_path):
    script = BENCHMARKS / "nb201_space.py"
    shown = launch(2, script, *TINY, "--output", tmp_path / "run")
    assert shown.returncode == 0, shown.stderr
    assert len((tmp_path / "run" / "records.jsonl").read_text().splitlines()) == 2


def test_two_processes_train_as_one(tmp_path):
    """A network without batch norm, batches of odd size; resumed by one process."""
    script = BENCHMARKS / "evaluate.py"
    flags = shlex.split("--model test_convnext --dataset digits --image-size 32 --limit 300 --holdout 0.2 --cutout 0")
    flags += shlex.split("--device cpu --batch-size 31 --epochs 2 --save-every 3")
    train(configure([*flags, "--output", str(tmp_path / "1")]))
    shown = launch(2, script, *flags, "--output", tmp_path / "2")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("  1/2  ") == 1
    one, two = (torch.load(tmp_path / n / "weights.pt", weights_only=True) for n in "12")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-5)
    before = json.loads((tmp_path / "2" / "summary.json").read_text())
    assert train(configure([*flags, "--output", str(tmp_path / "2"), "--resume"])) == before


def test_fewer_images_than_processes():
    parallel = Parallel(Accelerator(cpu=True))
    assert parallel.shard((torch.zeros(1, 3), torch.zeros(1)))[2] == 1.0
    parallel.processes = 3
    with pytest.raises(ValueError, match="a batch of 2 images cannot be shared by 3 processes"):
        parallel.check_batch_size(2)
    x, total = torch.randn(2), 0.0
    for parallel.rank in range(3):  # a last batch all the same
        mine, _, share = parallel.shard((x, torch.arange(2)))
        total = total + share * mine.mean() / 3
    torch.testing.assert_close(total, x.mean())


@pytest.mark.parametrize("processes", [2, 3])
def test_the_weights_of_the_shards_make_up_the_mean(processes):
    parallel = Parallel(Accelerator(cpu=True))
    x, y = torch.randn(7), torch.arange(7)
    parallel.processes, total = processes, 0.0
    for parallel.rank in range(processes):
        mine, labels, share = parallel.shard((x, y))
        assert torch.equal(mine, x[labels])
        total = total + share * mine.mean() / processes
    torch.testing.assert_close(total, x.mean())
