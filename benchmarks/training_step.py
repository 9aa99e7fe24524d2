"""Compares a step of `itr fit` with the bare towers, open_clip's loop and compiled towers, and counts its waits.

    python benchmarks/training_step.py

The alternatives take turns inside one run of the Trainer: the loader times a block of steps of the training loop, then
the same number of steps of each alternative, before it returns the next batch.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from costs import ASSUMED_SHARE, CARD, MODELS, RATE, Model
from itr.backbones import VSE
from itr.errors import UserError
from itr.training.compiling import Compilation
from loss_profile import shares_of
from measuring import Line, arguments, device, seconds, side_by_side, write
from step_parts import (
    backbone,
    bare_step,
    make_batch,
    matrix_rate,
    module_step,
    num_operations,
    pooling,
    time_in_turns,
    training,
)

GPU = device() == "cuda"
NO_GPU = "needs a GPU"
AUTHORS = (
    "the authors' code cannot be part of this repository; docs/speed.md reports a comparison by hand and a projection "
    "for a GPU, under `Comparison with the authors' loops`"
)
WITHIN = 1.10


def bare_towers_line(name: str, pairs: int, rounds: int, steps: int) -> Line:
    """Compare our whole step with a bare one, and with the limit set by the measured matrix rate."""
    module, model = training(name), backbone(name)
    batch = make_batch(model, pairs)
    bare = bare_step(model, batch)
    operations = num_operations(bare)
    side = 8192 if GPU else 1024
    found = time_in_turns(module, batch, {"bare": bare, "matrices": matrix_rate(side)}, rounds, steps)
    rate = 2 * side**3 / found.median("matrices")
    ratio = found.ratio("ours", "bare")
    line = Line(
        f"a step of {name}, {pairs} pairs", "ms", 1000 * found.median("ours"), "bare forward, backward, AdamW",
        1000 * found.median("bare"), 1000 * operations / rate,
        f"{operations / 1e9:.3g} GFLOP at the {rate / 1e9:,.0f} GFLOP/s of a square matrix product in this run",
        ratio, at_most=WITHIN,
    )  # fmt: skip
    if ratio > WITHIN:
        line.profile = shares_of(module_step(training(name), batch))
        line.remark = "The overhead line shows what Lightning, callbacks and logging add; the rest is in our own step."
    return line


def share_of_rate(line: Line, model: Model) -> Line:
    """Return the share of the card's matrix rate that a step used; `costs.shares` reads this line."""
    assert line.limit is not None
    assert line.ours is not None
    return Line(
        f"share of the matrix rate, {model.name}, bf16", "", line.limit / line.ours, at_least=ASSUMED_SHARE,
        remark="Also met if the step is within 10 % of the bare towers (the line above).",
    )  # fmt: skip


def full_size(rounds: int, quick: bool) -> list[Line]:
    """Measure ViT-B/32 and ViT-B/16 in bf16; without a GPU, only calculate the limit."""
    lines = []
    for model in MODELS[:2]:
        pairs = 64 if quick else 1024
        if GPU:
            line = bare_towers_line(model.name.replace("/", "-"), pairs, rounds, 10)
            lines += [line, share_of_rate(line, model)]
            continue
        operations = 3 * (model.image + model.text) * pairs
        by = f"{operations / 1e12:.3g} TFLOP at the {RATE / 1e12:.0f} TFLOP/s of an {CARD}'s dense bf16"
        step = Line(f"a step of {model.name}, {pairs} pairs, bf16", "ms", limit=1000 * operations / RATE, limit_by=by)
        share = Line(f"share of the matrix rate, {model.name}, bf16", "", at_least=ASSUMED_SHARE, unmeasured=NO_GPU)
        lines += [replace(step, at_most=WITHIN, unmeasured=NO_GPU), share]
    return lines


def overhead(rounds: int, steps: int) -> Line:
    """Measure the overhead of a step: the same tiny step in the Trainer and in a bare loop."""
    module = training("tiny")
    batch = make_batch(module.backbone, 4)
    bare = module_step(copy.deepcopy(module), batch)
    found = time_in_turns(module, batch, {"bare": bare}, rounds, steps)
    added = [ours - theirs for ours, theirs in zip(found.seconds["ours"], found.seconds["bare"], strict=True)]
    return Line(
        "what Lightning, our callbacks and logging add to a step", "µs", 1e6 * sorted(added)[len(added) // 2],
        "the same step in a bare loop", 1e6 * found.median("bare"),
        remark="Measured on a tiny model, where nothing hides it; it does not grow with the model.",
    )  # fmt: skip


def waits(name: str) -> Line:
    """Count how often a step waits for the device, in a step that is not logged."""
    what = f"waits for the device in a step, {name}"
    if GPU:
        return Line(what, "", float(_cuda_waits(name)), at_most=0, remark="Counted by torch.cuda's sync debug mode.")
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
    from valueless import DEVICE, Waits

    module = training(name)
    batch = make_batch(module.backbone, 8).to(DEVICE)
    module = module.to(DEVICE).train()
    with Waits() as found:
        found.writing = True
        torch.stack(list(module.loss_terms(batch, 0.0).values())).sum().backward()
    return Line(
        what, "", float(sum(found.found.values())), at_most=0,
        remark="Counted on torch's meta device; tests/training/test_waits.py runs the Trainer in this way "
        "with all objectives and methods. At a logged step (one in 50) Lightning reads each metric once.",
    )  # fmt: skip


def _cuda_waits(name: str) -> int:
    module = training(name)
    step = module_step(module, make_batch(module.backbone, 64))
    step()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    return len([warning for warning in caught if "synchroniz" in str(warning.message)])


def compiled(name: str, pairs: int, rounds: int) -> Line:
    """Compare a step with compiled towers to the plain step."""
    module = training(name)
    batch = make_batch(module.backbone, pairs)
    other = copy.deepcopy(module)
    alternatives = {"plain": module_step(module, batch), "compiled": module_step(other, batch)}
    try:
        Compilation(towers=True).begin(other)
    except UserError as error:
        return Line(f"a step of {name}, {pairs} pairs, compiled", "ms", unmeasured=str(error))
    first = seconds(alternatives["compiled"])
    found = side_by_side(alternatives, rounds)
    return Line(
        f"a step of {name}, {pairs} pairs, compiled", "ms", 1000 * found.median("compiled"), "not compiled",
        1000 * found.median("plain"), ratio=found.ratio("compiled", "plain"),
        remark=f"The first compiled step took {first:.0f} s. Captions are padded from {batch.text.ids.shape[1]} tokens "
        "to the next of `compilation.lengths`, so that one graph is enough.",
    )  # fmt: skip


def gpo(pairs: int, rounds: int) -> Line:
    """Compare both poolings of a VSE with its whole step."""
    module = training("small VSE")
    model = module.backbone
    assert isinstance(model, VSE)
    batch = make_batch(model, pairs)
    patches = (model.image_spec.size // 8) ** 2 + 1
    full = torch.ones(pairs, patches, dtype=torch.bool)
    pools = [
        pooling(copy.deepcopy(model.image_pool).to(device()), torch.randn(pairs, patches, model.dim), full),
        pooling(copy.deepcopy(model.text_pool).to(device()), torch.randn(*batch.text.ids.shape, model.dim),
                batch.text.mask),
    ]  # fmt: skip
    alternatives: dict[str, Callable[[], object]] = {
        "step": module_step(module, batch), "pools": lambda: [pool() for pool in pools],
    }  # fmt: skip
    found = side_by_side(alternatives, rounds)
    return Line(
        f"both GPO poolings of small VSE, {pairs} pairs", "ms", 1000 * found.median("pools"), "the whole step",
        1000 * found.median("step"), ratio=found.ratio("pools", "step"),
    )  # fmt: skip


def padding(pairs: int, batches: int = 200) -> list[dict[str, Any]]:
    """Count the tokens that a text tower computes per real token, for each kind of padding.

    The lengths are random with a mean of 13 tokens: 10 plus a gamma distribution with mean 3.
    """
    draw = torch.distributions.Gamma(3.0, 1.0)
    torch.manual_seed(0)
    compiled_lengths = Compilation().lengths
    sums = {"to 77": 0.0, "to the longest in the batch": 0.0, "to the next of `compilation.lengths`": 0.0}
    real = 0.0
    for _ in range(batches):
        lengths = (10 + draw.sample((pairs,))).round()  # type: ignore[no-untyped-call]
        most = float(lengths.max())
        real += float(lengths.sum())
        sums["to 77"] += 77 * pairs
        sums["to the longest in the batch"] += most * pairs
        sums["to the next of `compilation.lengths`"] += min(n for n in compiled_lengths if n >= most) * pairs
    return [{"padding": way, "tokens per real token": total / real} for way, total in sums.items()]


def open_clip_line(rounds: int, quick: bool) -> Line:
    """Compare `itr fit` with `open_clip_train` on the same shards, including data loading."""
    name = None if quick or not GPU else "ViT-B-32"
    # On a GPU, enough pairs for each worker to make several batches in one epoch.
    pairs, steps, copies = (16, 3, 1) if quick else (1024, 40, 12) if GPU else (64, 8, 1)
    images = 48 if quick else 4096 if GPU else 192
    what = f"pairs per second, {name or 'narrow'}, {pairs} pairs, from shards"
    try:
        import open_clip_train.train  # noqa: F401
    except ImportError as error:
        return Line(what, "1/s", at_least=1.0, unmeasured=f"open_clip_train cannot be imported: {error}")
    from curve_data import multiply
    from itr.data.sources.scenes import prepare_scenes
    from open_clip_loop import OpenClipTraining, our_rate

    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder, "shards")
        prepare_scenes(str(shards), train=images, val=0, test=0, image_size=96, shard_size=images)
        multiply(shards, copies)
        theirs = OpenClipTraining(shards, name, pairs)
        rates = [
            (our_rate(shards, name, pairs, steps, Path(folder, f"run{number}")), theirs.rate(steps))
            for number in range(rounds)
        ]
    ours, other, ratio = (sorted(values)[len(values) // 2] for values in _columns(rates))
    return Line(
        what, "1/s", ours, "train_one_epoch of open_clip_train", other, ratio=ratio, at_least=1.0,
        remark="Both have the same towers, precision, batch size and number of workers, and their default "
        "augmentation. Its text tower computes 77 tokens, ours stops at the longest caption in the batch. Its tar "
        "reader is built here from the same webdataset filters, because its own module requires pandas.",
    )  # fmt: skip


def _columns(rates: list[tuple[float, float]]) -> tuple[list[float], list[float], list[float]]:
    return [a for a, _ in rates], [b for _, b in rates], [a / b for a, b in rates]


def main() -> None:
    """Run all measurements, print and write the results."""
    parser = arguments(__doc__)
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")  # as `itr fit` does
    quick, rounds = options.quick, options.rounds
    pairs, steps = (8, 1) if quick else (256, 5) if GPU else (64, 2)
    lines = [bare_towers_line(name, pairs, rounds, steps) for name in ("narrow", "small VSE")]
    lines += full_size(rounds, quick)
    lines.append(overhead(rounds, 3 if quick else 20))
    lines += [waits(name) for name in ("narrow", "small VSE")]
    lines.append(compiled("tiny" if quick else "narrow", pairs, rounds))
    if GPU and not quick:
        lines.append(compiled("ViT-B-32", 1024, rounds))
    lines.append(gpo(pairs, rounds))
    lines.append(open_clip_line(min(rounds, 3), quick))
    lines += [
        Line(f"speed of {method}, relative to its authors' loop", "", at_least=3.0, unmeasured=AUTHORS)
        for method in ("D2S-VSE, stage 2", "CUSA")
    ]
    figures = {"Tokens computed by a text tower, batches of 128 captions with random lengths": padding(128)}
    write(options.out, "training_step", lines, {"rounds": rounds, "quick": quick}, figures)


if __name__ == "__main__":
    main()
