"""`itr data verify`: check that a shard folder matches its manifest and that every sample is usable."""

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
from itr.data.shards.schema import MANIFEST, STAGING, Manifest, Shard, Split, is_whole
from itr.data.shards.tars import key_and_type
from itr.errors import UserError
from itr.images.decode import BadImageError, decode_pixels, image_size
from itr.images.kinds import IMAGE_TYPES

Problem = tuple[str, str]  # where (shard, or shard and key), and what is wrong


@dataclass
class ShardFindings:
    """Contents and problems of one shard.

    Attributes:
        problems: what is wrong.
        images: image id and key of each sample.
        captions: caption ids and key of each sample.
    """

    problems: list[Problem] = field(default_factory=list)
    images: list[tuple[int, str]] = field(default_factory=list)
    captions: list[tuple[list[int], str]] = field(default_factory=list)


def verify(shards: str, decode: bool = True, num_workers: int = 4, max_pixels: int = 50_000_000) -> None:
    """Check counts, sizes, checksums, captions and images of shards against their manifest, and list every fault.

    Args:
        shards: the shard folder.
        decode: decode every image, as training does; otherwise, only its header is read.
        num_workers: shards to check in parallel.
        max_pixels: an image with more pixels counts as a fault.

    Raises:
        UserError: there are faults.
    """
    folder = Path(shards).expanduser()
    manifest = read_manifest(folder)
    problems = []
    for name, split in manifest.splits.items():
        found = check_split(folder, name, split, decode, num_workers, max_pixels)
        print(f"{name}: {split.images} images, {split.captions} captions, {len(split.shards)} shards: ", end="")
        print(_count(found) if found else "matches the manifest")
        problems += found
    for where, what in problems:
        print(f"  {where}: {what}")
    if problems:
        raise UserError(f"{_count(problems)} in {folder}; prepare or copy the shards again")


def _count(problems: list[Problem]) -> str:
    return f"{len(problems)} fault{'s' * (len(problems) != 1)}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder.

    Raises:
        UserError: there is none; the message says why.
    """
    if (folder / MANIFEST).is_file():
        return Manifest.read(folder)
    if (folder / STAGING).is_dir():
        raise UserError(f"{folder} is not finished; run the same `itr prepare` command again to continue")
    raise UserError(f"{folder} has no {MANIFEST}; see `itr prepare --help` for how to make shards")


def check_split(
    folder: Path, name: str, split: Split, decode: bool, num_workers: int, max_pixels: int
) -> list[Problem]:
    """The problems of one split, in order."""
    findings = []
    with (
        ThreadPoolExecutor(max(1, num_workers)) as threads,
        tqdm(total=split.images, desc=f"checking {name}", unit=" images", disable=None) as bar,
    ):
        check = threads.map(lambda shard: check_shard(folder, shard, decode, max_pixels), split.shards)
        for shard, found in zip(split.shards, check, strict=True):
            findings.append(found)
            bar.update(shard.images)
    problems = [fault for found in findings for fault in found.problems]
    problems += _repeated([pair for found in findings for pair in found.images], "image_id")
    pairs = [(caption, key) for found in findings for ids, key in found.captions for caption in ids]
    return (
        problems
        + _repeated(pairs, "caption_id")
        + _unknown_tars(folder, name, split)
        + _positives(folder, name, findings)
    )


def check_shard(folder: Path, shard: Shard, decode: bool, max_pixels: int) -> ShardFindings:
    """Read one shard from end to end."""
    path = folder / shard.path
    found = ShardFindings()
    if not path.is_file():
        found.problems.append((shard.path, "is missing"))
        return found
    size = path.stat().st_size
    if shard.bytes and size != shard.bytes:
        found.problems.append((shard.path, f"has {size} bytes, but the manifest says {shard.bytes}"))
    if shard.sha256:
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != shard.sha256:
                found.problems.append(
                    (shard.path, "has changed since it was written: its checksum differs from the manifest's")
                )
    try:
        for key, members in read_members(path):
            _check_sample(f"{shard.path}:{key}", members, found, decode, max_pixels)
    except (tarfile.TarError, OSError, EOFError) as error:
        found.problems.append((shard.path, f"could not be read to the end: {error}"))
    for what, number, expected in (
        ("images", len(found.images), shard.images),
        ("captions", sum(len(ids) for ids, _ in found.captions), shard.captions),
    ):
        if number != expected:
            found.problems.append((shard.path, f"has {number} intact {what}, but the manifest says {expected}"))
    return found


def read_members(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a tar: key, and members by type. A repeated type starts a new sample."""
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


def _check_sample(where: str, members: dict[str, bytes], found: ShardFindings, decode: bool, max_pixels: int) -> None:
    """Count a sample if its JSON is valid; record its problems in any case."""
    image = next((members[kind] for kind in IMAGE_TYPES if kind in members), None)
    try:
        if image is None:
            raise ValueError("has no image")
        try:
            meta = json.loads(members["json"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"has no valid JSON ({error})") from None
        ids = _caption_ids(meta)
        found.images.append((meta["image_id"], where))
        found.captions.append((ids, where))
        if decode:
            decode_pixels(image, max_pixels)
        else:
            image_size(image)
    except BadImageError as error:
        found.problems.append((where, f"its image could not be decoded ({error})"))
    except ValueError as error:
        found.problems.append((where, str(error)))


def _caption_ids(meta: Any) -> list[int]:
    if not isinstance(meta, dict) or not is_whole(meta.get("image_id")):
        raise ValueError("its JSON has no integer image_id")
    captions, ids = meta.get("captions"), meta.get("caption_ids")
    if not isinstance(captions, list) or not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        raise ValueError("its JSON has no list of non-empty captions")
    if not isinstance(ids, list) or len(ids) != len(captions) or not all(map(is_whole, ids)):
        raise ValueError("its JSON does not have one caption_id per caption")
    return ids


def _repeated(pairs: Sequence[tuple[int, str]], name: str) -> list[Problem]:
    seen: dict[int, str] = {}
    problems = []
    for number, where in pairs:
        if number in seen:
            problems.append((where, f"its {name} {number} is already used by {seen[number]}"))
        seen.setdefault(number, where)
    return problems


def _unknown_tars(folder: Path, name: str, split: Split) -> list[Problem]:
    known = {shard.path for shard in split.shards}
    tars = [str(path.relative_to(folder)) for path in sorted((folder / name).glob("*.tar"))]
    return [(path, "is not in the manifest") for path in tars if path not in known]


def _positives(folder: Path, name: str, findings: list[ShardFindings]) -> list[Problem]:
    """Problems with the list of true matches, if there is one."""
    try:
        positives = read_positives(folder, name)
    except Exception as error:  # a damaged archive raises many types
        return [(f"{name}/positives.npz", f"could not be read: {error}")]
    if positives is None:
        return []
    images = {image for found in findings for image, _ in found.images}
    captions = {caption for found in findings for ids, _ in found.captions for caption in ids}
    unknown = set(positives[0].tolist()) - images, set(positives[1].tolist()) - captions
    return [
        (f"{name}/positives.npz", f"has {len(ids)} {what} that no sample has, such as {min(ids)}")
        for ids, what in zip(unknown, ("image_ids", "caption_ids"), strict=True)
        if ids
    ]
