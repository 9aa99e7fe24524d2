"""The embeddings of a run's split: read from a file, or made once by its checkpoint and kept beside the report."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from itr.checkpoints import open_checkpoint
from itr.data.datamodule import ShardData
from itr.data.features import data_identity
from itr.data.shards import find_split
from itr.distributed import choose_device
from itr.embed import embed_shards
from itr.errors import UserError
from itr.evaluation.gallery import Gallery
from itr.types import Encoded

log = logging.getLogger(__name__)
IDS = ("image_id", "caption_id", "caption_image_id")


def file_hash(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def read_embeddings(path: Path) -> Gallery:
    """A gallery from what `itr embed` and `itr predict` write, or any .npz with the same arrays, in any order.

    Raises:
        UserError: no such file, arrays that are missing or don't fit, ids twice, or values that are not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return to_gallery({name: arrays[name] for name in arrays.files}, str(path))
    except UserError:
        raise
    except Exception as error:  # numpy raises half a dozen types on damaged archives
        raise UserError(f"embeddings {path} can't be read: {error}") from None


def to_gallery(arrays: dict[str, np.ndarray], where: str) -> Gallery:
    """A gallery in ascending order of ids; `where` names the arrays in messages.

    Raises:
        UserError: as `read_embeddings`.
    """
    missing = [name for name in ("image", "text", *IDS) if name not in arrays]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; `itr embed --data SHARDS` writes such a file")
    image_id, text_id, text_image_id = (arrays[name].astype(np.int64) for name in IDS)
    for side, ids in (("image", image_id), ("text", text_id), ("text", text_image_id)):
        _check(arrays[side], ids, side, where)
    for name, ids in (("image_id", image_id), ("caption_id", text_id)):
        if len(np.unique(ids)) < len(ids):
            raise UserError(f"{where}: {name} holds the same id twice; every picture and caption needs its own")
    images, texts = np.argsort(image_id), np.argsort(text_id)
    gallery = Gallery(
        _encoded(arrays, "image", images),
        torch.from_numpy(image_id[images]),
        _encoded(arrays, "text", texts),
        torch.from_numpy(text_id[texts]),
        torch.from_numpy(text_image_id[texts]),
    )
    try:
        gallery.own_image()
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return gallery


def _check(rows: np.ndarray, ids: np.ndarray, side: str, where: str) -> None:
    if rows.ndim != 2 or len(rows) != len(ids) or not len(rows):
        raise UserError(f"{where}: {side} has the shape {rows.shape}, and there are {len(ids)} ids for it")
    good = np.isfinite(rows).all(axis=1)
    if not good.all():
        raise UserError(f"{where}: {int((~good).sum())} of {len(rows)} rows of {side} are not finite (NaN or infinite)")
    if not rows.any(axis=1).all():
        raise UserError(f"{where}: {int((~rows.any(axis=1)).sum())} of {len(rows)} rows of {side} are zero")


def _encoded(arrays: dict[str, np.ndarray], side: str, order: np.ndarray) -> Encoded:
    pooled = torch.from_numpy(np.asarray(arrays[side], dtype=np.float32)[order])
    empty = pooled.new_zeros(len(pooled), 0, pooled.shape[1])
    unimodal = arrays.get(f"{side}_unimodal")
    own = None if unimodal is None else torch.from_numpy(np.asarray(unimodal, dtype=np.float32)[order])
    return Encoded(pooled, empty, empty[..., 0].bool(), own)


def checkpoint_embeddings(checkpoint: Path, root: Path, split: str, cache: Path, device: str) -> Gallery:
    """The embeddings that a checkpoint gives to a split, made unless `cache` holds them.

    Args:
        checkpoint: file of `itr fit` or `itr convert`.
        root: shard folder.
        split: which of its splits.
        cache: .npz file that keeps them.
        device: where to embed.

    Raises:
        UserError: checkpoint or shards can't be used.
    """
    identity = json.dumps(
        {"checkpoint": file_hash(checkpoint), "data": data_identity(find_split(root, split)), "split": split}
    )
    try:
        with np.load(cache, allow_pickle=False) as kept:
            if str(kept["identity"]) == identity:
                return to_gallery(dict(kept), str(cache))
    except Exception:  # none, of another checkpoint, or cut short: made anew
        pass
    shards = ShardData(str(root), num_workers=2, predict_split=split)
    arrays = embed_shards(open_checkpoint(str(checkpoint)), shards, torch.device(choose_device(device)), "32")
    gallery = to_gallery(arrays, f"{checkpoint} on {root}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_name("partial-" + cache.name)
        np.savez(temporary, allow_pickle=False, identity=np.array(identity), **arrays)
        temporary.replace(cache)
    except OSError as error:
        log.info("embeddings are not kept for the next report: %s", error)
    return gallery


def within(encoded: Encoded) -> Tensor:
    """What is compared within a modality: the method's own embedding for it where there is one [N, D]."""
    return encoded.pooled if encoded.unimodal is None else encoded.unimodal
