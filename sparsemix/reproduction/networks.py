"""The searches and trainings behind the paper's tables on the DARTS space and S1 to S4, and the numbers it prints.

Source: Zhang and Ding, "Robustifying DARTS by Eliminating Information Bypass Leakage", Tables III and V.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

from .experiments import TINY, Scale, Settings

__all__ = ["NETWORK_SCALES", "NETWORK_TABLES", "Entry", "Network", "NetworkScale", "NetworkTable"]


class Network(NamedTuple):
    """A network that is trained.

    Attributes:
        search: name of the search that finds it; None if its architecture is known.
        settings: flags of ``sparsemix train``.
        is_transfer: whether it is trained on ImageNet.
    """

    search: str | None
    settings: Settings
    is_transfer: bool = False


class Entry(NamedTuple):
    """A number of a table.

    Attributes:
        row, column: its place in the table.
        network: name of the network that it describes.
        field: field of the training's summary that holds it.
        factor: converts the summary's unit to the table's.
        printed: the paper's mean and, if given, standard deviation.
    """

    row: str
    column: str
    network: str
    field: str
    factor: float
    printed: tuple[float, ...]


class NetworkTable(NamedTuple):
    """A table of trained networks.

    Attributes:
        title: what it shows.
        searches: name -> flags of ``sparsemix pick``.
        networks: name -> network.
        entries: its numbers, row by row.
        remark: a note for readers of the table.
    """

    title: str
    searches: Mapping[str, Settings]
    networks: Mapping[str, Network]
    entries: tuple[Entry, ...]
    remark: str


class NetworkScale(NamedTuple):
    """A size of searches and trainings.

    Attributes:
        search: settings of ``sparsemix pick``, and a note for readers of the table.
        training: settings of ``sparsemix train`` that override a table's own.
        transfer: settings of the training on ImageNet; None: the table's own, on the folders given by ``--imagenet``.
    """

    search: Scale
    training: Settings
    transfer: Settings | None


_PROXIES = NetworkScale(
    Scale(
        {"scale": "proxy", "selection": "proxy"},
        "Searches and trainings are proxies: small networks, 16x16 images, and errors on held-out training images.",
        preset="proxy",
    ),
    {"preset": "proxy"},
    None,
)
_DIGITS = {"dataset": "digits", "channels": 4, "batch-size": 40, "limit": 200}
NETWORK_SCALES = {
    "paper": NetworkScale(Scale({}, "Searches and trainings are of the paper's size.", sp_darts="paper"), {}, None),
    "reduced": _PROXIES,  # the paper's schedules would take weeks on two cores
    "proxy": _PROXIES,
    "smoke": NetworkScale(
        Scale(
            {"scale": "proxy", "selection": "proxy", **_DIGITS, "image-size": 8, "cells": 3, "epochs": 2}
            | {"seeds": (0,), "train-epochs": 1},
            "The runs take seconds, on the embedded digits: they show that everything runs, and nothing about methods.",
            by_method=TINY,
        ),
        {"preset": "proxy", **_DIGITS, "image-size": 8, "cells": 3, "epochs": 1},
        {**_DIGITS, "image-size": 32, "cells": 3, "epochs": 6, "auxiliary": 0},
    ),
}

# Table III


class _Row(NamedTuple):
    """A row of Table III: its search method or published network, and the printed numbers, empty if there are none."""

    name: str
    method: str = ""
    network: Settings | None = None
    cifar10: str = ""
    imagenet: str = ""


def _published(name: str, **settings: str | int) -> Settings:
    return {"genotype": name, **settings}


_TABLE3 = (
    _Row("DenseNet-BC (no cutout)", "", {"model": "sparsemix_densenet_bc", "cutout": 0}, cifar10="3.46 25.6"),
    _Row("NASNet-A", "", _published("NASNet"), "2.65 3.3", "26.0 8.4 5.3"),
    _Row("AmoebaNet-B", "", _published("AmoebaNet_B"), "2.55±0.05 2.8", "26.0 8.5 5.3"),
    _Row("PNAS (no cutout)", "", _published("PNAS", cutout=0), "3.41±0.09 3.2", "25.8 8.1 5.1"),
    _Row("ENAS", "", _published("ENAS"), "2.89 4.6"),
    _Row("DARTS-V2", "darts-v2", None, "2.76±0.09 3.3", "26.7 8.7 4.7"),
    _Row("PC-DARTS", "pc-darts", None, "2.57±0.07 3.6", "25.1 7.8 5.3"),
    _Row("GDAS", "gdas", None, "2.85±0.02 2.8", "26.0 8.5 5.3"),
    _Row("GAEA-PC-DARTS", "gaea-pc-darts", None, "2.50±0.06 3.7", "24.3 7.3 5.6"),
    _Row("DrNAS, in stages", "drnas", None, "2.46±0.03 4.1"),
    _Row("DrNAS, searched on ImageNet", "", _published("DrNAS_imagenet"), imagenet="23.7 7.1 5.7"),
    _Row("DARTS+PT", "pt", None, "2.61±0.08 3.0"),
    _Row("SDARTS-RS+PT", "sdarts-rs+pt", None, "2.54±0.10 3.3"),
    _Row("SGAS+PT", "sgas+pt", None, "2.56±0.10 3.9"),
    _Row("SP-DARTS", "sp-darts", None, "2.4 3.4"),
    _Row("SP-DARTS, published cell", "", _published("SP_DARTS"), "2.4 3.4"),
)
_ON_CIFAR10 = (("CIFAR-10 error, %", "error", 100), ("parameters, M", "parameters", 1e-6))
_ON_IMAGENET = (
    ("ImageNet top-1 error, %", "error", 100),
    ("ImageNet top-5 error, %", "top5_error", 100),
    ("ImageNet parameters, M", "parameters", 1e-6),
)


def _number(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split("±")))


def _table3() -> NetworkTable:
    searches, networks, entries = dict[str, Settings](), dict[str, Network](), list[Entry]()
    for row in _TABLE3:
        settings = row.network or {}
        name = row.method or str(settings.get("genotype", "densenet-bc"))
        search = f"cifar10-{row.method}" if row.method else None
        if search is not None:  # SP-DARTS and the peers repeat a search under several seeds
            seeds = (0, 1, 2, 3, 4) if row.method == "sp-darts" else (0, 1, 2, 3)
            flags = {"space": "darts", "dataset": "cifar10", "selection": "peers", "seeds": seeds}
            searches[search] = {"method": row.method, **flags}
        published = {key: value for key, value in settings.items() if key == "genotype"}
        for network, columns, numbers in (
            (Network(search, {"preset": "cifar", "dataset": "cifar10", **settings}), _ON_CIFAR10, row.cifar10),
            (Network(search, {"preset": "imagenet", **published}, is_transfer=True), _ON_IMAGENET, row.imagenet),
        ):
            if numbers:
                trained = f"{'imagenet' if network.is_transfer else 'cifar10'}-{name}"
                networks[trained] = network
                for (column, field, factor), text in zip(columns, numbers.split(), strict=True):
                    entries.append(Entry(row.name, column, trained, field, factor, _number(text)))
    return NetworkTable(
        "DARTS space: CIFAR-10, and the transfer to ImageNet (Table III)",
        searches,
        networks,
        tuple(entries),
        "Designs that no search here finds are trained from their published cells. Of SP-DARTS the paper quotes its "
        "best of five (97.6 %, 3.4 M parameters). It prints 2.85 % and 2.8 M for GDAS, which was published with 2.93 % "
        "and 3.4 M.",
    )


# Table V

_METHODS: Mapping[str, Settings] = {
    "DARTS": {"method": "darts"},
    "PC-DARTS": {"method": "pc-darts"},
    "DARTS-ES": {"method": "darts-es"},
    "R-DARTS (DP)": {"method": "r-darts-dp"},
    "R-DARTS (L2)": {"method": "r-darts-l2"},
    "SDARTS-RS": {"method": "sdarts-rs"},
    "SDARTS-ADV": {"method": "sdarts-adv"},
    "DARTS+PT": {"method": "pt"},
    "DARTS+PT (fixed)": {"method": "pt", "fixed-alphas": True},
    "SP-DARTS": {"method": "sp-darts", "selection": "paper"},
}
_SPACES = tuple(product(("cifar10", "cifar100", "svhn"), ("s1", "s2", "s3", "s4")))
_TABLE5 = """
 3.84  3.11  3.01  3.11  2.78  2.78  2.73  3.50  2.86  2.70
 4.85  3.02  3.26  3.48  3.31  2.75  2.65  2.79  2.59  2.66
 3.34  2.51  2.74  2.93  2.51  2.53  2.49  2.49  2.52  2.51
 7.20  3.02  3.71  3.58  3.56  2.93  2.87  2.64  2.58  2.60
29.46 24.69 28.37 25.93 24.25 23.51 22.33 24.48 24.40 22.30
26.05 22.48 23.25 22.30 22.44 22.28 20.56 23.16 23.30 20.55
28.90 21.69 23.73 22.36 23.99 21.09 21.08 22.03 21.94 21.04
22.85 21.50 21.26 22.18 21.94 21.46 21.25 20.80 20.66 21.49
 4.58  2.47  2.72  2.55  4.79  2.35  2.29  2.62  2.39  2.33
 3.53  2.42  2.60  2.52  2.51  2.39  2.35  2.53  2.32  2.30
 3.41  2.41  2.50  2.49  2.48  2.36  2.40  2.42  2.32  2.32
 3.05  2.43  2.51  2.61  2.50  2.46  2.42  2.42  2.39  2.42
"""  # a line for each of _SPACES, a column for each of _METHODS


def _table5() -> NetworkTable:
    searches, networks, entries = dict[str, Settings](), dict[str, Network](), list[Entry]()
    for (dataset, space), line in zip(_SPACES, _TABLE5.strip().splitlines(), strict=True):
        for (column, settings), text in zip(_METHODS.items(), line.split(), strict=True):
            fixed = "-fixed" if "fixed-alphas" in settings else ""
            name = f"{space}-{dataset}-{settings['method']}{fixed}"
            searches[name] = {"space": space, "dataset": dataset, "selection": "peers", **settings}
            networks[name] = Network(name, {"preset": "robust", "dataset": dataset})
            entries.append(Entry(f"{space.upper()}, {dataset}", column, name, "error", 100, _number(text)))
    return NetworkTable(
        "S1 to S4 on CIFAR-10, CIFAR-100 and SVHN: test error, % (Table V)",
        searches,
        networks,
        tuple(entries),
        "SP-DARTS is searched at t_sp 4e-4, 5e-4, 6e-4 and 7e-4, every other method with four seeds; one result of "
        "each is picked by validation accuracy and trained in full. R-DARTS is searched with its first published "
        "strength; the others are presets.",
    )


NETWORK_TABLES = {"table3": _table3(), "table5": _table5()}
