"""A report as one self-contained HTML file: what was found, how the search went, and the settings.

A single run is shown in full. Several runs are compared: means, spread, individual values, and the cell of each run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from .cells import cells_of, draw_cell
from .comparisons import COMPARED, draw_courses, draw_values
from .course import COURSE
from .drawing import ON_PAGE, ON_PAPER, Ink, as_svg, save, style
from .records import FinishedRun, group_names
from .tables import Table, audit_table, steadiness_table, table
from .trainings import TRAINING

__all__ = ["render", "write_figures"]

Draw = Callable[[Ink], Any]


class Figure(NamedTuple):
    """A figure of the page.

    Attributes:
        name: its file name without the suffix, and the prefix of its SVG identifiers.
        title, caption: what it shows, and how to read it.
        draw: draws it in an ink.
        is_wide: whether it takes the whole width of the page.
    """

    name: str
    title: str
    caption: str
    draw: Draw
    is_wide: bool = False

    @property
    def svg(self) -> str:
        with style(ON_PAGE):
            return as_svg(self.draw(ON_PAGE), self.name)


class Section(NamedTuple):
    """A part of the page: a heading, key figures, tables and figures, in this order."""

    heading: str
    text: str = ""
    facts: Mapping[str, str] = {}
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    commands: Mapping[str, str] = {}
    settings: Mapping[str, str] = {}


def render(runs: Sequence[FinishedRun], refresh: int | None = None) -> str:
    """The page.

    Args:
        runs: one, shown in full; or several, compared.
        refresh: seconds after which a browser loads the page again; None: never.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sparsemix.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return environment.get_template("report.html").render(
        title=title, sections=[*_sections(runs)], version=__version__, refresh=refresh
    )


def write_figures(runs: Sequence[FinishedRun], folder: Path) -> list[Path]:
    """Write each figure of the page as SVG and as PNG.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in (figure for section in _sections(runs) for figure in section.figures):
        with style(ON_PAPER):
            drawn = figure.draw(ON_PAPER)
            for ending in ("svg", "png"):
                written.append(folder / f"{figure.name}.{ending}")
                save(drawn, written[-1])
    return written


def _sections(runs: Sequence[FinishedRun]) -> Iterator[Section]:
    if len(runs) > 1:
        for kind in dict.fromkeys(run.kind for run in runs):
            yield from _comparison(kind, [run for run in runs if run.kind == kind])
    elif runs[0].kind == "training":
        yield from _training(runs[0])
    else:
        yield from _search(runs[0])


# One run

_FACTS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "true_accuracy": ("true accuracy", "{:.2f} %".format),
    "true_rank": ("rank in the benchmark", "{:,}".format),
    "cost": ("cost", "{:,.0f}".format),
    "discretized_accuracy": ("discretised accuracy", "{:.1%}".format),
    "discretization_gap": ("discretisation gap", "{:+.1%}".format),
    "entropy": ("entropy, nats", "{:.2f}".format),
    "leakage": ("mean output leakage", "{:.0%}".format),
    "skips": ("skip connections", str),
    "error": ("error", "{:.2%}".format),
    "top5_error": ("top-5 error", "{:.2%}".format),
    "parameters": ("parameters", "{:,}".format),
    "macs": ("multiply-accumulates", "{:,}".format),
    "seconds": ("seconds", "{:,.0f}".format),
}


def _facts(run: FinishedRun) -> dict[str, str]:
    known = {name: run.summary[name] for name in _FACTS if run.summary.get(name) is not None}
    return {_FACTS[name][0]: _FACTS[name][1](value) for name, value in known.items()}


def _search(run: FinishedRun) -> Iterator[Section]:
    total = run.settings.get("epochs", len(run.records))
    text = f"{run.what}, {run.kind}, {run.data}, seed {run.summary.get('seed', '-')}"
    epoch = run.summary.get("result_epoch", len(run.records) - 1) + 1
    taken = f" The result is that of epoch {epoch}." if epoch < len(run.records) else ""
    yield Section(run.name, f"{text}; {len(run.records)} epochs of {total} planned.{taken}", _facts(run))
    layers = _layers(run)
    yield Section("What was found", "" if layers else run.summary["genotype"], tables=layers, figures=[*_cells(run)])
    shown = [each for each in COURSE if any(record.get(each.field) is not None for record in run.records)]
    figures = [
        Figure(each.name, each.title, each.caption, _fixed(each.of, run), each.name == "alphas") for each in shown
    ]
    tables = [made] if (made := audit_table([run])) is not None else []
    yield Section("How it went", figures=figures, tables=tables)
    yield from _how(run)


def _training(run: FinishedRun) -> Iterator[Section]:
    yield Section(run.name, f"Training of {run.what}, {run.data}", _facts(run))
    figures = [
        Figure(each.name, each.title, each.caption, _fixed(each.of, run))
        for each in TRAINING
        if any(each.field in record for record in run.records)
    ]
    yield Section("What was trained", figures=[*_cells(run)])
    yield Section("How it went", figures=figures)
    yield from _how(run)


def _how(run: FinishedRun) -> Iterator[Section]:
    if run.commands:
        yield Section("Commands", commands=run.commands)
    yield Section("Settings", settings={name: str(value) for name, value in run.settings.items()})


def _fixed(draw: Callable[..., Any], *arguments: Any) -> Draw:
    """A drawing that is the same in every ink, but for the style."""
    return lambda ink: draw(*arguments)


def _cells(run: FinishedRun, prefix: str = "", title: str = "") -> Iterator[Figure]:
    for cell in cells_of(run.summary.get("genotype") or ""):
        name = "-".join(filter(None, (prefix, cell.name.split(" ")[0] or "cell")))
        heading = ", ".join(filter(None, (title, cell.name or "cell")))
        yield Figure(name, heading, "", partial(draw_cell, cell), is_wide=bool(cell.name) and not title)


def _layers(run: FinishedRun) -> list[Table]:
    """For a model without cells: the choice of each row of alphas."""
    if cells_of(run.summary["genotype"]):
        return []
    return [Table(["layers", "chosen"], [part.split(": ", 1) for part in run.summary["genotype"].split(", ")])]


# Several runs


def _comparison(kind: str, runs: Sequence[FinishedRun]) -> Iterator[Section]:
    groups = group_names(runs)
    methods = ", ".join(f"{group} ({groups.count(group)})" for group in dict.fromkeys(groups))
    figures = [
        Figure(f"values-{name}", title, "A dot is a run; the line is the mean, its ends one standard deviation away.",
               _fixed(draw_values, runs, groups, name, factor, label))
        for name, (title, factor, label) in COMPARED.items()
        if sum(run.summary.get(name) is not None for run in runs) > 1
    ]  # fmt: skip
    yield Section(f"{kind[0].upper()}{kind[1:]}", methods, tables=[_means(runs, groups)], figures=figures)
    courses = [each for each in (COURSE if kind != "training" else TRAINING) if each.draw is None]
    yield Section(
        "Courses",
        figures=[
            Figure(f"course-{each.name}", each.title, each.caption,
                   _fixed(draw_courses, runs, groups, each.field, each.factor, each.label))
            for each in courses
            if any(record.get(each.field) is not None for run in runs for record in run.records)
        ],
    )  # fmt: skip
    tables = [table(runs)] + ([made] if kind != "training" and (made := steadiness_table(runs)) else [])
    cells = [figure for i, run in enumerate(runs) for figure in _cells(run, f"run{i}", run.name)]
    yield Section("Every run", tables=tables, figures=cells if kind != "training" else [])


def _means(runs: Sequence[FinishedRun], groups: Sequence[str]) -> Table:
    """One row per group: mean, standard deviation, and the lowest and highest value."""
    names = [name for name in COMPARED if any(run.summary.get(name) is not None for run in runs)]
    rows = []
    for group in dict.fromkeys(groups):
        members = [run for run, name in zip(runs, groups, strict=True) if name == group]
        cells = []
        for name in names:
            values = [COMPARED[name][1] * run.summary[name] for run in members if run.summary.get(name) is not None]
            cells.append(_spread(values))
        rows.append([group, str(len(members)), *cells])
    return Table(["method", "n", *(f"{COMPARED[name][0]}, {COMPARED[name][2]}" for name in names)], rows)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} ({min(values):.2f} to {max(values):.2f})"
