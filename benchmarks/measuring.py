"""What all benchmarks share: ways side by side in rounds, lines with their bounds, and the file of results.

Absolute times of a shared machine mean little. So the ways that are compared take turns within each round, and a ratio
is the median of the rounds' ratios: what else the machine does, it does to both of a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass
class Line:
    """One figure, what was measured beside it, and what it is held to.

    Attributes:
        what: is measured.
        unit: of `ours`, `theirs` and `limit`.
        ours: our figure; None where it could not be measured.
        beside: the peer or bare loop of the same run.
        theirs: its figure.
        limit: the figure that operations and bytes allow.
        limit_by: how that is calculated.
        ratio: ours over theirs; the median of the rounds' ratios where there are rounds.
        at_least: bound of the ratio, or of `ours` where there is no ratio.
        at_most: the same from above.
        unmeasured: why there is no figure.
        remark: what a reader must know, such as what was tried where it falls short.
        profile: where it falls short, the share of the time by what takes it.
    """

    what: str
    unit: str
    ours: float | None = None
    beside: str = ""
    theirs: float | None = None
    limit: float | None = None
    limit_by: str = ""
    ratio: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    unmeasured: str = ""
    remark: str = ""
    profile: dict[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the figure keeps its bounds; None where it has none or was not measured."""
        value = self.ours if self.ratio is None else self.ratio
        if value is None or (self.at_least is None and self.at_most is None):
            return None
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)


@dataclass
class Rounds:
    """The seconds of each way in each round."""

    seconds: dict[str, list[float]]

    def median(self, way: str) -> float:
        """The median seconds of a way."""
        return statistics.median(self.seconds[way])

    def ratio(self, above: str, below: str) -> float:
        """The median of the rounds' ratios of seconds."""
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return statistics.median(a / b for a, b in pairs)


def side_by_side(ways: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> Rounds:
    """Run all ways once a round, in turn, and every second round in the opposite order."""
    for _ in range(warmup):
        for way in ways.values():
            way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}: {', '.join(ways)}", file=sys.stderr, flush=True)
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            taken[name].append(seconds(ways[name]))
    return Rounds(taken)


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes, with what it started on a GPU."""
    synchronise()
    began = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - began


def synchronise() -> None:
    """Wait for the GPU, if this process has used one; a fork of a process that has can't even ask."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def device() -> str:
    """`cuda` where there is a GPU, else `cpu`: the scripts choose their sizes by it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    found = {
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "torch": version("torch"),
        "threads of torch": str(torch.get_num_threads()),
        "system": platform.system(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def arguments(text: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """The options that every benchmark has: `--rounds`, `--quick` and `--out`."""
    parser = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that the script runs, and no more")
    parser.add_argument("--out", type=Path, default=RESULTS / device(), help="folder for the JSON file of results")
    return parser


def write(folder: Path, name: str, lines: list[Line], settings: dict[str, Any], figures: dict[str, Any]) -> None:
    """Print the lines, and keep them as `folder/name.json`, from which `page.py` makes the docs.

    Args:
        folder: where.
        name: of the benchmark.
        lines: in the order of the page.
        settings: sizes, rounds and data.
        figures: whatever else was measured, such as the points of a curve.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcome = {
        "machine": machine(),
        "settings": settings,
        "lines": [asdict(line) for line in lines],
        "figures": figures,
    }
    (folder / f"{name}.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    for line in lines:
        print(tell(line))


def tell(line: Line) -> str:
    """A line as text for the terminal."""
    if line.ours is None:
        return f"{line.what}: not measured: {line.unmeasured}"
    words = f"{line.what}: {line.ours:.4g} {line.unit}"
    words += f"; {line.beside}: {line.theirs:.4g}" if line.theirs is not None else ""
    words += f"; ratio {line.ratio:.3g}" if line.ratio is not None else ""
    return words + {True: " (kept)", False: " (FALLS SHORT)", None: ""}[line.met]


def read(path: Path) -> tuple[dict[str, Any], list[Line]]:
    """A file of results, and its lines."""
    outcome = json.loads(path.read_text(encoding="utf-8"))
    return outcome, [Line(**line) for line in outcome["lines"]]
