"""Writing shards with webdataset; `itr.data.shards.locations` finds existing ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from itr.data.shards.captions import join_surrogates
from itr.data.shards.schema import POSITIVES, Shard, Split
from itr.errors import UserError


@dataclass
class Record:
    """One image to be written to a shard.

    Attributes:
        image: the encoded image.
        extension: its type, such as `jpg`.
        captions: one or more captions.
        name: its name in the source.
        meta: further fields of the JSON member, such as `dense`, a list of dense captions.
    """

    image: bytes
    extension: str
    captions: list[str]
    name: str
    meta: dict[str, Any] = field(default_factory=dict)


class HashingStream:
    """A stream that passes bytes on to another one, and hashes and counts them."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.checksum, self.size = stream, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """Pass bytes on."""
        self.checksum.update(data)
        self.size += len(data)
        return self.stream.write(data)


class ShardWriter:
    """Writes one tar, sample by sample; it is renamed to its final name once it is complete.

    Equal records give equal bytes: time, owner and mode of every member are fixed. As a context, it removes its file
    after an error.
    """

    def __init__(self, folder: Path, split: str, number: int) -> None:
        import webdataset as wds  # it imports torch, which no other part of `itr prepare` needs

        self.shard = Shard(f"{split}/{number:06d}.tar", 0, 0)
        self.path = folder / self.shard.path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The name contains the process id, so that an earlier process that is still ending cannot damage this file.
        self.temporary = self.path.with_suffix(f".tar.{os.getpid()}.tmp")
        self.stream = self.temporary.open("wb", buffering=1 << 20)
        self.hashed = HashingStream(self.stream)
        self.tar = wds.TarWriter(self.hashed, encoder=False, mtime=0, user="itr", group="itr", mode=0o444)

    def add(self, record: Record, image_id: int, first_caption_id: int) -> None:
        """Append an image and its captions; their ids count up from `first_caption_id`."""
        num_captions = len(record.captions)
        caption_ids = list(range(first_caption_id, first_caption_id + num_captions))
        text = {"image_id": image_id, "captions": record.captions, "caption_ids": caption_ids, "name": record.name}
        if clash := text.keys() & record.meta.keys():
            raise ValueError(f"the meta of {record.name} must not contain {', '.join(sorted(clash))}, which shards use")
        encoded = join_surrogates(json.dumps({**text, **record.meta}, ensure_ascii=False)).encode()
        self.tar.write({"__key__": f"{image_id:09d}", record.extension: record.image, "json": encoded})
        self.shard.images += 1
        self.shard.captions += num_captions

    def finish(self) -> Shard:
        """Complete the tar and give it its final name."""
        self.tar.close()
        self.stream.close()
        self.shard.bytes, self.shard.sha256 = self.hashed.size, self.hashed.checksum.hexdigest()
        self.temporary.replace(self.path)
        return self.shard

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for part in (self.tar, self.stream):
            with contextlib.suppress(OSError):  # on a full disk, writing the rest of the buffer fails again
                part.close()
        self.temporary.unlink(missing_ok=True)


def write_split(records: Iterable[Record], folder: Path, split: str, shard_size: int) -> Split:
    """Write the records of one split into tars of `shard_size` images, numbering images and captions in order.

    A tar is renamed to its final name once it is complete.
    """
    if shard_size < 1:
        raise UserError(f"shard_size is {shard_size}; it must be 1 or more")
    result = Split()
    source = iter(records)
    num_images = num_captions = 0
    while (first := next(source, None)) is not None:
        with ShardWriter(folder, split, len(result.shards)) as writer:
            for record in chain([first], islice(source, shard_size - 1)):
                writer.add(record, num_images, num_captions)
                num_images, num_captions = num_images + 1, num_captions + len(record.captions)
            result.shards.append(writer.finish())
    return result


def write_positives(folder: Path, split: str, image_id: np.ndarray, caption_id: np.ndarray) -> None:
    """Store all true matches of a split: caption `caption_id[p]` matches image `image_id[p]` [P], int."""
    arrays = {"image_id": image_id.astype(np.int64), "caption_id": caption_id.astype(np.int64)}
    np.savez_compressed(folder / split / POSITIVES, allow_pickle=False, **arrays)
