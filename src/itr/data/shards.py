"""Writing shards, and finding those that are there."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from itr.data.schema import IMAGE_TYPES, MANIFEST, POSITIVES, Manifest, Shard, Split
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


def read_positives(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The true matches of a split as `write_positives` keeps them, or None where there are none."""
    path = folder / split / POSITIVES
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["image_id"], arrays["caption_id"]


def find_split(folder: Path, split: str) -> Split:
    """The shards of a split: from the manifest, or by counting what lies in `folder/split` (or `folder` itself)."""
    if not folder.is_dir():
        raise UserError(f"there is no shard folder {folder}; `itr prepare --help` tells how to make one")
    if (folder / MANIFEST).is_file():
        splits = Manifest.read(folder).splits
        if split not in splits:
            known = ", ".join(sorted(splits)) or "none"
            raise UserError(f"{folder} has no split {split!r} (it has: {known}); see --data.{split}_split")
        found = splits[split]
        for shard in found.shards:
            if not (folder / shard.path).is_file():
                raise UserError(f"shard {folder / shard.path} of the manifest is missing; prepare the shards again")
    else:
        paths = sorted((folder / split).glob("*.tar"))
        found = Split([count(path, folder) for path in paths])
    if not found.images:
        raise UserError(f"no shards match {folder / split / '*.tar'}; `itr prepare --help` tells how to make them")
    return found


def count(path: Path, folder: Path) -> Shard:
    """Count images and captions of a tar that came without a manifest, from its headers and texts."""
    images = captions = 0
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                extension = member.name.rpartition("/")[2].partition(".")[2].lower()
                images += extension in IMAGE_TYPES
                if extension == "json":
                    stream = tar.extractfile(member)
                    found = json.loads(stream.read()).get("captions") if stream else None
                    captions += len(found) if isinstance(found, list) else 0
    except (tarfile.TarError, ValueError, AttributeError) as error:
        raise UserError(f"{path} can't be read as a shard: {error}") from None
    return Shard(str(path.relative_to(folder)), images, captions or images, path.stat().st_size)
