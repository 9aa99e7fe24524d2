"""Measures the cost of CUSA, D2S-VSE and cached features against the same work without them.

    python benchmarks/overheads.py

In each round all models take one step in turn, always on the same batch. A step with features from disk also reads
them, which workers do in parallel in a real run. Towers have random weights, and features are random numbers.
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

BY = "counted operations of both steps, at the speed of the plain step"
NOISE = 0.02  # in the median ratio of two equal steps
FULL = [
    Line(f"{what}, towers of ViT-B/32, batch {GPU.batch:,}", "s", at_most=most, unmeasured="needs a GPU")
    for what, most in (
        ("CUSA, features from disk", 1.02),
        ("CUSA, a compiled text teacher like all-mpnet-base in the loop", 1.10),
        ("D2S, dense embeddings from disk", 1.03),
    )
]


def compiles() -> bool:
    """Return whether to compile the text teacher: on a GPU, if the compiler's requirements are met."""
    if device() == "cuda":
        with suppress(UserError):
            check_compiler("cuda", "the text teacher")
            return True
    return False


def cusa_lines(folder: Path, shards: str, size: Sizes, rounds: int) -> tuple[list[Line], dict[str, Any]]:
    """Compare steps of a CLIP with and without CUSA."""
    for kind, width in (("pooled", 512), ("patches", PATCHES)):
        write_features(shards, folder / kind, "image", width)
        write_features(shards, folder / kind, "text", 768)
    name, description = text_teacher(folder / "text", shards, size.teacher)
    live = Teachers(text=name, precision="bf16" if bf16() else "32", compile=compiles())
    description += ", compiled" if live.compile else ""
    methods = {"plain": [], "pooled": [CUSA()], "patches": [CUSA()], "live": [CUSA(teachers=live)]}
    steps = {}
    for key, chosen in methods.items():
        torch.manual_seed(0)
        features = str(folder / ("patches" if key == "patches" else "pooled"))
        steps[key] = Step(clip(size), contrastive(), chosen, shards, features, size.batch)
    taken = side_by_side(steps, rounds)
    lines = [
        step_line("CUSA, pooled features from disk (512 and 768 numbers)", 1.02, taken, steps, "pooled"),
        step_line(
            f"CUSA, all {PATCHES:,} numbers per image from disk, as by the authors", 1.02, taken, steps, "patches"
        ),
        step_line(f"CUSA, text teacher in the loop: {description}", 1.10, taken, steps, "live"),
    ]
    alone = {key: added(steps[key], "cusa") for key in ("pooled", "patches", "live")}
    return lines, {f"CUSA ({key}), parts timed alone, ms": milliseconds(found) for key, found in alone.items()}


def d2s_lines(folder: Path, shards: str, size: Sizes, rounds: int) -> tuple[list[Line], dict[str, Any]]:
    """Compare steps of a VSE with and without D2S, and the bare forward pass of dense captions."""
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
    live.beside = "the step without distillation plus one bare forward pass of the dense captions"
    live.limit, live.limit_by = None, ""
    live.remark = (
        f"The bound allows {NOISE:.0%} for noise. The step takes {taken.ratio('live', 'cached'):.2f} times as long as "
        f"with cached embeddings; the bare forward pass alone would add {taken.ratio('forward', 'cached'):.2f}."
    )
    cached = step_line("D2S, dense embeddings from disk", 1.03, taken, steps, "cached", "decoder")
    cached.beside = "the step without distillation"
    plain = step_line("D2S, dense embeddings from disk, compared with no D2S", None, taken, steps, "cached")
    plain.beside = "the step with the towers alone"
    plain.remark = "The prompt decoder is part of the model, not only of its training; the authors' model has it too."
    return [cached, live, plain], {"D2S (cached), parts timed alone, ms": milliseconds(added(steps["cached"], "d2s"))}


def step_line(
    what: str, most: float | None, taken: Rounds, steps: dict[str, Step], ours: str, theirs: str = "plain"
) -> Line:
    """Compare two steps; add the limit by counted operations, and a profile if the bound is missed."""
    line = Line(what, "s", taken.median(ours), "the same step without it", taken.median(theirs), at_most=most)
    line.ratio = taken.ratio(ours, theirs)
    if theirs in steps:
        line.limit = taken.median(theirs) * steps[ours].flops() / steps[theirs].flops()
        line.limit_by = BY
    if line.met is False:
        alone = added(steps[ours], "cusa" if "CUSA" in what else "d2s")
        line.profile = {f"{name} (alone, of the step)": share / line.ours for name, share in alone.items()}
    return line


def milliseconds(found: dict[str, float]) -> dict[str, float]:
    """Convert seconds to milliseconds."""
    return {name: 1000 * value for name, value in found.items()}


def memory_line(folder: Path, quick: bool) -> Line:
    """Return the additional memory per process, in MB, with features of the authors' width."""
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
    line = Line("CUSA, additional memory per process", "MB", with_them - without, at_most=100.0)
    line.remark = (
        f"The {overhead_memory.WORKERS} workers read all {size:.0f} MB of features in every epoch. Memory is "
        f"{without:.0f} MB per process without CUSA and {with_them:.0f} MB with it (anonymous and shared memory, mean "
        "over processes). The file stays in the page cache, once for all processes."
    )
    line.limit, line.limit_by = _prefetched(quick), "prefetched batches, divided by the number of processes"
    return line


def _prefetched(quick: bool) -> float:
    batches = 4 * overhead_memory.WORKERS
    return batches * 64 * 2 * ((64 if quick else PATCHES) + 768) / 1e6 / (1 + overhead_memory.WORKERS)


def main() -> None:
    """Run all measurements, print and write the results."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = arguments(__doc__, rounds=9).parse_args()
    torch.set_float32_matmul_precision("high")  # as `itr fit` does
    size, rounds = sizes(options.quick), options.rounds
    figures: dict[str, Any] = {}
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        # Run this first, while the process is small: a large process starts workers slowly.
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
        "pairs per step": size.batch, "width": size.width, "layers": size.layers, "patch": size.patch,
        "arithmetic": "bf16 autocast" if bf16() else "float32", "rounds": rounds,
    }  # fmt: skip
    write(options.out, "overheads", lines, settings, figures)


if __name__ == "__main__":
    main()
