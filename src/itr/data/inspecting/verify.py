"""`itr data verify`: does a shard folder hold what its manifest says, and can all of it be used?"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from itr.data.shards.locations import read_positives
from itr.data.shards.schema import IMAGE_TYPES, MANIFEST, STAGING, Manifest, Shard, Split, is_whole
from itr.data.shards.tars import key_and_type
from itr.errors import UserError
from itr.images.decode import BadImageError, decode_pixels, image_size

Fault = tuple[str, str]  # where (shard, or shard and key), and what


@dataclass
class Findings:
    """What one shard holds.

    Attributes:
        faults: what is wrong.
        images: image id and key of each sample.
        captions: its caption ids and key of each sample.
    """

    faults: list[Fault] = field(default_factory=list)
    images: list[tuple[int, str]] = field(default_factory=list)
    captions: list[tuple[list[int], str]] = field(default_factory=list)


def verify(shards: str, decode: bool = True, num_workers: int = 4, max_pixels: int = 50_000_000) -> None:
    """Check counts, sizes, checksums, texts and images of shards against their manifest, and list every fault.

    Args:
        shards: the shard folder.
        decode: decode every image, as training does; without, only its header is read.
        num_workers: shards that are checked at a time.
        max_pixels: an image with more counts as a fault.
    """
    folder = Path(shards).expanduser()
    manifest = read_manifest(folder)
    faults = []
    for name, split in manifest.splits.items():
        found = check_split(folder, name, split, decode, num_workers, max_pixels)
        print(f"{name}: {split.images} images, {split.captions} captions, {len(split.shards)} shards: ", end="")
        print(_number(found) if found else "as the manifest says")
        faults += found
    for where, what in faults:
        print(f"  {where}: {what}")
    if faults:
        raise UserError(f"{_number(faults)} in {folder}; prepare the shards again, or copy them anew")


def _number(faults: list[Fault]) -> str:
    return f"{len(faults)} fault{'s' * (len(faults) != 1)}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder, or a message that tells why there is none."""
    if (folder / MANIFEST).is_file():
        return Manifest.read(folder)
    if (folder / STAGING).is_dir():
        raise UserError(f"{folder} is not finished; give the `itr prepare` command again, it goes on where it was")
    raise UserError(f"{folder} has no {MANIFEST}; `itr prepare --help` tells how to make shards")


def check_split(folder: Path, name: str, split: Split, decode: bool, num_workers: int, max_pixels: int) -> list[Fault]:
    """The faults of one split, in its order."""
    findings = []
    with (
        ThreadPoolExecutor(max(1, num_workers)) as threads,
        tqdm(total=split.images, desc=f"checking {name}", unit=" images", disable=None) as bar,
    ):
        check = threads.map(lambda shard: check_shard(folder, shard, decode, max_pixels), split.shards)
        for shard, found in zip(split.shards, check, strict=True):
            findings.append(found)
            bar.update(shard.images)
    faults = [fault for found in findings for fault in found.faults]
    faults += _repeated([pair for found in findings for pair in found.images], "image_id")
    pairs = [(caption, key) for found in findings for ids, key in found.captions for caption in ids]
    return (
        faults + _repeated(pairs, "caption_id") + _strangers(folder, name, split) + _positives(folder, name, findings)
    )


def check_shard(folder: Path, shard: Shard, decode: bool, max_pixels: int) -> Findings:
    """Read one shard from end to end."""
    path = folder / shard.path
    found = Findings()
    if not path.is_file():
        found.faults.append((shard.path, "is missing"))
        return found
    size = path.stat().st_size
    if shard.bytes and size != shard.bytes:
        found.faults.append((shard.path, f"has {size} bytes, and the manifest says {shard.bytes}"))
    if shard.sha256:
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != shard.sha256:
                found.faults.append((shard.path, "is not what was written: its checksum differs from the manifest's"))
    try:
        for key, members in read_members(path):
            _check_sample(f"{shard.path}:{key}", members, found, decode, max_pixels)
    except (tarfile.TarError, OSError, EOFError) as error:
        found.faults.append((shard.path, f"can't be read to its end: {error}"))
    for what, number, wanted in (
        ("images", len(found.images), shard.images),
        ("captions", sum(len(ids) for ids, _ in found.captions), shard.captions),
    ):
        if number != wanted:
            found.faults.append((shard.path, f"holds {number} whole {what}, and the manifest says {wanted}"))
    return found


def read_members(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a tar: key, and the members by their type. A type that comes again begins another sample."""
    current, members = "", dict[str, bytes]()
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, kind = key_and_type(member.name)
            if members and (key != current or kind in members):
                yield current, members
                members = {}
            stream = tar.extractfile(member) if member.isfile() else None
            current, members[kind] = key, stream.read() if stream else b""
    if members:
        yield current, members


def _check_sample(where: str, members: dict[str, bytes], found: Findings, decode: bool, max_pixels: int) -> None:
    """Count a sample if its text is whole; its faults are noted either way."""
    image = next((members[kind] for kind in IMAGE_TYPES if kind in members), None)
    try:
        if image is None:
            raise ValueError("has no image")
        try:
            meta = json.loads(members["json"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"has no JSON that can be read ({error})") from None
        ids = _caption_ids(meta)
        found.images.append((meta["image_id"], where))
        found.captions.append((ids, where))
        if decode:
            decode_pixels(image, max_pixels)
        else:
            image_size(image)
    except BadImageError as error:
        found.faults.append((where, f"its image can't be decoded ({error})"))
    except ValueError as error:
        found.faults.append((where, str(error)))


def _caption_ids(meta: Any) -> list[int]:
    if not isinstance(meta, dict) or not is_whole(meta.get("image_id")):
        raise ValueError("its JSON has no whole number as image_id")
    captions, ids = meta.get("captions"), meta.get("caption_ids")
    if not isinstance(captions, list) or not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        raise ValueError("its JSON has no list of captions")
    if not isinstance(ids, list) or len(ids) != len(captions) or not all(map(is_whole, ids)):
        raise ValueError("its JSON has not one caption_id for each caption")
    return ids


def _repeated(pairs: Sequence[tuple[int, str]], name: str) -> list[Fault]:
    seen: dict[int, str] = {}
    faults = []
    for number, where in pairs:
        if number in seen:
            faults.append((where, f"its {name} {number} is that of {seen[number]}"))
        seen.setdefault(number, where)
    return faults


def _strangers(folder: Path, name: str, split: Split) -> list[Fault]:
    known = {shard.path for shard in split.shards}
    tars = [str(path.relative_to(folder)) for path in sorted((folder / name).glob("*.tar"))]
    return [(path, "is not in the manifest") for path in tars if path not in known]


def _positives(folder: Path, name: str, findings: list[Findings]) -> list[Fault]:
    """Faults of the list of true matches, where there is one."""
    try:
        positives = read_positives(folder, name)
    except Exception as error:  # a damaged archive raises many kinds
        return [(f"{name}/positives.npz", f"can't be read: {error}")]
    if positives is None:
        return []
    images = {image for found in findings for image, _ in found.images}
    captions = {caption for found in findings for ids, _ in found.captions for caption in ids}
    unknown = set(positives[0].tolist()) - images, set(positives[1].tolist()) - captions
    return [
        (f"{name}/positives.npz", f"names {len(ids)} {what} that no sample has, such as {min(ids)}")
        for ids, what in zip(unknown, ("image_ids", "caption_ids"), strict=True)
        if ids
    ]
