"""From what a source found to shards: the part of `itr prepare` that all sources share."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from itr.data.preparing.image_files import listed
from itr.data.preparing.shard_maker import Made, ShardMaker, ShardPlan
from itr.data.preparing.shard_pool import make_shards
from itr.data.preparing.usable import Usable, usable
from itr.data.raw.entries import RawData
from itr.data.shards.schema import Manifest, Split
from itr.data.shards.staging import Staging
from itr.errors import UserError

MOST_WORKERS = 8


@dataclass
class Writing:
    """How shards are written.

    Attributes:
        out: folder to write the shards to.
        resize: bring the short side of larger images to so many pixels and encode them as JPEG; by default, and for
            smaller images, their bytes are copied.
        quality: of those JPEGs, from 1 to 100.
        shard_size: images in a shard.
        num_workers: processes that make shards; by default one a core, and at most 8.
        bad_images: what to do when an image is missing or no image.
        seed: of the order of the training images, and of what a source draws.
    """

    out: str
    resize: int | None = None
    quality: int = 95
    shard_size: int = 1000
    num_workers: int | None = None
    bad_images: Literal["refuse", "skip"] = "refuse"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < 1:
            raise UserError(f"resize is {self.resize}; it must be 1 or more pixels")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality is {self.quality}; it must be from 1 to 100")
        if self.shard_size < 1:
            raise UserError(f"shard_size is {self.shard_size}; it must be 1 or more")
        if self.num_workers is not None and self.num_workers < 1:
            raise UserError(f"num_workers is {self.num_workers}; it must be 1 or more")

    @property
    def workers(self) -> int:
        """Number of processes."""
        return self.num_workers or min(MOST_WORKERS, usable_cores())

    def settings(self) -> dict[str, Any]:
        """What of this the shards depend on, for the manifest."""
        made = {"resize": self.resize, "quality": self.quality if self.resize else None}
        return {**made, "shard_size": self.shard_size, "seed": self.seed}


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_shards(raw: RawData, writing: Writing) -> Manifest:
    """Write what a source found, and a manifest; `itr.data.shards.staging` tells of shards that are there already.

    Raises:
        UserError: if images or captions are missing or bad, or the disk refuses.
    """
    began = time.monotonic()
    found = usable(raw, writing.bad_images)
    if "train" in found:
        order = np.random.default_rng(writing.seed).permutation(len(found["train"]))
        found["train"] = [found["train"][i] for i in order]
    manifest = Manifest(raw.source, _fields(found), {}, {**raw.settings, **writing.settings()})
    with Staging(Path(writing.out).expanduser()) as staging:
        skip = writing.bad_images == "skip"
        maker = ShardMaker(raw.image_root, staging.path, writing.resize, writing.quality, skip)
        plans = [plan for split, part in found.items() for plan in maker.plan(split, part, writing.shard_size)]
        fingerprint = _fingerprint(manifest, plans)
        there = staging.holds(fingerprint)
        if there is not None:
            staging.clear(keep=set())
            print(f"{_counts(there)}\n{staging.folder} holds just this already")
            return there
        staging.refuse_strangers(list(found))
        made = _make(maker, plans, staging, writing.workers)
        _tell_bad(raw, plans, made, skip)
        for plan, result in zip(plans, made, strict=True):
            if result.shard and result.shard.images:
                manifest.splits.setdefault(plan.split, Split()).shards.append(result.shard)
        staging.publish(manifest, fingerprint)
    print(f"{_counts(manifest)}\nwritten to {staging.folder} in {time.monotonic() - began:.1f} s")
    return manifest


def _fields(found: Usable) -> list[str]:
    trained = {"train": found["train"]} if "train" in found else found  # nothing else needs them
    dense = all(entry.dense for part in trained.values() for entry, _ in part)
    return ["image", "captions", "dense"] if dense else ["image", "captions"]


def _fingerprint(manifest: Manifest, plans: list[ShardPlan]) -> str:
    what = [manifest.source, manifest.fields, manifest.settings, [plan.digest for plan in plans]]
    return hashlib.blake2b(json.dumps(what, default=str).encode(), digest_size=16).hexdigest()


def _make(maker: ShardMaker, plans: list[ShardPlan], staging: Staging, num_workers: int) -> list[Made]:
    """What comes of the plans; shards that an earlier run finished are taken as they are."""
    known = [maker.finished(plan) for plan in plans]
    dropped = staging.clear({plan.path for plan, made in zip(plans, known, strict=True) if made})
    if dropped:
        print(f"{dropped} finished shards of other images, captions or options are dropped from {staging.path}")
    todo = [plan for plan, made in zip(plans, known, strict=True) if not made]
    total = sum(len(plan.entries) for plan in plans)
    done = total - sum(len(plan.entries) for plan in todo)
    if done:
        print(f"going on: {len(plans) - len(todo)} of {len(plans)} shards are finished already")
    with tqdm(total=total, initial=done, desc="writing", unit=" images", disable=None) as bar:
        new = iter(make_shards(maker, todo, num_workers, bar))
    return [made or next(new) for made in known]


def _tell_bad(raw: RawData, plans: list[ShardPlan], made: list[Made], skip: bool) -> None:
    """Tell the images that turned out to be none when they were read whole, or refuse them."""
    for split, entries in raw.entries.items():
        bad = [one for plan, result in zip(plans, made, strict=True) if plan.split == split for one in result.bad]
        if bad and not skip:
            raise UserError(
                f"{listed(bad, len(entries), split, raw.image_root)}\nMend them, or leave them out by --bad_images "
                "skip. Shards without them are finished: the same command goes on from there"
            )
        if bad:
            print(f"left out: {listed(bad, len(entries), split, raw.image_root)}")


def _counts(manifest: Manifest) -> str:
    lines = [
        f"{name}: {split.images} images, {split.captions} captions, {len(split.shards)} shards"
        for name, split in manifest.splits.items()
    ]
    return "\n".join(lines)
