"""Embedding of tars that contain only images, which have nothing to train on or to measure."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from itr.data.shards.locations import find_places
from itr.data.shards.schema import Place
from itr.data.shards.tars import has_captions, read_uncaptioned
from itr.embedding.encoder import Embedder
from itr.embedding.strings import string_arrays
from itr.errors import UserError, shown
from itr.types import Encoded


def image_tars(data: str, split: str, cache: str | None) -> list[Place]:
    """The tars of a split if they contain images without captions; none if they have captions or a manifest.

    Raises:
        UserError: no tar was found, or the first one could not be read.
    """
    places = find_places(data, split, cache)
    return places if places and not has_captions(places[0]) else []


def embed_image_tars(embedder: Embedder, places: list[Place]) -> dict[str, np.ndarray]:
    """Embed the images of tars, in their order; those that cannot be decoded are reported.

    Returns:
        The embeddings with `image_id`, the same number that samples with captions have, and `image_name`.

    Raises:
        UserError: a tar could not be read, or two images have the same id.
    """
    parts: list[Encoded] = []
    ids: list[int] = []
    names: list[str] = []
    for place in places:
        with TemporaryDirectory() as folder:  # the embedder reads files; those of one tar at a time
            paths, samples = [], []
            for number, sample in enumerate(read_uncaptioned(place)):
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
    if not parts:
        raise UserError(f"{places[0].location} and the other tars contain no image")
    if len(set(ids)) < len(ids):
        twice = next(name for number, name in enumerate(names) if ids[number] in ids[:number])
        raise UserError(f"the id of the image {shown(twice)} appears twice; give each tar once")
    arrays = Encoded.concatenate(parts).arrays("image")
    return {**arrays, "image_id": np.array(ids), **string_arrays("image_name", names)}
