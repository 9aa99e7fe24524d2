"""One shard from its plan: read images, copy or shrink them, write the tar. Any process makes the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from itr.data.preparing.image_files import extension_of
from itr.data.raw.entries import Entry
from itr.data.shards.schema import FORMAT, Shard
from itr.data.shards.staging import has_size, write_whole
from itr.data.shards.writer import Record, ShardWriter
from itr.images.decode import BadImageError, image_size, shrink


@dataclass(frozen=True)
class ShardPlan:
    """What one shard will hold.

    Attributes:
        split: its split.
        number: its place in the split.
        first_image: image id of its first entry; the others count up.
        first_caption: caption id of its first caption.
        entries: its images in order.
        digest: a hash of all that its bytes depend on.
    """

    split: str
    number: int
    first_image: int
    first_caption: int
    entries: list[Entry]
    digest: str

    @property
    def path(self) -> str:
        """Where the tar lies in its folder."""
        return f"{self.split}/{self.number:06d}.tar"


@dataclass
class Made:
    """What came of a plan: a shard, unless images were bad and may not be left out."""

    shard: Shard | None
    bad: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class ShardMaker:
    """Makes shards by plan.

    Attributes:
        image_root: folder that the entries' paths start from.
        folder: where the shards go.
        resize: short side of the images, or None for a copy of their bytes.
        quality: of the JPEGs that resizing makes.
        skip: leave out an image that turns out to be none; its id stays unused.
    """

    image_root: Path
    folder: Path
    resize: int | None
    quality: int
    skip: bool

    def plan(self, split: str, found: list[tuple[Entry, str]], shard_size: int) -> list[ShardPlan]:
        """Cut a split into shards; each entry comes with a text that tells one state of its file from another."""
        plans = []
        first_caption = 0
        for number, start in enumerate(range(0, len(found), shard_size)):
            part = found[start : start + shard_size]
            what = [FORMAT, split, number, start, first_caption, self.resize, self.quality if self.resize else None]
            digest = hashlib.blake2b(json.dumps(what).encode(), digest_size=16)
            for entry, stamp in part:
                digest.update(json.dumps([stamp, vars(entry)]).encode())
            entries = [entry for entry, _ in part]
            plans.append(ShardPlan(split, number, start, first_caption, entries, digest.hexdigest()))
            first_caption += sum(len(entry.captions) for entry in entries)
        return plans

    def finished(self, plan: ShardPlan) -> Made | None:
        """What an earlier run made of this very plan, if it is there and whole."""
        try:
            known = json.loads(self._note(plan).read_text(encoding="utf-8"))
            made = Made(Shard(**known["shard"]), [(name, problem) for name, problem in known["bad"]])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        usable = known["digest"] == plan.digest and (self.skip or not made.bad)
        return made if usable and made.shard and has_size(self.folder / plan.path, made.shard.bytes) else None

    def make(self, plan: ShardPlan, tell: Callable[[int], None]) -> Made:
        """Write the shard of a plan, telling after each image how many are done.

        Raises:
            OSError: if the disk refuses; nothing of the shard is left then.
        """
        bad: list[tuple[str, str]] = []
        caption_id = plan.first_caption
        with ShardWriter(self.folder, plan.split, plan.number) as writer:
            for place, entry in enumerate(plan.entries):
                try:
                    record = self._record(entry)
                except BadImageError as error:
                    bad.append((entry.image, f"is no whole image ({error})"))
                else:
                    writer.add(record, plan.first_image + place, caption_id)
                caption_id += len(entry.captions)
                tell(place + 1)
            if bad and not self.skip:
                return Made(None, bad)
            made = Made(writer.finish(), bad)
        note = {"digest": plan.digest, "shard": asdict(writer.shard), "bad": bad}
        write_whole(self._note(plan), json.dumps(note))
        return made

    def _record(self, entry: Entry) -> Record:
        try:
            data = (self.image_root / entry.image).read_bytes()
        except OSError as error:
            raise BadImageError(f"it can't be read: {error.strerror or error}") from None
        extension = extension_of(entry.image)
        small = shrink(data, self.resize, self.quality) if self.resize else None
        if small is not None:
            data, extension = small, "jpg"
        elif not self.resize:
            image_size(data)
        dense = {"dense": entry.dense} if entry.dense else {}
        return Record(data, extension, entry.captions, entry.image, {**dense, **entry.meta})

    def _note(self, plan: ShardPlan) -> Path:
        return (self.folder / plan.path).with_suffix(".json")
