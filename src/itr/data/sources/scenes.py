"""`itr prepare scenes`: synthetic images with captions whose true matches are known exactly."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from itr.data.scenes import Claim, Scene, SceneSample, SceneSettings, generate, truth_matrix
from itr.data.shards.schema import Manifest, Split
from itr.data.shards.staging import Staging, reporting_disk_errors
from itr.data.shards.writer import Record, write_positives, write_split
from itr.errors import UserError


def prepare_scenes(
    out: str,
    train: int = 8000,
    val: int = 500,
    test: int = 500,
    difficulty: Literal["easy", "medium", "hard"] = "medium",
    captions: int | tuple[int, int] = 5,
    image_size: int = 64,
    seed: int = 0,
    shard_size: int = 1000,
) -> None:
    """Generate images of a few objects, captions that each describe one view, and a dense caption that describes all.

    Args:
        out: folder to write the shards to.
        train: number of training images.
        val: number of validation images.
        test: number of test images.
        difficulty: how many objects an image has, and how much a caption says about it.
        captions: number of sparse captions per image, or its minimum and maximum.
        image_size: side length of the images in pixels.
        seed: random seed; image i of a split depends on the seed but not on the number of images.
        shard_size: images per shard.
    """
    try:
        settings = SceneSettings(difficulty, captions, image_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    splits: dict[str, Split] = {}
    folder = Path(out).expanduser()
    with Staging(folder) as staging, reporting_disk_errors(folder):
        staging.refuse_unlisted_tars(["train", "val", "test"])
        staging.clear(keep=set())
        for name, number in (("train", train), ("val", val), ("test", test)):
            if number > 0:
                splits[name] = _write(
                    staging.path, name, number, seed, settings, shard_size, with_truth=name != "train"
                )
                print(f"{name}: {splits[name].images} images, {splits[name].captions} captions")
        manifest = Manifest("scenes", ["image", "captions", "dense"], splits, {"seed": seed, **asdict(settings)})
        staging.publish(manifest)
    print(f"written to {folder}")


def _write(
    folder: Path, split: str, number: int, seed: int, settings: SceneSettings, shard_size: int, with_truth: bool
) -> Split:
    scenes: list[Scene] = []
    claims: list[Claim] = []

    def records() -> Iterator[Record]:
        for sample in generate(split, number, seed, settings):
            if with_truth:
                scenes.append(sample.scene)
                claims.extend(sample.claims)
            yield _record(sample)

    written = write_split(records(), folder, split, shard_size)
    if with_truth:  # ids count up from 0 in writing order
        caption_id, image_id = np.nonzero(truth_matrix(claims, scenes))
        write_positives(folder, split, image_id, caption_id)
    return written


def _record(sample: SceneSample) -> Record:
    buffer = io.BytesIO()
    sample.image.save(buffer, "PNG", compress_level=1)
    meta = {
        "dense": [sample.dense],
        "scene": sample.scene.as_dict(),
        "claims": [claim.as_dict() for claim in sample.claims],
    }
    return Record(buffer.getvalue(), "png", sample.captions, f"scene {sample.index}", meta)
