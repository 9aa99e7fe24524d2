"""Write raw data as shards: the part of `itr prepare` that all sources share."""

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

from itr.data.preparing.image_files import format_problems
from itr.data.preparing.shard_maker import MadeShard, ShardMaker, ShardPlan
from itr.data.preparing.shard_pool import make_shards
from itr.data.preparing.unpacking import UNPACKED, unpack_images
from itr.data.preparing.usable import UsableEntries, select_usable
from itr.data.raw.entries import RawData
from itr.data.shards.schema import Manifest, Split
from itr.data.shards.staging import Staging
from itr.errors import UserError

MAX_PREPARE_WORKERS = 8


@dataclass
class Writing:
    """How to write shards.

    Attributes:
        out: folder to write the shards to.
        resize: shrink larger images to this short side in pixels and encode them as JPEG; by default, and for smaller
            images, the original bytes are copied.
        quality: JPEG quality of resized images, from 1 to 100.
        shard_size: images per shard.
        num_workers: processes that make shards; by default one per core, at most 8.
        bad_images: what to do if an image is missing or cannot be decoded.
        seed: random seed of the order of the training images, and of what a source draws.
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
            raise UserError(f"resize={self.resize} must be at least 1 pixel")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality={self.quality} must be from 1 to 100")
        if self.shard_size < 1:
            raise UserError(f"shard_size={self.shard_size} must be at least 1")
        if self.num_workers is not None and self.num_workers < 1:
            raise UserError(f"num_workers={self.num_workers} must be at least 1")

    @property
    def workers(self) -> int:
        """Number of processes."""
        return self.num_workers or min(MAX_PREPARE_WORKERS, usable_cores())

    def settings(self) -> dict[str, Any]:
        """The settings that the shards depend on, for the manifest."""
        images = {"resize": self.resize, "quality": self.quality if self.resize else None}
        return {**images, "shard_size": self.shard_size, "seed": self.seed}


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_shards(raw: RawData, writing: Writing) -> Manifest:
    """Write raw data and a manifest; for how existing shards are handled, see `itr.data.shards.staging`.

    Raises:
        UserError: images or captions are missing or bad, or writing failed.
    """
    began = time.monotonic()
    found = select_usable(raw, writing.bad_images)
    if "train" in found:
        order = np.random.default_rng(writing.seed).permutation(len(found["train"]))
        found["train"] = [found["train"][i] for i in order]
    manifest = Manifest(raw.source, _fields(found), {}, {**raw.settings, **writing.settings()})
    with Staging(Path(writing.out).expanduser()) as staging:
        skip = writing.bad_images == "skip"
        images = staging.path / UNPACKED if raw.inner else raw.image_root
        maker = ShardMaker(images, staging.path, writing.resize, writing.quality, skip)
        plans = [plan for split, part in found.items() for plan in maker.plan(split, part, writing.shard_size)]
        fingerprint = _fingerprint(manifest, plans)
        existing = staging.holds(fingerprint)
        if existing is not None:
            staging.clear(keep=set())
            print(f"{_counts(existing)}\n{staging.folder} is already up to date")
            return existing
        staging.refuse_unlisted_tars(list(found))
        made = _make(maker, plans, staging, raw, writing.workers)
        _report_bad(raw, plans, made, skip)
        for plan, result in zip(plans, made, strict=True):
            if result.shard and result.shard.images:
                manifest.splits.setdefault(plan.split, Split()).shards.append(result.shard)
        staging.publish(manifest, fingerprint)
    print(f"{_counts(manifest)}\nwritten to {staging.folder} in {time.monotonic() - began:.1f} s")
    return manifest


def _fields(found: UsableEntries) -> list[str]:
    trained = {"train": found["train"]} if "train" in found else found  # only training needs dense captions
    dense = all(entry.dense for part in trained.values() for entry, _ in part)
    return ["image", "captions", "dense"] if dense else ["image", "captions"]


def _fingerprint(manifest: Manifest, plans: list[ShardPlan]) -> str:
    inputs = [manifest.source, manifest.fields, manifest.settings, [plan.digest for plan in plans]]
    return hashlib.blake2b(json.dumps(inputs, default=str).encode(), digest_size=16).hexdigest()


def _make(
    maker: ShardMaker, plans: list[ShardPlan], staging: Staging, raw: RawData, num_workers: int
) -> list[MadeShard]:
    """Make the shards of all plans; keep those that an earlier run finished."""
    finished = [maker.finished(plan) for plan in plans]
    dropped = staging.clear({plan.path for plan, made in zip(plans, finished, strict=True) if made})
    if dropped:
        print(f"deleted {dropped} finished shards from {staging.path}, made from other images, captions or options")
    todo = [plan for plan, made in zip(plans, finished, strict=True) if not made]
    total = sum(len(plan.entries) for plan in plans)
    done = total - sum(len(plan.entries) for plan in todo)
    if done:
        print(f"continuing: {len(plans) - len(todo)} of {len(plans)} shards are already finished")
    if raw.inner:
        unpack_images(raw.inner, [entry.image for plan in todo for entry in plan.entries], staging)
    with tqdm(total=total, initial=done, desc="writing", unit=" images", disable=None) as bar:
        new = iter(make_shards(maker, todo, num_workers, bar))
    return [made or next(new) for made in finished]


def _report_bad(raw: RawData, plans: list[ShardPlan], made: list[MadeShard], skip: bool) -> None:
    """Report the images that could not be decoded, or raise an error that lists them."""
    for split, entries in raw.entries.items():
        bad = [image for plan, result in zip(plans, made, strict=True) if plan.split == split for image in result.bad]
        if bad and not skip:
            raise UserError(
                f"{format_problems(bad, len(entries), split, raw.image_root)}\nFix them, or skip them with "
                "--bad_images skip. The other shards are finished: run the same command again to continue"
            )
        if bad:
            print(f"skipped: {format_problems(bad, len(entries), split, raw.image_root)}")


def _counts(manifest: Manifest) -> str:
    lines = [
        f"{name}: {split.images} images, {split.captions} captions, {len(split.shards)} shards"
        for name, split in manifest.splits.items()
    ]
    return "\n".join(lines)
