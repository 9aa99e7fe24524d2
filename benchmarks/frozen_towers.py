"""Measures frozen towers that run once: the pass beside the bare forward pass, and an epoch beside a bare loop.

Without `--root`, it makes scenes; with it, it reads the split `train` of these shards. The pass is measured on the
first shard. The epoch reads what stands beside the shards, or writes it. Needs `itr[offline]`.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn.functional import normalize

from itr.backbones.base import Side
from itr.commands.configs import resolve_configs
from itr.commands.process import set_up_cpu
from itr.commands.quieten import quieten
from itr.data.features.reader import ChunkReader
from itr.data.shards.locations import find_split
from itr.data.shards.schema import Split
from itr.data.sources.scenes import prepare_scenes
from itr.data.towers.choice import Choice
from itr.data.towers.encoding import CHUNK, Decoding, Job, keep_outputs
from itr.images.transforms import EvaluationTransform
from itr.runs.command import TrainingCLI
from measuring import Line, Rounds, arguments, device, side_by_side, write

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--data.val_split=null"]
NO_CHECKPOINTS = ["--trainer.enable_checkpointing=false", "--trainer.callbacks=null"]


class EpochTimes(pl.Callback):
    """The seconds of each epoch's training, waiting for batches included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.began = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self.began)


def training(root: Path, folder: Path, *options: str) -> TrainingCLI:
    """Build a run of photos.yaml without starting it."""
    where = [f"--data.root={root}", f"--trainer.default_root_dir={folder}"]
    return TrainingCLI(resolve_configs(["--config=photos.yaml", *where, *QUIET, *NO_CHECKPOINTS, *options]), run=False)


def encoding_line(cli: TrainingCLI, split: Split, side: Side, rounds: int) -> Line:
    """Compare the pass over one side, reading and writing included, with the tower on inputs in memory."""
    backbone = cli.model.backbone.eval().to(device())
    transform = EvaluationTransform(backbone.image_spec) if side == "image" else None
    tower, what, count = ("vision", "images", split.images) if side == "image" else ("text", "captions", split.captions)
    todo = list(range(-(-count // CHUNK)))
    reader = ChunkReader(split, side, CHUNK, todo, transform, 10**8, None, backbone.tokenizer)
    ready = [chunk.inputs.to(torch.device(device())) for chunk in reader]  # type: ignore[union-attr]
    run = backbone.image_output if side == "image" else backbone.text_output

    def bare() -> None:
        with torch.inference_mode():
            for inputs in ready:
                run(inputs).float().cpu()

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            job = Job(backbone, Path(folder), "train", split, Decoding(2, 10**8, 0), cli.trainer)
            keep_outputs(Choice((side,), "float16"), job)

    found = side_by_side({"ours": ours, "bare": bare}, rounds)
    return Line(
        f"run the {tower} tower once over {count:,} {what}", f"{what}/s", count / found.median("ours"),
        "the bare tower on inputs in memory", count / found.median("bare"),
        ratio=found.ratio("bare", "ours"), at_least=0.95,
    )  # fmt: skip


def bare_epoch(cli: TrainingCLI, image: torch.Tensor, text: torch.Tensor, own: torch.Tensor) -> None:
    """Train the heads for an epoch on rows [I, W] and [C, W] and each caption's image [C], without anything else."""
    heads = [cli.model.backbone.image_projection, cli.model.backbone.text_projection]
    batch = cli.datamodule.batch_size
    parameters = [p for head in heads for p in head.train().parameters()]
    optimizer, temperature = torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.05), 0.05
    for rows in torch.randperm(len(text)).split(batch)[: len(text) // batch]:
        images, texts = normalize(heads[0](image[own[rows]].float())), normalize(heads[1](text[rows].float()))
        same = (own[rows, None] == own[rows][None]).float()
        target = same / same.sum(1, keepdim=True)
        logits = images @ texts.T / temperature
        loss = nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)
        optimizer.zero_grad()
        (loss / 2).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def epoch_lines(root: Path, folder: Path, rounds: int, quick: bool) -> list[Line]:
    """Compare an epoch on kept outputs with a bare loop, and with an epoch that runs the towers in every step."""
    times = EpochTimes()
    few = ["--data.batch_size=32"] if quick else []
    cli = training(root, folder, f"--trainer.max_epochs={rounds + 1}", *few)
    cli.trainer.callbacks.append(times)  # type: ignore[attr-defined]
    split = find_split(str(root), "train")
    per_image = split.captions // split.images
    wide = (torch.rand(split.images, 1280).half(), torch.rand(split.captions, 384).half())
    own = torch.arange(split.captions).div(per_image, rounding_mode="floor").clamp(max=split.images - 1)
    taken: list[float] = []

    class Bare(pl.Callback):
        """Runs the bare loop after each epoch, so that both take turns."""

        def on_train_epoch_end(self, *_: Any) -> None:
            began = time.perf_counter()
            bare_epoch(other, *wide, own)
            taken.append(time.perf_counter() - began)

    other = training(root, folder / "bare", *few)
    cli.trainer.callbacks.append(Bare())  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, cli.datamodule)
    found = Rounds({"ours": times.seconds[1:], "bare": taken[1:]})  # the first epoch starts the workers
    return [
        Line(
            f"an epoch of photos.yaml on kept outputs, {split.captions:,} captions", "s", found.median("ours"),
            "a bare loop over arrays in memory", found.median("bare"), ratio=found.ratio("ours", "bare"), at_most=1.2,
        ),
        live_line(root, folder, found.median("ours"), split, few),
    ]  # fmt: skip


def live_line(root: Path, folder: Path, kept: float, split: Split, few: list[str]) -> Line:
    """Compare an epoch on kept outputs with one that runs the towers, of which three steps are measured."""
    times = EpochTimes()
    options = ["--model.backbone.cache=false", "--trainer.max_epochs=1", "--trainer.limit_train_batches=3"]
    cli = training(root, folder / "live", *options, *few)
    cli.trainer.callbacks.append(times)  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, cli.datamodule)
    steps = split.captions // cli.datamodule.batch_size
    live = times.seconds[0] / 3 * steps
    return Line(
        "the same epoch", "s", kept, "with towers that run in every step, scaled up from three steps", live,
        ratio=kept / live, at_most=0.02,
    )  # fmt: skip


def main() -> None:
    """Run all measurements and write the results."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--root", type=Path, help="shards of photographs; scenes by default")
    options = parser.parse_args()
    set_up_cpu()
    quieten()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = options.root or folder / "scenes"
        if options.root is None:
            size = 32 if options.quick else 2000
            prepare_scenes(str(root), train=size, val=4, test=4, captions=(5, 5), image_size=224)
        split = find_split(str(root), "train")
        cli, first = training(root, folder), replace(split, shards=split.shards[:1])
        lines = [encoding_line(cli, first, "image", options.rounds), encoding_line(cli, first, "text", options.rounds)]
        lines += epoch_lines(root, folder, options.rounds, options.quick)
    data = "scenes" if options.root is None else "photographs"
    settings = {"images": split.images, "captions": split.captions, "data": data, "rounds": options.rounds}
    write(options.out, "frozen_towers", lines, settings, {})


if __name__ == "__main__":
    main()
