"""Shards and input measurements for `cost_curves.py`."""

from __future__ import annotations

import io
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from itr.data.datamodule import ShardData
from itr.data.shards.schema import MANIFEST
from itr.data.shards.writer import Record, write_split
from itr.data.sources.scenes import prepare_scenes
from itr.runs.command import TrainingCLI
from itr.types import Batch
from measuring import seconds

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def shards(number: int) -> Iterator[str]:
    """Provide a folder whose training split has this many shards, all hard links to one tar of four images."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "shards"
        with redirect_stdout(io.StringIO()):
            prepare_scenes(str(root), train=4, val=0, test=0, shard_size=4)
        multiply(root, number)
        yield str(root)


def multiply(root: Path, number: int) -> None:
    """Link the only training shard of a folder under this many names, as separate shards."""
    manifest = json.loads((root / MANIFEST).read_text())
    train = manifest["splits"]["train"]
    first = train["shards"][0]
    names = [f"train/{n:06d}.tar" for n in range(number)]
    for name in names[1:]:
        os.link(root / first["path"], root / name)
    counts = {count: number * train[count] for count in ("images", "captions")}
    train |= {**counts, "shards": [{**first, "path": name} for name in names]}
    (root / MANIFEST).write_text(json.dumps(manifest))


def data(root: str, **settings: Any) -> ShardData:
    """Return the data module of a run on shards, with a model for its image size and tokenizer."""
    vision = "{model_type: vit, image_size: 224, patch_size: 32, hidden_size: 8, num_hidden_layers: 1, "
    vision += "num_attention_heads: 1, intermediate_size: 8}"
    text = "{model_type: bert, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, intermediate_size: 8}"
    options = ["--model.backbone=VSE", f"--model.backbone.vision_config={vision}", "--model.backbone.dim=8"]
    options += [f"--model.backbone.text_config={text}", f"--data.root={root}", "--data.val_split=null"]
    options += ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    cli = TrainingCLI([*options, *(f"--data.{name}={value}" for name, value in settings.items())], run=False)
    cli.trainer.strategy.connect(cli.model)
    cli.datamodule.trainer = cli.trainer
    found: ShardData = cli.datamodule
    return found


def opening(root: str) -> Callable[[], object]:
    """Return a call that finds a split, plans an epoch and makes its first batch."""
    module = data(root, num_workers=0, batch_size=4, shuffle_buffer=4)
    return lambda: next(iter(module.train_dataloader().dataset))


def photographs(root: Path, number: int) -> None:
    """Write shards of synthetic images with COCO's size after `--resize 256`, about 30 KB each."""
    draw = np.random.default_rng(0)

    def make_image(seed: int) -> bytes:
        coarse = draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((341, 256), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (smooth + draw.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    images = [make_image(n) for n in range(32)]
    records = (
        Record(images[n % 32], "jpg", ["a synthetic image of many colours and no meaning"], str(n))
        for n in range(number)
    )
    write_split(records, root, "train", max(1, number // 8))


def input_rate(root: str, workers: int, rounds: int) -> float:
    """Return images per second through the data module, with workers already running."""
    loader = data(root, num_workers=workers, batch_size=32).train_dataloader()

    def epoch() -> int:
        return sum(len(found) for found in loader if isinstance(found, Batch))

    images = epoch()
    return images / statistics.median(seconds(epoch) for _ in range(rounds))
