"""Style of figures: one style for files, and one for pages, where lines and text take the page's colours.

Colours are those of Okabe and Ito, which are distinguishable with any colour vision, on light and dark backgrounds.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["COLOURS", "ON_PAGE", "ON_PAPER", "Ink", "as_svg", "over_epochs", "save", "sheet", "style"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")


class Ink(NamedTuple):
    """Colours of text and axes, of the grid, and of the background."""

    text: str
    grid: str
    ground: str


ON_PAPER = Ink("#222222", "#cccccc", "#ffffff")
ON_PAGE = Ink("#010203", "#040506", "#070809")
"""Placeholders that :func:`as_svg` replaces by the page's own colours."""


@contextmanager
def style(ink: Ink = ON_PAPER) -> Iterator[None]:
    """Context manager: figures are drawn in this style."""
    from matplotlib import rc_context

    settings: Any = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink.text),
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": ink.grid,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "figure.facecolor": "none" if ink is ON_PAGE else ink.ground,
        "font.family": "sans-serif",
        "svg.fonttype": "none",
    }
    with rc_context(settings):
        yield


def sheet(width: float = 5.2, height: float = 3.0, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure of this size in inches, and its axes, without the global state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def over_epochs(axis: Any) -> None:
    """Label the horizontal axis with epochs, as whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def as_svg(figure: Any, name: str) -> str:
    """An ``<svg>`` for a page.

    Args:
        figure: drawn with :data:`ON_PAGE`.
        name: tells its identifiers from those of other figures of the page.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"\bid=\"([A-Za-z0-9.]+(?:_[A-Za-z0-9]+)+)\"", rf'id="{name}-\1"', svg[svg.index("<svg") :])
    for stand_in, colour in zip(ON_PAGE, ("currentColor", "var(--grid)", "var(--ground)"), strict=True):
        svg = svg.replace(stand_in, colour)
    return re.sub(r" (width|height)=\"[0-9.]+pt\"", "", svg, count=2)  # as wide as its place on the page


def save(figure: Any, path: Path) -> None:
    """Write a figure that was drawn with :data:`ON_PAPER`; the ending names the format."""
    figure.savefig(path, dpi=150)
