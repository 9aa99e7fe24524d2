"""`itr data show`: a table of what a shard folder contains, and a page with sample images and captions."""

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

from itr.data.inspecting.sheet import BROWSER_FORMATS, Card, write_sheet
from itr.data.inspecting.verify import read_manifest
from itr.data.shards.schema import Manifest, Split
from itr.data.shards.tars import key_and_type
from itr.errors import UserError
from itr.images.decode import BadImageError, decode_pixels, pillow_formats, shrink
from itr.images.kinds import IMAGE_TYPES

THUMBNAIL = 240


@dataclass
class SplitSummary:
    """Statistics of one split.

    Attributes:
        captions: number of captions of each image [N].
        sizes: width and height of each image [N].
    """

    captions: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)


def show(shards: str, split: str = "train", out: str | None = None, number: int = 24, seed: int = 0) -> None:
    """Print a summary of shards, and write a page with some of their images and captions.

    Args:
        shards: the shard folder.
        split: split to draw the samples from.
        out: the page, a self-contained HTML file; by default, sheet.html in the shard folder.
        number: number of images.
        seed: random seed of the draw.
    """
    folder = Path(shards).expanduser()
    page = Path(out).expanduser() if out else folder / "sheet.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out={page} must end in .html: the sheet is an HTML page")
    manifest = read_manifest(folder)
    if split not in manifest.splits:
        raise UserError(f"{folder} has no split {split!r}; it has {', '.join(manifest.splits)}")
    total = manifest.splits[split].images
    drawn = np.sort(np.random.default_rng(seed).permutation(total)[: max(0, number)]).tolist()
    summaries, cards = {}, []
    for name, part in manifest.splits.items():
        summaries[name], found = summarize_split(folder, name, part, drawn if name == split else [])
        cards += found
    print(format_summary(manifest, summaries))
    title = f"{manifest.source}, {split}: {len(cards)} of {total} images"
    try:
        write_sheet(page, title, cards, format_summary(manifest, summaries))
    except OSError as error:
        raise UserError(f"could not write {page}: {error.strerror or error}; choose another file with --out") from None
    print(f"\n{title}: {page}")


def format_summary(manifest: Manifest, summaries: dict[str, SplitSummary]) -> str:
    """The statistics of all splits as text."""
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


def summarize_split(folder: Path, name: str, split: Split, drawn: list[int]) -> tuple[SplitSummary, list[Card]]:
    """Statistics of a split, from headers and JSON only, and the samples at the indices `drawn`."""
    summary, cards, selected = SplitSummary(), [], set(drawn)
    samples = chain.from_iterable(read_sample_headers(folder / shard.path) for shard in split.shards)
    with tqdm(samples, f"reading {name}", split.images, unit=" images", disable=None) as bar:
        for index, sample in enumerate(bar):
            summary.captions.append(len(sample.meta.get("captions", [])))
            if sample.size:
                summary.sizes.append(sample.size)
            if index in selected:
                cards.append(_card(sample))
    return summary, cards


@dataclass
class SampleHeader:
    """A sample whose image header has been read; the rest can be read while its tar is open.

    Attributes:
        key: its key in the tar.
        meta: its JSON member.
        size: width and height; None if there is no valid image header.
        stream: the image file.
    """

    key: str
    meta: dict[str, Any]
    size: tuple[int, int] | None
    stream: IO[bytes]


def read_sample_headers(path: Path) -> Iterator[SampleHeader]:
    """The samples of a tar, in order, with their image headers.

    Raises:
        UserError: the tar could not be read.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for key, group in groupby(tar, key=lambda member: key_and_type(member.name)[0]):
                members = {key_and_type(member.name)[1]: member for member in group}
                image = next((members[kind] for kind in IMAGE_TYPES if kind in members), None)
                text, stream = (tar.extractfile(m) if m else None for m in (members.get("json"), image))
                if text and stream:
                    yield SampleHeader(key, json.load(text), _size(stream), stream)
    except (tarfile.TarError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"could not read shard {path}: {reason}; run `itr data verify` for details") from None


def _size(stream: IO[bytes]) -> tuple[int, int] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # only the header is read
            return Image.open(stream, formats=pillow_formats()).size
    except Exception:  # Pillow raises many types for files that are not images
        return None


def _card(sample: SampleHeader) -> Card:
    sample.stream.seek(0)
    data = sample.stream.read()
    size = "{} x {}".format(*sample.size) if sample.size else "no image"
    heading = f"{sample.key} · {sample.meta.get('name', '')} · {size}"
    return Card(_thumbnail(data), heading, sample.meta.get("captions", []), sample.meta.get("dense") or [])


def _thumbnail(data: bytes) -> bytes:
    """A small image in a format that browsers support; empty if it could not be decoded."""
    try:
        small = shrink(data, THUMBNAIL, quality=85, flatten=True) or data
        if small.startswith(tuple(BROWSER_FORMATS)):
            return small
        buffer = io.BytesIO()
        Image.fromarray(decode_pixels(small, max_pixels=10**8)).save(buffer, "PNG")
        return buffer.getvalue()
    except BadImageError:
        return b""
