"""``sparsemix report``: the results of finished searches and trainings, read from their run folders.

sparsemix report runs/a                                # one run in full: runs/a/report.html
sparsemix report runs/a runs/b runs/c                  # compared: report.html; prints tables, as Markdown if piped
sparsemix report runs/a --watch                        # a running search, updated every 30 seconds
sparsemix report runs/a --figures figures              # every figure as SVG and PNG
sparsemix report runs/a runs/b --figure search.png     # the course of the searches in one picture
sparsemix report runs/a --audit-figure audit.png       # what thresholds would have changed during the search
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..report.figures import draw_audits, draw_runs
from ..report.page import render, write_figures
from ..report.records import FinishedRun, load_run, run_names
from ..report.tables import audit_table, steadiness_table, table

__all__ = ["main"]


def main(args: list[str] | None = None) -> None:
    """The command with these flags."""
    parser = _parser()
    chosen = parser.parse_args(args)
    for file in (chosen.figure, chosen.audit_figure, chosen.output):
        if file is not None and not file.parent.is_dir():
            parser.error(f"{file} cannot be written: there is no folder {file.parent}")
        if file is not None and file.is_dir():
            parser.error(f"{file} cannot be written: it is a folder")
    chosen.folders = [*{folder.resolve(): folder for folder in chosen.folders}.values()]  # each run counts once
    if chosen.watch is not None:
        if missing := [str(folder) for folder in chosen.folders if not folder.is_dir()]:
            parser.error(f"there is no folder {', '.join(missing)}")
        _watch(chosen)
        return
    runs = _load(chosen.folders)
    if not runs:
        parser.error("none of these folders holds a finished run")
    searches = [run for run in runs if run.kind != "training"]
    if not searches and (chosen.figure or chosen.audit_figure):
        parser.error("--figure and --audit-figure draw searches, and all of these runs are trainings: use --figures")
    _print_tables(runs)
    for file, draw in ((chosen.figure, draw_runs), (chosen.audit_figure, draw_audits)):
        if file is not None:
            draw(searches, file)
            print(f"written to {file}", file=sys.stderr)
    if chosen.figures is not None:
        print(f"{len(write_figures(runs, chosen.figures))} files written to {chosen.figures}", file=sys.stderr)
    _write_page(chosen, runs)


def _load(folders: Sequence[Path], may_be_running: bool = False) -> list[FinishedRun]:
    """The runs that can be read; prints why the others are left out."""
    runs = []
    for folder, name in zip(folders, run_names(folders), strict=True):
        try:
            runs.append(load_run(folder, may_be_running)._replace(name=name))
        except (json.JSONDecodeError, KeyError) as error:
            print(f"left out: a file in {folder} is damaged ({error!r})", file=sys.stderr)
        except (FileNotFoundError, ValueError) as error:
            print(f"left out: {error}", file=sys.stderr)
    return runs


def _print_tables(runs: Sequence[FinishedRun]) -> None:
    plain = sys.stdout.isatty()
    for kind in dict.fromkeys(run.kind for run in runs):
        of_kind = [run for run in runs if run.kind == kind]
        tables = [table(of_kind)]
        if kind != "training":
            tables += [other for other in (steadiness_table(of_kind), audit_table(of_kind)) if other is not None]
        print(f"{kind}\n" if plain else f"### {kind}\n")
        print("\n\n".join(each.plain() if plain else each.markdown() for each in tables), end="\n\n")


def _write_page(chosen: argparse.Namespace, runs: Sequence[FinishedRun], refresh: int | None = None) -> None:
    folders = chosen.folders
    page = chosen.output or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    partial = page.with_name(f"{page.name}.partial")  # a browser never sees half a page
    partial.write_text(render(runs, refresh), encoding="utf-8")
    partial.replace(page)
    print(f"written to {page}", file=sys.stderr)


def _watch(chosen: argparse.Namespace) -> None:
    """Write the page again and again, until every run has finished."""
    while True:
        has_finished = all((folder / "summary.json").is_file() for folder in chosen.folders)
        if runs := _load(chosen.folders, may_be_running=True):
            _write_page(chosen, runs, None if has_finished else chosen.watch)
        if has_finished:
            return
        time.sleep(chosen.watch)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sparsemix report", description="Show the results of finished runs.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="HTML page; default RUN/report.html, for several runs report.html"
    )
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="also write each figure as SVG and PNG")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=30,
        metavar="SECONDS",
        help="rewrite the page at this interval until all runs have finished (default 30)",
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="also draw the course of the searches")
    parser.add_argument("--audit-figure", type=Path, metavar="FILE", help="also draw the audits of the searches")
    return parser


def _seconds(text: str) -> int:
    if (seconds := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"the interval must be at least 1 second, got {text}")
    return seconds
