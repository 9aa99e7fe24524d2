"""A step of `itr fit` beside the bare towers, beside open_clip's loop, compiled or not, and what makes it wait.

    python benchmarks/training_step.py

Ways that are compared take turns inside one run of the Trainer: its loader times a block of steps of the training loop,
then as many of the other ways, before it gives the next batch.
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
    in_turns,
    make_batch,
    matrix_rate,
    module_step,
    num_operations,
    pooling,
    training,
)

GPU = device() == "cuda"
NO_GPU = "it needs a GPU"
AUTHORS = (
    "the authors' code can't be part of this repository; what was measured beside it by hand, and what follows for a "
    "GPU by calculation, stands in docs/speed.md under `Beside the authors' loops`"
)
WITHIN = 1.10


def beside_bare_towers(name: str, pairs: int, rounds: int, steps: int) -> Line:
    """Our whole step and the bare one, and what the processor's measured rate allows."""
    module, model = training(name), backbone(name)
    batch = make_batch(model, pairs)
    bare = bare_step(model, batch)
    operations = num_operations(bare)
    side = 8192 if GPU else 1024
    found = in_turns(module, batch, {"bare": bare, "matrices": matrix_rate(side)}, rounds, steps)
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
        line.remark = "What Lightning, callbacks and logging add is the line on overhead; the rest is in our own step."
    return line


def share_of_rate(line: Line, model: Model) -> Line:
    """How much of the card's matrix rate a step used, from the line of that step; `costs.shares` reads it."""
    assert line.limit is not None
    assert line.ours is not None
    return Line(
        f"share of the matrix rate, {model.name}, bf16", "", line.limit / line.ours, at_least=ASSUMED_SHARE,
        remark="Kept too where the step is within 10 % of the bare towers, which is the line above.",
    )  # fmt: skip


def full_size(rounds: int, quick: bool) -> list[Line]:
    """ViT-B/32 and ViT-B/16 in bf16; a CPU can only calculate what a card could do."""
    lines = []
    for model in MODELS[:2]:
        pairs = 64 if quick else 1024
        if GPU:
            line = beside_bare_towers(model.name.replace("/", "-"), pairs, rounds, 10)
            lines += [line, share_of_rate(line, model)]
            continue
        operations = 3 * (model.image + model.text) * pairs
        by = f"{operations / 1e12:.3g} TFLOP at the {RATE / 1e12:.0f} TFLOP/s of an {CARD}'s dense bf16"
        step = Line(f"a step of {model.name}, {pairs} pairs, bf16", "ms", limit=1000 * operations / RATE, limit_by=by)
        share = Line(f"share of the matrix rate, {model.name}, bf16", "", at_least=ASSUMED_SHARE, unmeasured=NO_GPU)
        lines += [replace(step, at_most=WITHIN, unmeasured=NO_GPU), share]
    return lines


def overhead(rounds: int, steps: int) -> Line:
    """What a step costs beyond its computation: the same tiny step in the Trainer and in a bare loop."""
    module = training("tiny")
    batch = make_batch(module.backbone, 4)
    bare = module_step(copy.deepcopy(module), batch)
    found = in_turns(module, batch, {"bare": bare}, rounds, steps)
    added = [ours - theirs for ours, theirs in zip(found.seconds["ours"], found.seconds["bare"], strict=True)]
    return Line(
        "what Lightning, our callbacks and logging add to a step", "µs", 1e6 * sorted(added)[len(added) // 2],
        "the same step in a bare loop", 1e6 * found.median("bare"),
        remark="A tiny model, so that nothing hides it; it does not grow with the model.",
    )  # fmt: skip


def waits(name: str) -> Line:
    """How often a step waits for the device, without any step that is logged."""
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
        remark="Counted on torch's device without values; tests/training/test_waits.py runs the Trainer "
        "with all objectives and methods so. At a logged step (one of 50) Lightning reads each figure once.",
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
    """The same step with compiled towers."""
    module = training(name)
    batch = make_batch(module.backbone, pairs)
    other = copy.deepcopy(module)
    ways = {"plain": module_step(module, batch), "compiled": module_step(other, batch)}
    try:
        Compilation(towers=True).begin(other)
    except UserError as error:
        return Line(f"a step of {name}, {pairs} pairs, compiled", "ms", unmeasured=str(error))
    first = seconds(ways["compiled"])
    found = side_by_side(ways, rounds)
    return Line(
        f"a step of {name}, {pairs} pairs, compiled", "ms", 1000 * found.median("compiled"), "not compiled",
        1000 * found.median("plain"), ratio=found.ratio("compiled", "plain"),
        remark=f"The first compiled step took {first:.0f} s. Captions are padded from {batch.text.ids.shape[1]} tokens "
        "to the next of `compilation.lengths`, so that they need one graph.",
    )  # fmt: skip


def gpo(pairs: int, rounds: int) -> Line:
    """Both poolings of a VSE alone beside its whole step."""
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
    ways: dict[str, Callable[[], object]] = {
        "step": module_step(module, batch), "pools": lambda: [pool() for pool in pools],
    }  # fmt: skip
    found = side_by_side(ways, rounds)
    return Line(
        f"both GPO poolings of small VSE, {pairs} pairs", "ms", 1000 * found.median("pools"), "the whole step",
        1000 * found.median("step"), ratio=found.ratio("pools", "step"),
    )  # fmt: skip


def padding(pairs: int, batches: int = 200) -> list[dict[str, Any]]:
    """Tokens that a text tower computes for each real one, by how captions are padded.

    The lengths are made up, 13 tokens on average: 10 and what a gamma distribution of mean 3 adds.
    """
    draw = torch.distributions.Gamma(3.0, 1.0)
    torch.manual_seed(0)
    longest = Compilation().lengths
    sums = {"to 77": 0.0, "to the longest of the batch": 0.0, "to the next of the lengths": 0.0}
    real = 0.0
    for _ in range(batches):
        lengths = (10 + draw.sample((pairs,))).round()  # type: ignore[no-untyped-call]
        most = float(lengths.max())
        real += float(lengths.sum())
        sums["to 77"] += 77 * pairs
        sums["to the longest of the batch"] += most * pairs
        sums["to the next of the lengths"] += min(n for n in longest if n >= most) * pairs
    return [{"captions are padded": way, "tokens for each real one": total / real} for way, total in sums.items()]


def beside_open_clip(rounds: int, quick: bool) -> Line:
    """`itr fit` and `open_clip_train` on the same shards, data loading and all."""
    name = None if quick or not GPU else "ViT-B-32"
    # On a GPU so many that the workers make several batches each, in one epoch.
    pairs, steps, copies = (16, 3, 1) if quick else (1024, 40, 12) if GPU else (64, 8, 1)
    images = 48 if quick else 4096 if GPU else 192
    what = f"pairs a second, {name or 'narrow'}, {pairs} pairs, from shards"
    try:
        import open_clip_train.train  # noqa: F401
    except ImportError as error:
        return Line(what, "1/s", at_least=1.0, unmeasured=f"open_clip_train can't be imported: {error}")
    from curve_data import multiply
    from itr.data.sources.scenes import prepare_scenes
    from open_clip_loop import Theirs, our_rate

    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder, "shards")
        prepare_scenes(str(shards), train=images, val=0, test=0, image_size=96, shard_size=images)
        multiply(shards, copies)
        theirs = Theirs(shards, name, pairs)
        rates = [
            (our_rate(shards, name, pairs, steps, Path(folder, f"run{number}")), theirs.rate(steps))
            for number in range(rounds)
        ]
    ours, other, ratio = (sorted(values)[len(values) // 2] for values in _columns(rates))
    return Line(
        what, "1/s", ours, "train_one_epoch of open_clip_train", other, ratio=ratio, at_least=1.0,
        remark="Same towers, precision, batch and number of workers; both augment as they do by default. Its text "
        "tower computes 77 tokens, ours those of the longest caption of the batch. Its reader of tars is made of the "
        "same webdataset filters here, since its own module wants pandas.",
    )  # fmt: skip


def _columns(rates: list[tuple[float, float]]) -> tuple[list[float], list[float], list[float]]:
    return [a for a, _ in rates], [b for _, b in rates], [a / b for a, b in rates]


def main() -> None:
    """Measure, print and write."""
    parser = arguments(__doc__)
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")  # as `itr fit` does
    quick, rounds = options.quick, options.rounds
    pairs, steps = (8, 1) if quick else (256, 5) if GPU else (64, 2)
    lines = [beside_bare_towers(name, pairs, rounds, steps) for name in ("narrow", "small VSE")]
    lines += full_size(rounds, quick)
    lines.append(overhead(rounds, 3 if quick else 20))
    lines += [waits(name) for name in ("narrow", "small VSE")]
    lines.append(compiled("tiny" if quick else "narrow", pairs, rounds))
    if GPU and not quick:
        lines.append(compiled("ViT-B-32", 1024, rounds))
    lines.append(gpo(pairs, rounds))
    lines.append(beside_open_clip(min(rounds, 3), quick))
    lines += [
        Line(f"speed of {method} over its authors' loop", "", at_least=3.0, unmeasured=AUTHORS)
        for method in ("D2S-VSE, stage 2", "CUSA")
    ]
    figures = {"Tokens that a text tower computes, batches of 128 captions of made-up lengths": padding(128)}
    write(options.out, "training_step", lines, {"rounds": rounds, "quick": quick}, figures)


if __name__ == "__main__":
    main()
