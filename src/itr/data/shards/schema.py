"""The contents of a shard folder: samples in tars, and a manifest that describes them.

SHARDS/manifest.json
SHARDS/<split>/000000.tar       <key>.jpg  the bytes of the original image file
                                <key>.json {"image_id", "captions", "caption_ids", "name", ...}
SHARDS/<split>/positives.npz    optional: all pairs that are true matches (image_id [P], caption_id [P])
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from itr.data.shards.seen import Seen
from itr.errors import UserError
from itr.files.writing import whole_file
from itr.images.kinds import IMAGE_TYPES

MANIFEST = "manifest.json"
POSITIVES = "positives.npz"
STAGING = ".preparing"  # folder inside the shard folder that holds shards until all are complete
FORMAT = "itr-shards/1"
LONGEST_NAME, LONGEST_PATH = 255, 2048  # bytes that file systems allow


@dataclass(frozen=True)
class Place:
    """The location of a tar.

    Attributes:
        location: path or URL.
        folder: distinguishes its folder from the others of its split; empty if there is only one. Samples of two
            folders may have the same keys, so it is part of their ids.
        version: changes with the content of a URL.
        cache: folder that keeps a copy of a URL; empty for none.
        seen: what this process knows of its content.
    """

    location: str
    folder: str = ""
    version: str = ""
    cache: str = ""
    seen: Seen = field(default_factory=Seen, compare=False)


@dataclass
class Shard:
    """One tar: its path relative to the shard folder, counts, size in bytes and checksum.

    Its `place` is not part of the manifest: `itr.data.shards.locations.find_split` sets it.
    """

    path: str
    images: int
    captions: int
    bytes: int = 0
    sha256: str = ""

    def __post_init__(self) -> None:
        self.place = Place(self.path)


@dataclass
class Split:
    """The shards of one split and their totals."""

    shards: list[Shard] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(shard.images for shard in self.shards)

    @property
    def captions(self) -> int:
        """Number of captions."""
        return sum(shard.captions for shard in self.shards)


@dataclass
class Manifest:
    """Source, fields and splits of a shard folder."""

    source: str
    fields: list[str]
    splits: dict[str, Split]
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, complete or not at all."""
        splits = {
            name: {"images": split.images, "captions": split.captions, "shards": [asdict(s) for s in split.shards]}
            for name, split in self.splits.items()
        }
        text = {"format": FORMAT, "source": self.source, "fields": self.fields, "settings": self.settings}
        with whole_file(folder / MANIFEST) as file:
            file.write((json.dumps({**text, "splits": splits}, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read `manifest.json`."""
        return cls.parse((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))

    @classmethod
    def parse(cls, text: bytes, where: str) -> Manifest:
        """Parse the text of a `manifest.json`; `where` is its location, for messages."""
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise UserError(f"{where} has format {raw['format']!r}; this version reads {FORMAT!r}")
            splits = {_name(n): Split([_shard(shard) for shard in s["shards"]]) for n, s in raw["splits"].items()}
            for name in [*splits, *(shard.path for split in splits.values() for shard in split.shards)]:
                if _leads_out(name):
                    raise UserError(f"{where} names {name!r}, which is not below its folder; prepare the shards again")
            return cls(raw["source"], raw["fields"], splits, raw.get("settings", {}))
        except UserError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise UserError(f"{where} is not a manifest of shards ({error!r}); prepare them again") from None


def _shard(raw: dict[str, Any]) -> Shard:
    """A shard of a manifest, which may be an untrusted file."""
    shard = Shard(**raw)
    numbers = shard.images, shard.captions, shard.bytes
    if not (isinstance(shard.path, str) and isinstance(shard.sha256, str) and all(map(is_whole, numbers))):
        raise TypeError(f"a shard has the fields {str(raw)[:120]}")
    _name(shard.path)
    return shard


def _leads_out(name: str) -> bool:
    """Whether the name of a split or shard leads out of the folder of its manifest."""
    return name[:1] in "/~" or "://" in name or ".." in PurePosixPath(name).parts


def _name(text: str) -> str:
    """The name of a split or shard; ValueError if it is too long for a file system."""
    parts = text.encode().split(b"/")
    if "\0" in text or max(map(len, parts)) > LONGEST_NAME or len(text) > LONGEST_PATH:
        raise ValueError(f"the name that begins with {text[:40]!r} is too long for a file system")
    return text


@dataclass
class Sample:
    """One image with its captions, still as bytes.

    Attributes:
        where: shard and key, for messages.
        name: the image's name in its source.
        image: the encoded image.
        image_id: unique in the split.
        captions: one or more captions.
        caption_ids: one for each caption, unique in the split.
        meta: the whole JSON member, for fields that a method needs.
        fault: why the sample cannot be used; empty if it can.
    """

    where: str
    name: str
    image: bytes
    image_id: int
    captions: list[str]
    caption_ids: list[int]
    meta: dict[str, Any]
    fault: str = ""

    @classmethod
    def faulty(cls, raw: dict[str, Any], fault: str) -> Sample:
        """A placeholder for an incomplete sample, with its own id."""
        image_id = stable_id("faulty", raw["__folder__"], raw["__shard__"], raw["__key__"])
        return cls(f"{raw['__url__']}:{raw['__key__']}", raw["__key__"], b"", image_id, [""], [image_id], {}, fault)


def parse_sample(raw: dict[str, Any]) -> Sample:
    """A sample from the members that share one key of a tar.

    Shards that `itr prepare` wrote contain ids. For shards of other tools (`.jpg` with `.txt`, or with a `.json` that
    holds `caption`) they are hashes of shard and key, the same in every run, unless the `.json` holds an `image_id`,
    which samples of the same image share. With several folders, each may count from 0, so ids are hashed with it.
    """
    where = f"{raw['__url__']}:{raw['__key__']}"
    try:
        meta = json.loads(raw["json"]) if "json" in raw else {}
        if not isinstance(meta, dict):
            raise ValueError(f"{str(meta)[:40]!r} is not an object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}.json is not valid JSON ({error}); prepare the shards again") from None
    captions = _captions(meta, raw)
    if not captions and not {"captions", "caption"} & meta.keys() and "txt" not in raw:
        raise UserError(f"{where} has no caption; each sample needs 'captions' in its .json, or a .txt")
    captions = captions or [""]  # large collections contain some empty captions; the caller handles them
    image = next((raw[kind] for kind in IMAGE_TYPES if kind in raw), None)
    if image is None:
        dotted = f" ({raw['__dotted__']} is not one: a key ends at the first dot)" if "__dotted__" in raw else ""
        raise UserError(f"{where} has no image{dotted}; a sample needs a member that ends in {', '.join(IMAGE_TYPES)}")
    sample_id = stable_id(raw["__key__"], raw["__shard__"])
    image_id = _image_id(meta.get("image_id"), sample_id)
    # Not hashes of the image's id, which several samples may have: img2dataset writes one sample per caption.
    caption_ids = meta.get("caption_ids") or [stable_id(sample_id, i) for i in range(len(captions))]
    if not (isinstance(caption_ids, list) and all(map(is_whole, caption_ids)) and len(caption_ids) == len(captions)):
        raise UserError(f"{where} needs caption_ids that are a list of {len(captions)} whole numbers, one each")
    if folder := raw["__folder__"]:
        image_id, caption_ids = stable_id(folder, image_id), [stable_id(folder, "caption", i) for i in caption_ids]
    return Sample(where, str(meta.get("name", raw["__key__"])), image, image_id, captions, caption_ids, meta)


def _image_id(given: object, sample_id: int) -> int:
    """The id of an image: the given number, a hash of another given id, or that of its sample."""
    if isinstance(given, float):  # pandas writes whole numbers so, and NaN for none
        given = int(given) if given.is_integer() else None if given != given else given
    if is_whole(given):
        return given
    named = isinstance(given, str | int | float) and not isinstance(given, bool) and str(given).strip()
    return stable_id("image_id", given) if named else sample_id


def _captions(meta: dict[str, Any], raw: dict[str, Any]) -> list[str]:
    found = meta.get("captions") or meta.get("caption")
    if not found and "txt" in raw:
        found = raw["txt"].decode("utf-8", errors="replace")
    texts = found if isinstance(found, list) else [found]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is valid as an id or a count: a non-negative whole number of at most 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def stable_id(*parts: object) -> int:
    """A non-negative 63-bit number that depends on `parts` alone."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", errors="surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1


def data_identity(split: Split) -> str:
    """A hash of the shards of a split, whatever their names: of their checksums, or else of their sizes and counts."""
    shards = sorted(s.sha256 or f"{s.bytes} bytes, {s.images} images, {s.captions} captions" for s in split.shards)
    return hashlib.blake2b("\n".join(shards).encode(), digest_size=16).hexdigest()


def split_identity(split: Split, name: str) -> dict[str, Any]:
    """Name, hash and counts of a split, for files of results."""
    return {"split": name, "shards": data_identity(split), "images": split.images, "captions": split.captions}
