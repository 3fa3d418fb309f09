"""From a search of the DARTS space to a trained network, through the command line, on the embedded data."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_data import write_folder
from torch import nn

from sparsemix.cli import darts as darts_search
from sparsemix.cli import pick
from sparsemix.cli import robust as robust_search
from sparsemix.cli import train as train_command
from sparsemix.cli.flags import search_config
from sparsemix.data import DATASETS, ResidentTraining, open_training, stratified_subset
from sparsemix.measure.cost import network_cost
from sparsemix.report.records import load_run
from sparsemix.runs.checkpoints import Checkpoints
from sparsemix.runs.config import configured
from sparsemix.runs.launching import Interrupted
from sparsemix.runs.learning_rate import schedule as learning_rates
from sparsemix.runs.training import Training
from sparsemix.runs.training_config import PRESETS, TrainingConfig
from sparsemix.spaces import darts
from sparsemix.spaces.darts import DartsGenotype, read_genotype, robust

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY_SEARCH = ["--preset", "proxy", "--channels", "2", "--cells", "3", "--epochs", "2", "--limit", "120"]
TINY_SEARCH += ["--batch-size", "60"]
TINY_TRAINING = [
    "--genotype",
    "DARTS_V2",
    "--preset",
    "proxy",
    "--channels",
    "2",
    "--cells",
    "3",
    "--epochs",
    "2",
    "--limit",
    "400",
]


def train(output, *flags):
    return train_command.train(train_command.configure([*TINY_TRAINING, "--output", str(output), *flags]))


@pytest.mark.parametrize("flags", [[], ["--method", "darts", "--space", "darts-none", "--read-out", "authors"]])
def test_search_and_train_what_it_found(tmp_path, flags, capsys):
    summary = darts_search.search(darts_search.configure([*TINY_SEARCH, *flags, "--output", str(tmp_path / "s")]))
    genotype = read_genotype(tmp_path / "s" / "genotype.json")
    assert str(genotype) == summary["genotype"]
    assert summary["skips"] == genotype.skips
    command = capsys.readouterr().out.split("to train it from scratch: ")[1].splitlines()[0].split()
    assert command[:3] == ["sparsemix", "train", "--genotype"]
    smaller = ["--epochs", "2", "--limit", "400", "--output", str(tmp_path / "t")]
    trained = train_command.train(train_command.configure([*command[2:], *smaller]))
    assert 0 <= trained["best_error"] <= trained["error"] <= 1
    assert trained["judged_on"] == "held-out images"
    assert trained["genotype"] == summary["genotype"]
    training = load_run(tmp_path / "t")
    assert (training.kind, training.what) == ("training", summary["genotype"])


@pytest.mark.parametrize("space", robust.SPACES)
def test_robust_spaces(tmp_path, space):
    flags = [*TINY_SEARCH, "--epochs", "2", "--space", space, "--output", str(tmp_path / "s"), "--threshold", "1e-3"]
    summary = darts_search.search(robust_search.configure(flags))
    genotype = DartsGenotype.parse(summary["genotype"])
    for kind in genotype.CELLS:
        assert all(operation in robust.SPACES[space][kind][edge] for edge, operation in genotype.edges(kind).items())


def test_selections_are_protocols_that_flags_change():
    """Of the peers: four seeds, each result trained for 100 epochs as in full, and judged on half of the images."""
    peers = pick.configure(["--space", "s2", "--selection", "peers", "--dataset", "cifar100"])
    assert (peers.selection.seeds, peers.selection.temperatures, peers.preset) == ((0, 1, 2, 3), (), "paper")
    training = pick.training_of(peers, "DARTS_V2", Path("runs/x")).settings
    expected = {"epochs": 100, "holdout": 0.5, "channels": 16, "cells": 8, "batch_size": 96}
    expected |= {"auxiliary": 0.4, "cutout": 16, "drop_path": 0.2}
    assert {name: training[name] for name in expected} == expected
    paper = pick.configure(["--space", "s3", "--selection", "paper", "--train-epochs", "50"])
    paper = paper.selection
    assert (paper.seeds, paper.temperatures, paper.train_epochs) == ((0,), (4e-4, 5e-4, 6e-4, 7e-4), 50)
    proxy = pick.configure(["--space", "s3", "--preset", "proxy"]).selection
    assert (proxy.selection, proxy.seeds, proxy.train_preset, proxy.train_epochs) == ("proxy", (0, 1), "proxy", None)


def test_pick_searches_trains_and_picks_the_best(tmp_path, capsys):
    flags = [*TINY_SEARCH, "--epochs", "2", "--space", "s2", "--train-epochs", "1", "--output", str(tmp_path)]
    flags += ["--seeds", "0", "1", "--temperatures", "4e-4", "7e-4"]
    config = pick.configure(flags)
    result = pick.pick(config)
    accuracies = {c["name"]: c["accuracy"] for c in result["candidates"]}
    assert set(accuracies) == {"t0.0004-seed0", "t0.0004-seed1", "t0.0007-seed0", "t0.0007-seed1"}
    assert accuracies[result["picked"]] == max(accuracies.values())
    for name in accuracies:
        searched = json.loads((tmp_path / f"search-{name}" / "config.json").read_text())
        assert searched["sparse"] == float(name.split("-")[0][1:])
        assert searched["smooth"] == pytest.approx(10 * searched["sparse"])
        assert (tmp_path / f"train-{name}" / "summary.json").exists()
    assert "to train it in full: sparsemix train --genotype" in capsys.readouterr().out
    records = (tmp_path / "search-t0.0004-seed0" / "records.jsonl").read_text()
    assert pick.pick(config) == result  # nothing is done twice
    assert (tmp_path / "search-t0.0004-seed0" / "records.jsonl").read_text() == records
    with pytest.raises(ValueError, match="holds a run with another configuration: epochs was 1 and is now 3"):
        pick.pick(configured(config, {"train_epochs": 3}))


def test_a_timm_model_is_trained_by_the_same_script(tmp_path):
    summary = train(tmp_path / "t", "--model", "test_resnet", "--epochs", "1")
    assert summary["model"] == "test_resnet"
    assert summary["genotype"] is None


@pytest.mark.parametrize("stop_at", [2, 4, 5])
def test_interrupted_and_resumed_is_as_if_never_interrupted(tmp_path, interrupted, stop_at):
    """Within an epoch and at its end, with drop path, an auxiliary classifier and averaged weights; to the last bit."""
    flags = ["--drop-path", "0.3", "--ema", "0.9", "--limit", "120", "--image-size", "32", "--auxiliary", "0.4"]
    flags += ["--batch-size", "24"]
    whole = train(tmp_path / "whole", *flags)
    message = r"to go on: python .* --resume$"
    with interrupted(torch.optim.SGD, "step", stop_at), pytest.raises(Interrupted, match=message):
        train(tmp_path / "parts", *flags)
    torch.manual_seed(99)
    parts = train(tmp_path / "parts", *flags, "--resume")
    assert {**parts, "seconds": 0} == {**whole, "seconds": 0}
    a, b = (Checkpoints(tmp_path / name).load() for name in ("whole", "parts"))
    for name, value in a["model"].items():
        assert torch.equal(value, b["model"][name]), name
    for name, value in a["ema"].items():
        assert torch.equal(value, b["ema"][name]), name


def test_a_loss_that_is_not_finite(tmp_path):
    with pytest.raises(FloatingPointError, match="the loss of epoch 1 is nan: start anew with a lower learning rate"):
        train(tmp_path / "t", "--lr", "1e30", "--max-norm", "1e30")


def test_the_drop_path_rises_linearly_and_the_learning_rate_falls(tmp_path):
    config = train_command.configure(
        [*TINY_TRAINING, "--epochs", "4", "--drop-path", "0.4", "--output", str(tmp_path / "t")]
    )
    rates = []
    original = Training.record

    def watching(self):
        rates.append(self.model.cells[0].drop_path.drop_prob)
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "record", watching)
        train_command.train(config)
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    lines = (tmp_path / "t" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["lr"] for line in lines] == pytest.approx(
        [0.025, 0.025 * 0.853553, 0.0125, 0.025 * 0.146447], rel=1e-4
    )  # half a cosine, by hand


@pytest.mark.parametrize(
    ("space", "preset", "expected"),
    [("darts", "proxy", "proxy"), ("s2", "proxy", "proxy"), ("darts", "paper", "cifar"), ("s3", "authors", "robust")],
)
def test_the_printed_command_is_a_training_that_can_begin(space, preset, expected):
    flags = ["--space", space, "--preset", preset, "--dataset", "cifar10"]
    of_space = darts.ROBUST_SETTINGS if space in robust.SPACES else darts.SETTINGS
    search = search_config(darts_search.DartsConfig, of_space, flags)
    command = darts_search.retrain_command(search, Path("runs/x")).split()
    config = train_command.configure(command[2:])
    assert (config.preset, config.network.genotype) == (expected, "runs/x/genotype.json")
    assert config.data.image_size == search.data.image_size


def test_nothing_to_train():
    with pytest.raises(ValueError, match=r"what is to be trained\? Give --genotype, one of NASNet, .*; or --model"):
        train_command.train(train_command.configure(["--preset", "proxy"]))


def test_what_does_not_fit_shows_before_there_is_a_run(tmp_path):
    with pytest.raises(ValueError, match="auxiliary classifier needs 8x8 after the second reduction"):
        train(tmp_path / "t", "--auxiliary", "0.4")
    assert not (tmp_path / "t").exists()
    with pytest.raises(ValueError, match="a cutout of 16 leaves nothing of images of size 8"):
        train(tmp_path / "t", "--cutout", "16")
    assert not (tmp_path / "t").exists()


def test_a_table_has_no_place_in_this_space(tmp_path):
    config = configured(darts_search.DartsConfig(), {"table": tmp_path / "table.csv"})
    with pytest.raises(ValueError, match="there is no table of the space 'darts'"):
        darts_search.search(config)


def test_presets_are_the_papers():
    expected = {
        ("--dataset", "cifar10"): {
            "epochs": 600, "batch_size": 64, "channels": 36, "cells": 20, "lr": 0.025,
            "weight_decay": 3e-4, "max_norm": 5, "auxiliary": 0.4, "cutout": 16, "drop_path": 0.3,
        },
        ("--preset", "robust", "--dataset", "svhn"): {"batch_size": 96, "drop_path": 0.2, "channels": 16, "cells": 8},
        ("--preset", "imagenet"): {
            "epochs": 250, "batch_size": 768, "lr": 0.5, "sched": "linear",
            "smoothing": 0.1, "warmup_epochs": 5, "dataset": "folder",
        },
    }  # fmt: skip
    for flags, some in expected.items():
        config = train_command.configure([*flags])
        assert {name: config.settings[name] for name in some} == some
    assert set(PRESETS) == {"cifar", "robust", "imagenet", "proxy"}


def test_the_learning_rate_of_the_imagenet_recipe():
    """DrNAS's ``adjust_lr`` and warm-up, epoch by epoch."""
    config = train_command.configure(["--preset", "imagenet"])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.optimization.lr)
    schedule = learning_rates(optimizer, config.optimization.sched, 250, config.optimization.warmup_epochs)
    rates = []
    for epoch in range(250):
        schedule.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    warmup = [0.5 * (epoch + 1) / 5 for epoch in range(5)]
    line = [0.5 * (250 - 5 - epoch) / (250 - 5) for epoch in range(5, 245)]
    end = [0.5 * (250 - epoch) / ((250 - 5) * 5) for epoch in range(245, 250)]
    assert rates == pytest.approx([*warmup, *line, *end])
    listed = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.5, 244: 0.00204, 249: 0.00041}
    assert {epoch: round(rates[epoch], 5) for epoch in listed} == listed
    with pytest.raises(ValueError, match="a linear schedule takes more than 5 epochs, got 5"):
        configured(TrainingConfig(), {"sched": "linear", "epochs": 5})


def test_top_5_errors_where_there_are_more_classes(tmp_path, capsys):
    summary = train(tmp_path / "t", "--epochs", "1")
    assert 0 <= summary["top5_error"] < summary["error"]
    assert f"top-5 {summary['top5_error']:.2%} at the end" in capsys.readouterr().out


def test_a_network_over_the_line_of_the_mobile_setting(tmp_path, monkeypatch, capsys):
    """Said by the preset of the mobile setting; the line is lowered for a small network on small images."""
    root = write_folder(tmp_path / "a", {"cat": 4, "dog": 4}, size=96)
    flags = [
        "--genotype",
        "DARTS_V2",
        "--preset",
        "imagenet",
        "--data",
        str(root),
        "--test-data",
        str(root),
        "--image-size",
        "96",
    ]
    flags += ["--epochs", "6", "--batch-size", "4", "--workers", "0", "--auxiliary", "0", "--channels", "8"]
    monkeypatch.setattr("sparsemix.runs.training.MOBILE_MACS", 3e6)
    monkeypatch.setattr(Training, "begin_epoch", stop_here)
    for cells, said in ((3, False), (14, True)):
        output = ["--output", str(tmp_path / str(cells)), "--cells", str(cells)]
        config = train_command.configure([*flags, *output])
        with pytest.raises(Interrupted):
            train_command.train(config)
        assert ("over the 3 M of the mobile setting" in capsys.readouterr().out) == said


def stop_here(*args):
    raise Interrupted


@pytest.mark.parametrize(("field", "value"), [("epochs", 0), ("auxiliary", 1.5), ("drop_path", -0.1), ("ema", 1.0)])
def test_settings_that_are_none(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        configured(TrainingConfig(), {field: value})


def test_cost_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 5))
    counted = network_cost(model, torch.zeros(1, 1, 4, 4))
    assert counted.macs == 16 * 2 * 9 + 32 * 5
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert model.training
    assert model[1].num_batches_tracked == 0


# Data


def test_held_out_images_are_not_trained_on():
    data = open_training("digits", holdout=0.25, batch_size=50)
    tested = torch.cat([x for x, _ in data.test()]).flatten(1)
    trained = torch.cat([x for x, _ in data._train.plain(100)]).flatten(1)
    assert len(tested) == round(0.25 * (len(tested) + len(trained)))
    seen = {row.numpy().tobytes() for row in trained}
    assert not any(row.numpy().tobytes() in seen for row in tested)
    held, kept = (torch.cat([y for _, y in part]).bincount() for part in (data.test(), data._train.plain(100)))
    assert (held - 0.25 * (held + kept)).abs().max() <= 1


def test_without_a_holdout_the_test_images_judge():
    data = open_training("digits", batch_size=50)
    assert sum(len(y) for _, y in data.test()) == 1797 // 6


def test_cutout_blanks_a_square_around_a_random_pixel():
    data = open_training("digits", batch_size=256, cutout=4, image_size=16)
    assert isinstance(data, ResidentTraining)
    x, _ = next(data.epoch(0))
    blank = (x == 0).flatten(1).sum(1)
    assert x.shape[1:] == (1, 16, 16)
    assert int(blank.max()) >= 16  # a whole square, where it does not reach over the border
    assert int(blank.min()) >= 4  # at a corner a quarter of it
    again, _ = next(data.epoch(0))
    assert torch.equal(x, again)


def test_folders_with_test_images_of_their_own_or_held_out(tmp_path):
    root, test_root = (
        write_folder(tmp_path / "a", {"cat": 8, "dog": 8}),
        write_folder(tmp_path / "b", {"cat": 3, "dog": 3}),
    )
    data = open_training("folder", root=root, test_root=test_root, batch_size=4)
    assert (len(data), sum(len(y) for _, y in data.test())) == (4, 6)
    held = open_training("folder", root=root, holdout=0.25, batch_size=4)
    assert (len(held), sum(len(y) for _, y in held.test())) == (3, 4)
    with pytest.raises(ValueError, match="judged on"):
        open_training("folder", root=root)
    write_folder(tmp_path / "c", {"cat": 1, "fox": 1})
    with pytest.raises(ValueError, match="has the classes"):
        open_training("folder", root=root, test_root=tmp_path / "c")


def test_incomplete_batches_are_kept_but_for_single_images(tmp_path):
    """As the peers' loaders keep them; one image alone has no batch statistics."""
    digits = DATASETS["digits"](Path(), True, False)
    sizes = {}
    for n in (96, 97, 98):
        data = ResidentTraining(digits[stratified_subset(digits.labels, n, 0)], digits, 32)
        sizes[n] = [len(y) for _, y in data.epoch(0)]
        assert len(data) == len(sizes[n])
    assert sizes == {96: [32] * 3, 97: [32] * 3, 98: [32, 32, 32, 2]}
    root = write_folder(tmp_path / "a", {"cat": 6, "dog": 5}, size=80)
    for batch_size, expected in ((4, [4, 4, 3]), (5, [5, 5])):
        data = open_training("folder", root=root, test_root=root, batch_size=batch_size, workers=0)
        assert [len(y) for _, y in data.epoch(0)] == expected
        assert len(data) == len(expected)


def test_larger_images_are_streamed(tmp_path):
    root = write_folder(tmp_path / "a", {"cat": 6, "dog": 6}, size=80)
    data = open_training("folder", root=root, holdout=0.5, batch_size=2, workers=0)
    batches = list(data.epoch(0))
    assert len(batches) == len(data) == 3
    assert batches[0][0].shape == (2, 3, 80, 80)
    assert sum(len(y) for _, y in data.test()) == 6
    assert len(list(data.epoch(0, start=2))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "mnist"}, "unknown data set 'mnist'"),
        ({"holdout": 1.0}, r"the holdout must be in \[0, 1\), got 1.0"),
        ({"limit": 30, "holdout": 0.5, "batch_size": 64}, "batches of 64 cannot be cut from 15 training images"),
    ],
)
def test_data_that_is_none(options, message):
    with pytest.raises(ValueError, match=message):
        open_training(**{"dataset": "digits", **options})


def test_a_launcher_for_timm_s_scripts(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, timm\nprint(timm.is_model(sys.argv[1]), sys.argv[0].endswith('script.py'))\n")
    shown = subprocess.run(
        [sys.executable, BENCHMARKS / "with_timm.py", script, "sparsemix_darts_cifar"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.split() == ["True", "True"]


def test_training_and_test_images_that_disagree():
    digits = DATASETS["digits"](Path(), True, False)
    with pytest.raises(ValueError, match="training and test images disagree: images of"):
        ResidentTraining(digits, digits.resized(16), 4)


def test_digits_are_not_blanked_entirely():
    """The presets' cutout of 16 is for images of 32x32."""
    for preset in ("cifar", "robust"):
        config = train_command.configure(["--genotype", "DARTS_V2", "--dataset", "digits", "--preset", preset])
        batch, _ = next(open_training(**config.data_options()).epoch(0))
        assert (batch != 0).flatten(1).any(1).all()
    with pytest.raises(ValueError, match="a cutout of 8 leaves nothing of images of size 8"):
        open_training("digits", cutout=8)


@pytest.mark.parametrize(("size", "cutout"), [(16, "8"), (32, "16")])
def test_the_command_for_training_fits_small_images(size, cutout):
    config = darts_search.configure(["--image-size", str(size), "--preset", "paper", "--dataset", "cifar10"])
    words = darts_search.retrain_command(config, Path("runs/x")).split()
    assert words[words.index("--cutout") + 1] == cutout


def test_test_images_that_would_not_be_used():
    with pytest.raises(ValueError, match=r"would not be used: the network is evaluated on a holdout of 0\.2"):
        open_training("folder", test_root="test", holdout=0.2)
    with pytest.raises(ValueError, match="would not be used: the network is evaluated on the test images of digits"):
        open_training("digits", test_root="test")


def test_pick_checks_its_seeds_and_trainings_before_it_searches(tmp_path):
    flags = [*TINY_SEARCH, "--space", "s2", "--output", str(tmp_path)]
    with pytest.raises(ValueError, match="seed 0 is named twice, among 0, 1, 0"):
        pick.pick(pick.configure([*flags, "--seeds", "0", "1", "0"]))
    assert not [*tmp_path.iterdir()]
