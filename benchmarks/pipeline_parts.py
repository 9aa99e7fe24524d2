"""Images, shards, loaders, and the reference loops of `input_pipeline.py`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

from itr.commands.quieten import quieten
from itr.data.loading.pipeline import ShardLoader
from itr.data.preparing.writing import Writing, write_shards
from itr.data.raw.entries import ImageEntry, RawData
from itr.data.shards.tars import read_tar
from itr.runs.command import TrainingCLI

SIZE, BATCH, CAPTIONS = 224, 64, 5
SCALE = (0.6, 1.0)  # share of the area that a crop keeps, the same for all alternatives
MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
BICUBIC = InterpolationMode.BICUBIC
NOUNS = [
    "man",
    "woman",
    "dog",
    "cat",
    "street",
    "table",
    "bus",
    "train",
    "kite",
    "beach",
    "kitchen",
    "pizza",
    "horse",
    "field",
    "snow",
    "sign",
    "umbrella",
    "bench",
]
VERBS = ["sits", "stands", "rides", "holds", "watches", "crosses", "eats", "carries", "passes", "waits"]
ADJECTIVES = ["small", "large", "red", "blue", "old", "young", "wooden", "busy", "empty", "bright"]
BACKBONE = [
    "--model.backbone=VSE",
    f"--model.backbone.vision_config={{model_type: vit, image_size: {SIZE}, patch_size: 32, hidden_size: 8, "
    "num_hidden_layers: 1, num_attention_heads: 1, intermediate_size: 8}",
    "--model.backbone.text_config={model_type: bert, hidden_size: 8, num_hidden_layers: 1, "
    "num_attention_heads: 1, intermediate_size: 8, pad_token_id: null}",
    "--model.backbone.dim=8",
]  # only its image size and tokenizer matter, not its speed


def make_images(folder: Path, number: int) -> None:
    """Generate JPEGs with about the size, bytes and decoding time of COCO's, also after a resize to 256 pixels."""
    rng = np.random.default_rng(0)
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((640, 427), Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = smooth + rng.normal(0, 4, (427, 640, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:06d}.jpg", quality=97)


def make_captions(number: int) -> list[str]:
    """Return English captions of about ten words."""
    rng = np.random.default_rng(0)
    words = [[str(word) for word in rng.choice(kind, number)] for kind in (ADJECTIVES, NOUNS, VERBS, ADJECTIVES, NOUNS)]
    return [f"A {a} {b} {c} near the {d} {e}, in front of it." for a, b, c, d, e in zip(*words, strict=True)]


def make_shards(images: Path, out: Path, resize: int | None) -> Path:
    """Write shards as `itr prepare` does, from a folder of JPEGs with five captions each."""
    paths = sorted(path for path in images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    texts = make_captions(CAPTIONS * len(paths))
    entries = [ImageEntry(path.name, texts[CAPTIONS * i : CAPTIONS * (i + 1)]) for i, path in enumerate(paths)]
    with contextlib.redirect_stdout(io.StringIO()):
        write_shards(RawData(images, {"train": entries}, "benchmark"), Writing(str(out), resize, shard_size=200))
    return out


def encoded(shards: Path) -> list[bytes]:
    """Return all encoded images in a folder of shards."""
    return [sample.image for path in sorted(shards.rglob("*.tar")) for sample in read_tar(path)]


def data_module(shards: Path, *options: str) -> Any:
    """Return the data module of `itr fit` with these options, with its model and trainer, on the CPU."""
    quieten()
    where = [f"--data.root={shards}", "--data.test_split=train", "--data.val_split=null", f"--data.batch_size={BATCH}"]
    where += ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    cli = TrainingCLI([*BACKBONE, *where, f"--data.eval_batch_size={BATCH}", *options], run=False)
    cli.trainer.strategy.connect(cli.model)
    cli.datamodule.trainer = cli.trainer
    return cli.datamodule


def loader(shards: Path, *options: str, workers: int = 0, training: bool = True) -> ShardLoader:
    """Return the loader for training or for evaluation."""
    data = data_module(shards, f"--data.num_workers={workers}", *options)
    found: ShardLoader = data.train_dataloader() if training else data.test_dataloader()
    return found


def consume(batches: Iterable[Any], then: Callable[[Tensor], object] = lambda image: None) -> int:
    """Iterate over all batches; return the number of images."""
    number = 0
    for batch in batches:
        then(batch.image)
        number += len(batch.image)
    return number


def bare_training() -> nn.Module:
    """Return the training transform of the bare loop."""
    return v2.RandomResizedCrop(SIZE, SCALE, interpolation=BICUBIC, antialias=True)


def bare_evaluation() -> nn.Module:
    """Return the evaluation transform of the bare loop."""
    return v2.Compose([v2.Resize(SIZE, interpolation=BICUBIC, antialias=True), v2.CenterCrop(SIZE)])


def bare_loop(images: Sequence[bytes], transform: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Decode and transform image by image; return the last batch."""
    done: list[Tensor] = []
    for data in images:
        done = [] if len(done) == BATCH else done
        done.append(transform(torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB")).permute(2, 0, 1)))
    return done


def bare_normalised(images: Sequence[bytes], transform: Callable[[Tensor], Tensor], where: str) -> None:
    """Run the bare loop and normalise its batches as floats on the device."""
    mean, std = (255 * torch.tensor(values, device=where).view(1, 3, 1, 1) for values in (MEAN, STD))
    for first in range(0, len(images), BATCH):
        batch = torch.stack(bare_loop(images[first : first + BATCH], transform)).to(where)
        (batch.float() - mean) / std


def decode_alone(images: Sequence[bytes]) -> None:
    """Decode the images and do nothing else."""
    for data in images:
        simplejpeg.decode_jpeg(data, "RGB")


def pillow_recipe(images: Sequence[bytes]) -> None:
    """Apply the training transform of ALBEF, BLIP and CUSA, without RandAugment, which would slow it down."""
    steps = [transforms.RandomResizedCrop(SIZE, SCALE, interpolation=BICUBIC), transforms.ToTensor()]
    recipe = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])
    for data in images:
        recipe(Image.open(io.BytesIO(data)).convert("RGB"))


def opencv_recipe(images: Sequence[bytes]) -> None:
    """Decode with OpenCV, then crop, resize and normalise floats, as VSE++ and its successors do."""
    import cv2

    mean, std = np.float32(MEAN), np.float32(STD)
    for data in images:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].astype(np.float32) / 255
        top, left, height, width = transforms.RandomResizedCrop.get_params(
            torch.empty(3, *pixels.shape[:2]), list(SCALE), [0.75, 4 / 3]
        )
        crop = cv2.resize(pixels[top : top + height, left : left + width], (SIZE, SIZE))
        torch.from_numpy(((crop - mean) / std).transpose(2, 0, 1).copy())
