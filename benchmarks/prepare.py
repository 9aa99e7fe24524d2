"""Images a second that one core prepares, beside `cp` and a bare loop of Pillow on the same files.

    python benchmarks/prepare.py [--images FOLDER] [--resize 256]

Every figure is one process on files that lie in the page cache, so it tells what the code costs, not the disk. The four
ways take turns, round after round; the table holds medians. `itr prepare` is measured whole: it looks at the files,
reads, shrinks, writes tars with checksums, and names them in a manifest. The bare loop decodes, resizes and encodes,
and writes nothing.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from itr.data.preparing.writing import Writing, write_shards
from itr.data.raw.entries import Entry, RawData
from measuring import Line, Rounds, arguments, seconds, write

TYPES = (".jpg", ".jpeg")


def make_images(folder: Path, number: int) -> None:
    """JPEGs of 640 x 480 with about as much detail as photographs."""
    rng = np.random.default_rng(0)
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = smooth + rng.normal(0, 6, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:06d}.jpg", quality=90)


def copy(images: Path, out: Path, resize: int) -> None:
    """What `cp` does."""
    subprocess.run(["cp", "-r", str(images), str(out)], check=True)


def bare_loop(images: Path, out: Path, resize: int) -> None:
    """Decode, resize, encode, in the fewest lines of Pillow that give the same images."""
    for path in sorted(images.iterdir()):
        with Image.open(path) as image:
            if min(image.size) <= resize:
                continue
            scale = resize / min(image.size)
            width, height = (round(side * scale) for side in image.size)
            image.draft(None, (2 * width, 2 * height))
            small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            small.save(io.BytesIO(), "JPEG", quality=95)


def prepare(images: Path, out: Path, resize: int | None) -> None:
    """What `itr prepare` does once a source has been read."""
    entries = [Entry(path.name, ["a caption of some ten words, as they are"] * 5) for path in sorted(images.iterdir())]
    with contextlib.redirect_stdout(io.StringIO()):
        write_shards(RawData("benchmark", images, {"train": entries}), Writing(str(out), resize=resize, num_workers=1))


def prepare_bytes(images: Path, out: Path, resize: int) -> None:
    """The same without resizing."""
    prepare(images, out, None)


WAYS = {"cp": copy, "itr prepare": prepare_bytes, "bare loop": bare_loop, "itr prepare --resize": prepare}


def duration(way: Callable[[Path, Path, int], None], images: Path, resize: int) -> float:
    """How long one way takes in this process."""
    with tempfile.TemporaryDirectory() as folder:
        return seconds(lambda: way(images, Path(folder) / "out", resize))


def measure(images: Path, resize: int, rounds: int) -> Rounds:
    """The seconds of each way in each round; each is a process of its own."""
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                taken[name].append(pool.submit(duration, way, images, resize).result())
    return Rounds(taken)


def compared(found: Rounds, sizes: list[int]) -> list[Line]:
    """Our two ways, each beside what comes nearest; ratios are of rates."""
    rates = {name: len(sizes) / found.median(name) for name in WAYS}
    copied, shrunk = rates["itr prepare"], rates["itr prepare --resize"]
    speed = f"{copied * sum(sizes) / len(sizes) / 1e6:,.0f} MB/s."
    return [
        Line("byte copy: header check, tar, checksum", "images/s", copied, "cp", rates["cp"],
             ratio=found.ratio("cp", "itr prepare"), remark=speed),
        Line("shrinking to 256", "images/s", shrunk, "Pillow: decode, resize, encode, nothing written",
             rates["bare loop"], ratio=found.ratio("bare loop", "itr prepare --resize"), at_least=0.85),
    ]  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=Path, help="folder of JPEGs; by default some are made")
    parser.add_argument("--number", type=int, default=600, help="how many are made")
    parser.add_argument("--resize", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder)
        if options.images:
            for path in sorted(options.images.iterdir()):
                if path.suffix.lower() in TYPES:
                    shutil.copy(path, images)
        else:
            make_images(images, 8 if options.quick else options.number)
        sizes = [path.stat().st_size for path in images.iterdir()]
        if not sizes:
            parser.error(f"{options.images} holds no JPEG")
        found = measure(images, options.resize, options.rounds)
    settings = {"JPEGs": len(sizes), "kB each": round(sum(sizes) / len(sizes) / 1e3), "rounds": options.rounds}
    write(options.out, "prepare", compared(found, sizes), settings, {})


if __name__ == "__main__":
    main()
