"""`itr embed`: embed shards, a folder of images, or lines of text with a checkpoint."""

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
    `caption_image_id`; for a folder also `image_name`, for lines of text `caption`. If a method has
    separate embeddings for search within a modality, they are `image_unimodal` and `text_unimodal`. `scored_by` names
    the scorer of pairs; a model that scores pairs by token-level features also writes `image_tokens`, `image_mask`,
    `text_tokens` and `text_mask`. Embeddings are not normalised.

    Args:
        ckpt_path: a checkpoint of `itr fit` or `itr convert`.
        out: file to write, FILE.npz.
        data: folder or URL of shards, or a list of tars such as 'tars/*.tar'; give this, or images and texts.
        split: split to embed.
        images: folder of images, searched with its subfolders.
        texts: file with one caption per line.
        batch_size: images or captions per batch.
        num_workers: processes that decode images.
        device: cpu, cuda, cuda:1 ...; auto uses a GPU if there is one.
        precision: of the towers.
        cache: folder for copies of shards that come from a URL.
        features: folder that `itr features` wrote, for a model whose backbone takes features instead of pixels.
    """
    target = file_to_write(out, ".npz")
    if (data is None) == (images is None and texts is None):
        raise UserError("give --data SHARDS, or --images FOLDER or --texts FILE or both")
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
    """Embed the images below a folder, in the order of their names; those that cannot be decoded are reported."""
    if not folder.is_dir():
        raise UserError(f"--images: the folder {folder} does not exist")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower().lstrip(".") in IMAGE_TYPES)
    if not paths:
        raise UserError(f"--images: {folder} contains no images ({', '.join(IMAGE_TYPES)})")
    found = embedder.images(paths)
    for number, reason in found.failed.items():
        tqdm.write(f"skipped {paths[number]}: {reason}")
    names = np.array([str(paths[number].relative_to(folder)) for number in found.index])
    return {**found.encoded.arrays("image"), "image_id": np.array(found.index), "image_name": names}


def embed_lines(embedder: Embedder, file: Path) -> dict[str, np.ndarray]:
    """Embed the captions of a file, one per line; empty lines are skipped."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts: could not read {file}: {error}") from None
    numbers = [number for number, line in enumerate(lines) if line]
    if not numbers:
        raise UserError(f"--texts: {file} contains no captions")
    captions = [lines[number] for number in numbers]
    arrays = embedder.texts(captions, "captions").arrays("text")
    return {**arrays, "caption_id": np.array(numbers), "caption": np.array(captions)}


def main(arguments: list[str]) -> None:
    """Parse the command line and embed."""
    run_verb(arguments, embed, opens_checkpoints=True)
