import json
import shlex
import textwrap

import pytest
import timm
import torch

from sparsemix.cli import timm_model, train
from sparsemix.inject import choose_
from sparsemix.runs.epoch_table import compact
from sparsemix.runs.search import Search

TINY = [
    "--preset",
    "proxy",
    "--device",
    "cpu",
    "--image-size",
    "32",
    "--limit",
    "128",
    "--epochs",
    "2",
    "--batch-size",
    "32",
    "--model",
    "resnet10t",
]


def search(output, *flags):
    return timm_model.search(timm_model.configure([*TINY, "--output", str(output), *flags]))


def test_a_search_leaves_a_network_that_can_be_built_again(tmp_path, capsys):
    summary = search(tmp_path / "run", "--mix", "activation", "--where", "layer[12]*", "--share", "1")
    folder = tmp_path / "run"
    choice = json.loads((folder / "choice.json").read_text())
    assert choice.keys() == {f"layer{stage}.0.act{i}" for stage in (1, 2) for i in (1, 2)}
    shown = capsys.readouterr().out
    snippet = shown.split("to build it:\n")[1]
    names = {}
    exec(textwrap.dedent(snippet), names)  # as it is printed

    network = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    choose_(network, "activation", choice, example=torch.zeros(1, 1, 32, 32))
    network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(names["model"].eval()(x), network.eval()(x))
    rows = {path.split(".")[0]: name for path, name in choice.items()}
    assert summary["genotype"] == ", ".join(f"{row}: {name}" for row, name in rows.items())

    command = next(line for line in shown.splitlines() if "sparsemix train" in line)
    flags = [*shlex.split(command)[2:], "--preset", "proxy", "--epochs", "1", "--output", str(tmp_path / "trained")]
    trained = train.train(train.configure(flags))
    assert trained["parameters"] == sum(p.numel() for p in network.parameters())
    assert trained["choice"] == choice
    weights = torch.load(tmp_path / "trained" / "weights.pt", weights_only=True)
    assert weights.keys() == network.state_dict().keys()


def test_a_choice_goes_with_its_model(capsys):
    with pytest.raises(SystemExit, match="2"):
        train.configure(["--choice", "choice.json", "--mix", "kernel"])
    assert "--mix, too, got None and kernel" in " ".join(capsys.readouterr().err.split())


def test_a_budget_steers_the_choice(tmp_path):
    free = search(tmp_path / "free", "--mix", "kernel", "--where", "layer1*", "--alpha-lr", "1e-2")
    costs = json.loads((tmp_path / "free" / "costs.json").read_text())
    cheapest = costs["fixed"] + sum(min(row.values()) for row in costs["rows"].values())
    flags = ["--alpha-lr", "1e-2", "--epochs", "4", "--cost-weight", "100", "--cost-budget", str(1.01 * cheapest)]
    bound = search(tmp_path / "bound", "--mix", "kernel", "--where", "layer1*", *flags)
    assert bound["cost"] <= 1.01 * cheapest
    assert bound["cost"] <= free["cost"]


def test_latency_is_measured(tmp_path):
    summary = search(tmp_path / "run", "--mix", "skip", "--where", "layer?.0", "--measure-latency", "--epochs", "2")
    assert json.loads((tmp_path / "run" / "costs.json").read_text())["unit"] == "seconds"
    assert 0 < summary["cost"] < 10


def test_a_budget_that_no_choice_keeps(tmp_path):
    with pytest.raises(ValueError, match="no choice keeps a budget of 10 macs; the cheapest costs"):
        search(tmp_path / "run", "--where", "layer1*", "--cost-budget", "10")
    assert not (tmp_path / "run").exists()


def test_resuming_a_finished_search(tmp_path):
    flags = ["--mix", "activation", "--where", "layer1*"]
    assert search(tmp_path / "run", *flags) == search(tmp_path / "run", *flags, "--resume")


def test_a_model_of_fixed_image_size_in_one_epoch(tmp_path):
    flags = ["--model", "vit_tiny_patch16_224", "--mix", "token_mixer", "--where", "blocks.1*.attn", "--epochs", "1"]
    summary = search(tmp_path, *flags)
    assert summary["genotype"].count("blocks.1") == 3  # 1, 10 and 11


@pytest.mark.parametrize(("text", "value"), [("2.2M", 2.2e6), ("800k", 8e5), ("1.5G", 1.5e9), ("2.2e6", 2.2e6)])
def test_a_budget_with_a_unit(text, value):
    config = timm_model.configure(["--cost-budget", text])
    assert config.mixed.cost_budget == pytest.approx(value)


def test_what_is_printed(tmp_path, capsys, caplog):
    """The budget beside the cost, no skips where there are none, and nothing of timm's about one epoch."""
    search(tmp_path / "run", "--mix", "kernel", "--where", "layer1*", "--epochs", "1", "--cost-budget", "1G")
    [heading] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert "macs of 1.00G" in heading
    assert "skips" not in heading
    assert "Cosine annealing" not in caplog.text


@pytest.mark.parametrize(("result", "has_weights"), [(1, True), (0, False)], ids=["kept", "not kept"])
def test_everything_that_is_kept_is_of_the_epoch_that_is_the_result(tmp_path, monkeypatch, capsys, result, has_weights):
    monkeypatch.setattr(Search, "_result", lambda self, records: min(result, len(records) - 1))
    monkeypatch.setattr(Search, "best_epoch", lambda self: None)  # only the two newest checkpoints are kept
    folder = tmp_path / "run"
    flags = ["--mix", "kernel", "--where", "layer[12]*", "--epochs", "3", "--method", "straight-through"]
    summary = search(folder, *flags, "--alpha-lr", "1")
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert len({record["genotype"] for record in records}) == 3, "each epoch has its own choice"
    choice, costs = (json.loads((folder / name).read_text()) for name in ("choice.json", "costs.json"))
    assert summary["genotype"] == records[result]["genotype"] == ", ".join(map(": ".join, choice.items()))
    cost = costs["fixed"] + sum(costs["rows"][row][name] for row, name in choice.items())
    assert f"{compact(cost)} macs; to train it from scratch" in capsys.readouterr().out
    assert (folder / "weights.pt").exists() == has_weights
    if has_weights:
        network = timm.create_model("resnet10t", num_classes=10, in_chans=1)
        choose_(network, "kernel", choice, example=torch.zeros(1, 1, 32, 32))
        weights = torch.load(folder / "weights.pt", weights_only=True)
        network.load_state_dict(weights)
        [then] = folder.glob(f"checkpoint-{result + 1:05}-*.pt")
        assert torch.equal(weights["conv1.0.weight"], torch.load(then, weights_only=True)["model"]["conv1.0.weight"])


def test_a_model_of_fixed_image_size_is_searched_and_trained(tmp_path, capsys):
    vit = ["--model", "vit_tiny_patch16_224", "--mix", "skip", "--where", "blocks.[01].mlp", "--epochs", "1"]
    search(tmp_path / "run", *vit)
    command = next(line for line in capsys.readouterr().out.splitlines() if "sparsemix train" in line)
    flags = [*shlex.split(command)[2:], "--preset", "proxy", "--epochs", "1", "--limit", "64", "--batch-size", "32"]
    assert train.train(train.configure([*flags, "--output", str(tmp_path / "trained")]))["parameters"] > 5e6


def test_a_budget_needs_trained_alphas(tmp_path):
    with pytest.raises(ValueError, match="which random-search does not train"):
        search(tmp_path / "run", "--mix", "kernel", "--method", "random-search", "--cost-budget", "10M")
