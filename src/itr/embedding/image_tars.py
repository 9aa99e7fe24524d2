"""Embedding of tars that contain only images, which have nothing to train on or to measure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from itr.data.shards.locations import find_places
from itr.data.shards.schema import Place, Sample, parse_sample
from itr.data.shards.tars import read_groups
from itr.embedding.encoder import Embedder
from itr.embedding.strings import string_arrays
from itr.errors import UserError, shown
from itr.images.kinds import describe_kinds
from itr.types import Encoded

CAPTION_KEY = re.compile(rb'"captions?"\s*:\s*(?!null)\S')


def image_tars(data: str, split: str, cache: str | None) -> list[Place]:
    """The tars of a split if they contain images without captions; none if they have captions or a manifest.

    Raises:
        UserError: no tar was found, or the first one could not be read.
    """
    places = find_places(data, split, cache)
    return places if places and not _is_captioned(next(read_groups(places[0], 0, images=True), {})) else []


def _is_captioned(raw: dict[str, Any]) -> bool:
    """Whether a sample has captions, however many."""
    return "txt" in raw or CAPTION_KEY.search(raw.get("json", b"")) is not None


def embed_image_tars(embedder: Embedder, places: list[Place]) -> dict[str, np.ndarray]:
    """Embed the images of tars, in their order; those that cannot be decoded, and other files, are reported.

    Returns:
        The embeddings with `image_id`, the same number that samples with captions have, and `image_name`.

    Raises:
        UserError: a tar could not be read, or two images have the same id.
    """
    parts: list[Encoded] = []
    ids: list[int] = []
    names: list[str] = []
    others: list[str] = []
    for place in places:
        with TemporaryDirectory() as folder:  # the embedder reads files; those of one tar at a time
            paths, samples = [], []
            for number, sample in enumerate(read_uncaptioned(place, others)):
                paths.append(Path(folder) / str(number))
                paths[-1].write_bytes(sample.image)
                samples.append((sample.image_id, sample.name, sample.where))
            if not paths:
                continue
            found = embedder.images(paths, what=Path(place.location).name)
        for number, reason in found.failed.items():
            tqdm.write(f"skipped {samples[number][2]}: {reason}")
        parts.append(found.encoded)
        ids += [samples[number][0] for number in found.index]
        names += [samples[number][1] for number in found.index]
    if others:
        tqdm.write(
            f"{places[0].location}{' and the other tars' * (len(places) > 1)}: not read: {describe_kinds(others)}"
        )
    if not parts:
        raise UserError(f"{places[0].location} and the other tars contain no image")
    if len(set(ids)) < len(ids):
        twice = next(name for number, name in enumerate(names) if ids[number] in ids[:number])
        raise UserError(f"the id of the image {shown(twice)} appears twice; give each tar once")
    arrays = Encoded.concatenate(parts).arrays("image")
    return {**arrays, "image_id": np.array(ids), **string_arrays("image_name", names)}


def read_uncaptioned(place: Place, others: list[str]) -> Iterator[Sample]:
    """The samples of a tar of images without captions, each with an empty one.

    Args:
        place: where it is.
        others: gets the names of the files that are not read.

    Raises:
        UserError: as `read_tar`; also if a sample has a caption, which would be lost.
    """
    for raw in read_groups(place, 0, images=True, others=others):
        if _is_captioned(raw):
            where = f"{raw['__url__']}:{raw['__key__']}"
            raise UserError(f"{where} has a caption, but the first sample of the tars has none; caption all, or none")
        yield parse_sample({**raw, "txt": b""})
