"""``sparsemix report``: what finished searches and trainings found, as their folders hold it.

sparsemix report runs/a runs/b runs/c                  # tables, means by method; Markdown where it is piped
sparsemix report runs/a runs/b --figure search.png     # and the course of the searches
sparsemix report runs/a --audit-figure audit.png       # what thresholds would have changed along it
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..report.figures import draw_audits, draw_runs
from ..report.records import load_run
from ..report.tables import audit_table, steadiness_table, table

__all__ = ["main"]


def main(args: list[str] | None = None) -> None:
    """The command with these flags."""
    parser = argparse.ArgumentParser(prog="sparsemix report", description="What finished runs found.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--figure", type=Path, help="also draw the course of the searches into this file")
    parser.add_argument("--audit-figure", type=Path, help="also draw the audits that they recorded into this file")
    chosen = parser.parse_args(args)
    for file in (chosen.figure, chosen.audit_figure):
        if file is not None and not file.parent.is_dir():
            parser.error(f"{file} cannot be written: there is no folder {file.parent}")
    runs = []
    for folder in chosen.folders:
        try:
            runs.append(load_run(folder))
        except (FileNotFoundError, ValueError) as error:
            print(f"left out: {error}", file=sys.stderr)
    if not runs:
        parser.error("none of these folders holds a finished run")
    plain = sys.stdout.isatty()
    for kind in dict.fromkeys(run.kind for run in runs):
        of_kind = [run for run in runs if run.kind == kind]
        tables = [table(of_kind)]
        if kind != "training":
            tables += [other for other in (steadiness_table(of_kind), audit_table(of_kind)) if other is not None]
        print(f"{kind}\n" if plain else f"### {kind}\n")
        print("\n\n".join(each.plain() if plain else each.markdown() for each in tables), end="\n\n")
    searches = [run for run in runs if run.kind != "training"]
    for file, draw in ((chosen.figure, draw_runs), (chosen.audit_figure, draw_audits)):
        if file is not None:
            draw(searches, file)
            print(f"written to {file}", file=sys.stderr)
