"""Targets that read images and captions."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from breaking import broken, edits, odd_texts
from fuzz_shards import SPEC
from itr.backbones.base import Tokenizer
from itr.backbones.tokenizers import BPETokenizer, HFTokenizer
from itr.data.preparing.writing import Writing, write_shards
from itr.data.shards.captions import CaptionCleaner
from itr.data.shards.tars import read_tar
from itr.data.sources.table import Table
from itr.images.decode import BadImageError, image_size, shrink
from itr.images.transforms import Augmentation, EvaluationTransform, TrainingTransform, decode
from itr.interop.d2s import made_up_tokenizer
from itr.report.page.markup import html_table, tag
from judging import Target, check, material

MAX_PIXELS = 1_000_000
SAVED: list[tuple[str, str, dict[str, Any]]] = [
    ("JPEG", "RGB", {}), ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("JPEG", "RGB", {"progressive": True}),
    ("PNG", "RGB", {}), ("PNG", "P", {"transparency": 0}), ("PNG", "I;16", {}), ("PNG", "RGBA", {}), ("PNG", "1", {}),
    ("PNG", "LA", {}), ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("GIF", "P", {"save_all": True}),
    ("BMP", "RGB", {}), ("BMP", "P", {}), ("TIFF", "RGB", {}), ("TIFF", "F", {}), ("TIFF", "RGB",
    {"compression": "tiff_lzw"}),
    ("TIFF", "1", {"compression": "group4"}), ("TIFF", "CMYK", {"compression": "jpeg"}), ("TIFF", "I;16", {}),
    ("ICO", "RGBA", {}),
    ("PPM", "RGB", {}), ("TGA", "RGB", {}), ("PCX", "RGB", {}), ("ICNS", "RGBA", {}), ("JPEG2000", "RGB", {}),
    ("AVIF", "RGB", {}),
]  # fmt: skip


@material
def images() -> list[bytes]:
    """A small image in each format that the installed Pillow can write."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 33, 4), dtype=np.uint8)
    found = []
    for form, mode, options in SAVED:
        image = Image.fromarray(noise)
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
        more = {"append_images": [image.rotate(90)]} if options.get("save_all") else {}
        buffer = io.BytesIO()
        try:
            image.save(buffer, form, **options, **more)
        except (OSError, KeyError, ValueError):  # the library for this format is missing
            continue
        found.append(buffer.getvalue())
    return found


def make_image(example: Any, folder: Path) -> None:
    which, changes, side, seed = example
    data = broken(images()[which % len(images())], changes)
    errors = []
    for act in (lambda: image_size(data), lambda: shrink(data, side, 90), lambda: views(data, seed)):
        try:
            act()
        except BadImageError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def views(data: bytes, seed: int) -> None:
    pixels = decode(data, MAX_PIXELS)
    check(pixels.dtype == torch.uint8 and pixels.shape[0] == 3, f"pixels {pixels.dtype} {list(pixels.shape)}")
    check(pixels.shape[1] * pixels.shape[2] <= MAX_PIXELS, "more pixels than are allowed")
    torch.manual_seed(seed)
    augmentations = [Augmentation(), Augmentation(crop_scale=(1.0, 1.0), horizontal_flip=0.5, rand_augment=2)]
    for transform in (
        EvaluationTransform(SPEC),
        *(TrainingTransform(SPEC, augmentation) for augmentation in augmentations),
    ):
        check(transform(pixels).shape == (3, 16, 16), "a view of another shape")


@material
def tokenizers() -> list[Tokenizer]:
    """A BERT tokenizer, and open_clip's with each way of cleaning text."""
    made_up = made_up_tokenizer(60, 20)
    found: list[Tokenizer] = [HFTokenizer(made_up), HFTokenizer(made_up, clean="canonicalize", strip_end=True)]
    return [*found, BPETokenizer(), BPETokenizer(20, True, "words"), BPETokenizer(20, False, "whitespace")]


def captions(example: list[str], folder: Path) -> None:
    cleaner = CaptionCleaner()
    cleaned = cleaner.clean(example, "a place")
    for text in cleaned:
        text.encode("utf-8")
        check(bool(text) and text == " ".join(text.split()), f"{text!r} is not clean")
        check(not any(ord(letter) < 32 or ord(letter) == 127 for letter in text), f"{text!r} holds control characters")
    cleaner.notices()
    for texts in (example, cleaned):
        for tokenizer in tokenizers():
            tokens = tokenizer(texts)
            check(tokens.ids.shape == tokens.mask.shape and len(tokens.ids) == len(texts), "tokens of another shape")
            check(tokens.ids.shape[1] <= tokenizer.max_length, "more tokens than allowed")
            check(not len(texts) or bool(tokens.mask.any(dim=1).all()), "a caption without a token")
            check(
                not len(texts) or 0 <= int(tokens.ids.min()) <= int(tokens.ids.max()) < tokenizer.vocab_size,
                "no such id",
            )


def prepared(example: Any, folder: Path) -> None:
    texts, name = example
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    (folder / "table.jsonl").write_text(json.dumps({"image": "0.png", "captions": texts, "dense": name}) + "\n")
    write_shards(Table(str(folder / "table.jsonl"), holdout=0.0).read(), Writing(str(folder / "out"), num_workers=1))
    [sample] = read_tar(folder / "out" / "train" / "000000.tar")
    wanted = CaptionCleaner().clean(texts, "")
    check(sample.captions == wanted, f"{texts!r} became {sample.captions!r}, not {wanted!r}")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[str | None] = []
        self.words = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [value for _, value in attributes]

    def handle_data(self, data: str) -> None:
        self.words += data


def markup(example: list[str], folder: Path) -> None:
    """A page contains exactly the elements that were created and the unchanged text, whatever the text is."""
    for text in example:
        page = _Page()
        page.feed(tag("p", text, title=text))
        page.close()
        check(page.tags == ["p"], f"{text!r} became the elements {page.tags}")
        same = page.words.replace("\r\n", "\n").replace("\r", "\n") == text.replace("\r\n", "\n").replace("\r", "\n")
        check(same or "\x00" in text, f"{text!r} became {page.words!r}")
        check(page.attributes == [text] or "\x00" in text, f"{text!r} became the attribute {page.attributes!r}")
    page = _Page()
    page.feed(html_table(example, [example, example], "a table"))
    page.close()
    check(set(page.tags) <= {"div", "table", "caption", "thead", "tbody", "tr", "th", "td"}, f"elements {page.tags}")


TARGETS = [
    Target(
        "images",
        lambda: st.tuples(st.integers(0, 200), edits(), st.integers(1, 40), st.integers(0, 9)),
        make_image,
        (BadImageError,),
        sound=(0, [], 40, 0),
    ),
    Target("captions", lambda: st.lists(odd_texts(), max_size=5), captions, (), sound=["a dog"]),
    Target(
        "prepared captions",
        lambda: st.tuples(st.lists(odd_texts(), max_size=4), odd_texts()),
        prepared,
        sound=(["a dog"], "dense"),
    ),
    Target("markup", lambda: st.lists(odd_texts(), min_size=1, max_size=3), markup, (), sound=["<p>"]),
]
