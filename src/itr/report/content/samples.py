"""Read the captions and thumbnails that a page shows, in one pass over the shards."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from itr.data.shards.locations import find_split
from itr.data.shards.tars import read_tar
from itr.images.transforms import BadImageError, decode

SIDE = 160
QUALITY = 78
MAX_PIXELS = 200_000_000


@dataclass
class Samples:
    """The images and captions that the page shows.

    Attributes:
        image: thumbnails as data URIs by image_id; an empty string if the image could not be decoded.
        captions: all captions of these images by image_id.
        caption: caption texts by caption_id.
    """

    image: dict[int, str] = field(default_factory=dict)
    captions: dict[int, list[str]] = field(default_factory=dict)
    caption: dict[int, str] = field(default_factory=dict)


def read_samples(root: Path, split: str, images: set[int], captions: set[int]) -> Samples:
    """Read the requested images with all their captions, and the requested captions.

    Raises:
        UserError: the shards are missing or damaged.
    """
    samples = Samples()
    for shard in find_split(root, split).shards:
        for sample in read_tar(shard.place):
            if sample.image_id in images:
                if sample.image_id not in samples.image:
                    samples.image[sample.image_id] = thumbnail(sample.image)
                samples.captions.setdefault(sample.image_id, []).extend(sample.captions)
            pairs = zip(sample.caption_ids, sample.captions, strict=True)
            samples.caption |= {number: text for number, text in pairs if number in captions}
    return samples


def thumbnail(data: bytes) -> str:
    """A JPEG thumbnail as a data URI that fits into SIDE x SIDE pixels; empty if the image cannot be decoded."""
    try:
        image = Image.fromarray(decode(data, MAX_PIXELS).permute(1, 2, 0).numpy())
    except BadImageError:
        return ""
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
