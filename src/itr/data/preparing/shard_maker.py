"""Make one shard from its plan: read, copy or resize images, and write the tar. Every process makes the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from itr.data.raw.entries import ImageEntry
from itr.data.shards.schema import FORMAT, Shard
from itr.data.shards.staging import has_size, write_whole
from itr.data.shards.writer import Record, ShardWriter
from itr.images.decode import BadImageError, image_size, shrink
from itr.images.kinds import image_type


@dataclass(frozen=True)
class ShardPlan:
    """What one shard will contain.

    Attributes:
        split: its split.
        number: its index in the split.
        first_image: image id of its first entry; the following ones count up.
        first_caption: caption id of its first caption.
        entries: its images in order.
        digest: a hash of everything its bytes depend on.
    """

    split: str
    number: int
    first_image: int
    first_caption: int
    entries: list[ImageEntry]
    digest: str

    @property
    def path(self) -> str:
        """Path of the tar, relative to the shard folder."""
        return f"{self.split}/{self.number:06d}.tar"


@dataclass
class MadeShard:
    """Result of a plan: a shard, or None if images were bad and must not be skipped; and the bad images."""

    shard: Shard | None
    bad: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class ShardMaker:
    """Makes shards from plans.

    Attributes:
        image_root: folder that the image paths are relative to.
        folder: where to write the shards.
        resize: short side of the images in pixels; None copies their bytes.
        quality: JPEG quality of resized images.
        skip: skip images that cannot be decoded; their ids stay unused.
    """

    image_root: Path
    folder: Path
    resize: int | None
    quality: int
    skip: bool

    def plan(self, split: str, entries: list[tuple[ImageEntry, str]], shard_size: int) -> list[ShardPlan]:
        """Divide a split into shards; each entry comes with a string that identifies the version of its file."""
        plans = []
        first_caption = 0
        for number, start in enumerate(range(0, len(entries), shard_size)):
            part = entries[start : start + shard_size]
            inputs = [FORMAT, split, number, start, first_caption, self.resize, self.quality if self.resize else None]
            digest = hashlib.blake2b(json.dumps(inputs).encode(), digest_size=16)
            for entry, stamp in part:
                digest.update(json.dumps([stamp, vars(entry)]).encode())
            shard_entries = [entry for entry, _ in part]
            plans.append(ShardPlan(split, number, start, first_caption, shard_entries, digest.hexdigest()))
            first_caption += sum(len(entry.captions) for entry in shard_entries)
        return plans

    def finished(self, plan: ShardPlan) -> MadeShard | None:
        """What an earlier run made from the same plan, if it is complete."""
        try:
            record = json.loads(self._record_path(plan).read_text(encoding="utf-8"))
            made = MadeShard(Shard(**record["shard"]), [(name, problem) for name, problem in record["bad"]])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        usable = record["digest"] == plan.digest and (self.skip or not made.bad)
        return made if usable and made.shard and has_size(self.folder / plan.path, made.shard.bytes) else None

    def make(self, plan: ShardPlan, report: Callable[[int], None]) -> MadeShard:
        """Write the shard of a plan; call `report` after each image with the number of images done.

        Raises:
            OSError: the shard could not be written; no partial file is left.
        """
        bad: list[tuple[str, str]] = []
        caption_id = plan.first_caption
        with ShardWriter(self.folder, plan.split, plan.number) as writer:
            for index, entry in enumerate(plan.entries):
                try:
                    record = self._read_entry(entry)
                except BadImageError as error:
                    bad.append((entry.image, f"could not be decoded ({error})"))
                else:
                    writer.add(record, plan.first_image + index, caption_id)
                caption_id += len(entry.captions)
                report(index + 1)
            if bad and not self.skip:
                return MadeShard(None, bad)
            made = MadeShard(writer.finish(), bad)
        record_of_shard = {"digest": plan.digest, "shard": asdict(writer.shard), "bad": bad}
        write_whole(self._record_path(plan), json.dumps(record_of_shard))
        return made

    def _read_entry(self, entry: ImageEntry) -> Record:
        try:
            data = (self.image_root / entry.image).read_bytes()
        except OSError as error:
            raise BadImageError(f"could not read it: {error.strerror or error}") from None
        extension = image_type(entry.image)
        small = shrink(data, self.resize, self.quality) if self.resize else None
        if small is not None:
            data, extension = small, "jpg"
        elif not self.resize:
            image_size(data)
        dense = {"dense": entry.dense} if entry.dense else {}
        return Record(data, extension, entry.captions, entry.image, {**dense, **entry.meta})

    def _record_path(self, plan: ShardPlan) -> Path:
        return (self.folder / plan.path).with_suffix(".json")
