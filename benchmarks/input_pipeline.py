"""From tars to batches through the whole data module, beside the bare loop and beside the authors' recipe.

    python benchmarks/input_pipeline.py [--images FOLDER]

By default images are made, with about the size, bytes and decoding time of COCO's (640 x 427, some 150 kB; 35 kB
after `itr prepare --resize 256`). Rates per core are of one process without workers and with one thread; tars lie in
the page cache. "Bare loop" is simplejpeg's decoding and torchvision's crop and resize of bytes, from memory. "Authors'
recipe" is Pillow's decoding, crop and resize, and a normalised float tensor of each image, from memory.
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
from pipeline_workers import growth, scaling

UINT8 = "to a batch of bytes"
FLOATS = "to a normalised batch"


@dataclass
class Measured:
    """Seconds of each way, of shards of two kinds: `raw`, and `256` pixels. Each way takes `images` images."""

    rounds: dict[str, Rounds]
    images: dict[tuple[str, str], int]
    kilobytes: dict[str, float]

    def rate(self, kind: str, way: str) -> float:
        """Images a second."""
        return self.images[kind, way] / self.rounds[kind].median(way)

    def ratio(self, kind: str, ours: str, theirs: str) -> float:
        """Of rates, for shards of one kind."""
        share = self.images[kind, ours] / self.images[kind, theirs]
        return share * self.rounds[kind].ratio(theirs, ours)

    def line(self, what: str, kind: str, ours: str, theirs: str, at_least: float | None = None) -> Line:
        """A line about one way beside another on the same shards."""
        rates = self.rate(kind, ours), self.rate(kind, theirs)
        limit, by = self.rate(kind, "decoding alone"), "simplejpeg's decoding alone, in the same run"
        ratio = self.ratio(kind, ours, theirs)
        return Line(what, "images/s", rates[0], theirs, rates[1], limit, by, ratio, at_least)


def ways_of(shards: Path) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """The ways for one kind of shards, and how many images each takes."""
    images = parts.encoded(shards)
    cropping, resizing, where = parts.bare_training(), parts.bare_evaluation(), device()
    training, several, testing = (
        parts.loader(shards, *options, training=train)
        for train, *options in ((True,), (True, "--data.captions=4"), (False,))
    )
    backbone = parts.data_module(shards).trainer.lightning_module.backbone.to(where)
    ways: dict[str, Callable[[], object]] = {
        "decoding alone": lambda: parts.decode_alone(images),
        "reading alone": lambda: [len(sample.image) for tar in shards.rglob("*.tar") for sample in read_tar(tar)],
        "bare loop": lambda: parts.bare_loop(images, cropping),
        "itr": lambda: parts.through(training),
        "bare loop and normalising": lambda: parts.bare_normalised(images, cropping, where),
        "itr and normalising": lambda: parts.through(training, lambda image: backbone.normalise(image.to(where))),
        "bare evaluation loop": lambda: parts.bare_loop(images, resizing),
        "itr, evaluation": lambda: parts.through(testing),
        "itr, 4 captions an image": lambda: parts.through(several),
        "authors' recipe": lambda: parts.pillow_recipe(images),
    }
    if find_spec("cv2"):
        ways["recipe of OpenCV and floats"] = lambda: parts.opencv_recipe(images)
    numbers = dict.fromkeys(ways, len(images))
    numbers |= {"itr": len(training) * parts.BATCH, "itr and normalising": len(training) * parts.BATCH}
    numbers["itr, 4 captions an image"] = len(several) * (parts.BATCH // 4)
    return ways, numbers


def measure(folders: Mapping[str, Path], rounds: int) -> Measured:
    """All ways on both kinds of shards."""
    found = Measured({}, {}, {})
    for kind, shards in folders.items():
        images = parts.encoded(shards)
        found.kilobytes[kind] = sum(map(len, images)) / len(images) / 1e3
        ways, numbers = ways_of(shards)
        found.images |= {(kind, way): number for way, number in numbers.items()}
        found.rounds[kind] = side_by_side(ways, rounds)
    return found


def beside_the_bare_loop(found: Measured) -> list[Line]:
    """The lines of 85 %."""
    lines = []
    for kind, name in (("256", "shards of 256 pixels"), ("raw", "raw images")):
        for ours, theirs, what in (
            ("itr", "bare loop", f"one core, training, {UINT8}"),
            ("itr and normalising", "bare loop and normalising", f"one core, training, {FLOATS} on the device"),
            ("itr, evaluation", "bare evaluation loop", f"one core, evaluation, {UINT8}"),
        ):
            line = found.line(f"{what}, {name}", kind, ours, theirs, at_least=0.85)
            lines.append(explained(line, found, kind))
    return lines


def explained(line: Line, found: Measured, kind: str) -> Line:
    """The line; where it falls short, with where the time goes and what was tried."""
    tried = "Decoding into one buffer again and again was tried and gained nothing; decoding at a scale changes pixels."
    shares = profile(found, kind)
    return replace(line, remark=f"{line.remark} {tried}".strip(), profile=shares) if line.met is False else line


def profile(found: Measured, kind: str) -> dict[str, float]:
    """What an image's time goes to, from the ways of the same run."""
    whole = 1 / found.rate(kind, "itr")
    shares = {
        "decoding": 1 / found.rate(kind, "decoding alone"),
        "crop and resize": 1 / found.rate(kind, "bare loop") - 1 / found.rate(kind, "decoding alone"),
        "reading tars": 1 / found.rate(kind, "reading alone"),
    }
    shares = {name: time / whole for name, time in shares.items()}
    return {**shares, "the rest": 1 - sum(shares.values())}


def beside_the_authors(found: Measured) -> list[Line]:
    """What a user gains who comes from the authors' code."""
    recipe = "authors' recipe"
    both = found.rate("256", "itr") / found.rate("raw", recipe)
    normalised = found.rate("256", "itr and normalising") / found.rate("raw", recipe)
    decoding, by = found.rate("256", "decoding alone"), "simplejpeg's decoding alone, in the same run"
    on_raw = f"{recipe} on the raw images, as people have it today"
    medians = "A ratio of medians: the two are of different images. The authors' flip and RandAugment are left out. "
    lines = [
        Line(f"one core, shards of 256 pixels, {UINT8}", "images/s", found.rate("256", "itr"), on_raw,
             found.rate("raw", recipe), decoding, by, both, 5.0, remark=medians + "The device normalises ours."),
        Line(f"one core, shards of 256 pixels, {FLOATS} on the device", "images/s",
             found.rate("256", "itr and normalising"), on_raw, found.rate("raw", recipe), decoding, by, normalised,
             5.0 if device() == "cuda" else None, remark=medians + f"The device is of kind {device()}."),
        found.line("one core, the same shards of 256 pixels for both", "256", "itr", recipe),
        found.line("one core, raw images for both", "raw", "itr", recipe, at_least=1.7),
    ]  # fmt: skip
    lines = [explained(line, found, "raw" if "raw images for" in line.what else "256") for line in lines]
    opencv = "recipe of OpenCV and floats"
    if ("raw", opencv) in found.images:
        line = found.line("one core, raw images for both", "raw", "itr", opencv, at_least=1.7)
        line.remark = "OpenCV resizes bilinearly and without antialiasing, which is less work and gives other pixels."
        return [*lines, explained(line, found, "raw")]
    return [*lines, Line(f"one core, beside the {opencv}", "images/s", unmeasured="opencv-python is not installed")]


def image_major(found: Measured) -> Line:
    """Pairs a second with four captions for one encoding of an image."""
    pairs = 4 * found.rate("256", "itr, 4 captions an image"), found.rate("256", "itr")
    ratio = 4 * found.ratio("256", "itr, 4 captions an image", "itr")
    text = "data.captions = 4: pairs of one core, shards of 256 pixels"
    by = "decoding alone, four pairs an image"
    limit = 4 * found.rate("256", "decoding alone")
    return Line(text, "pairs/s", pairs[0], "data.captions = 1", pairs[1], limit, by, ratio, at_least=3.6)


def tokenising(found: Measured, shards: Path, rounds: int) -> list[Line]:
    """The share of a core's time that captions take."""
    captions = [sample.captions for tar in sorted(shards.rglob("*.tar")) for sample in read_tar(tar)]
    lines = []
    for name, tokenizer in (("CLIP's", BPETokenizer()), ("BERT's kind of", word_pieces())):
        for each, way in ((1, "itr"), (parts.CAPTIONS, "itr, evaluation")):
            texts = [text for of_image in captions for text in of_image[:each]]
            batch = parts.BATCH * each
            work = [texts[first : first + batch] for first in range(0, len(texts), batch)]
            taken = side_by_side({"t": lambda t=tokenizer, w=work: [t(part) for part in w]}, rounds).median("t")
            share = taken / len(captions) * found.rate("256", way)
            what = f"{name} tokenizer, {each} caption{'s' * (each > 1)} an image: share of a core's time"
            lines.append(Line(what, "of 1", share, at_most=0.03 if each == 1 else 0.1))
    return lines


def word_pieces() -> HFTokenizer:
    """A tokenizer as BERT's, of the words of the captions."""
    from tokenizers import BertWordPieceTokenizer

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(parts.make_captions(2000), vocab_size=3000, show_progress=False)
    trained.add_special_tokens(["[PAD]"])
    return HFTokenizer(trained.to_str())


def buffered(shards: Path) -> Line:
    """What a sample takes in the shuffle buffer."""
    images = parts.encoded(shards)
    pixels = sum(decode_pixels(data, 10**8).nbytes for data in images) / len(images) / 1e3
    size = sum(map(len, images)) / len(images) / 1e3
    what = "an image in the shuffle buffer, raw images"
    return Line(what, "kB", size, "its pixels", pixels, ratio=size / pixels, at_most=0.5)


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=Path, help="folder of JPEGs; by default some are made")
    parser.add_argument("--number", type=int, default=640, help="how many are made")
    options = parser.parse_args()
    number = 128 if options.quick else options.number
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "made").mkdir()
        making = 0.0 if options.images else seconds(lambda: parts.make_images(folder / "made", number))
        images = options.images or folder / "made"
        shards = {k: parts.make_shards(images, folder / k, side) for k, side in (("256", 256), ("raw", None))}
        found = measure(shards, options.rounds)
        lines = [*beside_the_bare_loop(found), *beside_the_authors(found), image_major(found)]
        lines += tokenising(found, shards["256"], options.rounds)
        more, points = scaling(shards["256"], worker_counts(), options.rounds)
        memory, epochs = growth(shards["256"], epochs=4 if options.quick else 10)
        lines += [*more, buffered(shards["raw"]), memory]
    settings: dict[str, Any] = {"images": found.images["raw", "bare loop"], "rounds": options.rounds}
    settings |= {f"kB of an image, {kind}": round(size) for kind, size in found.kilobytes.items()}
    settings["images are"] = "given" if options.images else f"made ({making:.0f} s)"
    rates = [
        {"way": way, **{f"images/s, {kind}": found.rate(kind, way) for kind in found.rounds}}
        for way in found.rounds["raw"].seconds
    ]
    tables = {"images a second of one core": rates, "workers": points, "memory over epochs": epochs}
    write(options.out, "input_pipeline", lines, settings, tables)


def worker_counts() -> list[int]:
    """1, 2, 4 and so on, up to the cores that this process may use."""
    cores = len(os.sched_getaffinity(0))
    return [1] + [n for n in (2, 4, 8, 16, 32, 64) if n <= max(cores, 2)]


if __name__ == "__main__":
    main()
