"""Measures the path from tars to batches through the whole data module, against a bare loop and the authors' recipe.

    python benchmarks/input_pipeline.py [--images FOLDER]

By default the script generates images with about the size, bytes and decoding time of COCO's (640 x 427, about 150 kB;
35 kB after `itr prepare --resize 256`). Rates per core are for one process without workers and with one thread, and
tars are in the page cache. The "bare loop" decodes with simplejpeg and crops and resizes bytes with torchvision, from
memory. The "authors' recipe" decodes, crops and resizes with Pillow and makes a normalised float tensor of each image,
from memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import pipeline_parts as parts
from itr.backbones.tokenizers import BPETokenizer, HFTokenizer
from itr.data.shards.tars import read_tar
from itr.images.decode import decode_pixels
from measuring import Line, Rounds, arguments, device, seconds, side_by_side, write
from pipeline_workers import memory_growth, scaling

UINT8 = "to byte batches"
FLOATS = "to normalised batches"
BARE, AUTHORS, OPENCV = "bare loop", "authors' recipe", "OpenCV float recipe"
DECODING = "simplejpeg decoding alone, in the same run"


@dataclass
class Measured:
    """Seconds and number of images of each alternative, for two kinds of shards: `raw`, and `256` pixels."""

    rounds: dict[str, Rounds]
    images: dict[tuple[str, str], int]
    kilobytes: dict[str, float]

    def rate(self, kind: str, alternative: str) -> float:
        """Return images per second."""
        return self.images[kind, alternative] / self.rounds[kind].median(alternative)

    def ratio(self, kind: str, ours: str, theirs: str) -> float:
        """Return the ratio of two rates, for shards of one kind."""
        share = self.images[kind, ours] / self.images[kind, theirs]
        return share * self.rounds[kind].ratio(theirs, ours)

    def line(self, what: str, kind: str, ours: str, theirs: str, at_least: float | None = None) -> Line:
        """Return a line that compares two alternatives on the same shards."""
        rates = self.rate(kind, ours), self.rate(kind, theirs)
        limit, by = self.rate(kind, "decoding alone"), DECODING
        ratio = self.ratio(kind, ours, theirs)
        return Line(what, "images/s", rates[0], theirs, rates[1], limit, by, ratio, at_least)


def make_alternatives(shards: Path) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """Return what to measure on one kind of shards, and how many images each alternative processes."""
    images = parts.encoded(shards)
    cropping, resizing, where = parts.bare_training(), parts.bare_evaluation(), device()
    training, several, testing = (
        parts.loader(shards, *options, training=train)
        for train, *options in ((True,), (True, "--data.captions=4"), (False,))
    )
    backbone = parts.data_module(shards).trainer.lightning_module.backbone.to(where)
    alternatives: dict[str, Callable[[], object]] = {
        "decoding alone": lambda: parts.decode_alone(images),
        "reading alone": lambda: [len(sample.image) for tar in shards.rglob("*.tar") for sample in read_tar(tar)],
        BARE: lambda: parts.bare_loop(images, cropping),
        "itr": lambda: parts.consume(training),
        "bare loop with normalising": lambda: parts.bare_normalised(images, cropping, where),
        "itr with normalising": lambda: parts.consume(training, lambda image: backbone.normalise(image.to(where))),
        "bare evaluation loop": lambda: parts.bare_loop(images, resizing),
        "itr, evaluation": lambda: parts.consume(testing),
        "itr, 4 captions per image": lambda: parts.consume(several),
        AUTHORS: lambda: parts.pillow_recipe(images),
    }
    if find_spec("cv2"):
        alternatives[OPENCV] = lambda: parts.opencv_recipe(images)
    numbers = dict.fromkeys(alternatives, len(images))
    numbers |= {"itr": len(training) * parts.BATCH, "itr with normalising": len(training) * parts.BATCH}
    numbers["itr, 4 captions per image"] = len(several) * (parts.BATCH // 4)
    return alternatives, numbers


def measure(folders: Mapping[str, Path], rounds: int) -> Measured:
    """Measure all alternatives on both kinds of shards."""
    found = Measured({}, {}, {})
    for kind, shards in folders.items():
        images = parts.encoded(shards)
        found.kilobytes[kind] = sum(map(len, images)) / len(images) / 1e3
        alternatives, numbers = make_alternatives(shards)
        found.images |= {(kind, alternative): number for alternative, number in numbers.items()}
        found.rounds[kind] = side_by_side(alternatives, rounds)
    return found


def bare_loop_lines(found: Measured) -> list[Line]:
    """Compare with the bare loops; the target is 85 % of their rate."""
    lines = []
    for kind, name in (("256", "256-pixel shards"), ("raw", "raw images")):
        for ours, theirs, what in (
            ("itr", BARE, f"one core, training, {UINT8}"),
            ("itr with normalising", "bare loop with normalising", f"one core, training, {FLOATS} on the device"),
            ("itr, evaluation", "bare evaluation loop", f"one core, evaluation, {UINT8}"),
        ):
            line = found.line(f"{what}, {name}", kind, ours, theirs, at_least=0.85)
            lines.append(with_profile(line, found, kind))
    return lines


def with_profile(line: Line, found: Measured, kind: str) -> Line:
    """Return the line, with the causes of its time and what was tried if it misses its bound."""
    tried = "Reusing one decoding buffer was tried and gained nothing; decoding at a reduced scale changes pixels."
    shares = profile(found, kind)
    return replace(line, remark=f"{line.remark} {tried}".strip(), profile=shares) if line.met is False else line


def profile(found: Measured, kind: str) -> dict[str, float]:
    """Split the time of an image by cause, using the other alternatives of the same run."""
    whole = 1 / found.rate(kind, "itr")
    shares = {
        "decoding": 1 / found.rate(kind, "decoding alone"),
        "crop and resize": 1 / found.rate(kind, BARE) - 1 / found.rate(kind, "decoding alone"),
        "reading tars": 1 / found.rate(kind, "reading alone"),
    }
    shares = {name: time / whole for name, time in shares.items()}
    return {**shares, "other": 1 - sum(shares.values())}


def authors_lines(found: Measured) -> list[Line]:
    """Compare with the recipes in the authors' code."""
    both = found.rate("256", "itr") / found.rate("raw", AUTHORS)
    normalised = found.rate("256", "itr with normalising") / found.rate("raw", AUTHORS)
    decoding, by = found.rate("256", "decoding alone"), DECODING
    on_raw = f"{AUTHORS} on raw images, as commonly used"
    medians = "A ratio of medians, since the images differ. The authors' flip and RandAugment are omitted. "
    lines = [
        Line(f"one core, 256-pixel shards, {UINT8}", "images/s", found.rate("256", "itr"), on_raw,
             found.rate("raw", AUTHORS), decoding, by, both, 5.0,
             remark=medians + "Our images are normalised on the device."),
        Line(f"one core, 256-pixel shards, {FLOATS} on the device", "images/s",
             found.rate("256", "itr with normalising"), on_raw, found.rate("raw", AUTHORS), decoding, by, normalised,
             5.0 if device() == "cuda" else None, remark=medians + f"The device is {device()}."),
        found.line("one core, the same 256-pixel shards for both", "256", "itr", AUTHORS),
        found.line("one core, raw images for both", "raw", "itr", AUTHORS, at_least=1.7),
    ]  # fmt: skip
    lines = [with_profile(line, found, "raw" if "raw images for" in line.what else "256") for line in lines]
    if ("raw", OPENCV) in found.images:
        line = found.line("one core, raw images for both", "raw", "itr", OPENCV, at_least=1.7)
        line.remark = (
            "OpenCV resizes bilinearly and without antialiasing, which is less work and gives different pixels."
        )
        return [*lines, with_profile(line, found, "raw")]
    return [
        *lines,
        Line(f"one core, compared with the {OPENCV}", "images/s", unmeasured="opencv-python is not installed"),
    ]


def image_major(found: Measured) -> Line:
    """Return pairs per second with four captions for each decoded image."""
    pairs = 4 * found.rate("256", "itr, 4 captions per image"), found.rate("256", "itr")
    ratio = 4 * found.ratio("256", "itr, 4 captions per image", "itr")
    text = "pairs with data.captions = 4, one core, 256-pixel shards"
    by = "decoding alone, with four pairs per image"
    limit = 4 * found.rate("256", "decoding alone")
    return Line(text, "pairs/s", pairs[0], "data.captions = 1", pairs[1], limit, by, ratio, at_least=3.6)


def tokenising(found: Measured, shards: Path, rounds: int) -> list[Line]:
    """Return the share of a core's time that tokenizing takes."""
    captions = [sample.captions for tar in sorted(shards.rglob("*.tar")) for sample in read_tar(tar)]
    lines = []
    for name, tokenizer in (("CLIP's", BPETokenizer()), ("BERT-style", word_pieces())):
        for each, alternative in ((1, "itr"), (parts.CAPTIONS, "itr, evaluation")):
            texts = [text for of_image in captions for text in of_image[:each]]
            batch = parts.BATCH * each
            work = [texts[first : first + batch] for first in range(0, len(texts), batch)]
            taken = side_by_side({"t": lambda t=tokenizer, w=work: [t(part) for part in w]}, rounds).median("t")
            share = taken / len(captions) * found.rate("256", alternative)
            what = f"{name} tokenizer, {each} caption{'s' * (each > 1)} per image: share of one core's time"
            lines.append(Line(what, "", share, at_most=0.03 if each == 1 else 0.1))
    return lines


def word_pieces() -> HFTokenizer:
    """Return a tokenizer like BERT's, trained on the words of the captions."""
    from tokenizers import BertWordPieceTokenizer

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(parts.make_captions(2000), vocab_size=3000, show_progress=False)
    trained.add_special_tokens(["[PAD]"])
    return HFTokenizer(trained.to_str())


def buffered(shards: Path) -> Line:
    """Return the memory of one image in the shuffle buffer."""
    images = parts.encoded(shards)
    pixels = sum(decode_pixels(data, 10**8).nbytes for data in images) / len(images) / 1e3
    size = sum(map(len, images)) / len(images) / 1e3
    what = "one image in the shuffle buffer, raw images"
    return Line(what, "kB", size, "its decoded pixels", pixels, ratio=size / pixels, at_most=0.5)


def main() -> None:
    """Run all measurements and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=Path, help="folder of JPEGs; generated by default")
    parser.add_argument("--number", type=int, default=640, help="how many to generate")
    options = parser.parse_args()
    number = 128 if options.quick else options.number
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "generated").mkdir()
        making = 0.0 if options.images else seconds(lambda: parts.make_images(folder / "generated", number))
        images = options.images or folder / "generated"
        shards = {k: parts.make_shards(images, folder / k, side) for k, side in (("256", 256), ("raw", None))}
        found = measure(shards, options.rounds)
        lines = [*bare_loop_lines(found), *authors_lines(found), image_major(found)]
        lines += tokenising(found, shards["256"], options.rounds)
        more, points = scaling(shards["256"], worker_counts(), options.rounds)
        memory, epochs = memory_growth(shards["256"], epochs=4 if options.quick else 10)
        lines += [*more, buffered(shards["raw"]), memory]
    settings: dict[str, Any] = {"images": found.images["raw", BARE], "rounds": options.rounds}
    settings |= {f"kB per image ({kind})": round(size) for kind, size in found.kilobytes.items()}
    settings["source"] = "given" if options.images else f"generated in {making:.0f} s"
    rates = [
        {"alternative": alternative, **{f"images/s, {kind}": found.rate(kind, alternative) for kind in found.rounds}}
        for alternative in found.rounds["raw"].seconds
    ]
    tables = {"Images per second on one core": rates, "Workers": points, "Memory over epochs": epochs}
    write(options.out, "input_pipeline", lines, settings, tables)


def worker_counts() -> list[int]:
    """Return 1, 2, 4 and so on, up to the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0))
    return [1] + [n for n in (2, 4, 8, 16, 32, 64) if n <= max(cores, 2)]


if __name__ == "__main__":
    main()
