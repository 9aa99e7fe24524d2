"""Writing shards; `itr.data.shards.locations` finds those that are there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.shards.captions import join_surrogates
from itr.data.shards.schema import POSITIVES, Shard, Split
from itr.errors import UserError


@dataclass
class Record:
    """One image on its way into a shard.

    Attributes:
        image: the encoded image.
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


class ShardWriter:
    """Writes one tar, sample by sample; it gets its name only when it is whole.

    The same records give the same bytes. Used as a context, it leaves nothing behind when it fails.
    """

    def __init__(self, folder: Path, split: str, number: int) -> None:
        self.shard = Shard(f"{split}/{number:06d}.tar", 0, 0)
        self.path = folder / self.shard.path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # With the number of the process: one that was killed and lingers can't spoil the file of the next.
        self.temporary = self.path.with_suffix(f".tar.{os.getpid()}.tmp")
        self.checksum = hashlib.sha256()
        self.stream = self.temporary.open("wb", buffering=1 << 20)

    def add(self, record: Record, image_id: int, first_caption_id: int) -> None:
        """Append an image and its captions; their ids count up from `first_caption_id`."""
        num_captions = len(record.captions)
        caption_ids = list(range(first_caption_id, first_caption_id + num_captions))
        text = {"image_id": image_id, "captions": record.captions, "caption_ids": caption_ids, "name": record.name}
        if clash := text.keys() & record.meta.keys():
            raise ValueError(f"the meta of {record.name} can't hold {', '.join(sorted(clash))}: shards use these names")
        encoded = join_surrogates(json.dumps({**text, **record.meta}, ensure_ascii=False)).encode()
        for extension, data in sorted({record.extension: record.image, "json": encoded}.items()):
            self._member(f"{image_id:09d}.{extension}", data)
        self.shard.images += 1
        self.shard.captions += num_captions

    def _member(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        # A fixed time and owner: the same records give the same bytes.
        member.size, member.mode, member.mtime, member.uname, member.gname = len(data), 0o444, 0, "itr", "itr"
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))

    def _write(self, data: bytes) -> None:
        self.stream.write(data)
        self.checksum.update(data)
        self.shard.bytes += len(data)

    def finish(self) -> Shard:
        """End the tar and name it."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.shard.bytes % tarfile.RECORDSIZE))
        self.stream.close()
        self.shard.sha256 = self.checksum.hexdigest()
        self.temporary.replace(self.path)
        return self.shard

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # a full disk refuses the rest of the buffer once more
            self.stream.close()
        self.temporary.unlink(missing_ok=True)


def write_split(records: Iterable[Record], folder: Path, split: str, shard_size: int) -> Split:
    """Write the records of one split into tars of `shard_size` images, numbering images and captions as they come.

    A tar gets its name only when it is complete.
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
    """Keep every true match of a split: caption `caption_id[p]` holds for image `image_id[p]` [P], int."""
    arrays = {"image_id": image_id.astype(np.int64), "caption_id": caption_id.astype(np.int64)}
    np.savez_compressed(folder / split / POSITIVES, allow_pickle=False, **arrays)
