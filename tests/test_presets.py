"""Every preset of every script against the tables of docs/presets.md, all fields that no table lists included."""

from pathlib import Path

import pytest

from sparsemix.cli.darts import DartsConfig
from sparsemix.cli.flags import search_config, training_config
from sparsemix.cli.nb201 import NB201Config
from sparsemix.cli.timm_model import TIMM, TimmConfig
from sparsemix.methods.method import Method, Part
from sparsemix.methods.registry import find_method, methods
from sparsemix.runs.config import SearchConfig, configured
from sparsemix.runs.presets import preset_names, search_settings
from sparsemix.runs.training_config import PRESETS as TRAININGS
from sparsemix.runs.training_config import TrainingConfig
from sparsemix.spaces.darts import ROBUST_SETTINGS as ROBUST
from sparsemix.spaces.darts import SETTINGS as DARTS
from sparsemix.spaces.nb201 import SETTINGS as NB201

PAGE = (Path(__file__).parent.parent / "docs/presets.md").read_text()

# heading -> (space, configuration, method)
SEARCHES = {
    "NAS-Bench-201, sp-darts": (NB201, SearchConfig, "sp-darts"),
    "NAS-Bench-201, darts": (NB201, SearchConfig, "darts"),
    "DARTS space, sp-darts": (DARTS, DartsConfig, "sp-darts"),
    "DARTS space and S1 to S4, darts": (DARTS, DartsConfig, "darts"),
    "S1 to S4, sp-darts": (ROBUST, DartsConfig, "sp-darts"),
    "Models of timm, sp-darts": (TIMM, TimmConfig, "sp-darts"),
    "Models of timm, darts": (TIMM, TimmConfig, "darts"),
    "NAS-Bench-201, gdas": (NB201, SearchConfig, "gdas"),
    "DARTS space, gdas": (DARTS, DartsConfig, "gdas"),
    "Models of timm, gdas": (TIMM, TimmConfig, "gdas"),
    "NAS-Bench-201, pt": (NB201, SearchConfig, "pt"),
    "DARTS space, pt": (DARTS, DartsConfig, "pt"),
    "Models of timm, pt": (TIMM, TimmConfig, "pt"),
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


def datasets(method, space, preset):
    """The data sets for which a preset has settings of its own; ``"*"`` for all."""
    of_method = method.presets[space.name].get(preset, {"*": {}})
    return {"*", *of_method, *space.scales.get(preset, {})}


def check(heading, columns, resolve, default, chosen):
    said_here = documented(heading)
    assert set(said_here) == {name if d == "*" else f"{name}, {d}" for name, of in columns.items() for d in of}
    for column, fields in said_here.items():
        preset, _, dataset = column.partition(", ")
        flags = ["--preset", preset, *(["--dataset", dataset] if dataset else [])]
        config = resolve(flags, dataset).settings
        assert {field: said(config[field]) for field in fields} == fields, column
        others = set(config) - set(fields) - chosen
        assert {f: config[f] for f in others} == {f: default[f] for f in others}, column


@pytest.mark.parametrize("heading", SEARCHES)
def test_searches(heading):
    space, kind, name = SEARCHES[heading]
    method = find_method(name)

    def resolve(flags, dataset):
        other = [] if dataset else ["--dataset", "svhn"]  # a data set without settings of its own
        return search_config(kind, space, [*flags, *other, "--method", name])

    columns = {preset: datasets(method, space, preset) for preset in preset_names(method, space)}
    default = configured(kind(), {"method": name}).settings
    check(heading, columns, resolve, default, {"preset", "scale", "method", "dataset"})


@pytest.mark.parametrize("name", methods())
def test_every_preset_of_every_method_makes_a_configuration(name):
    """Its settings are of the method or of a search, and pass their checks; it has a size for laptops everywhere."""
    method = find_method(name)
    for space, kind in ((NB201, NB201Config), (DARTS, DartsConfig), (ROBUST, DartsConfig), (TIMM, TimmConfig)):
        assert "proxy" in preset_names(method, space)
        known = configured(kind(), {"method": name}).settings
        for preset in preset_names(method, space):
            for dataset in ("cifar10", "cifar100", "digits"):
                settings = search_settings(method, space, preset, dataset)
                own = {field: value for field, value in settings.items() if field in known or field not in OTHERS}
                configured(kind(), own)


OTHERS = {"space", "read_out", "channels", "cells", "without"}  # settings that some spaces lack


def test_trainings():
    def resolve(flags, dataset):
        other = [] if dataset or "imagenet" in flags else ["--dataset", "cifar10"]
        return training_config([*flags, *other])

    assert training_config(["--preset", "imagenet"]).data.dataset == "folder"
    check("Training from scratch", TRAININGS, resolve, TrainingConfig().settings, {"preset", "dataset"})


def test_every_preset_has_a_row_of_what_it_is():
    rows = PAGE.split("\n## ")[0]
    for space, _, name in SEARCHES.values():
        for preset in preset_names(find_method(name), space):
            assert f"| `{preset}` |" in rows or preset == "default"


def test_the_first_preset_of_a_method_is_its_default():
    assert search_config(SearchConfig, NB201, []).preset == "paper"
    assert search_config(SearchConfig, NB201, ["--method", "darts"]).preset == "nas-bench-201"
    assert search_config(DartsConfig, DARTS, ["--method", "darts"]).preset == "original"


@pytest.mark.parametrize(("name", "setting"), [("darts-v2", ("order", "second")), ("darts-0.1", ("alpha_lr", 0.1))])
@pytest.mark.parametrize("flags", [[], ["--preset", "proxy"], ["--preset", "authors"]])
def test_variants_of_darts_differ_in_one_setting(name, setting, flags):
    """On the smallest size too, whose own learning rate of the alphas is for those that have none."""
    field, value = setting
    variant, darts = (search_config(SearchConfig, NB201, [*flags, "--method", m]).settings for m in (name, "darts"))
    assert {f for f in darts if darts[f] != variant[f]} == {"method", field}
    assert variant[field] == value


def test_a_preset_of_another_method(capsys):
    with pytest.raises(SystemExit):
        search_config(SearchConfig, NB201, ["--method", "darts", "--preset", "paper"])
    assert "invalid choice: 'paper' (choose from 'nas-bench-201', 'authors', 'proxy')" in capsys.readouterr().err


def test_any_recipe_at_the_size_of_a_laptop():
    """A scale has the last word over a method's published length, and leaves the rest of the recipe alone."""
    long = Method("long", (Part(),), "", {"nb201": {"own": {"*": {"epochs": 250, "alpha_lr": 1e-3}}}})
    full, small = (search_settings(long, NB201, "own", "cifar10", scale) for scale in ("published", "proxy"))
    assert (full["epochs"], full["cells"]) == (250, 5)
    assert (small["epochs"], small["cells"], small["alpha_lr"]) == (25, 1, 1e-3)
    config = search_config(SearchConfig, NB201, ["--preset", "authors", "--scale", "proxy", "--dataset", "cifar100"])
    assert (config.size.cells, config.method.settings["hold_epoch"]) == (1, 45)
    assert str(config.named_output("nb201")) == "runs/nb201-cifar100-sp-darts-authors-proxy-seed0"


def test_a_method_of_one_image_set_has_one_at_any_size():
    erm = search_config(NB201Config, NB201, ["--method", "gaea-erm", "--preset", "proxy"])
    assert (erm.data.split, erm.size.channels, erm.size.cells) == ("whole", 16, 1)
    bilevel = search_config(NB201Config, NB201, ["--method", "gaea-bilevel", "--scale", "proxy"])
    assert bilevel.data.split == "halves"
    alone = search_config(NB201Config, NB201, ["--method", "gaea-erm", "--preset", "without-none"])
    assert (alone.without, alone.size.epochs) == (("none",), 25)


def probabilities(config):
    epochs = config.size.epochs
    return [config.method.plan(None, epoch, epochs)["p"] for epoch in range(epochs)]


def test_p_in_the_epochs_that_published_code_logs():
    nb = probabilities(search_config(SearchConfig, NB201, ["--preset", "authors"]))
    assert [round(nb[epoch], 4) for epoch in (0, 1, 25, 49)] == [0, 0.0204, 0.5102, 1]
    s = probabilities(search_config(DartsConfig, ROBUST, ["--preset", "authors"]))
    assert s == pytest.approx([min(1, 0.8 + 0.006 * (epoch + 1)) for epoch in range(50)])
    assert s.index(1) == 33
