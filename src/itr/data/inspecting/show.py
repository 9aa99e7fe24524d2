"""`itr data show`: what a shard folder holds, in a table, and a sheet of sample images and captions to look at."""

from __future__ import annotations

import io
import json
import statistics
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from itr.data.inspecting.sheet import KINDS, Card, write_sheet
from itr.data.inspecting.verify import read_manifest
from itr.data.shards.schema import IMAGE_TYPES, Manifest, Split
from itr.data.shards.tars import key_and_type
from itr.errors import UserError
from itr.images.decode import BadImageError, decode_pixels, shrink

THUMBNAIL = 240


@dataclass
class Summary:
    """Figures of one split.

    Attributes:
        captions: number of captions of each image [N].
        sizes: width and height of each image [N].
    """

    captions: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)


def show(shards: str, split: str = "train", out: str | None = None, number: int = 24, seed: int = 0) -> None:
    """Print what shards hold, and write a page with some of their images and captions.

    Args:
        shards: the shard folder.
        split: where the samples are drawn from.
        out: the page, one HTML file that holds all it shows; by default sheet.html in the shard folder.
        number: how many images.
        seed: of the draw.
    """
    folder = Path(shards).expanduser()
    page = Path(out).expanduser() if out else folder / "sheet.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out is {page}; the sheet is a page, so give a name that ends in .html")
    manifest = read_manifest(folder)
    if split not in manifest.splits:
        raise UserError(f"{folder} has no split {split!r}; it has {', '.join(manifest.splits)}")
    total = manifest.splits[split].images
    drawn = np.sort(np.random.default_rng(seed).permutation(total)[: max(0, number)]).tolist()
    summaries, cards = {}, []
    for name, part in manifest.splits.items():
        summaries[name], found = read_split(folder, name, part, drawn if name == split else [])
        cards += found
    print(table(manifest, summaries))
    title = f"{manifest.source}, {split}: {len(cards)} of {total} images"
    try:
        write_sheet(page, title, cards, table(manifest, summaries))
    except OSError as error:
        raise UserError(f"can't write {page}: {error.strerror or error}; name another file by --out") from None
    print(f"\n{title}, to look at: {page}")


def table(manifest: Manifest, summaries: dict[str, Summary]) -> str:
    """The figures of all splits as text."""
    rows = [("split", "images", "captions", "an image", "width x height", "MB", "shards")]
    for name, split in manifest.splits.items():
        summary = summaries[name]
        mean = split.captions / max(1, split.images)
        each = f"{min(summary.captions, default=0)} to {max(summary.captions, default=0)}, mean {mean:.2f}"
        size = sum(shard.bytes for shard in split.shards) / 1e6
        counts = (f"{split.images:,}", f"{split.captions:,}", each, _range(summary.sizes))
        rows.append((name, *counts, f"{size:,.1f}", str(len(split.shards))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    settings = ", ".join(f"{key} {value}" for key, value in manifest.settings.items() if value is not None)
    lines += ["", f"source: {manifest.source}", f"fields: {', '.join(manifest.fields)}", f"settings: {settings or '-'}"]
    return "\n".join(lines)


def _range(sizes: list[tuple[int, int]]) -> str:
    if not sizes:
        return "-"
    widths, heights = zip(*sizes, strict=True)
    middle = f"{statistics.median_high(widths)} x {statistics.median_high(heights)}"
    return f"{min(widths)}-{max(widths)} x {min(heights)}-{max(heights)}, median {middle}"


def read_split(folder: Path, name: str, split: Split, drawn: list[int]) -> tuple[Summary, list[Card]]:
    """The figures of a split, from headers and texts alone, and the samples at the places `drawn`."""
    summary, cards, wanted = Summary(), [], set(drawn)
    samples = chain.from_iterable(read_headers(folder / shard.path) for shard in split.shards)
    with tqdm(samples, f"reading {name}", split.images, unit=" images", disable=None) as bar:
        for place, sample in enumerate(bar):
            summary.captions.append(len(sample.meta.get("captions", [])))
            if sample.size:
                summary.sizes.append(sample.size)
            if place in wanted:
                cards.append(_card(sample))
    return summary, cards


@dataclass
class Glance:
    """A sample of which the image's header alone has been read; the rest of it while its tar is open.

    Attributes:
        key: in its tar.
        meta: its JSON member.
        size: width and height; None if there is no header of an image.
        stream: the image's bytes.
    """

    key: str
    meta: dict[str, Any]
    size: tuple[int, int] | None
    stream: IO[bytes]


def read_headers(path: Path) -> Iterator[Glance]:
    """The samples of a tar in order, at a glance."""
    try:
        with tarfile.open(path, "r:") as tar:
            for key, group in groupby(tar, key=lambda member: key_and_type(member.name)[0]):
                members = {key_and_type(member.name)[1]: member for member in group}
                image = next((members[kind] for kind in IMAGE_TYPES if kind in members), None)
                text, stream = (tar.extractfile(m) if m else None for m in (members.get("json"), image))
                if text and stream:
                    yield Glance(key, json.load(text), _size(stream), stream)
    except (tarfile.TarError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"shard {path} can't be read: {reason}; `itr data verify` tells more") from None


def _size(stream: IO[bytes]) -> tuple[int, int] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # nothing is decoded
            return Image.open(stream).size
    except Exception:  # Pillow raises many kinds on what is no image
        return None


def _card(sample: Glance) -> Card:
    sample.stream.seek(0)
    data = sample.stream.read()
    size = "{} x {}".format(*sample.size) if sample.size else "no image"
    heading = f"{sample.key} · {sample.meta.get('name', '')} · {size}"
    return Card(_thumbnail(data), heading, sample.meta.get("captions", []), sample.meta.get("dense") or [])


def _thumbnail(data: bytes) -> bytes:
    """A small image of a type that browsers show; nothing where there is no image."""
    try:
        small = shrink(data, THUMBNAIL, quality=85) or data
        if small.startswith(tuple(KINDS)):
            return small
        buffer = io.BytesIO()
        Image.fromarray(decode_pixels(small, max_pixels=10**8)).save(buffer, "PNG")
        return buffer.getvalue()
    except BadImageError:
        return b""
