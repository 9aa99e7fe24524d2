"""Whole commands from a new process on: helps, configs, the first step of training, and what resuming reads.

    python benchmarks/start_up.py

The commands take turns with the bare imports that they need, each in a process of its own. What they read lies in the
page cache after the first turn, which doesn't count.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import itr
from first_step import IMPORTED, MOMENTS
from itr.cli import VERBS
from itr.runs import checkpoint_files
from measuring import Line, arguments, device, side_by_side, write

HERE = Path(__file__).parent
PYTHON, TORCH = "python -c pass", "import torch"
FLOOR = "import torch, lightning.pytorch, jsonargparse"
BARE = {PYTHON: "pass", TORCH: TORCH, FLOOR: FLOOR}
CONFIGS = ("demo.yaml", "coco_cusa.yaml")
BOUNDS = {"--help": (1.0, PYTHON), "fit --help": (6.0, FLOOR)}
BOUNDS |= {f"fit --config {config} --print_config": (6.0, FLOOR) for config in CONFIGS}
FIRST_STEP = 20.0  # seconds, on two cores
MOST = f"the bare {FLOOR}, measured in the same run"


# Measures a command from outside: a child of this process would begin with the memory of this one on its account.
MEASURER = """import resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"""


def environment() -> dict[str, str]:
    """That of this process, with this copy of `itr` first."""
    paths = [str(Path(itr.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and most memory (MiB) of a command, from a new process to its end.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    measurer = [sys.executable, "-c", MEASURER, *command]
    seconds, peak = subprocess.run(measurer, env=environment(), capture_output=True, check=True).stdout.split()
    return float(seconds), float(peak)


def moments(arguments: list[str]) -> list[tuple[float, str]]:
    """What `first_step.py` says, with the seconds until then; the last is the first step.

    Raises:
        RuntimeError: it never came to a step.
    """
    command = [sys.executable, str(HERE / "first_step.py"), *arguments]
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    with process.stdout as lines:
        said = [(time.perf_counter() - began, line.strip()) for line in lines]
    if process.wait() or said[-1][1] != MOMENTS["on_train_batch_end"]:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} before its first step")
    return [(at, text) for at, text in said if text.startswith("$ itr") or text in (IMPORTED, *MOMENTS.values())]


def commands(bounds: dict[str, tuple[float, str]], rounds: int, warmup: int) -> tuple[list[Line], list[Line]]:
    """Lines of the time and of the memory of whole commands beside the bare imports."""
    all_ways = {name: [sys.executable, "-c", code] for name, code in BARE.items()}
    all_ways |= {options: [sys.executable, "-m", "itr", *options.split()] for options in bounds}
    ended: dict[str, list[tuple[float, float]]] = {name: [] for name in all_ways}
    side_by_side({n: lambda n=n: ended[n].append(run(all_ways[n])) for n in all_ways}, rounds, warmup)
    found = {name: statistics.median(seconds for seconds, _ in taken[warmup:]) for name, taken in ended.items()}
    peak = {name: max(peak for _, peak in taken) for name, taken in ended.items()}
    lines = []
    for options, (bound, beside) in bounds.items():
        bare = found[beside]
        line = Line(f"`itr {options}`", "s", found[options], beside, bare, bare, at_most=bound)
        line.limit_by = "the bare interpreter, measured in the same run" if beside == PYTHON else MOST
        lines.append(line)
    memory = Line("Peak memory of `itr fit --help`", "MiB", peak["fit --help"], FLOOR, peak[FLOOR])
    memory.remark = f"The bare {TORCH} takes {peak[TORCH]:.0f} MiB of it."
    return lines, [memory]


def imports() -> list[dict[str, float | str]]:
    """Seconds that `itr fit --help` spends in the modules of each package that takes more than a twentieth of them.

    The interpreter counts them, which makes all of them slower.
    """
    command = [sys.executable, "-X", "importtime", "-m", "itr", "fit", "--help"]
    told = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stderr
    spent: dict[str, float] = {}
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\w+)", told, re.MULTILINE):
        spent[name] = spent.get(name, 0.0) + int(own) / 1e6
    total = sum(spent.values())
    large = sorted(((s, name) for name, s in spent.items() if s > total / 20), reverse=True)
    rest = total - sum(seconds for seconds, _ in large)
    return [{"package": name, "seconds": seconds} for seconds, name in [*large, (rest, "others")]]


def explain(lines: list[Line], imported: list[dict[str, float | str]]) -> None:
    """Say of commands that fall short what their time is made of."""
    total = sum(float(row["seconds"]) for row in imported)
    for line in lines:
        if line.met is False:
            line.profile = {str(row["package"]): float(row["seconds"]) / total for row in imported}
            line.remark = (
                f"All but {max(0.0, (line.ours or 0) - (line.limit or 0)):.2f} s is what Lightning imports: "
                "torchmetrics brings scipy and transformers along, and has no switch to leave them out."
            )


def helps(verbs: list[str]) -> list[dict[str, float | str]]:
    """Seconds and memory of the help of each verb, once each."""
    rows: list[dict[str, float | str]] = []
    for verb in verbs:
        seconds, peak = run([sys.executable, "-m", "itr", verb, "--help"])
        rows.append({"verb": verb, "seconds": seconds, "peak memory, MiB": peak})
    return rows


def first_steps(rounds: int, floor: float) -> tuple[list[Line], list[dict[str, float | str]]]:
    """Lines of the time to the first step, with the data to be made and with them there, and the parts of the first."""
    with tempfile.TemporaryDirectory() as folder:
        demo, fit = [], []
        for number in range(rounds):
            out = Path(folder) / str(number)
            where = ["--data.root", str(out / "shards"), "--trainer.default_root_dir", str(out / "fit")]
            demo.append(moments(["demo", "--out", str(out)]))
            fit.append(moments(["fit", "--config", "demo.yaml", *where]))
    lines = []
    for what, runs in (("`itr demo`, making its data", demo), ("`itr fit --config demo.yaml`", fit)):
        seconds = statistics.median(said[-1][0] for said in runs)
        lines.append(Line(f"First step of {what}", "s", seconds, FLOOR, floor, at_most=FIRST_STEP))
    return lines, parts(demo[-1])


def parts(said: list[tuple[float, str]]) -> list[dict[str, float | str]]:
    """How long a run took from each thing that it said to the next."""
    times = [0.0, *(at for at, _ in said)]
    return [
        {"until": text.split(" --")[0], "seconds": after - before}
        for (_, text), before, after in zip(said, times, times[1:], strict=False)
    ]


def resuming(megabytes: int, rounds: int) -> Line:
    """What a run that goes on reads of its checkpoint: the checksums, the settings, and all of it for Lightning."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        weights = {str(n): torch.randn(250_000) for n in range(megabytes)}
        checkpoint_files.write({"hyper_parameters": {}, "state_dict": weights}, path)

        def pooled_only() -> None:
            with path.open("rb") as file:  # as Lightning does
                torch.load(file, map_location="cpu", weights_only=True)

        def ours() -> None:
            assert not checkpoint_files.fault(path)
            checkpoint_files.read(path)
            pooled_only()

        checks = {"checksums": lambda: checkpoint_files.fault(path), "settings": lambda: checkpoint_files.read(path)}
        found = side_by_side({"ours": ours, "bare": bare, **checks}, rounds)
    line = Line(f"Reading a checkpoint of {megabytes:,} MB to go on", "s", found.median("ours"), "torch.load once")
    line.theirs, line.limit = found.median("bare"), found.median("bare")
    line.ratio, line.limit_by = found.ratio("ours", "bare"), "one torch.load, measured in the same run"
    line.profile = {name: found.median(name) / found.median("ours") for name in checks}
    line.remark = "In the page cache. The checksums find a torn file, so that a run goes on from the last whole one."
    return line


def main() -> None:
    """Measure, print and write."""
    parser = arguments(__doc__, rounds=3)
    options = parser.parse_args()
    warmup = 0 if options.quick else 1
    bounds = {name: BOUNDS[name] for name in ("--help", "fit --help")} if options.quick else BOUNDS
    lines, memory = commands(bounds, options.rounds, warmup)
    floor = lines[1].theirs or 0.0
    steps, demo = first_steps(1 if options.quick else options.rounds, floor)
    lines += [*steps, resuming(20 if options.quick else 600, options.rounds), *memory]
    imported = imports()
    explain([line for line in lines if line.limit_by == MOST], imported)
    figures = {"`itr demo` until its first step": demo, "Imports of `itr fit --help`": imported}
    same = {"validate", "test", "predict"}  # one program with fit
    figures["`--help` of the verbs"] = helps(["prepare"] if options.quick else [v for v in VERBS if v not in same])
    write(options.out, "start_up", lines, {"rounds": options.rounds, "device": device()}, figures)


if __name__ == "__main__":
    main()
