"""Images a second that one core prepares, beside `cp` and a bare loop of Pillow on the same files.

    python benchmarks/prepare.py [--images FOLDER] [--resize 256] [--rounds 5]

Every figure is one process on files that lie in the page cache, so it tells what the code costs, not the disk. The four
ways take turns, round after round; the table holds medians. `itr prepare` is measured whole: it looks at the files,
reads, shrinks, writes tars with checksums, and names them in a manifest. The bare loop decodes, resizes and encodes,
and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from itr.data.entries import Entry, RawData
from itr.data.writing import Writing, write_shards

RESULTS = Path(__file__).parent / "results" / "prepare.json"
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
    """Decode, resize, encode, in the fewest lines of Pillow that give the same pictures."""
    for path in sorted(images.iterdir()):
        with Image.open(path) as picture:
            if min(picture.size) <= resize:
                continue
            scale = resize / min(picture.size)
            width, height = (round(side * scale) for side in picture.size)
            picture.draft(None, (2 * width, 2 * height))
            small = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
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


def seconds(way: Callable[[Path, Path, int], None], images: Path, resize: int) -> float:
    """How long one way takes in this process."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        way(images, Path(folder) / "out", resize)
        return time.perf_counter() - began


def measure(images: Path, resize: int, rounds: int) -> dict[str, list[float]]:
    """The seconds of each way in each round; each is a process of its own."""
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                taken[name].append(pool.submit(seconds, way, images, resize).result())
    return taken


def ratio(above: list[float], below: list[float]) -> float:
    """The median of the rounds' ratios: what else the machine does, it does to both of a round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def main() -> None:
    """Measure, print the table, and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of JPEGs; by default some are made")
    parser.add_argument("--number", type=int, default=600, help="how many are made")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder)
        if options.images:
            for path in sorted(options.images.iterdir()):
                if path.suffix.lower() in TYPES:
                    shutil.copy(path, images)
        else:
            make_images(images, options.number)
        sizes = [path.stat().st_size for path in images.iterdir()]
        if not sizes:
            parser.error(f"{options.images} holds no JPEG")
        rounds = measure(images, options.resize, options.rounds)
    times = {name: statistics.median(taken) for name, taken in rounds.items()}
    rates = {name: len(sizes) / time for name, time in times.items()}
    ratios = {
        "itr prepare / cp": ratio(rounds["itr prepare"], rounds["cp"]),
        "itr prepare --resize / bare loop": ratio(rounds["itr prepare --resize"], rounds["bare loop"]),
    }
    print(f"{len(sizes)} JPEGs, {sum(sizes) / len(sizes) / 1e3:.0f} kB each; --resize {options.resize}; ", end="")
    print(f"medians of {options.rounds} rounds, one core each\n")
    for name, rate in rates.items():
        print(f"{name:22}{rate:10,.0f} images/s{sum(sizes) / times[name] / 1e6:10,.0f} MB/s")
    for name, value in ratios.items():
        print(f"{name:34}{value:6.2f} times the seconds")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    outcome = {"images": len(sizes), "bytes": sum(sizes), "resize": options.resize, "rounds": options.rounds}
    options.out.write_text(json.dumps({**outcome, "images_per_second": rates, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
