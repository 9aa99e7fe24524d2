"""Measures whole commands in new processes: help, configs, the first training step, and reading a checkpoint.

    python benchmarks/start_up.py

The commands take turns with the bare imports that they need, each in its own process. The files they read are in the
page cache after the first turn, which is not counted.
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
from itr.runs.checkpoints import checkpoint_files
from measuring import Line, arguments, device, side_by_side, write

HERE = Path(__file__).parent
PYTHON, TORCH = "python -c pass", "import torch"
FLOOR = "import torch, lightning.pytorch, jsonargparse"
BARE = {PYTHON: "pass", TORCH: TORCH, FLOOR: FLOOR}
CONFIGS = ("demo.yaml", "coco_cusa.yaml")
BOUNDS = {"--help": (1.0, PYTHON), "fit --help": (6.0, FLOOR)}
BOUNDS |= {f"fit --config {config} --print_config": (6.0, FLOOR) for config in CONFIGS}
FIRST_STEP = 20.0  # seconds, on two cores
IMPORT_LIMIT = f"`{FLOOR}` alone, measured in the same run"


# Measures a command from a small process: a child of this one would inherit its memory usage.
MEASURER = """import resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"""


def environment() -> dict[str, str]:
    """Return the environment of this process, with this copy of `itr` first."""
    paths = [str(Path(itr.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run(command: list[str]) -> tuple[float, float]:
    """Return the seconds and peak memory (MiB) of a command in a new process.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    measurer = [sys.executable, "-c", MEASURER, *command]
    seconds, peak = subprocess.run(measurer, env=environment(), capture_output=True, check=True).stdout.split()
    return float(seconds), float(peak)


def moments(arguments: list[str]) -> list[tuple[float, str]]:
    """Return the messages of `first_step.py` with the seconds until each; the last is the first step.

    Raises:
        RuntimeError: the run ended before its first step.
    """
    command = [sys.executable, str(HERE / "first_step.py"), *arguments]
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    with process.stdout as lines:
        messages = [(time.perf_counter() - began, line.strip()) for line in lines]
    if process.wait() or messages[-1][1] != MOMENTS["on_train_batch_end"]:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} before its first step")
    return [(at, text) for at, text in messages if text.startswith("$ itr") or text in (IMPORTED, *MOMENTS.values())]


def commands(bounds: dict[str, tuple[float, str]], rounds: int, warmup: int) -> tuple[list[Line], list[Line]]:
    """Return lines for the time and the memory of whole commands, compared with bare imports."""
    commands_to_run = {name: [sys.executable, "-c", code] for name, code in BARE.items()}
    commands_to_run |= {options: [sys.executable, "-m", "itr", *options.split()] for options in bounds}
    ended: dict[str, list[tuple[float, float]]] = {name: [] for name in commands_to_run}
    side_by_side({n: lambda n=n: ended[n].append(run(commands_to_run[n])) for n in commands_to_run}, rounds, warmup)
    found = {name: statistics.median(seconds for seconds, _ in taken[warmup:]) for name, taken in ended.items()}
    peak = {name: max(peak for _, peak in taken) for name, taken in ended.items()}
    lines = []
    for options, (bound, beside) in bounds.items():
        bare = found[beside]
        line = Line(f"`itr {options}`", "s", found[options], beside, bare, bare, at_most=bound)
        line.limit_by = "the bare interpreter, measured in the same run" if beside == PYTHON else IMPORT_LIMIT
        lines.append(line)
    memory = Line("Peak memory of `itr fit --help`", "MiB", peak["fit --help"], FLOOR, peak[FLOOR])
    memory.remark = f"`{TORCH}` alone takes {peak[TORCH]:.0f} MiB of it."
    return lines, [memory]


def imports() -> list[dict[str, float | str]]:
    """Return the import seconds of `itr fit --help` for each package that takes more than a twentieth.

    The interpreter measures them, which slows down all imports.
    """
    command = [sys.executable, "-X", "importtime", "-m", "itr", "fit", "--help"]
    report = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stderr
    spent: dict[str, float] = {}
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\w+)", report, re.MULTILINE):
        spent[name] = spent.get(name, 0.0) + int(own) / 1e6
    total = sum(spent.values())
    large = sorted(((s, name) for name, s in spent.items() if s > total / 20), reverse=True)
    rest = total - sum(seconds for seconds, _ in large)
    return [{"package": name, "seconds": seconds} for seconds, name in [*large, (rest, "others")]]


def explain(lines: list[Line], imported: list[dict[str, float | str]]) -> None:
    """Add profiles to commands that miss their bounds."""
    total = sum(float(row["seconds"]) for row in imported)
    for line in lines:
        if line.met is False:
            line.profile = {str(row["package"]): float(row["seconds"]) / total for row in imported}
            line.remark = (
                f"All but {max(0.0, (line.ours or 0) - (line.limit or 0)):.2f} s is what Lightning imports: "
                "torchmetrics imports scipy and transformers, and has no option to avoid it."
            )


def helps(verbs: list[str]) -> list[dict[str, float | str]]:
    """Measure the seconds and memory of each command's help once."""
    rows: list[dict[str, float | str]] = []
    for verb in verbs:
        seconds, peak = run([sys.executable, "-m", "itr", verb, "--help"])
        rows.append({"command": verb, "seconds": seconds, "peak memory, MiB": peak})
    return rows


def first_steps(rounds: int, floor: float) -> tuple[list[Line], list[dict[str, float | str]]]:
    """Return lines for the time to the first step, with and without preparing data, and its phases."""
    with tempfile.TemporaryDirectory() as folder:
        demo, fit = [], []
        for number in range(rounds):
            out = Path(folder) / str(number)
            where = ["--data.root", str(out / "shards"), "--trainer.default_root_dir", str(out / "fit")]
            demo.append(moments(["demo", "--out", str(out)]))
            fit.append(moments(["fit", "--config", "demo.yaml", *where]))
    lines = []
    for what, runs in (("`itr demo`, including data preparation", demo), ("`itr fit --config demo.yaml`", fit)):
        seconds = statistics.median(messages[-1][0] for messages in runs)
        lines.append(Line(f"First step of {what}", "s", seconds, FLOOR, floor, at_most=FIRST_STEP))
    return lines, phases(demo[-1])


def phases(messages: list[tuple[float, str]]) -> list[dict[str, float | str]]:
    """Return the seconds between successive messages of a run."""
    times = [0.0, *(at for at, _ in messages)]
    return [
        {"until": text.split(" --")[0], "seconds": after - before}
        for (_, text), before, after in zip(messages, times, times[1:], strict=False)
    ]


def resuming(megabytes: int, rounds: int) -> Line:
    """Measure what a resumed run reads from its checkpoint: checksums, settings, and everything for Lightning."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        weights = {str(n): torch.randn(250_000) for n in range(megabytes)}
        checkpoint_files.write({"hyper_parameters": {}, "state_dict": weights}, path)

        def bare() -> None:
            with path.open("rb") as file:  # as Lightning does
                torch.load(file, map_location="cpu", weights_only=True)

        def ours() -> None:
            assert not checkpoint_files.fault(path)
            checkpoint_files.read(path)
            bare()

        checks = {"checksums": lambda: checkpoint_files.fault(path), "settings": lambda: checkpoint_files.read(path)}
        found = side_by_side({"ours": ours, "bare": bare, **checks}, rounds)
    line = Line(f"Reading a checkpoint of {megabytes:,} MB to resume", "s", found.median("ours"), "torch.load once")
    line.theirs, line.limit = found.median("bare"), found.median("bare")
    line.ratio, line.limit_by = found.ratio("ours", "bare"), "one torch.load, measured in the same run"
    line.profile = {name: found.median(name) / found.median("ours") for name in checks}
    line.remark = (
        "The file is in the page cache. The checksums detect a damaged file, so that the run uses the last intact one."
    )
    return line


def main() -> None:
    """Run all measurements, print and write the results."""
    parser = arguments(__doc__, rounds=3)
    options = parser.parse_args()
    warmup = 0 if options.quick else 1
    bounds = {name: BOUNDS[name] for name in ("--help", "fit --help")} if options.quick else BOUNDS
    lines, memory = commands(bounds, options.rounds, warmup)
    floor = lines[1].theirs or 0.0
    steps, demo = first_steps(1 if options.quick else options.rounds, floor)
    lines += [*steps, resuming(20 if options.quick else 600, options.rounds), *memory]
    imported = imports()
    explain([line for line in lines if line.limit_by == IMPORT_LIMIT], imported)
    figures = {"`itr demo` until its first step": demo, "Imports of `itr fit --help`": imported}
    same = {"validate", "test", "predict"}  # the same program as fit
    figures["`--help` of each command"] = helps(["prepare"] if options.quick else [v for v in VERBS if v not in same])
    write(options.out, "start_up", lines, {"rounds": options.rounds, "device": device()}, figures)


if __name__ == "__main__":
    main()
