"""Writing shards; `itr.data.locations` finds those that are there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from itr.data.schema import POSITIVES, Shard, Split
from itr.errors import UserError


@dataclass
class Record:
    """One image on its way into a shard.

    Attributes:
        image: the encoded picture.
        extension: its type, such as `jpg`.
        captions: one or more texts.
        name: its name in the source.
        meta: further fields for the JSON member (`dense`, a list of dense captions, is one that methods know).
    """

    image: bytes
    extension: str
    captions: list[str]
    name: str
    meta: dict[str, Any] = field(default_factory=dict)


def write_split(records: Iterable[Record], folder: Path, split: str, shard_size: int) -> Split:
    """Write the records of one split into tars of `shard_size` images, numbering images and captions as they come.

    A tar gets its name only when it is complete.
    """
    if shard_size < 1:
        raise UserError(f"shard_size is {shard_size}; it must be 1 or more")
    target = folder / split
    target.mkdir(parents=True, exist_ok=True)
    for leftover in [*target.glob("*.tar"), *target.glob("*.tar.tmp"), *target.glob(POSITIVES)]:
        leftover.unlink()
    result = Split()
    pending: list[dict[str, Any]] = []
    num_images = num_captions = 0
    for record in records:
        caption_ids = list(range(num_captions, num_captions + len(record.captions)))
        pending.append(_members(record, num_images, caption_ids))
        num_images, num_captions = num_images + 1, num_captions + len(record.captions)
        if len(pending) == shard_size:
            result.shards.append(_write_tar(pending, folder, split, len(result.shards)))
            pending = []
    if pending:
        result.shards.append(_write_tar(pending, folder, split, len(result.shards)))
    return result


def _members(record: Record, image_id: int, caption_ids: list[int]) -> dict[str, Any]:
    text = {"image_id": image_id, "captions": record.captions, "caption_ids": caption_ids, "name": record.name}
    meta = json.dumps({**text, **record.meta}, ensure_ascii=False).encode("utf-8", errors="replace")
    return {"__key__": f"{image_id:09d}", record.extension: record.image, "json": meta, "captions": len(caption_ids)}


def _write_tar(samples: list[dict[str, Any]], folder: Path, split: str, number: int) -> Shard:
    path = folder / split / f"{number:06d}.tar"
    temporary = path.with_suffix(".tar.tmp")
    captions = sum(sample.pop("captions") for sample in samples)
    # A fixed time and owner: the same records give the same bytes.
    with wds.TarWriter(str(temporary), encoder=False, mtime=0, user="itr", group="itr") as tar:
        for sample in samples:
            tar.write(sample)
    with temporary.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    size = temporary.stat().st_size
    temporary.replace(path)
    return Shard(f"{split}/{path.name}", len(samples), captions, size, checksum)


def write_positives(folder: Path, split: str, image_id: np.ndarray, caption_id: np.ndarray) -> None:
    """Keep every true match of a split: caption `caption_id[p]` holds for image `image_id[p]` [P], int."""
    arrays = {"image_id": image_id.astype(np.int64), "caption_id": caption_id.astype(np.int64)}
    np.savez_compressed(folder / split / POSITIVES, allow_pickle=False, **arrays)
