"""The loop through its command line, on the embedded data, as small as it gets."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate import Accelerator
from test_data import write_folder
from torch import nn

from sparsemix import ArchParameterGroup, BatchMixedScheduler, MixedOp, SparseSmoothSoftmax
from sparsemix.cli import nb201 as nb201_cli
from sparsemix.data import open_pairs
from sparsemix.measure import discretization
from sparsemix.measure.undecided import undecided
from sparsemix.methods import SearchStep
from sparsemix.relaxations import OfSoftmax, Softmax
from sparsemix.report.records import load_run
from sparsemix.report.tables import table as run_table
from sparsemix.runs.checkpoints import Checkpoints
from sparsemix.runs.config import SearchConfig, configured
from sparsemix.runs.folder import RunFolder
from sparsemix.runs.launching import Interrupted, command_line, make_accelerator, run_script, stop_requests
from sparsemix.runs.search import Search
from sparsemix.spaces import nb201
from sparsemix.spaces.nb201 import NB201Genotype

SCRIPT = Path(__file__).parent.parent / "benchmarks/nb201_space.py"
TINY = {
    "preset": "proxy",
    "device": "cpu",
    "channels": "4",
    "epochs": "3",
    "batch-size": "40",
    "limit": "400",
    "image-size": "8",
    "seed": "1",
}
TINY_FLAGS = [word for flag, value in TINY.items() for word in (f"--{flag}", value)]


def search(output, *flags):
    return nb201_cli.search(nb201_cli.configure([*TINY_FLAGS, "--output", str(output), *flags]))


def records(output):
    return [json.loads(line) for line in (output / "records.jsonl").read_text().splitlines()]


def without_time(record):
    return {
        key: value for key, value in record.items() if key not in ("seconds", "evaluation_seconds", "update_seconds")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A table that knows every cell, and a finished search that was judged by it."""
    folder = tmp_path_factory.mktemp("finished")
    table = folder / "table.csv"
    rows = "".join(f"{cell},{i / 200},{i / 300},{i / 400}\n" for i, cell in enumerate(NB201Genotype.all()))
    table.write_text("architecture,cifar10_test,cifar100_test,imagenet16_120_test\n" + rows)
    output = folder / "run"
    return output, search(output, "--table", str(table), "--table-dataset", "cifar10"), table


def test_what_a_run_leaves_behind(finished):
    output, summary, _ = finished
    assert json.loads((output / "summary.json").read_text()) == summary
    config = json.loads((output / "config.json").read_text())
    assert (config["channels"], config["epochs"], config["sparse"], config["space"]) == (4, 3, 1.1e-3, "nb201")
    genotype = json.loads((output / "genotype.json").read_text())
    assert genotype["genotype"] == str(NB201Genotype.from_edges(genotype["edges"])) == summary["genotype"]
    assert {
        "method", "seed", "genotype", "supernet_accuracy", "discretized_accuracy", "raw_discretized_accuracy",
        "temperature", "entropy", "entropy_at_1",
        "skips", "true_accuracy", "true_accuracies", "true_rank", "seconds",
    } <= set(summary)  # fmt: skip


def test_a_record_each_epoch(finished):
    output, summary, _ = finished
    lines = records(output)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert "audits" not in lines[0]
    assert [line["p"] for line in lines] == [0, 0.5, 1]
    steps = 5
    for line in lines:
        phis = BatchMixedScheduler(SimpleNamespace(moment=None), 3, steps, seed=1)
        assert line["sparse_share"] == sum(phis.draw(line["epoch"], step) for step in range(steps)) / steps
        assert line["discretization_gap"] == line["supernet_accuracy"] - line["discretized_accuracy"]
        assert line["temperature"] == 1.1e-3
        assert 0 <= line["entropy"] <= line["entropy_at_1"] <= 9.66
        assert set(line["output_leakage"]) == set(NB201Genotype.EDGES)
    assert summary["seconds"] == sum(line["seconds"] for line in lines)


def test_evaluations_can_be_thinned_and_change_nothing(finished, tmp_path, capsys):
    """Every second epoch and the last, on fewer images: alphas and weights are the other run's to the last bit."""
    output, _, _ = finished
    search(tmp_path / "run", "--evaluate-every", "2", "--evaluate-limit", "50", "--statistics-images", "40")
    ours, theirs = records(tmp_path / "run"), records(output)
    assert ["supernet_accuracy" in line for line in ours] == [False, True, True]
    assert [line["alphas"] for line in ours] == [line["alphas"] for line in theirs]
    for line in ours[1:]:
        assert line["discretized_accuracy"] * 50 == pytest.approx(round(line["discretized_accuracy"] * 50))
    first, second = (Checkpoints(f).load()["model"] for f in (tmp_path / "run", output))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    shown = capsys.readouterr().out.splitlines()
    assert ["%" in line for line in shown if line.strip().startswith(("1/3", "2/3", "3/3"))] == [False, True, True]
    assert run_table([load_run(tmp_path / "run")]).rows


def test_raw_accuracies_are_those_of_the_running_statistics(finished, tmp_path):
    """The last epoch's, measured once more on the last checkpoint."""
    output, summary, _ = finished
    config = nb201_cli.configure(TINY_FLAGS)
    pairs = open_pairs(**config.data_options())
    model = timm.create_model("sparsemix_nb201_supernet", channels=4, cells=1, in_chans=1)
    arch = ArchParameterGroup(model)
    model.load_state_dict(Checkpoints(output).load()["model"])
    relaxation = Softmax(config.method.settings["eval_temperature"])
    raw = discretization(arch, [*pairs.validation()], relaxation)
    assert (raw.supernet, raw.discretized) == (summary["raw_supernet_accuracy"], summary["raw_discretized_accuracy"])
    statistics = [*pairs.statistics(config.measurement.statistics_images)]
    renewed = discretization(arch, [*pairs.validation()], relaxation, statistics)
    assert (renewed.supernet, renewed.discretized) == (summary["supernet_accuracy"], summary["discretized_accuracy"])


def test_entropy_is_recorded_at_the_temperature_of_the_method(tmp_path):
    search(tmp_path / "run", "--method", "darts")
    for line in records(tmp_path / "run"):
        assert line["temperature"] == 1.0
        assert line["entropy"] == line["entropy_at_1"] > 9.6


def test_alphas_are_softened_twice_in_weights_updates_alone(tmp_path, monkeypatch):
    """As published code for S1 to S4 does."""
    seen = []

    def watching(self, alpha, moment):
        seen.append("weights" if torch.is_grad_enabled() is False else "other")
        return self.relaxation(torch.softmax(alpha, -1), moment)

    monkeypatch.setattr(OfSoftmax, "forward", watching)
    search(tmp_path / "run", "--double-softmax", "--epochs", "1", "--warmup-epochs", "0")
    assert seen == ["weights"] * 5  # alphas are constants there; one forward a step


def test_the_warm_up_has_a_temperature_of_its_own(tmp_path, monkeypatch):
    used, forward = [], SparseSmoothSoftmax.forward
    monkeypatch.setattr(
        SparseSmoothSoftmax,
        "forward",
        lambda self, a, moment: used.append((self.smooth, moment.phi)) or forward(self, a, moment),
    )
    search(tmp_path / "run", "--warmup-smooth", "0.5", "--warmup-epochs", "2")
    smooth = [temperature for temperature, phi in used if not phi]
    assert set(smooth[:10]) == {0.5}
    assert 0.011 in smooth[10:] or all(phi for _, phi in used[-10:])


def test_the_judge_s_entries(finished):
    _, summary, _ = finished
    index = NB201Genotype.all().index(NB201Genotype.parse(summary["genotype"]))
    assert summary["true_accuracies"] == {
        "cifar10": {"test": index / 200}, "cifar100": {"test": index / 300}, "imagenet16-120": {"test": index / 400}
    }  # fmt: skip
    assert summary["true_accuracy"] == index / 200
    assert summary["true_rank"] == 15_625 - index
    assert summary["true_gap"] == pytest.approx(15_624 / 200 - index / 200)


def test_a_second_read_out_of_the_last_epochs_mean(finished, tmp_path):
    output, summary, table = finished
    alphas = [line["alphas"] for line in records(output)]
    means = {edge: [sum(v) / 3 for v in zip(*(a[edge] for a in alphas), strict=True)] for edge in alphas[0]}
    chosen = {edge: list(nb201.OPERATIONS)[row.index(max(row))] for edge, row in means.items()}
    assert summary["averaged_genotype"] == str(NB201Genotype.from_edges(chosen))
    assert 0 <= summary["averaged_true_accuracy"] <= 15_624 / 200
    flags = ["--table", str(table), "--table-dataset", "cifar10", "--resume", "--average-epochs", "1"]
    assert search(output, *flags)["averaged_genotype"] == summary["genotype"]
    assert search(output, *flags[:-2]) == summary


def test_the_same_seed_gives_the_same_run(finished, tmp_path):
    output, _, table = finished
    search(tmp_path / "run", "--table", str(table), "--table-dataset", "cifar10")
    assert [without_time(r) for r in records(tmp_path / "run")] == [without_time(r) for r in records(output)]


@pytest.mark.parametrize("flags", [["--method", "darts"], ["--order", "second"], ["--order", "single"]])
def test_other_methods_and_orders(tmp_path, flags):
    summary = search(tmp_path / "run", *flags, "--epochs", "2", "--batch-size", "100")
    assert NB201Genotype.parse(summary["genotype"])
    if "darts" in flags:
        assert [r["sparse_share"] for r in records(tmp_path / "run")] == [0, 0]


def search_with_a_break(interrupted, stop_at, output, *flags):
    """Interrupted in a step, and resumed under another random state."""
    with (
        interrupted(SearchStep, "__call__", stop_at),
        pytest.raises(Interrupted, match=r"to go on: python .* --resume$"),
    ):
        search(output, *flags)
    torch.manual_seed(99)
    search(output, *flags, "--resume")


def assert_same_run(a, b):
    assert [without_time(r) for r in records(a)] == [without_time(r) for r in records(b)]
    first, second = (Checkpoints(f).load()["model"] for f in (a, b))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("stop_at", [2, 5, 8])
def test_interrupted_and_resumed_is_as_if_never_interrupted(finished, tmp_path, interrupted, stop_at):
    """Within the first epoch, at its very end, and within the second; weights and alphas to the last bit."""
    output, _, table = finished
    flags = ["--table", str(table), "--table-dataset", "cifar10"]
    search_with_a_break(interrupted, stop_at, tmp_path / "run", *flags)
    assert_same_run(tmp_path / "run", output)


def test_alpha_gradients_that_are_clipped_with_the_weights_are_of_the_run(tmp_path, interrupted):
    flags = ["--clip-alphas", "--max-norm", "0.5"]
    search(tmp_path / "whole", *flags)
    search_with_a_break(interrupted, 8, tmp_path / "parts", *flags)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_cost_counts_once_a_step(tmp_path):
    """Whatever parts a batch is cut into: a constant of 100, of which alpha has no gradient."""
    losses = []
    for parts in (1, 3):
        flags = [*TINY_FLAGS, "--epochs", "1", "--accumulate", str(parts), "--output", str(tmp_path / str(parts))]
        config = nb201_cli.configure(flags)
        pairs = open_pairs(**config.data_options())
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), MixedOp({"a": nn.Linear(64, 10), "b": nn.Linear(64, 10)}))
        arch, accelerator = ArchParameterGroup(model), make_accelerator("cpu")
        costs = {"cost_term": lambda: torch.tensor(100.0)}
        Search(config, arch, pairs, accelerator, "test", lambda *_: SimpleNamespace(skips=0), **costs).run()
        losses.append(records(tmp_path / str(parts))[0]["val_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert 100 < losses[0] < 105


def test_a_damaged_configuration(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged \(Expecting .*\); start anew in another folder"):
        search(tmp_path, "--resume")


@pytest.mark.parametrize(
    ("program", "launcher", "processes", "precision", "expected"),
    [
        ("s.py", "", 1, "no", "python s.py --a 1 --resume"),
        ("/venv/bin/sparsemix", "", 1, "no", "sparsemix --a 1 --resume"),
        ("/lib/sparsemix/__main__.py", "", 1, "no", "python -m sparsemix --a 1 --resume"),
        ("s.py", "accelerate", 1, "no", "accelerate launch --quiet s.py --a 1 --resume"),
        (
            "/lib/sparsemix/__main__.py",
            "accelerate",
            2,
            "bf16",
            "accelerate launch --quiet --num_processes 2 --mixed_precision bf16 -m sparsemix --a 1 --resume",
        ),
        ("s.py", "torchrun", 2, "no", "torchrun --standalone --nproc-per-node 2 s.py --a 1 --resume"),
    ],
)
def test_how_to_go_on(monkeypatch, program, launcher, processes, precision, expected):
    monkeypatch.setattr(sys, "argv", [program, "--resume", "--a", "1"])
    for name, of in (("TORCHELASTIC_RUN_ID", "torchrun"), ("ACCELERATE_MIXED_PRECISION", "accelerate")):
        monkeypatch.delenv(name, raising=False)
        if launcher == of:
            monkeypatch.setenv(name, "1")
    accelerator = SimpleNamespace(num_processes=processes, mixed_precision=precision, device=torch.device("cpu"))
    assert command_line(accelerator) == expected


def test_what_is_printed_fits_a_screen(finished, tmp_path, capsys):
    """A line an epoch under one heading, the rows that changed counted from the records, the cell once."""
    output, _, table = finished
    summary = search(tmp_path / "run", "--table", str(table), "--table-dataset", "cifar10")
    shown = capsys.readouterr().out
    assert all(len(line) <= 120 for line in shown.splitlines() if str(tmp_path) not in line)
    assert shown.count(summary["genotype"]) == 1
    [heading] = [line for line in shown.splitlines() if line.startswith("epoch")]
    rows = [line for line in shown.splitlines() if line.strip().startswith(("1/3", "2/3", "3/3"))]
    assert {len(line) for line in rows} == {len(heading)}
    strongest = [{label: row.index(max(row)) for label, row in r["alphas"].items()} for r in records(output)]
    changes = [sum(new[label] != old[label] for label in new) for old, new in pairwise(strongest)]
    moved = heading.replace("val loss", "val_loss").split().index("moved")
    assert [row.split()[moved] for row in rows] == ["-", *map(str, changes)]
    assert f"true accuracy {summary['true_accuracy']:.2f} %" in shown
    assert f"{len(summary['undecided'])} of 6 rows" in shown or "all 6 rows are decided" in shown


def test_undecided_rows_are_named():
    arch = ArchParameterGroup(nn.Sequential(MixedOp({"a": nn.Identity(), "b": nn.Tanh(), "c": nn.ReLU()}, label="row")))
    with torch.no_grad():
        arch.parameters()[0].copy_(torch.tensor([0.0, 0.003, 0.0015]))
    assert undecided(arch, 1e-3) == {"row": ["b", "c"]}
    assert undecided(arch, 0.7e-3) == {}
    assert undecided(arch, 1e-3, within=3.5) == {"row": ["b", "c", "a"]}
    arch.restrict("row", ["a", "b"])
    assert undecided(arch, 1e-3) == {}


def test_undecided_rows_of_tables_that_other_code_owns():
    class Supernet(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = MixedOp({"a": nn.Identity(), "b": nn.Tanh()}, has_alpha=False)

        def forward(self, x):
            return self.op(x, tables.operation_weights()["cell"][1])

    alphas = torch.tensor([[0.0, 1.0], [0.001, 0.0]]).requires_grad_()
    tables = ArchParameterGroup.from_parameters({"cell": alphas}, model=Supernet())
    tables.dry_run(torch.zeros(2, 3))
    assert undecided(tables, 1e-3) == {"cell 1": ["a", "b"]}
    assert undecided(tables, 1e-4) == {}


def test_a_mistake_is_one_line(monkeypatch, capsys):
    def mistaken():
        raise ValueError("the batch is too large")

    with pytest.raises(SystemExit, match="2"):
        run_script(mistaken)
    assert capsys.readouterr().err == "error: the batch is too large\n"
    monkeypatch.setenv("SPARSEMIX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="the batch is too large"):
        run_script(mistaken)


def test_a_mistake_is_one_line_under_accelerate_launch(tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--cpu", "--num_processes", "1"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [*launch, "--num_cpu_threads_per_process", "1", str(SCRIPT), "--batch-size", "9999"]
    shown = subprocess.run([*command, "--output", str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert shown.returncode
    assert shown.stderr.startswith("error: batches of 9999 cannot be cut from")
    assert len((shown.stdout + shown.stderr).splitlines()) == 1


def test_a_script_that_is_stopped(capsys):
    def stopped():
        raise Interrupted("stopped; to go on: ...")

    with pytest.raises(SystemExit, match="130"):
        run_script(stopped)
    assert capsys.readouterr().out == "stopped; to go on: ...\n"


def test_a_run_killed_within_an_epoch_loses_no_more_than_save_every_says(finished, tmp_path, monkeypatch):
    output, _, table = finished
    flags = ["--table", str(table), "--table-dataset", "cifar10", "--save-every", "2"]
    calls, step = [], SearchStep.__call__

    def failing(*args, **keywords):
        calls.append(1)
        if len(calls) == 9:  # the fourth of the second epoch
            raise RuntimeError("killed")
        return step(*args, **keywords)

    monkeypatch.setattr(SearchStep, "__call__", failing)
    with pytest.raises(RuntimeError, match="killed"):
        search(tmp_path / "run", *flags)
    search(tmp_path / "run", *flags, "--resume")
    assert len(calls) == 9 + 15 - 7
    assert_same_run(tmp_path / "run", output)


def test_accumulated_gradients_are_of_one_step(finished, tmp_path):
    search(tmp_path / "run", "--accumulate", "3")
    for ours, theirs in zip(records(tmp_path / "run"), records(finished[0]), strict=True):
        assert ours["sparse_share"] == theirs["sparse_share"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.2)  # batch norm sees the parts


def test_a_tracker(tmp_path):
    pytest.importorskip("tensorboard")
    search(tmp_path / "run", "--log-with", "tensorboard", "--epochs", "1")
    assert [*(tmp_path / "run" / "sparsemix").glob("events.out.tfevents.*")]
    with pytest.raises(ValueError, match="Accelerate knows no tracker 'board'"):
        search(tmp_path / "other", "--log-with", "board")
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/run cannot be written \(.*Not a directory.*\); name another \(output\)"):
        search(tmp_path / "file" / "run")


def test_resuming_with_another_version(finished, monkeypatch):
    output, *_ = finished
    monkeypatch.setattr("sparsemix.runs.launching.__version__", "9.9")
    with pytest.raises(ValueError, match=r"version was '0\..*' and is now '9.9'"):
        search(output, "--resume")


def test_fewer_processes_than_were_asked_for(monkeypatch):
    """As accelerate launch --cpu --num_processes 2 leaves it."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.warns(UserWarning, match="this is the only process: .* torchrun --standalone --nproc-per-node 2"):
        make_accelerator("cpu")


def test_a_temperature_that_follows_the_entropy(tmp_path, interrupted):
    flags = ["--auto-temperature", "--entropy-start", "0.6", "--entropy-end", "0.2", "--threshold", "1e-3"]
    search(tmp_path / "whole", *flags)
    temperatures = [record["temperature"] for record in records(tmp_path / "whole")]
    assert len(set(temperatures)) == 3
    search_with_a_break(interrupted, 8, tmp_path / "parts", *flags)  # within an epoch, whose alphas have moved
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_temperature_that_is_fixed_and_chosen():
    with pytest.raises(ValueError, match=r"auto_temperature chooses t_sp; it excludes hold_sparse=0\.001"):
        configured(SearchConfig(), {"auto_temperature": True, "hold_sparse": 1e-3, "hold_epoch": 3})


def test_settings_of_another_method():
    with pytest.raises(ValueError, match="SearchConfig has no setting auto_temperature; it has seed, "):
        configured(SearchConfig(), {"method": "darts", "auto_temperature": True})


def test_resuming_a_finished_run_changes_nothing(finished, capsys):
    output, summary, table = finished
    before = (output / "records.jsonl").read_text()
    assert search(output, "--resume", "--table", str(table), "--table-dataset", "cifar10") == summary
    assert (output / "records.jsonl").read_text() == before
    assert "this search has finished already" in capsys.readouterr().out


def test_a_folder_that_holds_a_run_is_not_overwritten(finished):
    output, *_ = finished
    with pytest.raises(FileExistsError, match=r"holds a run already: continue it \(resume\), or name another"):
        search(output)


def test_resuming_with_another_configuration_names_the_fields(finished):
    output, *_ = finished
    with pytest.raises(ValueError, match=r"alpha_lr was 0\.0012 and is now 0\.001, epochs was 3 and is now 7"):
        search(output, "--resume", "--epochs", "7", "--alpha-lr", "1e-3")


def test_resuming_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run to resume"):
        search(tmp_path / "nothing", "--resume")


def test_an_alpha_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    step = Search.step

    def poison(self, batch):
        if (self.epoch, self.progress.step) == (1, 2):
            with torch.no_grad():
                self.arch.parameters()[2][1] = torch.nan
        step(self, batch)

    monkeypatch.setattr(Search, "step", poison)
    with pytest.raises(FloatingPointError, match="alpha of '2<-1' is not finite"):
        search(tmp_path / "run")
    state = Checkpoints(tmp_path / "run").load()
    assert state["epoch"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())


def test_ctrl_c_from_outside(tmp_path):
    """A real signal to a real process; then it is resumed."""
    process = search_begun(tmp_path / "run", "--epochs", "40")
    process.send_signal(signal.SIGINT)
    stopped_with_its_state(process, tmp_path / "run", epochs=40)


def test_a_signal_to_the_workers_as_well(tmp_path):
    """Schedulers of clusters send it to every process of a run."""
    images = write_folder(tmp_path / "images", {"cat": 40, "dog": 40}, size=72)  # too large to stay in memory
    flags = ("--dataset", "folder", "--data", str(images), "--image-size", "72", "--batch-size", "4", "--workers", "1")
    process = search_begun(tmp_path / "run", *flags, "--epochs", "40")
    os.killpg(process.pid, signal.SIGTERM)
    stopped_with_its_state(process, tmp_path / "run", epochs=40)


def search_begun(output, *flags):
    """A search in a process group of its own, after its first epoch."""
    command = [sys.executable, str(SCRIPT), *TINY_FLAGS, *flags, "--output", str(output)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not (output / "records.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return process


def stopped_with_its_state(process, folder, epochs):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "stopped in epoch" in output
    assert "Traceback" not in output
    done = len(records(folder))
    assert Checkpoints(folder).load()["epoch"] == done < epochs


def test_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a shell
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_file_is_replaced_as_a_whole(tmp_path):
    folder = RunFolder(tmp_path / "run", {"seed": 0}, resume=False)
    folder.save_checkpoint({"epoch": 1}, 1)

    class Unsavable:
        def __reduce__(self):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.save_checkpoint({"epoch": 2, "bad": Unsavable()}, 2)
    assert folder.load_checkpoint() == {"epoch": 1}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            [],
            {"preset": "paper", "dataset": "digits", "cells": 5, "batch_size": 256, "sparse": 1.1e-3, "smooth": 1.1e-2},
        ),
        (["--dataset", "cifar100"], {"sparse": 1.3e-3, "smooth": 1.3e-2, "p_up": 0.9, "warmup_epochs": 1}),
        (["--preset", "fast"], {"threshold": 1e-3, "evaluate_limit": 5000, "sparse": 1.1e-3}),
        (["--preset", "authors"], {"smooth": 11 * 1.1e-3, "clip_alphas": True, "sampling": "replacement"}),
        (["--preset", "authors", "--dataset", "cifar100"], {"hold_epoch": 45, "hold_sparse": 6e-4}),
        (["--preset", "proxy", "--dataset", "cifar10"], {"cells": 1, "image_size": 16, "limit": 12_800, "epochs": 25}),
        (
            ["--method", "darts"],
            {"weight_lr": 0.025, "alpha_weight_decay": 1e-3, "eval_temperature": 1.0},
        ),
        (["--method", "darts", "--batch-size", "7"], {"batch_size": 7}),
    ],
)
def test_presets_and_flags(flags, expected):
    config = nb201_cli.configure(flags)
    assert {name: config.settings[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"eval_temperature": 0.0}, r"eval_temperature must be positive, got 0\.0"),
        ({"hold_epoch": 3, "hold_sparse": -1.0}, r"hold_sparse must be positive, got -1\.0"),
        ({"hold_sparse": 1e-4}, r"hold_sparse=0\.0001 needs a hold_epoch"),
        ({"warmup_smooth": 1e-3}, r"warmup_smooth must be above sparse, got 0\.001 and 0\.0011"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
        ({"p_low": 0.5, "p_up": 0.2}, r"need p_low in \[0, 1\] and p_up >= p_low, got 0\.5 and 0\.2"),
    ],
)
def test_settings_that_make_no_search(settings, message):
    with pytest.raises(ValueError, match=message):
        configured(SearchConfig(), settings)


def test_settings_that_make_no_search_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        nb201_cli.configure(["--epochs", "0"])
    assert "epochs must be at least 1, got 0" in capsys.readouterr().err


def test_an_unknown_preset(capsys):
    with pytest.raises(SystemExit):
        nb201_cli.configure(["--preset", "best"])
    assert "invalid choice: 'best'" in capsys.readouterr().err


def test_a_device_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="the device cuda is not available here; found cpu"):
        make_accelerator("cuda")


def test_half_precision_is_refused(monkeypatch):
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    with pytest.raises(RuntimeError, match=r"float32 or bf16, got fp16: it scales one loss.* --mixed_precision bf16"):
        make_accelerator("cpu")


def test_bfloat16(finished, tmp_path):
    """Weights and alphas stay in float32; the run knows its precision, and goes on in no other."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command = [*launch, "--mixed_precision", "bf16", str(SCRIPT), *TINY_FLAGS, "--output", str(tmp_path / "run")]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["precision"] == "bf16"
    state = Checkpoints(tmp_path / "run").load()
    assert {value.dtype for value in state["model"].values() if value.is_floating_point()} == {torch.float32}
    ours, theirs = records(tmp_path / "run")[-1], records(finished[0])[-1]
    assert ours["train_loss"] != theirs["train_loss"]
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.2)
    with pytest.raises(ValueError, match="precision was 'bf16' and is now None"):
        search(tmp_path / "run", "--resume")


def test_a_configuration_that_cannot_run_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="got warmup_epochs=3 of 3 epochs"):
        search(tmp_path / "run", "--warmup-epochs", "3")
    assert not (tmp_path / "run").exists()


def test_a_table_without_the_data_set(finished):
    output, _, table = finished
    with pytest.raises(ValueError, match=r"no column for 'digits': name one of cifar10, .* by --table-dataset"):
        search(output, "--table", str(table))


def test_thresholds_and_audits(tmp_path):
    search(tmp_path / "run", "--threshold", "1e-2", "--audit-every", "2", "--audit-thresholds", "1e-2", "0.1")
    for record in records(tmp_path / "run"):
        assert [(a["step"], a["threshold"]) for a in record["audits"]] == [
            (s, t) for s in (0, 2, 4) for t in (1e-2, 0.1)
        ]
        assert all(0 <= a["gradient"] < 1 and 0 < a["executed"] <= 1 for a in record["audits"])


def test_losses_that_are_not_finite_stop_a_search_whose_alphas_are_set(tmp_path):
    with pytest.raises(FloatingPointError, match="the losses of epoch 1 add up to nan"):
        search(tmp_path / "run", "--method", "random-search", "--weight-lr", "1e12")


def test_a_run_without_its_checkpoints_is_not_begun_anew(tmp_path):
    search(tmp_path / "run")
    before = (tmp_path / "run" / "records.jsonl").read_text()
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        checkpoint.unlink()
    with pytest.raises(ValueError, match=r"has no checkpoint to resume from, though its records\.jsonl lists"):
        search(tmp_path / "run", "--resume")
    assert (tmp_path / "run" / "records.jsonl").read_text() == before


def test_accuracies_of_another_epoch_are_not_those_of_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(Search, "_result", lambda self, records: 0)
    summary = search(tmp_path / "run", "--evaluate-every", "3")
    assert "discretized_accuracy" in records(tmp_path / "run")[2]
    assert summary["result_epoch"] == 0
    assert not {"discretized_accuracy", "supernet_accuracy", "output_leakage"} & summary.keys()
    monkeypatch.setattr(Search, "_result", lambda self, records: 2)
    assert "discretized_accuracy" in search(tmp_path / "run", "--evaluate-every", "3", "--resume")
