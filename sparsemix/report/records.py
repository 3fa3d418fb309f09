"""Finished runs as their folders hold them: the summary, the records, and how steady the end of the search was."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ..runs.config import SearchConfig

__all__ = ["FinishedRun", "group_names", "load_run", "middle_and_high", "run_names"]

LATE = 5  # number of last epochs, in which a stable search no longer changes its genotype

# fields of a configuration in which runs of one group may differ
_PER_RUN = SearchConfig.MOVABLE | {"seed", "audit_every", "audit_thresholds"}


class FinishedRun(NamedTuple):
    """A finished search or training.

    Attributes:
        name: name of its folder.
        kind: ``"search of SPACE"`` or ``"training"``; runs of the same kind can be compared.
        what: the method of a search; the genotype or model of a training.
        data: its images, such as ``"cifar10 16x16, 12800 images"``.
        settings: the configuration, without the settings that may differ within a group of runs.
        summary: ``summary.json``; for a search also ``leakage``, the mean output leakage; ``late_changes``, the number
            of genotype changes in the last five epochs; ``lead``, the smallest lead, over all rows, of the strongest
            alpha over the second strongest at the end; ``drift``, the mean absolute change per epoch of an alpha
            minus its row's mean, in the last five epochs; and ``early_drift``, the same in the first half of the
            search. The last three are in units of the temperature at which the method's rows are read.
        records: ``records.jsonl``, with the mean output leakage added to each record that has been evaluated.
        commands: ``commands.json``: task that a reader may have -> the command for it.
    """

    name: str
    kind: str
    what: str
    data: str
    settings: dict[str, Any]
    summary: dict[str, Any]
    records: list[dict[str, Any]]
    commands: dict[str, str] = {}  # noqa: RUF012


def load_run(folder: str | Path, may_be_running: bool = False) -> FinishedRun:
    """Read a finished run.

    Args:
        folder: the run folder.
        may_be_running: read an unfinished run up to its last finished epoch.

    Raises:
        FileNotFoundError: the folder holds no finished run; with ``may_be_running``, no run with a finished epoch.
        ValueError: the folder holds a run of an older version with a different format of records.
    """
    folder = Path(folder)
    if not (folder / "summary.json").is_file():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no run")
        epochs, file = json.loads((folder / "config.json").read_text()).get("epochs"), folder / "records.jsonl"
        done = len(file.read_text().splitlines()) if file.is_file() else 0
        if not (may_be_running and done):
            raise FileNotFoundError(f"{folder} has not finished ({done} of {epochs} epochs): continue it (resume)")
    config = json.loads((folder / "config.json").read_text())
    summary = _summary(folder, config)
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    settings = {field: value for field, value in config.items() if field not in _PER_RUN}
    commands = json.loads(file.read_text()) if (file := folder / "commands.json").is_file() else {}
    data = _data(config)
    if "method" not in summary:
        what = summary.get("model") or summary["genotype"]
        return FinishedRun(folder.resolve().name, "training", what, data, settings, summary, records, commands)
    if "temperature" not in summary:
        raise ValueError(f"{folder} holds a search by version {config.get('version')}, whose records are others")
    for entry in (entry for entry in (summary, *records) if "output_leakage" in entry):
        entry["leakage"] = statistics.mean(entry["output_leakage"].values())
    if len(records) > LATE:
        temperature = records[-1]["temperature"]
        summary |= _late(records[-LATE - 1 :], temperature)
        summary["early_drift"] = _drift(records[: len(records) // 2]) / temperature
    kind = f"search of {config.get('space', 'a supernet')}"
    return FinishedRun(folder.resolve().name, kind, summary["method"], data, settings, summary, records, commands)


def _summary(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """``summary.json``; for an unfinished run, the latest values in its records."""
    if (folder / "summary.json").is_file():
        return json.loads((folder / "summary.json").read_text())
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    latest = {field: value for record in records for field, value in record.items()}
    known = {name: config[name] for name in ("method", "seed", "model", "genotype") if name in config}
    return {**known, **latest, "seconds": sum(record["seconds"] for record in records)}


def _data(config: Mapping[str, Any]) -> str:
    size, limit = config.get("image_size"), config.get("limit")
    sized = f"{config.get('dataset', 'data')} {size}x{size}" if size else config.get("dataset", "data")
    return sized if limit is None else f"{sized}, {limit} images"


def _late(records: Sequence[dict[str, Any]], temperature: float) -> dict[str, float]:
    genotypes = [record["genotype"] for record in records]
    decided = {label for label, names in records[-1].get("allowed", {}).items() if len(names) < 2}
    alphas = {label: row for label, row in records[-1]["alphas"].items() if len(row) > 1 and label not in decided}
    last = [sorted(row, reverse=True) for row in alphas.values()]
    return {
        "late_changes": sum(new != old for old, new in pairwise(genotypes)),
        "lead": min((row[0] - row[1] for row in last), default=float("inf")) / temperature,
        "drift": _drift(records) / temperature,
    }


def _drift(records: Sequence[dict[str, Any]]) -> float:
    """The mean absolute change of an alpha minus its row's mean, from one record to the next."""
    rows = [[_centred(row) for row in record["alphas"].values()] for record in records]
    moves = [
        abs(new - old)
        for before, after in pairwise(rows)
        for old_row, new_row in zip(before, after, strict=True)
        for old, new in zip(old_row, new_row, strict=True)
    ]
    return statistics.fmean(moves)


def _centred(row: Sequence[float]) -> list[float]:
    """A row of alphas minus its mean, which does not affect the softmax."""
    mean = statistics.fmean(row)
    return [value - mean for value in row]


def group_names(runs: Sequence[FinishedRun]) -> list[str]:
    """The group name of each run: its method or network, and the settings in which runs with the same one differ."""
    names = []
    for run in runs:
        others = [other.settings for other in runs if other.what == run.what]
        telling = [name for name in run.settings if any(other.get(name) != run.settings[name] for other in others)]
        names.append(", ".join([run.what, *(f"{name} {run.settings[name]}" for name in telling)]))
    return names


def run_names(folders: Sequence[Path]) -> list[str]:
    """What to call each run: the shortest end of its folder's path that no other folder's path has.

    Example:
        >>> run_names([Path("runs/a/seed0"), Path("runs/b/seed0"), Path("runs/b/seed1")])
        ['a/seed0', 'b/seed0', 'seed1']
    """
    paths = [folder.resolve().parts for folder in folders]
    return [
        next(
            "/".join(end)
            for end in (path[-length:] for length in range(1, len(path) + 1))
            if len(end) == len(path) or sum(other[-len(end) :] == end for other in paths) == 1
        )
        for path in paths
    ]


def middle_and_high(values: Sequence[float]) -> tuple[float, float]:
    """Median and 95th percentile; between two values, the percentile is the higher one."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[math.ceil(0.95 * (len(ordered) - 1))]
