"""Prepares the photographs of benchmarks/methods_on_photos.py: tables, shards, a vocabulary of words, teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.trainers import WordLevelTrainer

from itr.data.features.headers import FeaturePaths
from itr.data.shards.locations import find_split
from itr.data.shards.schema import data_identity
from itr.data.shards.tars import read_tar
from itr.teachers.base import Modality
from method_runs import itr_command, write_features

HELD_BACK = 993  # of the training images, for test; 6,000 are left
SHARD = 500
TEACHERS: dict[Modality, str] = {"image": "offline/efficientnet_lite2", "text": "offline/all-minilm-l6-v2"}
LLAVA = "dense_llava_sample.json"


def prepare(photos: Path, out: Path, sizes: list[int], split: str) -> None:
    """Write everything that the runs read, unless it exists.

    Args:
        photos: a folder with `train.jsonl`, `val.jsonl` (rows `image`, `captions`) and the images.
        out: folder to write to.
        sizes: numbers of training images, multiples of `SHARD`.
        split: the split that is measured, for which the teachers' features are written, too.
    """
    if not (out / "shards" / "manifest.json").is_file():
        write_tables(photos, out / "tables")
        places = [f"--root={out / 'tables'}", f"--image_root={photos}", f"--out={out / 'shards'}"]
        itr_command("prepare", "table", *places, f"--shard_size={SHARD}")
    write_words(out)
    for modality, name in TEACHERS.items():
        for part_of in ("train", split):
            if not FeaturePaths(out / "teachers" / "all", part_of, modality).header.is_file():
                where = [f"--data={out / 'shards'}", f"--splits={part_of}", f"--out={out / 'teachers' / 'all'}"]
                itr_command("features", *where, f"--modality={modality}", f"--model={name}")
    for size in sizes:
        write_part_of_teachers(out, size)


def write_tables(photos: Path, folder: Path) -> None:
    """Write a table a split; the images with a caption by LLaVA are among those held back for test."""
    rows = read_rows(photos / "train.jsonl")
    described = {Path(name).name for name in llava_captions(photos)}
    order = np.random.default_rng(0).permutation(len(rows))
    order = sorted(order, key=lambda i: Path(rows[i]["image"]).name not in described)  # stable
    splits = {
        "test": [rows[i] for i in order[:HELD_BACK]],
        "train": [rows[i] for i in order[HELD_BACK:]],
        "val": read_rows(photos / "val.jsonl"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in splits.items():
        lines = [json.dumps(row | {"dense": " ".join(row["captions"])}) for row in found]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table in JSONL."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def llava_captions(photos: Path) -> dict[str, str]:
    """Dense captions by LLaVA, by the name of the image; empty if there are none."""
    path = photos / LLAVA
    return {row["image"]: row["text"] for row in json.loads(path.read_text())} if path.is_file() else {}


def write_words(out: Path) -> None:
    """Write a tokenizer of whole words: those that occur at least three times in the captions of train."""
    path = out / "words.json"
    if path.is_file():
        return
    rows = read_rows(out / "tables" / "train.jsonl")
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    split: list[Any] = [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("removed")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    trainer = WordLevelTrainer(min_frequency=3, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([caption for row in rows for caption in row["captions"]], trainer)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(path))


def part(out: Path, size: int) -> str:
    """The first training shards with `size` images, as a list of tars."""
    shards = find_split(str(out / "shards"), "train").shards[: size // SHARD]
    return ",".join(shard.place.location for shard in shards)


def write_part_of_teachers(out: Path, size: int) -> None:
    """Write the teachers' features of a part of the training images."""
    split = find_split(str(out / "shards"), part(out, size))
    samples = [sample for shard in split.shards for sample in read_tar(shard.place, images=False)]
    wanted: dict[Modality, list[int]] = {
        "image": [sample.image_id for sample in samples],
        "text": [number for sample in samples for number in sample.caption_ids],
    }
    for modality, ids in wanted.items():
        rows = features(out / "teachers" / "all", "train", modality, ids)
        paths = FeaturePaths(out / "teachers" / str(size), "train", modality)
        write_features(paths, TEACHERS[modality], ids, rows, data_identity(split))


def features(folder: Path, split: str, modality: Modality, ids: list[int]) -> np.ndarray:
    """Features that `itr features` wrote, by the ids of images or captions [N, D]."""
    paths = FeaturePaths(folder, split, modality)
    places = np.searchsorted(np.load(paths.ids, allow_pickle=False), ids)
    found: np.ndarray = np.load(paths.rows, mmap_mode="r", allow_pickle=False)[places]
    return found
