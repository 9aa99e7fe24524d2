"""Raw data for tests of `itr prepare`: images in a folder, and the entries of a source."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from itr.data.raw.entries import ImageEntry, RawData


def save_image(path: Path, seed: int, width: int = 60, height: int = 48, **options: object) -> None:
    """A smooth image with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    noisy = (smooth + rng.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path, **options)


def make_raw(root: Path, train: int = 11, val: int = 5, **options: int) -> RawData:
    """Images with one to three captions each."""
    entries: dict[str, list[ImageEntry]] = {}
    for split, number in (("train", train), ("val", val)):
        entries[split] = []
        for i in range(number):
            name = f"{split}/{i:04d}.jpg"
            save_image(root / name, i, **options)
            entries[split].append(ImageEntry(name, [f"{split} {i} says {c}" for c in range(1 + i % 3)]))
    return RawData(root, entries, "made")


def write_tables(raw: RawData) -> Path:
    """Write the data as tables next to the images, for `itr prepare table`."""
    for split, entries in raw.entries.items():
        lines = [json.dumps({"image": entry.image, "captions": entry.captions}) for entry in entries]
        (raw.image_root / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return raw.image_root


def file_hashes(folder: Path) -> dict[str, str]:
    """A checksum of every file in a folder, including hidden ones."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
