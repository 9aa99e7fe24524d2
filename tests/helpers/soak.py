"""Kill a training run many times, resume it each time, and check that it ends like an uninterrupted run.

    python tests/helpers/soak.py --kills 200

Kills by SIGKILL and SIGTERM in turn, at random moments from the start of the process on, to the process alone or to its
whole group with the loader's workers. Prints one line a run and a summary in JSON; exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from itr.data.sources.scenes import prepare_scenes
from launching import ENOUGH
from tiny import TINY_VSE

KEPT = ("state_dict", "optimizer_states", "lr_schedulers", "random_state", "global_step", "epoch")


def command(shards: Path, folder: Path, epochs: int) -> list[str]:
    """A small run with dropout, drawn captions, crops, a schedule and validation."""
    return [
        sys.executable, "-m", "itr", "fit", *TINY_VSE, f"--data.root={shards}", "--data.batch_size=8",
        "--data.num_workers=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        f"--trainer.max_epochs={epochs}", f"--trainer.default_root_dir={folder}", "--checkpoint.every_steps=7",
        "--ckpt_path=auto",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """Use one thread, so that sums have a fixed order."""
    root = Path(__file__).parents[2]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "src")}


def run(
    command: list[str], log: Path, kill: signal.Signals | None = None, after: float = 0.0, group: bool = False
) -> int:
    """Start a process, kill it after some seconds if it is still running, and return its exit status."""
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment(), start_new_session=True)
    try:
        return process.wait(timeout=after if kill else None)
    except subprocess.TimeoutExpired:
        assert kill is not None
        if group:
            os.killpg(process.pid, kill)
        else:
            process.send_signal(kill)
        return process.wait(timeout=ENOUGH)


def differences(one: Any, two: Any, name: str = "") -> list[str]:
    """The places where two checkpoints are not bitwise equal."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if torch.equal(one, two) else [name]
    if type(one) is not type(two):
        return [name]
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return [name]
        return [found for key in one for found in differences(one[key], two[key], f"{name}.{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(two):
            return [name]
        return [f for i, (a, b) in enumerate(zip(one, two, strict=True)) for f in differences(a, b, f"{name}[{i}]")]
    return [] if one == two else [name]


def final(folder: Path) -> dict[str, Any]:
    """The results of a finished run: its state, the best score and the best weights."""
    last, best = (torch.load(folder / "checkpoints" / f"{n}.ckpt", weights_only=True) for n in ("last", "best"))
    return {
        **{name: last[name] for name in KEPT},
        "best": last["callbacks"]["Checkpoints"],
        "best weights": best["state_dict"],
    }


def soak(folder: Path, kills: int, seed: int, epochs: int, longest: float, images: int = 160) -> dict[str, Any]:
    """Kill `kills` times, over as many runs as needed; return the counts and all differences."""
    rng = random.Random(seed)
    shards = folder / "shards"
    prepare_scenes(str(shards), train=images, val=24, test=8, captions=(2, 4), image_size=32, shard_size=50)
    started = time.monotonic()
    log = folder / "log.txt"
    if run(command(shards, folder / "undisturbed", epochs), log):
        raise SystemExit(f"the undisturbed run failed: {log.read_text()[-2000:]}")
    wanted = final(folder / "undisturbed")
    seconds = time.monotonic() - started
    found: Counter[str] = Counter()
    wrong: list[str] = []
    number = done = 0
    while done < kills and not wrong:
        where = folder / f"run{number}"
        number += 1
        status = None
        while status != 0:
            kill = None
            if done < kills:
                kill = (signal.SIGKILL, signal.SIGTERM)[done % 2]
            group = rng.random() < 0.5
            status = run(command(shards, where, epochs), log, kill, rng.uniform(0, longest), group)
            if kill and status:
                done += 1
                found[f"{kill.name}{' to the group' if group else ''}: {status}"] += 1
                expected = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15)}[kill]  # -15: before it could listen
                if status not in expected:
                    wrong.append(f"run {number}: {kill.name} ended with {status}: {log.read_text()[-3000:]}")
                    break
            elif status:
                wrong.append(f"run {number}: a run that nobody killed ended with {status}: {log.read_text()[-3000:]}")
                break
        else:
            different = differences(wanted, final(where))
            wrong += [f"run {number}: {name} differs" for name in different[:9]]
            print(f"run {number}: {done} kills so far, {len(different)} differences", flush=True)
            shutil.rmtree(where)
    return {
        "kills": done, "runs": number, "steps": wanted["global_step"], "undisturbed_seconds": round(seconds, 1),
        "seconds": round(time.monotonic() - started), "ends": dict(sorted(found.items())), "wrong": wrong,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--longest", type=float, default=25.0, help="seconds before a kill, at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        summary = soak(Path(temporary), options.kills, options.seed, options.epochs, options.longest)
    print(json.dumps(summary, indent=1))
    sys.exit(bool(summary["wrong"]))
