"""Small synthetic raw data sets, laid out as users have them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from itr.data.raw.entries import RawData

ODD = ["an emoji 🎈 here", "שלום עולם", "with \x00 in it", "a line\u2028separator", "tabs\tand  spaces "]


def collapsed(text: str) -> str:
    return " ".join(text.split())


def make_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def captions_of(data: RawData, split: str) -> dict[str, list[str]]:
    return {entry.image: entry.captions for entry in data.entries[split]}


def write_karpathy(path: Path, images: list[dict[str, Any]]) -> Path:
    """Write Karpathy's JSON. `images`: filename, split, captions, and optionally filepath, cocoid and sentids."""
    rows = []
    for number, image in enumerate(images):
        ids = image.get("sentids") or list(range(number * 10, number * 10 + len(image["captions"])))
        sentences = [
            {"raw": text, "tokens": text.split(), "imgid": number, "sentid": sentid}
            for text, sentid in zip(image["captions"], ids, strict=True)
        ]
        kept = {key: image[key] for key in ("filename", "filepath", "split", "cocoid") if key in image}
        rows.append({**kept, "imgid": number, "sentids": ids, "sentences": sentences})
    return write_json(path, {"images": rows, "dataset": path.stem})


def write_text_files(folder: Path, split: str, ids: list[Any], captions: list[str], end: str = "\n") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("ids", map(str, ids)), ("caps", captions)):
        text = "".join(line + end for line in lines)
        (folder / f"{split}_{name}.txt").write_bytes(text.encode("utf-8"))


def write_official(path: Path, images: dict[int, tuple[str, dict[int, str]]]) -> Path:
    """Write a COCO captions file. `images`: for each image id, its file name and captions by annotation id."""
    value = {
        "info": {}, "licenses": [], "type": "captions",
        "images": [{"id": number, "file_name": name} for number, (name, _) in images.items()],
        "annotations": [
            {"id": id_, "image_id": number, "caption": text}
            for number, (_, captions) in images.items() for id_, text in captions.items()
        ],
    }  # fmt: skip
    return write_json(path, value)


AMAZON = (
    "id", "category", "text", "description", "title", "also_buy", "also_view", "imageURLHighRes", "second_category",
    "label",
)  # fmt: skip


def write_magb(
    root: Path, folder: str, stem: str, nodes: int, missing: tuple[int, ...] = (), extracted: bool = False
) -> Path:
    """A MAGB data set as published; with `extracted`, its images are one folder deeper."""
    images = root / folder / (f"{stem}Images_extracted" if extracted else "") / f"{stem}Images"
    rows = []
    for number in range(nodes):
        if stem.startswith("Reddit"):
            row = {
                "id": number,
                "subreddit": "pics",
                "caption": f"post {number} 🎈",
                "url": "http://x",
                "also_posted": "[]",
            }
        else:
            title = f"title {number}"
            row = dict.fromkeys(AMAZON, "[]") | {
                "id": number, "category": "Toys", "title": title, "second_category": "Dolls",
                "description": f"a long\ndescription, {number}", "text": f"Title: {title}; Description: long {number}",
            }  # fmt: skip
        rows.append(row | {"label": number % 3})
        if number not in missing:
            make_image(images / f"{number}.jpg")
    write_rows(root / folder / f"{stem}.csv", rows)
    return root


def write_ele_fashion(root: Path, nodes: int, missing: tuple[int, ...] = ()) -> Path:
    """MM-Graph's Ele-fashion: node i is product B{i}, listed in reverse order."""
    folder = root / "ele-fashion"
    mapping = {f"B{number:03d}": number for number in reversed(range(nodes))}
    write_rows(
        folder / "ele-fashion-raw-text.jsonl",
        [{"asin": key, "raw_text": f"shoe {number}"} for key, number in mapping.items()],
    )
    torch.save(mapping, folder / "node_mapping.pt")
    index = torch.arange(nodes)
    torch.save({"train_idx": index[: nodes - 4], "val_idx": index[-4:-2], "test_idx": index[-2:]}, folder / "split.pt")
    torch.save(index % 11, folder / "labels-w-missing.pt")
    for key, number in mapping.items():
        if number not in missing:
            make_image(folder / "ele-fashion-images" / f"{key}.jpg")
    return root
