"""Kill searches, damage their checkpoints, resume them, and count how many end as if nothing had happened.

    python benchmarks/faults.py                  # 40 kills of one process, 12 of one of two, 20 damaged checkpoints
    python benchmarks/faults.py --kills 4 0 --damages 2 --json faults.json

Each run is a tiny search on embedded digits, in a process of its own or in two that torchrun starts. One of them kills
itself (SIGKILL) at a random step or in the middle of a random write; the run is resumed, and killed again. In the end
alphas, weights, optimizer states, records and genotype are compared, to the last bit, with those of a search that was
never killed.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm.auto import tqdm

from sparsemix.runs.checkpoints import Checkpoints

SEARCH = shlex.split(
    "--preset proxy --device cpu --channels 4 --epochs 4 --batch-size 40 --limit 400 --threshold 1e-3 --save-every 3"
    " --evaluate-limit 40 --statistics-images 40"
)
STEPS = 20  # of that search
FAULT = "SPARSEMIX_FAULT"
KINDS = {"step": "before a step", "write": "with half a file written", "rename": "after a file was written"}


@dataclass(frozen=True)
class Options:
    kills: tuple[int, int] = (40, 12)
    """SIGKILLs in all: in runs of one process, and of two."""
    damages: int = 20
    """Checkpoints that are truncated or get a wrong bit."""
    kills_a_run: int = 5
    """A run is killed so often before it may end."""
    seed: int = 0
    """Of where the faults strike."""
    json: Path | None = None
    """Write the counts to this file."""


def main(options: Options) -> dict[str, Any]:
    draw = random.Random(options.seed)
    outcomes: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        bar = tqdm(total=sum(options.kills) + options.damages, desc="faults", disable=None)
        truths = {processes: Path(folder) / f"truth-{processes}" for processes in (1, 2)}
        for (processes, truth), total in zip(truths.items(), options.kills, strict=True):
            if total or processes == 1:
                run(truth, processes)
            of = f" of one of {processes} processes" if processes > 1 else ""
            kills = 0
            while kills < total:
                output = Path(folder) / "killed"
                for fault in faults(draw, min(options.kills_a_run, total - kills), processes):
                    if not run(output, processes, fault):
                        break  # it ended before the fault
                    outcomes[f"SIGKILL{of} {KINDS[fault.split()[0]]}", "killed"] += 1
                    kills += 1
                    bar.update()
                run(output, processes)
                outcomes[f"run killed by SIGKILL{of}, resumed", compared(output, truth)] += 1
                shutil.rmtree(output)
        truth = truths[1]
        for _ in range(options.damages):
            output = Path(folder) / "damaged"
            run(output, 1, f"step {draw.randrange(STEPS // 2, STEPS)} 0")
            kind = draw.choice(["truncated", "with a wrong bit"])
            damage(Checkpoints(output).paths()[0], kind, draw)
            run(output, 1)
            outcomes[f"checkpoint {kind}, resumed", compared(output, truth)] += 1
            shutil.rmtree(output)
            bar.update()
        bar.close()
    print("| what happened | outcome | times |\n|---|---|---|")
    for (what, outcome), times in sorted(outcomes.items()):
        print(f"| {what} | {outcome} | {times} |")
    result = {"options": asdict(options), "outcomes": [[*key, times] for key, times in sorted(outcomes.items())]}
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2, default=str) + "\n")
    return result


def faults(draw: random.Random, count: int, processes: int) -> Iterator[str]:
    """When a run is killed, counted from where it was resumed: before a step, with half a file written, after one."""
    for _ in range(count):
        kind = draw.choice(["step", *KINDS])
        rank = draw.randrange(processes) if kind == "step" else 0  # who writes
        yield f"{kind} {draw.randrange(STEPS // 2 if kind == 'step' else 8)} {rank}"


def run(output: Path, processes: int, fault: str = "") -> bool:
    """The search, begun or resumed; whether it was killed."""
    resume = ["--resume"] if (output / "config.json").exists() else []
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        __file__,
        *SEARCH,
        "--output",
        str(output),
        *resume,
    ]
    environment = {**os.environ, FAULT: fault, "OMP_NUM_THREADS": "1"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    killed = shown.returncode == -signal.SIGKILL or (processes > 1 and "Signal 9 (SIGKILL)" in shown.stderr)
    if shown.returncode != 0 and not killed:
        raise RuntimeError(f"a search ended with {shown.returncode}:\n{shown.stdout}\n{shown.stderr}")
    return killed


def damage(path: Path, kind: str, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    if kind == "truncated":
        content = content[:place]
    else:
        content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def compared(output: Path, truth: Path) -> str:
    """Whether two searches ended alike."""
    states = [Checkpoints(folder).load() for folder in (output, truth)]
    records = [
        [
            {**json.loads(line), "seconds": 0, "evaluation_seconds": 0, "update_seconds": 0}
            for line in (folder / "records.jsonl").read_text().splitlines()
        ]
        for folder in (output, truth)
    ]
    genotypes = [(folder / "genotype.json").read_text() for folder in (output, truth)]
    tensors = [[*_tensors({**(state or {}), "records": None})] for state in states]
    equal = len(tensors[0]) == len(tensors[1]) and all(map(torch.equal, *tensors))
    same = equal and records[0] == records[1] and genotypes[0] == genotypes[1]
    return "as if nothing had happened" if same else "another result"


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)


def search_with_a_fault(fault: str) -> None:
    """In the process of a run: the search of nb201_space.py, and what kills it."""
    from sparsemix.cli import nb201 as nb201_cli
    from sparsemix.methods import SearchStep

    kind, when, rank = fault.split() if fault else ("", "0", "0")
    count = iter(range(1_000_000))

    def strike(at: str) -> bool:
        return kind == at and rank == os.environ.get("RANK", "0") and next(count) == int(when)

    def step(*args: Any, original: Any = SearchStep.__call__, **keywords: Any) -> Any:
        if strike("step"):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **keywords)

    def replace(partial: Path, path: Path, original: Any = os.replace) -> None:
        if strike("write"):
            os.truncate(partial, os.path.getsize(partial) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        original(partial, path)
        if strike("rename"):
            os.kill(os.getpid(), signal.SIGKILL)

    SearchStep.__call__, os.replace = step, replace  # type: ignore[method-assign, assignment]
    nb201_cli.search(nb201_cli.configure())


if __name__ == "__main__":
    if FAULT in os.environ:
        search_with_a_fault(os.environ[FAULT])
    else:
        main(tyro.cli(Options))
