"""`itr prepare table` with every table format, and with faulty tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from itr.data.preparing.writing import Writing, write_shards
from itr.data.shards.schema import Manifest
from itr.data.shards.tars import read_tar
from itr.data.sources.table import Table
from itr.errors import UserError

ROWS = [
    {"image": "images/a.jpg", "captions": ["one", " two\nlines "]},
    {"image": "images/b.png", "captions": ["three", "", "four", "five"]},
    {"image": "images/sub dir/c.jpg", "captions": ["six", "ünï 🎈"]},
]


def prepare_table(root: str, out: str, bad_images: str = "refuse", **options) -> None:
    write_shards(Table(root, **options).read(), Writing(out, bad_images=bad_images, num_workers=1))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with three images and no table."""
    folder = tmp_path / "raw"
    for number, row in enumerate(ROWS):
        path = folder / str(row["image"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number, 8), (number, 0, 0)).save(path)
    return folder


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read(folder: Path, split: str) -> dict[str, tuple[list[str], bytes]]:
    return {
        sample.name: (sample.captions, sample.image)
        for shard in Manifest.read(folder).splits[split].shards
        for sample in read_tar(folder / shard.path)
    }


def expected(root: Path) -> dict[str, tuple[list[str], bytes]]:
    return {
        str(row["image"]): (
            [" ".join(c.split()) for c in row["captions"] if c],
            (root / str(row["image"])).read_bytes(),
        )
        for row in ROWS
    }


def write_table(path: Path) -> None:
    """The rows in the format that the name implies; in CSV and TSV one row per caption."""
    flat = [{"image": row["image"], "caption": caption} for row in ROWS for caption in row["captions"]]
    if path.suffix == ".jsonl":
        write_jsonl(path, ROWS)
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow comes with itr[parquet]")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, ["image", "caption"], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(flat)


def test_tables_in_other_encodings_are_read_or_reported(root, tmp_path, capsys):
    rows = "image,caption\n" + "".join(f"{row['image']},caf\xe9 {i}\n" for i, row in enumerate(ROWS))
    for name, encoding, caption in (("utf16", "utf-16", "caf\xe9 0"), ("latin", "latin-1", "caf\ufffd 0")):
        (root / "train.csv").write_bytes(rows.encode(encoding))
        prepare_table(str(root), str(tmp_path / name))
        assert ("held invalid Unicode" in capsys.readouterr().out) == (name == "latin")
        assert read(tmp_path / name, "train")["images/a.jpg"][0] == [caption]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_keeps_captions_and_bytes(root, tmp_path, suffix):
    write_table(root / f"train{suffix}")
    prepare_table(str(root), str(tmp_path / "out"))
    assert read(tmp_path / "out", "train") == expected(root)
    split = Manifest.read(tmp_path / "out").splits["train"]
    assert (split.images, split.captions) == (3, 7)


def test_splits_by_file_by_column_and_at_random(root, tmp_path):
    write_jsonl(root / "train.jsonl", ROWS[:1])
    write_jsonl(root / "dev.jsonl", ROWS[1:2])
    write_jsonl(root / "test.jsonl", ROWS[2:])
    prepare_table(str(root), str(tmp_path / "files"))
    rows = [{**row, "split": split} for row, split in zip(ROWS, ("train", "validation", "test"), strict=True)]
    write_jsonl(root / "all.jsonl", rows)
    prepare_table(str(root / "all.jsonl"), str(tmp_path / "column"))
    for split in ("train", "val", "test"):
        assert read(tmp_path / "files", split) == read(tmp_path / "column", split)
        assert len(read(tmp_path / "files", split)) == 1
    write_jsonl(root / "plain.jsonl", ROWS)
    prepare_table(str(root / "plain.jsonl"), str(tmp_path / "drawn"), holdout=0.34)
    drawn = [read(tmp_path / "drawn", split) for split in ("train", "val", "test")]
    assert [len(part) for part in drawn] == [1, 1, 1]
    assert drawn[0] | drawn[1] | drawn[2] == expected(root)


def test_columns_with_other_names(root, tmp_path):
    write_jsonl(root / "train.jsonl", [{"img": row["image"], "says": row["captions"]} for row in ROWS])
    with pytest.raises(UserError, match="no caption column; choose one of img, says with --caption_column"):
        prepare_table(str(root), str(tmp_path / "out"))
    prepare_table(str(root), str(tmp_path / "out"), caption_column="says")
    assert read(tmp_path / "out", "train") == expected(root)


def test_a_json_list_in_a_cell_is_a_list_of_captions(root, tmp_path):
    with (root / "train.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["file", "captions"], ["images/a.jpg", '["x", "y"]'], ["images/b.png", "[z] w"]])
    prepare_table(str(root), str(tmp_path / "out"))
    captions = {name: texts for name, (texts, _) in read(tmp_path / "out", "train").items()}
    assert captions == {"images/a.jpg": ["x", "y"], "images/b.png": ["[z] w"]}


def test_names_of_columns_and_paths_are_read_however_they_are_written(root, tmp_path):
    lines = ["Image,Caption,Split", "images\\a.jpg,one,TRAIN", "./images/a.jpg,two,train", "images//b.png,three,train"]
    (root / "all.csv").write_text("\n".join(lines))
    prepare_table(str(root), str(tmp_path / "out"))
    captions = {name: texts for name, (texts, _) in read(tmp_path / "out", "train").items()}
    assert captions == {"images/a.jpg": ["one", "two"], "images/b.png": ["three"]}
    (root / "images\\a.jpg").write_bytes((root / "images" / "b.png").read_bytes())  # as some programs unpack archives
    prepare_table(str(root), str(tmp_path / "other"))
    assert set(read(tmp_path / "other", "train")) == {"images/a.jpg", "images\\a.jpg", "images/b.png"}


def test_what_is_dropped_or_looks_like_no_caption_is_counted(root, tmp_path, capsys):
    rows = [["x", "", " "], ["None", "a nan"], ["NaN"]]
    images = [{"image": row["image"], "captions": texts} for row, texts in zip(ROWS, rows, strict=True)]
    write_jsonl(root / "train.jsonl", [*images, {"image": "images/a.jpg", "captions": None}])
    prepare_table(str(root), str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "train.jsonl: skipped empty captions: 2 (line 1, line 1)" in said
    assert "captions that say only nan, None or the like, kept as texts: 2 (line 2, line 3)" in said
    assert "skipped rows without an image or a caption: 1 (line 4)" in said


def test_bad_images_are_named_and_can_be_skipped(root, tmp_path):
    (root / "images" / "page.jpg").write_text("<html>404</html>")
    names = ["images/gone.jpg", "images/page.jpg", "../outside.jpg", "/etc/passwd", "images/a.jpg"]
    write_jsonl(root / "train.jsonl", [{"image": name, "captions": ["x"]} for name in names])
    with pytest.raises(UserError) as caught:
        prepare_table(str(root), str(tmp_path / "out"))
    for part in (
        "4 of 5 images",
        "gone.jpg: does not exist",
        "page.jpg: is a web page, not an image",
        "passwd: is outside the image folder",
        "--bad_images",
    ):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()
    prepare_table(str(root), str(tmp_path / "out"), bad_images="skip")
    assert list(read(tmp_path / "out", "train")) == ["images/a.jpg"]


def test_an_image_in_two_splits_is_rejected(root, tmp_path):
    write_jsonl(root / "train.jsonl", ROWS)
    write_jsonl(root / "test.jsonl", ROWS[:1])
    with pytest.raises(UserError, match=r"images/a.jpg is in both train and test"):
        prepare_table(str(root), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{broken\n", "line 1, is not valid JSON"),
        ("[1]\n", "is not a JSON object"),
        ("", "no usable image with a caption"),
    ],
)
def test_a_malformed_table_is_named(root, tmp_path, text, message):
    (root / "train.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        prepare_table(str(root), str(tmp_path / "out"))


def test_a_folder_without_a_table_and_a_missing_folder(root, tmp_path):
    with pytest.raises(UserError, match="it has no table"):
        prepare_table(str(root), str(tmp_path / "out"))
    with pytest.raises(UserError, match="nowhere does not exist"):
        prepare_table(str(root / "nowhere"), str(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco-sample", "flickr30k-sample"])
def test_real_samples_are_copied_unchanged(shared, tmp_path, name):
    root = shared / "data" / name
    prepare_table(str(root), str(tmp_path))
    for split in ("train", "val"):
        lines = (root / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = {row["image"]: row["captions"] for row in map(json.loads, lines)}
        found = read(tmp_path, split)
        assert set(found) == set(rows)
        for image, (captions, data) in found.items():
            assert captions == [" ".join(caption.split()) for caption in rows[image]]
            assert data == (root / image).read_bytes()
