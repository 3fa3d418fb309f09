"""Tables of docs/results.md against the runs that they are made of."""

import csv
import re
import statistics
from pathlib import Path

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
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
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
