"""Every preset of every script against the tables of docs/presets.md, all fields that no table lists included."""

from dataclasses import asdict
from pathlib import Path

import pytest

from sparsemix.cli.darts import DartsConfig
from sparsemix.cli.timm_model import PRESETS as TIMM
from sparsemix.cli.timm_model import TimmConfig
from sparsemix.methods.schedule import sparse_probability
from sparsemix.runs.config import SearchConfig, config_from_flags
from sparsemix.runs.training import PRESETS as TRAININGS
from sparsemix.runs.training import RetrainConfig, retrain_config_from_flags
from sparsemix.spaces import darts, nb201, robust

PAGE = (Path(__file__).parent.parent / "docs/presets.md").read_text()

# heading -> (presets, configuration, method)
SEARCHES = {
    "NAS-Bench-201, sp-darts": (nb201.PRESETS, SearchConfig, "sp-darts"),
    "NAS-Bench-201, darts": (nb201.PRESETS, SearchConfig, "darts"),
    "DARTS space, sp-darts": (darts.PRESETS, DartsConfig, "sp-darts"),
    "DARTS space and S1 to S4, darts": (darts.PRESETS, DartsConfig, "darts"),
    "S1 to S4, sp-darts": (robust.PRESETS, DartsConfig, "sp-darts"),
    "Models of timm, sp-darts": (TIMM, TimmConfig, "sp-darts"),
    "Models of timm, darts": (TIMM, TimmConfig, "darts"),
}


def documented(heading):
    """Preset as its column names it, such as "paper, cifar100" -> field -> what the page says."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    (_, *columns, source), _, *fields = rows
    assert source == "source"
    assert all(row[-1] for row in fields), "every field has a source"
    return {name: {row[0].strip("`"): row[i] for row in fields} for i, name in enumerate(columns, 1)}


def said(value):
    """A value as the page writes it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def check(heading, presets, resolve, kind, chosen):
    columns = documented(heading)
    assert set(columns) == {name if d == "*" else f"{name}, {d}" for name, of in presets.items() for d in of}
    for column, fields in columns.items():
        preset, _, dataset = column.partition(", ")
        flags = ["--preset", preset, *(["--dataset", dataset] if dataset else [])]
        config, default = asdict(resolve(flags, dataset)), asdict(kind())
        assert {field: said(config[field]) for field in fields} == fields, column
        others = set(config) - set(fields) - chosen
        assert {f: config[f] for f in others} == {f: default[f] for f in others}, column


@pytest.mark.parametrize("heading", SEARCHES)
def test_searches(heading):
    presets, kind, method = SEARCHES[heading]

    def resolve(flags, dataset):
        other = [] if dataset else ["--dataset", "svhn"]  # a data set without settings of its own
        return config_from_flags(presets, [*flags, *other, "--method", method], kind)

    check(heading, presets[method], resolve, kind, {"preset", "method", "dataset"})


def test_trainings():
    def resolve(flags, dataset):
        other = [] if dataset or "imagenet" in flags else ["--dataset", "cifar10"]
        return retrain_config_from_flags([*flags, *other])

    assert retrain_config_from_flags(["--preset", "imagenet"]).dataset == "folder"
    check("Training from scratch", TRAININGS, resolve, RetrainConfig, {"preset", "dataset"})


def test_every_preset_has_a_row_of_what_it_is():
    rows = PAGE.split("\n## ")[0]
    for presets, _, method in SEARCHES.values():
        for preset in presets[method]:
            assert f"| `{preset}` |" in rows or preset == "default"


def test_the_first_preset_of_a_method_is_its_default():
    assert config_from_flags(nb201.PRESETS, []).preset == "paper"
    assert config_from_flags(nb201.PRESETS, ["--method", "darts"]).preset == "nas-bench-201"
    assert config_from_flags(darts.PRESETS, ["--method", "darts"], DartsConfig).preset == "original"


def test_a_preset_of_another_method(capsys):
    with pytest.raises(SystemExit):
        config_from_flags(nb201.PRESETS, ["--method", "darts", "--preset", "paper"])
    assert "invalid choice: 'paper' (choose from 'nas-bench-201', 'authors', 'proxy')" in capsys.readouterr().err


def probabilities(config):
    return [
        sparse_probability(epoch, config.epochs, config.p_low, config.p_up, config.warmup_epochs)
        for epoch in range(config.epochs)
    ]


def test_p_in_the_epochs_that_published_code_logs():
    nb = probabilities(config_from_flags(nb201.PRESETS, ["--preset", "authors"]))
    assert [round(nb[epoch], 4) for epoch in (0, 1, 25, 49)] == [0, 0.0204, 0.5102, 1]
    s = probabilities(config_from_flags(robust.PRESETS, ["--preset", "authors"], DartsConfig))
    assert s == pytest.approx([min(1, 0.8 + 0.006 * (epoch + 1)) for epoch in range(50)])
    assert s.index(1) == 33
