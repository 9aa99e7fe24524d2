"""`itr embed`: embed shards, a folder of images, or lines of text with a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from itr.commands.inputs import check_embed, check_folder, chosen_model, unreadable_texts
from itr.commands.parsing import options_of
from itr.commands.verbs import parse
from itr.data.datamodule import ShardData
from itr.data.shards.captions import CaptionCleaner
from itr.data.tables.text_files import split_lines
from itr.distributed import choose_device
from itr.embedding.encoder import Embedder
from itr.embedding.files import SCORED_BY
from itr.embedding.image_tars import embed_image_tars, image_tars
from itr.embedding.lengths import with_lengths
from itr.embedding.models import Side, open_embedder, open_model
from itr.embedding.shards import embed_shards
from itr.embedding.strings import string_arrays
from itr.errors import UserError
from itr.files.writing import file_to_write, whole_file
from itr.images.folders import FoundImages, find_images
from itr.teachers.base import Precision


def embed(
    out: str,
    ckpt_path: str | None = None,
    model: str | None = None,
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
    `caption_image_id`. Names of the images of a folder and lines of text are `image_name` and `caption`, see
    `itr.embedding.strings`. If a method has separate embeddings for search within a modality, they are
    `image_unimodal` and `text_unimodal`. `scored_by` names the scorer of pairs, and `normalized` says whether `image`
    and `text` have unit length; a model that scores pairs by token-level features also writes `image_tokens`,
    `image_mask`, `text_tokens` and `text_mask`.

    Args:
        out: file to write, FILE.npz.
        ckpt_path: a checkpoint of `itr fit` or `itr convert`; give either this or a model.
        model: a run folder, open_clip:MODEL/TAG, or an encoder of only images or captions as for `itr features`.
        data: folder or URL of shards, or a list of tars such as 'tars/*.tar'; give this, or images and texts. Tars may
            contain images without captions.
        split: split to embed.
        images: folder of images, searched with its subfolders; links are followed.
        texts: file with one caption per line, or - for standard input; `caption_id` is the number of the line, from 0.
        batch_size: images or captions per batch.
        num_workers: processes that decode images.
        device: cpu, cuda, cuda:1 ...; auto uses a GPU if there is one.
        precision: of the towers.
        cache: folder for copies of shards that come from a URL.
        features: folder that `itr features` wrote, for a model whose backbone takes features instead of pixels.
    """
    target = file_to_write(out, ".npz")
    name = chosen_model(ckpt_path, model)
    check_embed(data, images, texts)
    found = None if images is None else images_below(Path(images).expanduser())
    lines = None if texts is None else caption_lines(texts)
    tars = [] if data is None else image_tars(data, split, cache)
    arrays: dict[str, np.ndarray] = {}
    if data is not None and not tars:
        shards = ShardData(
            data,
            eval_batch_size=batch_size,
            num_workers=num_workers,
            predict_split=split,
            cache=cache,
            features=features,
        )
        arrays = embed_shards(open_model(name)[0], shards, torch.device(choose_device(device)), precision)
    else:
        towers: Precision = "32" if precision == "32" else "bf16"
        needed: dict[Side, object] = {"image": tars or found, "text": lines}
        needs = [side for side, inputs in needed.items() if inputs]
        settings: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "precision": towers}
        embedder = open_embedder(name, needs, device, **settings)
        if tars:
            arrays |= embed_image_tars(embedder, tars)
        if found is not None:
            arrays |= embed_folder(embedder, found)
        if lines is not None:
            arrays |= embed_lines(embedder, lines)
        arrays[SCORED_BY] = np.array(embedder.scorer.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as file:
        np.savez(file, allow_pickle=False, **with_lengths(arrays))
    counts = {name: len(arrays[name]) for name in ("image", "text") if name in arrays}
    shapes = ", ".join(f"{count:,} {name}{'s' * (count != 1)}" for name, count in counts.items())
    print(f"embedded {shapes}: {target}")


def images_below(folder: Path) -> FoundImages:
    """The images below a folder; what is not read is reported.

    Raises:
        UserError: the folder does not exist or contains no image.
    """
    check_folder("--images", folder)
    found = find_images(folder)
    if not found.names:
        raise UserError("\n".join([f"--images: {folder} contains no images", *found.notices()]))
    for notice in found.notices():
        tqdm.write(notice)
    return found


def embed_folder(embedder: Embedder, images: FoundImages) -> dict[str, np.ndarray]:
    """Embed images, in the order of their names; those that cannot be decoded are reported."""
    found = embedder.images(images.paths)
    for number, reason in found.failed.items():
        tqdm.write(f"skipped {images.paths[number]}: {reason}")
    names = string_arrays("image_name", [images.names[number] for number in found.index])
    return {**found.encoded.arrays("image"), "image_id": np.array(found.index), **names}


def caption_lines(texts: str) -> dict[int, str]:
    """The captions of a file by the number of their line, from 0; `-` is standard input. Empty lines are skipped.

    Raises:
        UserError: it is not a file, is not UTF-8, or contains no caption.
    """
    where = "standard input" if texts == "-" else texts
    try:
        raw = sys.stdin.buffer.read() if texts == "-" else Path(texts).expanduser().read_bytes()
    except OSError as error:
        raise unreadable_texts(texts, error) from None
    cleaner = CaptionCleaner()
    cleaned = [cleaner.clean([line], f"line {n}") for n, line in enumerate(split_lines(raw, f"--texts: {where}"))]
    found = {number: captions[0] for number, captions in enumerate(cleaned) if captions}
    if not found:
        raise UserError(f"--texts: {where} contains no captions")
    for notice in cleaner.notices():
        tqdm.write(notice)
    return found


def embed_lines(embedder: Embedder, lines: dict[int, str]) -> dict[str, np.ndarray]:
    """Embed captions, given by the number of their line."""
    captions = list(lines.values())
    arrays = embedder.texts(captions, "captions").arrays("text")
    return {**arrays, "caption_id": np.array(list(lines)), **string_arrays("caption", captions)}


def main(arguments: list[str]) -> None:
    """Parse the command line and embed."""
    embed(**options_of(parse(arguments)[1]))
