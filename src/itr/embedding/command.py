"""`itr embed`: the embeddings that a checkpoint gives to shards, to a folder of images, or to lines of text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from itr.checkpoints import open_checkpoint
from itr.commands.parsing import run_verb
from itr.data.datamodule import ShardData
from itr.data.shards.schema import IMAGE_TYPES
from itr.distributed import choose_device
from itr.embedding.encoder import Embedder, module_embedder
from itr.embedding.files import SCORED_BY
from itr.embedding.shards import embed_shards
from itr.errors import UserError
from itr.files.writing import file_to_write, whole_file
from itr.teachers.base import Precision


def embed(
    ckpt_path: str,
    out: str,
    data: str | None = None,
    split: str = "test",
    images: str | None = None,
    texts: str | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
    device: str = "auto",
    precision: Literal["32", "bf16-mixed"] = "32",
    cache: str | None = None,
    features: str | None = None,
) -> None:
    """Embed shards, a folder of images, or lines of text.

    The file holds `image` [N, D] with `image_id`, and `text` [M, D] with `caption_id` and, for shards,
    `caption_image_id`; for a folder also `image_name`, for lines of text `caption`. Where a method gives embeddings of
    their own for search within a modality, they are `image_unimodal` and `text_unimodal`. `scored_by` says how pairs
    are scored; a model that scores pairs by token-level features also writes `image_tokens`, `image_mask` and the same
    of `text`. Embeddings are not normalised.

    Args:
        ckpt_path: a checkpoint of `itr fit` or `itr convert`.
        out: file to write, FILE.npz.
        data: folder or URL of shards, or a list of tars such as 'tars/*.tar'; give this, or images and texts.
        split: which of its splits.
        images: folder of images, searched with its subfolders.
        texts: file with one caption a line.
        batch_size: images or captions at a time.
        num_workers: processes that decode.
        device: cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.
        precision: of the towers.
        cache: folder that keeps shards which come from a URL.
        features: folder that `itr features` wrote, for a model whose backbone takes features instead of pixels.
    """
    target = file_to_write(out, ".npz")
    if (data is None) == (images is None and texts is None):
        raise UserError("give --data SHARDS, or --images FOLDER and --texts FILE, or one of these two")
    module = open_checkpoint(ckpt_path)
    arrays: dict[str, np.ndarray] = {}
    if data is not None:
        shards = ShardData(
            data,
            eval_batch_size=batch_size,
            num_workers=num_workers,
            predict_split=split,
            cache=cache,
            features=features,
        )
        arrays = embed_shards(module, shards, torch.device(choose_device(device)), precision)
    else:
        towers: Precision = "32" if precision == "32" else "bf16"
        embedder = module_embedder(module, device, batch_size=batch_size, num_workers=num_workers, precision=towers)
        if images is not None:
            arrays |= embed_folder(embedder, Path(images).expanduser())
        if texts is not None:
            arrays |= embed_lines(embedder, Path(texts).expanduser())
        arrays[SCORED_BY] = np.array(embedder.scorer.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as file:
        np.savez(file, allow_pickle=False, **arrays)
    shapes = ", ".join(f"{len(value):,} {name}" for name, value in arrays.items() if name in ("image", "text"))
    print(f"embedded {shapes}: {target}")


def embed_folder(embedder: Embedder, folder: Path) -> dict[str, np.ndarray]:
    """The images below a folder, in the order of their names; what can't be decoded is told and left out."""
    if not folder.is_dir():
        raise UserError(f"--images: there is no folder {folder}")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower().lstrip(".") in IMAGE_TYPES)
    if not paths:
        raise UserError(f"--images: {folder} holds no image ({', '.join(IMAGE_TYPES)})")
    found = embedder.images(paths)
    for number, reason in found.failed.items():
        tqdm.write(f"left out {paths[number]}: {reason}")
    names = np.array([str(paths[number].relative_to(folder)) for number in found.index])
    return {**found.encoded.arrays("image"), "image_id": np.array(found.index), "image_name": names}


def embed_lines(embedder: Embedder, file: Path) -> dict[str, np.ndarray]:
    """The captions of a file, one a line; empty lines are left out."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts: {file} can't be read: {error}") from None
    numbers = [number for number, line in enumerate(lines) if line]
    if not numbers:
        raise UserError(f"--texts: {file} holds no caption")
    captions = [lines[number] for number in numbers]
    arrays = embedder.texts(captions, "captions").arrays("text")
    return {**arrays, "caption_id": np.array(numbers), "caption": np.array(captions)}


def main(arguments: list[str]) -> None:
    """Parse the command line and embed."""
    run_verb(arguments, embed, opens_checkpoints=True)
