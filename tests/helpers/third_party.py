"""Shards as other programs write them: plain tars and img2dataset's folders."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from PIL import Image


def make_image(number: int, size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((size, size), 64 + number % 32).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def downloaded(
    folder: Path, shards: int = 3, each: int = 5, stats: bool = True, size: int = 16, first: int = 0
) -> Path:
    """A folder as img2dataset writes it: shard names have five digits, and keys start with the shard's number.

    A key is for example `000010004`; images that could not be downloaded leave gaps between keys.
    """
    for shard in range(first, first + shards):
        members: dict[str, bytes] = {}
        for number in range(0, 2 * each, 2):
            key, caption = f"{shard:05d}{number:04d}", f"image {number} of shard {shard}"
            meta = {
                "caption": caption, "url": f"https://example.org/{key}.jpg?w=1", "key": key, "status": "success",
                "error_message": None, "width": size, "height": size, "original_width": 640, "original_height": 480,
                "exif": "{}", "sha256": "00" * 32,
            }  # fmt: skip
            members |= {f"{key}.jpg": make_image(number + shard, size), f"{key}.txt": caption.encode()}
            members[f"{key}.json"] = json.dumps(meta, indent=4).encode()
        write_tar(folder / f"{shard:05d}.tar", members)
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1 not looked at")
        counts = {"count": 2 * each, "successes": each, "failed_to_download": each, "failed_to_resize": 0}
        counts |= {"duration": 1.5, "start_time": 1.0, "end_time": 2.5, "status_dict": {"success": each}}
        if stats:
            (folder / f"{shard:05d}_stats.json").write_text(json.dumps(counts, indent=4))
    return folder
