"""Data sets in exactly the form in which they are published, through `itr prepare`: with drawn and with real images."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from itr.cli import main
from itr.data.shards.schema import Manifest, Sample
from itr.data.shards.tars import read_tar
from raw import save_image
from raw_trees import collapsed, write_karpathy, write_official, write_rows

Images = list[tuple[Path, list[str]]]
HOSTILE = ['" the big sign says stop', 'A "dog" , running', "it's [here]", "a, b", "plain"]


def drawn(tmp_path: Path, names: list[str]) -> Images:
    for number, name in enumerate(names):
        save_image(tmp_path / "drawn" / name, number)
    return [(tmp_path / "drawn" / name, [f"{text} {n}" for text in HOSTILE]) for n, name in enumerate(names)]


def real(folder: Path, number: int) -> Images:
    lines = (folder / "val.jsonl").read_text(encoding="utf-8").splitlines()[:number]
    return [(folder / row["image"], [collapsed(text) for text in row["captions"]]) for row in map(json.loads, lines)]


@pytest.fixture(params=["drawn", "real"])
def flickr(request, tmp_path) -> Images:
    """Eight images with the names of Flickr30K."""
    if request.param == "real":
        return real(request.getfixturevalue("shared") / "data" / "flickr30k-sample", 8)
    return drawn(tmp_path, [f"{number}.jpg" for number in range(1000092795, 1000092803)])


@pytest.fixture(params=["drawn", "real"])
def coco(request, tmp_path) -> Images:
    """Eight images with the names of COCO 2014."""
    if request.param == "real":
        return real(request.getfixturevalue("shared") / "data" / "coco-sample", 8)
    return drawn(tmp_path, [f"COCO_val2014_{number:012d}.jpg" for number in range(8)])


def prepared(source: str, root: Path, *options: str) -> dict[str, dict[str, Sample]]:
    """The samples that `itr prepare` writes, by split and by name."""
    out = root.parent / "shards"
    assert main(["prepare", source, "--root", str(root), "--out", str(out), "--num_workers", "1", *options]) == 0
    return {
        name: {sample.name: sample for shard in split.shards for sample in read_tar(out / shard.path)}
        for name, split in Manifest.read(out).splits.items()
    }


def is_complete(found: dict[str, dict[str, Sample]], images: Images, name: Callable[[Path], str]) -> bool:
    """Whether every image is in one split, with its bytes and all its captions in order."""
    samples = {key: sample for part in found.values() for key, sample in part.items()}
    expected = {name(path): (path.read_bytes(), captions) for path, captions in images}
    assert sum(map(len, found.values())) == len(images)
    assert {key: (sample.image, sample.captions) for key, sample in samples.items()} == expected
    return True


def copy(images: Images, folder: Path, name: Callable[[Path], str] = lambda path: path.name) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path, _ in images:
        shutil.copy(path, folder / name(path))


def number_of(path: Path) -> int:
    return int(path.stem[-12:])


def name_2017(path: Path) -> str:
    return f"{number_of(path):012d}.jpg"


def coco_2017(images: Images, root: Path) -> None:
    for part, found in (("train", images[:5]), ("val", images[5:])):
        copy(found, root / f"{part}2017", name_2017)
        listed = {
            number_of(path): (name_2017(path), {number_of(path) * 10 + i: text for i, text in enumerate(captions)})
            for path, captions in found
        }
        write_official(root / "annotations" / f"captions_{part}2017.json", listed)


def test_coco_2017(coco, tmp_path):
    root = tmp_path / "coco"
    coco_2017(coco, root)
    found = prepared("coco", root)
    assert {split: len(part) for split, part in found.items()} == {"train": 5, "val": 3}
    folders = {path: "train2017" if number < 5 else "val2017" for number, (path, _) in enumerate(coco)}
    assert is_complete(found, coco, lambda path: f"{folders[path]}/{name_2017(path)}")


@pytest.mark.parametrize("alone", [False, True])
def test_coco_2017_divided_by_karpathys_split_of_2014(coco, tmp_path, alone):
    root = tmp_path / "coco"
    coco_2017(coco, root)
    if alone:
        shutil.rmtree(root / "annotations")
    splits = ["train"] * 4 + ["restval", "val", "test", "test"]
    images = [
        {"filename": f"COCO_val2014_{name_2017(path)}", "filepath": "val2014", "split": split,
         "cocoid": number_of(path), "captions": texts}
        for (path, texts), split in zip(coco, splits, strict=True)
    ]  # fmt: skip
    write_karpathy(root / "dataset_coco.json", images)
    found = prepared("coco", root)
    assert {split: len(part) for split, part in found.items()} == {"train": 5, "val": 1, "test": 2}
    folders = {path: "train2017" if number < 5 else "val2017" for number, (path, _) in enumerate(coco)}
    assert is_complete(found, coco, lambda path: f"{folders[path]}/{name_2017(path)}")


def results_csv(images: Images, path: Path) -> None:
    """As on Kaggle: no quoting, a blank after each separator, and one row without its last separator."""
    lines = ["image_name| comment_number| comment"]
    lines += [f"{image.name}| {i}| {text}" for image, captions in images for i, text in enumerate(captions)]
    image, captions = images[3]
    lines[lines.index(f"{image.name}| 4| {captions[4]}")] = f"{image.name}| 4   {captions[4]}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("top", ["archive", "archive/flickr30k_images"])
def test_kaggles_results_file_with_karpathys_split(flickr, tmp_path, top, capsys):
    copy(flickr, tmp_path / "archive/flickr30k_images/flickr30k_images")
    results_csv(flickr, tmp_path / "archive/flickr30k_images/results.csv")
    splits = ["train"] * 4 + ["val", "val", "test"]  # the eighth image is in none
    listed = zip(flickr[:7], splits, strict=True)
    images = [{"filename": path.name, "split": split, "captions": ["other"]} for (path, _), split in listed]
    split = write_karpathy(tmp_path / "dataset_flickr30k.json", images)
    found = prepared("flickr30k", tmp_path / top, "--split_file", str(split))
    assert {part: len(samples) for part, samples in found.items()} == {"train": 4, "val": 2, "test": 1}
    folder = "flickr30k_images/flickr30k_images" if top == "archive" else "flickr30k_images"
    assert is_complete(found, flickr[:7], lambda path: f"{folder}/{path.name}")
    assert "a separator is missing; read as comment 4" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["flickr30k", "table"])
@pytest.mark.parametrize("header", [["image", "caption"], ["image_name", "comment_number", "comment"]])
def test_kaggles_captions_file_without_a_split(flickr, tmp_path, header, source, capsys):
    root = tmp_path / "flickr"
    copy(flickr, root / "Images")
    rows = [[image.name, str(i), text] for image, captions in flickr for i, text in enumerate(captions)]
    with (root / "captions.txt").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *(row if len(header) == 3 else row[::2] for row in rows)])
    options = ["--image_root", str(root / "Images")] if source == "table" else []
    found = prepared(source, root, "--holdout", "0.25", *options)
    assert {split: len(part) for split, part in found.items()} == {"train": 4, "val": 2, "test": 2}
    assert is_complete(found, flickr, lambda path: path.name if source == "table" else f"Images/{path.name}")
    assert "captions.txt defines no splits" in capsys.readouterr().out


def test_lists_of_images_divide_kaggles_captions(flickr, tmp_path):
    root = tmp_path / "flickr"
    copy(flickr, root / "Images")
    results_csv(flickr, root / "results.csv")
    for split, part in (("train", flickr[:5]), ("val", flickr[5:6]), ("test", flickr[6:])):
        (root / f"{split}.txt").write_text("".join(f"{path.stem}\n" for path, _ in part))
    found = prepared("flickr30k", root)
    assert {split: list(part) for split, part in found.items() if split != "train"} == {
        "val": [f"Images/{flickr[5][0].name}"],
        "test": [f"Images/{path.name}" for path, _ in flickr[6:]],
    }
    assert is_complete(found, flickr, lambda path: f"Images/{path.name}")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("at_top", [False, True])
def test_hugging_face_imagefolder(flickr, tmp_path, name, at_top):
    root = tmp_path / "hub"
    parts = {"train": flickr[:5], "validation": flickr[5:6], "test": flickr[6:]}
    rows: list[dict[str, str]] = []
    for split, part in parts.items():
        copy(part, root / split)
        prefix = f"{split}/" if at_top else ""
        rows += [{"file_name": prefix + path.name, "text": text} for path, captions in part for text in captions]
        if not at_top:
            write_rows(root / split / name, rows)
            rows = []
    if at_top:
        write_rows(root / name, rows)
    (root / "README.md").write_text("---\n")
    found = prepared("table", root)
    assert {split: len(part) for split, part in found.items()} == {"train": 5, "val": 1, "test": 2}
    folders = {path: split for split, part in parts.items() for path, _ in part}
    assert is_complete(found, flickr, lambda path: f"{folders[path]}/{path.name}")


def test_imagefolder_in_a_folder_called_data_and_a_split_without_a_table(tmp_path, capsys):
    images = drawn(tmp_path, ["0.jpg", "1.jpg"])
    root = tmp_path / "hub"
    copy(images, root / "data" / "Train" / "deep")
    copy(images, root / "data" / "test")
    rows = [{"file_name": f"deep/{path.name}", "text": text} for path, captions in images for text in captions]
    write_rows(root / "data" / "Train" / "metadata.csv", rows)
    assert is_complete(prepared("table", root), images, lambda path: f"data/Train/deep/{path.name}")
    assert "not read, because they have no table: test" in capsys.readouterr().out


def write_parquet(rows: list[dict[str, object]], *paths: Path) -> None:
    """The rows in equal parts, in row groups of a few rows, as the hub writes them."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.Table.from_pylist(rows[number :: len(paths)]), path, row_group_size=3)


def test_parquet_with_images_and_a_column_split(flickr, tmp_path, capsys):
    """`nlphuji/flickr30k`: all rows are in files called test; the column has Karpathy's split."""
    splits = ["train"] * 5 + ["val", "test", "test"]
    rows: list[dict[str, object]] = [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "caption": captions, "sentids": [str(i)] * 5,
         "split": split, "img_id": str(i), "filename": path.name}
        for i, ((path, captions), split) in enumerate(zip(flickr, splits, strict=True))
    ]  # fmt: skip
    root = tmp_path / "hub"
    write_parquet(rows, *(root / "data" / f"test-0000{i}-of-00002.parquet" for i in range(2)))
    found = prepared("table", root, "--shard_size", "2")
    assert {split: len(part) for split, part in found.items()} == {"train": 5, "val": 1, "test": 2}
    assert is_complete(found, flickr, lambda path: path.name)
    assert "the column split says which split an image is in" in capsys.readouterr().out
    shards = tmp_path / "shards"
    assert not (shards / ".preparing").exists()
    assert main(["prepare", "table", "--root", str(root), "--out", str(shards), "--shard_size", "2"]) == 0
    assert "already up to date" in capsys.readouterr().out
    (root / "data" / "test-00001-of-00002.parquet").unlink()
    assert main(["prepare", "table", "--root", str(root), "--out", str(shards)]) == 1
    assert "one of 2 parts, but its folder has 1" in capsys.readouterr().err


def test_parquet_with_one_row_a_caption_and_no_names(coco, tmp_path):
    """Rows with the same bytes are one image, also without a name."""
    rows: list[dict[str, object]] = [
        {"image": {"bytes": path.read_bytes(), "path": None}, "sentences": {"raw": text, "sentid": i}}
        for path, captions in coco for i, text in enumerate(captions)
    ]  # fmt: skip
    root = tmp_path / "hub"
    write_parquet(rows[:-1], root / "train" / "0000.parquet", root / "train" / "0001.parquet")
    found = prepared("table", root, "--shard_size", "3")["train"].values()
    expected = {path.read_bytes(): sorted(captions) for path, captions in coco}
    expected[coco[-1][0].read_bytes()] = sorted(coco[-1][1][:-1])
    assert {sample.image: sorted(sample.captions) for sample in found} == expected
    assert len({sample.name for sample in found}) == len(found) == len(coco)


@pytest.mark.slow
def test_workers_make_the_same_shards_of_images_inside_parquet(flickr, tmp_path):
    rows: list[dict[str, object]] = [
        {"jpg": {"bytes": path.read_bytes(), "path": None}, "txt": captions[0]} for path, captions in flickr
    ]
    write_parquet(rows, tmp_path / "hub" / "train.parquet")
    made = []
    for workers in ("1", "2"):
        prepared("table", tmp_path / "hub", "--shard_size", "3", "--num_workers", workers)
        files = [*(tmp_path / "shards").rglob("*.tar"), tmp_path / "shards" / "manifest.json"]
        made.append({path.name: path.read_bytes() for path in files})
        shutil.rmtree(tmp_path / "shards")
    assert made[0] == made[1]
    assert len(made[0]) == 4


def test_names_inside_parquet_lead_nowhere(tmp_path):
    images = drawn(tmp_path, ["0.jpg", "1.jpg", "2.jpg", "3.jpg"])
    names = ["../../../outside.jpg", "/etc/passwd", "same.jpg", "same.jpg"]
    rows: list[dict[str, object]] = [
        {"image": {"bytes": path.read_bytes(), "path": name}, "caption": "a dog"}
        for (path, _), name in zip(images, names, strict=True)
    ]
    write_parquet(rows, tmp_path / "hub" / "train.parquet")
    found = prepared("table", tmp_path / "hub")["train"]
    assert set(found) == {"outside.jpg", "passwd.jpg", "train-00000002-same.jpg", "train-00000003-same.jpg"}
    assert {sample.image for sample in found.values()} == {path.read_bytes() for path, _ in images}


def test_cells_that_are_no_images_are_reported_without_their_bytes(tmp_path, capsys):
    rows: list[dict[str, object]] = [{"image": {"bytes": b"\x00\xff" * 5000, "path": None}, "caption": "a dog"}] * 2
    write_parquet(rows, tmp_path / "hub" / "train.parquet")
    assert main(["prepare", "table", "--root", str(tmp_path / "hub"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "1 of 1 images of train cannot be used" in error
    assert "is not an image" in error
    assert len(error) < 1000
    assert error.replace("\n", " ").isprintable()
