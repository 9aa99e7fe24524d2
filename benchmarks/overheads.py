"""What CUSA, D2S-VSE and the caching of features cost beside the same work without them.

    python benchmarks/overheads.py

All models make a step in each round, in turn, on one batch that stays the same. A step with features from disk reads
them too, which workers do meanwhile in a real run. Towers have random weights; features are random numbers.
"""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import overhead_memory
from itr.errors import UserError
from itr.methods import CUSA, D2S
from itr.methods.cusa_teachers import Teachers
from itr.training.compiling import check_compiler
from measuring import Line, Rounds, arguments, device, side_by_side, write
from overhead_caching import caching_lines
from overhead_parts import (
    GPU,
    PATCHES,
    Sizes,
    Step,
    bf16,
    clip,
    contrastive,
    hinge,
    identity,
    scenes,
    sizes,
    text_teacher,
    vse,
    write_features,
)
from overhead_shares import added, real_shares, real_shares_of_d2s

BY = "operations of both steps as counted, at the speed of the plain step"
NOISE = 0.02  # of a step's median ratio
FULL = [
    Line(f"{what}, towers of ViT-B/32, batch {GPU.batch:,}", "s", at_most=most, unmeasured="it needs a GPU")
    for what, most in (
        ("CUSA, features from disk", 1.02),
        ("CUSA, a compiled text teacher like all-mpnet-base in the loop", 1.10),
        ("D2S, dense embeddings from disk", 1.03),
    )
]


def compiles() -> bool:
    """Whether the text teacher is compiled: on a GPU, unless it lacks what that needs."""
    if device() == "cuda":
        with suppress(UserError):
            check_compiler("cuda", "the text teacher")
            return True
    return False


def cusa_lines(folder: Path, shards: str, size: Sizes, rounds: int) -> tuple[list[Line], dict[str, Any]]:
    """Steps of a CLIP with and without CUSA."""
    for kind, width in (("pooled", 512), ("patches", PATCHES)):
        write_features(shards, folder / kind, "image", width)
        write_features(shards, folder / kind, "text", 768)
    name, what = text_teacher(folder / "text", shards, size.teacher)
    live = Teachers(text=name, precision="bf16" if bf16() else "32", compile=compiles())
    what += ", compiled," if live.compile else ""
    methods = {"plain": [], "pooled": [CUSA()], "patches": [CUSA()], "live": [CUSA(teachers=live)]}
    steps = {}
    for key, chosen in methods.items():
        torch.manual_seed(0)
        features = str(folder / ("patches" if key == "patches" else "pooled"))
        steps[key] = Step(clip(size), contrastive(), chosen, shards, features, size.batch)
    taken = side_by_side(steps, rounds)
    lines = [
        step_line("CUSA, pooled features from disk (512 and 768 numbers)", 1.02, taken, steps, "pooled"),
        step_line(f"CUSA, all {PATCHES:,} numbers an image from disk, as the authors", 1.02, taken, steps, "patches"),
        step_line(
            f"CUSA, {what} reads the captions in the loop",
            1.10,
            taken,
            steps,
            "live",
        ),
    ]
    alone = {key: added(steps[key], "cusa") for key in ("pooled", "patches", "live")}
    return lines, {f"CUSA ({key}), ms, timed alone": told(found) for key, found in alone.items()}


def d2s_lines(folder: Path, shards: str, size: Sizes, rounds: int) -> tuple[list[Line], dict[str, Any]]:
    """Steps of a VSE with and without D2S, and the bare forward of dense captions."""
    torch.manual_seed(0)
    first = vse(size)
    features = write_features(shards, folder / "dense", "dense", first.dim, identity(first))
    methods = {"plain": [], "decoder": [D2S(weight=0)], "cached": [D2S(cached=True)], "live": [D2S()]}
    steps: dict[str, Step] = {}
    for key, chosen in methods.items():
        steps[key] = Step(copy.deepcopy(first), hinge(), chosen, shards, features, size.batch)
    batch, teacher = steps["live"].batch, steps["live"].module.methods["d2s"].teacher
    dense = batch.image_extra["dense"]

    def forward() -> None:
        with torch.autocast(device(), torch.bfloat16, enabled=bf16()):
            teacher(dense)

    taken = side_by_side({**steps, "forward": forward}, rounds)
    together = [a + b for a, b in zip(taken.seconds["decoder"], taken.seconds["forward"], strict=True)]
    taken.seconds["decoder and forward"] = together
    live = step_line("D2S, frozen teacher in the step", 1 + NOISE, taken, steps, "live", "decoder and forward")
    live.beside = "the step without distillation, and one bare forward of the dense captions"
    live.limit, live.limit_by = None, ""
    live.remark = (
        f"A step's noise, {NOISE:.0%}, is allowed. It takes {taken.ratio('live', 'cached'):.2f} times the step with "
        f"cached embeddings, of which the bare forward alone would be {taken.ratio('forward', 'cached'):.2f}."
    )
    cached = step_line("D2S, dense embeddings from disk", 1.03, taken, steps, "cached", "decoder")
    cached.beside = "the step without distillation"
    plain = step_line("D2S, dense embeddings from disk, beside no D2S at all", None, taken, steps, "cached")
    plain.beside = "the step of the towers alone"
    plain.remark = "The prompts' decoder is part of the model, not of its training: the authors' has it too."
    return [cached, live, plain], {"D2S (cached), ms, timed alone": told(added(steps["cached"], "d2s"))}


def step_line(
    what: str, most: float | None, taken: Rounds, steps: dict[str, Step], ours: str, theirs: str = "plain"
) -> Line:
    """A step beside another, with what the counted operations allow; its profile where it falls short."""
    line = Line(what, "s", taken.median(ours), "the step without", taken.median(theirs), at_most=most)
    line.ratio = taken.ratio(ours, theirs)
    if theirs in steps:
        line.limit = taken.median(theirs) * steps[ours].flops() / steps[theirs].flops()
        line.limit_by = BY
    if line.met is False:
        alone = added(steps[ours], "cusa" if "CUSA" in what else "d2s")
        line.profile = {f"{name} (alone, of the step)": share / line.ours for name, share in alone.items()}
    return line


def told(found: dict[str, float]) -> dict[str, float]:
    """Seconds as milliseconds."""
    return {name: 1000 * value for name, value in found.items()}


def memory_line(folder: Path, quick: bool) -> Line:
    """Megabytes of a training process and its workers more with features of the authors' width than without CUSA."""
    shards = scenes(folder / "small", 128 if quick else 1024, 32)
    for modality, width in (("image", 64 if quick else PATCHES), ("text", 768)):
        write_features(shards, folder / "wide", modality, width)
    script = overhead_memory.__file__
    found = []
    for features in ([], [str(folder / "wide")]):
        done = subprocess.run([sys.executable, script, shards, *features], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    without, with_them = (entry["own"] / entry["processes"] for entry in found)
    size = sum(path.stat().st_size for path in (folder / "wide").rglob("*.npy")) / 1e6
    line = Line("CUSA, more memory of each process", "MB", with_them - without, at_most=100.0)
    line.remark = (
        f"Features of {size:.0f} MB, read whole in every epoch by the training process's {overhead_memory.WORKERS} "
        f"workers: {without:.0f} MB a process without CUSA, {with_them:.0f} MB with it (anonymous and shared memory, "
        "the mean of the processes). The file stays in the page cache, once for all processes."
    )
    line.limit, line.limit_by = _prefetched(quick), "batches that workers hold ready, over the processes"
    return line


def _prefetched(quick: bool) -> float:
    batches = 4 * overhead_memory.WORKERS
    return batches * 64 * 2 * ((64 if quick else PATCHES) + 768) / 1e6 / (1 + overhead_memory.WORKERS)


def main() -> None:
    """Measure, print and write."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = arguments(__doc__, rounds=9).parse_args()
    torch.set_float32_matmul_precision("high")  # as `itr fit` does
    size, rounds = sizes(options.quick), options.rounds
    figures: dict[str, Any] = {}
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        # First, while the process is small: a large one takes long to start workers.
        caching = caching_lines(folder, size, (rounds + 1) // 2)
        shards = scenes(folder / "scenes", size.images, 64)
        for part in (cusa_lines, d2s_lines):
            found, more = part(folder, shards, size, rounds)
            lines += found
            figures |= more
        lines.insert(2, memory_line(folder, options.quick))
        lines += caching
    if device() == "cpu":
        lines += FULL
    if not options.quick:
        figures["CUSA's share of the operations of a ViT-B/32 step, counted"] = real_shares()
        figures["D2S's share of the operations of a step of ViT-B/16 and BERT, counted"] = real_shares_of_d2s()
    settings = {
        "pairs of a step": size.batch, "width": size.width, "layers": size.layers, "patch": size.patch,
        "arithmetic": "bf16 autocast" if bf16() else "float32", "rounds": rounds,
    }  # fmt: skip
    write(options.out, "overheads", lines, settings, figures)


if __name__ == "__main__":
    main()
