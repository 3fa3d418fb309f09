"""The searches behind the paper's tables and figures on NAS-Bench-201, and the numbers that the paper prints.

Source: Zhang and Ding, "Robustifying DARTS by Eliminating Information Bypass Leakage", Tables I and VI, Fig. 3, and the
ablations that section III and IV speak of. Baselines are searched with the settings that their own sources publish.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["COLUMNS", "EXPERIMENTS", "SCALES", "TINY", "Experiment", "Row", "Scale"]

Settings = Mapping[str, Any]
"""Flag of ``sparsemix search nb201``, ``sparsemix pick`` or ``sparsemix train`` -> value."""

COLUMNS = tuple((dataset, of) for dataset in ("cifar10", "cifar100", "imagenet16-120") for of in ("valid", "test"))
"""Data set and images of the accuracies in Tables I and VI, in the paper's order."""


class Row(NamedTuple):
    """A row of a table, or a line of a figure.

    Attributes:
        name: as the paper calls it.
        run: name of its runs; rows of different tables that share their runs have the same name here.
        settings: of the search.
        printed: mean and deviation of each of :data:`COLUMNS`, in percent; empty if the paper prints none.
        seconds: search time that the paper prints, or None.
    """

    name: str
    run: str
    settings: Settings
    printed: tuple[tuple[float, float], ...] = ()
    seconds: float | None = None


class Experiment(NamedTuple):
    """A table or a figure.

    Attributes:
        title: what it shows.
        rows: of the table.
        is_timed: whether only search steps are timed, without searches.
        remark: a note for readers of the table.
        drawn: fields of the records that the figure shows over the epochs; empty: accuracies, entropy and leakage.
    """

    title: str
    rows: tuple[Row, ...]
    is_timed: bool = False
    remark: str = ""
    drawn: tuple[str, ...] = ()


class Scale(NamedTuple):
    """A size of the searches.

    Attributes:
        settings: they override a row's.
        remark: a note for readers.
        sp_darts: preset of SP-DARTS: the paper's settings, or the same with a threshold.
        preset: of all other methods; None: each method's first.
        by_method: settings of single methods, which override all others.
    """

    settings: Settings
    remark: str
    sp_darts: str = "fast"
    preset: str | None = None
    by_method: Mapping[str, Settings] = MappingProxyType({})

    def of(self, search: Settings) -> dict[str, Any]:
        """All settings of a search at this scale; a preset that the search names stays."""
        method = search["method"]
        preset = self.sp_darts if method.startswith("sp-darts") else self.preset
        named = {"preset": preset} if preset else {}
        papers_rule = {"best-from": None}  # the last epoch
        return {**named, **papers_rule, **search, **self.settings, **self.by_method.get(method, {})}


TINY: Mapping[str, Settings] = {
    "pc-darts": {"frozen-epochs": 1},
    "gaea-pc-darts": {"frozen-epochs": 1},
    "drnas": {"frozen-epochs": 0, "channels": 12},  # its stages mix a sixth and a quarter of the channels
    "r-darts-dp": {"cutout": 4},
    "pt": {"tuning-epochs": 1},
    "sdarts-rs+pt": {"tuning-epochs": 1},
    "sgas+pt": {"epochs": 9, "first-decision": 1, "decision-every": 1},
}
"""Method -> settings with which it fits into a search of two epochs on 8x8 images, or else as many as it needs."""


SCALES = {
    "paper": Scale({}, "The searches are of the paper's size.", sp_darts="paper"),
    "reduced": Scale(
        {"image-size": 16, "cells": 1},
        "The searches have the paper's schedules, on images of 16x16 and with one cell a stage.",
    ),
    "proxy": Scale(
        {"scale": "proxy"},
        "The searches are proxies: 25 epochs on a quarter of the images, of 16x16, with one cell a stage.",
        preset="proxy",
    ),
    "smoke": Scale(
        {
            "scale": "proxy",
            "dataset": "digits",
            "image-size": 8,
            "channels": 4,
            "epochs": 2,
            "batch-size": 40,
            "limit": 200,
            "statistics-images": 40,
        },
        "The searches take seconds, on the embedded digits: they show that everything runs, and nothing about methods.",
        by_method=TINY,
    ),
}


def _row(name: str, method: str, dataset: str = "cifar10", printed: str = "", run: str = "", **settings: Any) -> Row:
    chosen = {"method": method, "dataset": dataset, **{key.replace("_", "-"): value for key, value in settings.items()}}
    pairs = [tuple(map(float, entry.split("±"))) for entry in printed.split()]
    return Row(name, f"{dataset}-{run or method}", chosen, tuple(pairs))  # type: ignore[arg-type]


_COLLAPSED = "39.77±0.00 54.30±0.00 15.03±0.00 15.61±0.00 16.43±0.00 16.32±0.00"
_SP_DARTS = _row("SP-DARTS", "sp-darts", printed="91.25±0.23 94.01±0.31 72.11±1.04 72.31±0.67 45.16±0.89 45.26±0.92")
_SP_DARTS_100 = _row(
    "SP-DARTS", "sp-darts", "cifar100", "91.23±0.19 94.02±0.20 71.71±1.08 71.85±0.90 45.15±0.93 45.30±0.72"
)
_DARTS = _row("DARTS-V1", "darts", printed=_COLLAPSED)
_DARTS_AUTHORS = _row("DARTS-0.0003", "darts", run="darts-authors", preset="authors")
_DARTS_01 = _row("DARTS-0.1", "darts-0.1", printed="84.04±1.84 86.43±2.21 58.42±5.17 58.39±4.71 30.08±3.51 29.19±4.24")
_WITHOUT_NONE = {"run": "gaea-erm-without-none", "preset": "without-none"}

_TABLE1 = (
    _row("DARTS-V2", "darts-v2", printed=_COLLAPSED),
    _DARTS,
    _row("GDAS", "gdas", printed="90.00±0.21 93.51±0.13 71.14±0.27 70.61±0.26 41.70±1.26 41.84±0.90"),
    _row("DrNAS", "drnas", printed="90.15±0.10 93.74±0.03 70.82±0.27 71.07±0.08 40.76±0.05 41.37±0.17"),
    _row("GAEA-bilevel", "gaea-bilevel", printed="82.80±1.01 84.64±1.00 55.24±1.47 55.35±1.72 27.72±1.35 26.40±0.85"),
    _row("GAEA-ERM", "gaea-erm", printed="84.59±0.00 86.59±0.00 58.12±0.00 58.43±0.00 29.54±0.00 28.19±0.00"),
    _row(
        "GAEA-ERM, without none",
        "gaea-erm",
        printed="91.50±0.06 94.34±0.06 73.12±0.26 73.11±0.06 45.71±0.28 46.38±0.18",
        **_WITHOUT_NONE,
    ),
    _SP_DARTS,
)
_TABLE1_CIFAR100 = (
    _row("PC-DARTS", "pc-darts", "cifar100", "89.96±0.15 93.41±0.30 67.12±0.39 67.48±0.89 40.83±0.08 41.31±0.22"),
    _row("GDAS", "gdas", "cifar100", "90.01±0.46 93.23±0.23 24.05±8.12 24.20±8.08 40.66±0.00 41.02±0.00"),
    _row("DrNAS", "drnas", "cifar100", "90.00±0.12 93.69±0.04 71.20±0.30 70.96±0.09 40.69±0.05 41.12±0.19"),
    _row(
        "GAEA-bilevel",
        "gaea-bilevel",
        "cifar100",
        "82.45±0.16 84.16±0.01 54.64±0.19 54.68±0.13 27.13±0.10 26.12±0.06",
    ),
    _row("GAEA-ERM", "gaea-erm", "cifar100", "76.49±6.70 79.82±5.60 51.19±5.74 51.18±6.00 21.70±6.49 20.51±6.35"),
    _row(
        "GAEA-ERM, without none",
        "gaea-erm",
        "cifar100",
        "90.06±0.47 93.33±0.00 71.56±0.10 71.22±0.86 42.30±0.24 42.28±0.13",
        **_WITHOUT_NONE,
    ),
    _SP_DARTS_100,
)  # fmt: skip
_TABLE6 = (
    _DARTS_01._replace(name="DARTS-0.1, CIFAR-10"),
    _row(
        "DARTS-0.1, CIFAR-100",
        "darts-0.1",
        "cifar100",
        "85.24±1.93 87.36±2.21 59.31±3.69 59.69±3.73 31.64±4.10 29.85±4.67",
    ),
    _SP_DARTS._replace(name="SP-DARTS, CIFAR-10"),
    _SP_DARTS_100._replace(name="SP-DARTS, CIFAR-100"),
)
_FIG3 = (_DARTS_AUTHORS, _DARTS_01, _SP_DARTS)
_FIG3A = (
    "The paper prints no numbers; in its Fig. 3a the entropy of DARTS-0.1 stays at about 3.5, and that of SP-DARTS "
    "falls far below."
)
_FIG3B = (
    "In its Fig. 3b the discretised accuracy of DARTS stays at chance, and that of SP-DARTS is high at the end; no "
    "numbers are printed."
)
_SECONDS = {
    "darts": ("DARTS-V1", 7253),
    "darts-v2": ("DARTS-V2", 22323),
    "gdas": ("GDAS", 19720),
    "drnas": ("DrNAS", 7544),
    "gaea-bilevel": ("GAEA-bilevel", 8280),
    "gaea-erm": ("GAEA-ERM", 14464),
    "sp-darts": ("SP-DARTS", 7316),
}


def _sp_darts(name: str, **settings: Any) -> Row:
    """SP-DARTS with other settings."""
    return _row(name, "sp-darts", run=f"sp-darts-{name.replace(' ', '-')}", **settings)


EXPERIMENTS: dict[str, Experiment] = {
    "table1": Experiment("NAS-Bench-201, searched on CIFAR-10 (Table I, first group)", _TABLE1),
    "table1-cifar100": Experiment("NAS-Bench-201, searched on CIFAR-100 (Table I, second group)", _TABLE1_CIFAR100),
    "table6": Experiment("DARTS at a learning rate of 0.1, searched on CIFAR-10 and on CIFAR-100 (Table VI)", _TABLE6),
    "fig3": Experiment(
        "entropy and discretised accuracy over the epochs (Fig. 3a and 3b)", _FIG3, remark=f"{_FIG3A} {_FIG3B}"
    ),
    "fig3a": Experiment("entropy over the epochs (Fig. 3a)", _FIG3, remark=_FIG3A, drawn=("entropy",)),
    "fig3b": Experiment(
        "discretised accuracy over the epochs (Fig. 3b)", _FIG3, remark=_FIG3B, drawn=("discretized_accuracy",)
    ),
    "search-time": Experiment(
        "time of a search step, as a share of DARTS-V1's (Table I, second column)",
        tuple(
            Row(name, "", {"method": method, "dataset": "cifar10", "batch-size": 160, "channels": 24}, (), seconds)
            for method, (name, seconds) in _SECONDS.items()
        ),
        is_timed=True,
        remark="The paper's GDAS and DARTS-V2 are scaled from the figures of NAS-Bench-201; its GDAS searches for 250 "
        "epochs, DrNAS for 50. Here a step is compared with a step.",
    ),
    "fixed-p": Experiment(
        "a share of sparse batches that does not grow",
        (
            *(_row(f"p {p}", "sp-darts-fixed-p", run=f"sp-darts-p-{p}", p_low=p, p_up=p) for p in (0.25, 0.5, 0.75)),
            _SP_DARTS,
        ),
    ),
    "p-up": Experiment(
        "the share of sparse batches in the last epoch",
        (*(_sp_darts(f"p_up {p}", p_up=p) for p in (0.5, 0.7, 0.9)), _SP_DARTS._replace(name="p_up 1")),
    ),
    "temperature": Experiment(
        "the sparse temperature, a tenth of the smooth one",
        (
            _sp_darts("t_sp 0.5e-3", sparse=0.5e-3, smooth=0.5e-2),
            _SP_DARTS._replace(name="t_sp 1.1e-3"),
            *(_sp_darts(f"t_sp {t}e-3", sparse=t * 1e-3, smooth=t * 1e-2) for t in (2, 4, 8)),
        ),
    ),
    "two-passes": Experiment(
        "Eq. 13 as it is written, two passes a batch, against batches that are sparse or smooth",
        (_row("two passes (Eq. 13)", "sp-darts-both"), _SP_DARTS),
    ),
}  # fmt: skip
