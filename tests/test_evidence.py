"""Tables of the documentation against the runs that they are made of, and the scripts that make them."""

import csv
import random
import re
import statistics
from pathlib import Path

import evidence
import pytest
import read_outs
import timm_budget

from sparsemix.measure.cost import CostTable
from sparsemix.spaces.nb201 import NB201Genotype

DOCS = Path(__file__).parent.parent / "docs"
COLUMNS = {
    "cifar10 test, %": ("true_cifar10_test", "{:.2f}", 1),
    "cifar100 test, %": ("true_cifar100_test", "{:.2f}", 1),
    "imagenet16-120 test, %": ("true_imagenet16-120_test", "{:.2f}", 1),
    "discretised accuracy": ("discretized_accuracy", "{:.1f}%", 100),
    "discretisation gap": ("discretization_gap", "{:+.1f}%", 100),
    "entropy": ("entropy", "{:.2f}", 1),
    "skips": ("skips", "{:.1f}", 1),
}


def test_the_table_of_all_methods():
    with (DOCS / "data" / "all-methods.csv").open() as file:
        runs = [*csv.DictReader(file)]
    section = (DOCS / "results.md").read_text().split("## All methods on one small proxy")[1].split("\n## ")[0]
    table = next(part for part in section.split("\n\n") if part.startswith("| method |"))
    lines = [line.strip("|").split("|") for line in table.splitlines()]
    headings, rows = [cell.strip() for cell in lines[0]], [[cell.strip() for cell in line] for line in lines[2:]]
    assert {row[0] for row in rows} == {run["method"] for run in runs}
    for row in rows:
        of_method = [run for run in runs if run["method"] == row[0]]
        assert [run["seed"] for run in of_method] == ["0", "1", "2"]
        for heading, (field, form, factor) in COLUMNS.items():
            values = [factor * float(run[field]) for run in of_method if run[field]]
            said = row[headings.index(heading)]
            if not values:
                assert said == "-"
                continue
            mean, deviation = (float(re.sub("[%+]", "", part)) for part in said.split(" ± "))
            tolerance = 0.051 if ".1f" in form else 0.0051
            assert abs(mean - statistics.fmean(values)) <= tolerance, (row[0], heading)
            assert abs(deviation - statistics.stdev(values)) <= tolerance, (row[0], heading)


# docs/evidence.md: each table as its command prints it

PAGE = (DOCS / "evidence.md").read_text()


def test_the_tables_of_searches(tmp_path, capsys):
    (tmp_path / "data").symlink_to(DOCS / "data")
    evidence.main(evidence.Options(docs=tmp_path))
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == len(evidence.TABLES)
    assert [table for table in tables if table not in PAGE] == []
    assert {figure.name for figure in tmp_path.glob("*.png")} == {figure.name for figure in DOCS.glob("evidence-*.png")}


def test_runs_are_added_to_a_file(tmp_path):
    def rows(method, seed, *accuracies):
        return [{"method": method, "seed": seed, "true_accuracy": accuracy} for accuracy in accuracies]

    path = tmp_path / "runs.csv"
    evidence.add_runs(path, [*rows("darts", 0, 10, 20), *rows("sp-darts", 1, 30)])
    evidence.add_runs(path, [*rows("darts", 2, 50), *rows("sp-darts", 1, 90), *rows("sp-darts", 0, 80)])
    evidence.add_runs(path, [])
    lines = ["darts,0,10", "darts,0,20", "darts,2,50", "sp-darts,0,80", "sp-darts,1,90"]
    assert path.read_text().split() == ["method,seed,true_accuracy", *lines]


@pytest.mark.parametrize("name", ["read-outs", "read-outs-proxy"])
def test_the_tables_of_ways_to_read_out(name):
    assert read_outs.compared(_numbers(name)).markdown() in PAGE


def test_what_settling_measured():
    assert read_outs.verdict(_numbers("read-outs-cells")) in " ".join(PAGE.split())


def _numbers(name):
    numbers = {"true_accuracy": float, "measured_accuracy": float, "taken": "True".__eq__}
    rows = evidence.read(DOCS / "data" / f"{name}.csv")
    return [{field: numbers.get(field, str)(value) for field, value in row.items()} for row in rows]


@pytest.mark.parametrize("name", ["budget", "budget-kernel"])
def test_the_table_of_a_budget(name):
    rows = evidence.read(DOCS / "data" / f"{name}.csv")
    numbers = [{k: v if k == "kind" else float(v) for k, v in row.items()} for row in rows]
    assert timm_budget.summary(numbers).markdown() in PAGE


@pytest.mark.parametrize(
    ("genotype", "idle"),
    [
        ("|skip_connect~0|+|none~0|nor_conv_3x3~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|", 3),
        ("|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|avg_pool_3x3~0|nor_conv_1x1~1|nor_conv_1x1~2|", 0),
    ],
)
def test_idle_edges(genotype, idle):
    assert evidence.idle_edges(genotype) == idle


def test_rules_of_reading_out():
    """Alphas of two epochs, by hand: their mean is strongest elsewhere than the last ones."""
    edges = NB201Genotype.EDGES
    epochs = [{edge: [0.0, 5.0, 0.0, 0.0, 0.0] for edge in edges}, {edge: [0.0, 1.0, 0.0, 2.0, 0.0] for edge in edges}]
    cells = [NB201Genotype((name,) * 6) for name in ("skip_connect", "nor_conv_3x3")]
    records = [
        {"epoch": i, "alphas": alphas, "genotype": str(cell), "discretized_accuracy": accuracy}
        for i, (alphas, cell, accuracy) in enumerate(zip(epochs, cells, (0.5, 0.5), strict=True))
    ]
    assert read_outs.last(records) == cells[1]
    assert read_outs.mean_of(1)(records) == cells[1]
    assert read_outs.mean_of(2)(records) == cells[0]
    assert read_outs.best(records) == cells[1]


def test_draws_use_the_budget():
    costs = CostTable("macs", 10, {"a": {"x": 1, "y": 5}, "b": {"x": 2, "y": 6}})
    assert timm_budget.drawn(costs, 17, random.Random(0)) in ({"a": "x", "b": "y"}, {"a": "y", "b": "x"})
    with pytest.raises(ValueError, match="none of 100000 random choices costs 97% to 100% of 14"):
        timm_budget.drawn(costs, 14, random.Random(0))
