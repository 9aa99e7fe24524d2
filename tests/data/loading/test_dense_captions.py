"""Dense captions attached to the images of a source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from itr.data.raw.dense import attach_dense
from itr.data.raw.entries import ImageEntry, RawData
from itr.data.sources.coco import Coco
from itr.data.sources.flickr30k import Flickr30K
from itr.errors import UserError
from raw_trees import write_json, write_karpathy, write_rows, write_text_files

NAMES = ["images/10.jpg", "images/2.jpg", "images/3.png"]


def source() -> RawData:
    entries = {
        "train": [ImageEntry(name, [f"a {name}", "b"]) for name in NAMES],
        "val": [ImageEntry("images/9.jpg", ["v"])],
    }
    return RawData(Path("."), entries, "made up")


def dense(data: RawData, split: str = "train") -> list[list[str]]:
    return [entry.dense for entry in data.entries[split]]


def d2s(path: Path, number: int) -> Path:
    """Write lines in the format of D2S-VSE."""
    return write_rows(
        path, [{"text": f"long  text {i} 🎈", "model_id": "llava", "metadata": {"length": 9}} for i in range(number)]
    )


def test_no_dense_captions_and_joined_captions():
    data = source()
    attach_dense(data, None)
    assert dense(data) == [[], [], []]
    assert data.settings == {}
    attach_dense(data, "join")
    assert dense(data)[0] == ["a images/10.jpg b"]
    assert dense(data, "val") == [["v"]]
    assert data.settings == {"dense": "the captions of each image, joined"}


def test_lines_are_assigned_to_training_images_in_order(tmp_path, capsys):
    data = source()
    path = d2s(tmp_path / "train.jsonl", 3)
    path.write_text(path.read_text(encoding="utf-8").replace("\n", "\r\n") + "\r\n", encoding="utf-8", newline="")
    attach_dense(data, str(path), published_order=True)
    assert dense(data) == [[f"long text {i} 🎈"] for i in range(3)]
    assert dense(data, "val") == [[]]
    assert data.settings == {"dense": "train.jsonl"}
    assert "its first line describes images/10.jpg: long text 0" in capsys.readouterr().out


def test_mismatched_lines_are_refused(tmp_path):
    for number in (2, 4, 0):
        path = d2s(tmp_path / "x.jsonl", number) if number else write_rows(tmp_path / "x.jsonl", [])
        with pytest.raises(UserError, match=rf"has {number} lines but train has 3 images"):
            attach_dense(source(), str(path), published_order=True)
    with pytest.raises(UserError, match=r"lines follow train_ids.txt, .*--layout text"):
        attach_dense(source(), str(d2s(tmp_path / "x.jsonl", 3)), published_order=False)


TABLE = {"images/10.jpg": "ten", "2.jpg": "two", "3": "three", "x/77.jpg": "not here"}


def write_table(path: Path) -> Path:
    rows = [{"image": name, "dense": text, "caption": "not this one"} for name, text in TABLE.items()]
    if path.stem == "mapping":
        return write_json(path, TABLE | {"3": ["three"]})
    if path.stem == "llava":
        return write_json(path, [{"image": row["image"], "captions": ["no"], "text": row["dense"]} for row in rows])
    return write_rows(path, rows)


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.tsv", "llava.json", "mapping.json"])
def test_tables_find_images_by_path_name_or_stem(tmp_path, capsys, name):
    data = source()
    attach_dense(data, str(write_table(tmp_path / name)))
    assert dense(data) == [["ten"], ["two"], ["three"]]
    assert dense(data, "val") == [[]]
    output = capsys.readouterr().out
    assert f"{name}: dense captions for images that are not in the data set: 1 (x/77.jpg)" in output
    assert "without a dense caption" not in output


def test_missing_dense_captions_are_reported_and_ambiguous_names_are_not_guessed(tmp_path, capsys):
    rows = [{"image": "a/2.jpg", "text": "x"}, {"image": "b/2.jpg", "text": "y"}, {"image": "10.jpg", "text": "ten"}]
    data = source()
    attach_dense(data, str(write_rows(tmp_path / "t.jsonl", rows)))
    assert dense(data) == [["ten"], [], []]
    assert "train: images without a dense caption: 2 (images/2.jpg, images/3.png)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "t.jsonl",
            '{"image": "other.jpg", "text": "x"}\n',
            "dense captions for 1 images .*none of the images",
        ),
        ("t.jsonl", "{\n", "line 1, is not valid JSON"),
        ("t.jsonl", "[1]\n", "line 1 has no text in any of the columns dense"),
        ("t.json", "[1]", "row 1, is not a JSON object"),
        ("t.json", '[{"text": "x"}]', "row 1 is without an image name"),
        ("t.csv", "image,other\na.jpg,x\n", "line 2 has no text in any of the columns dense"),
        ("t.txt", "x", "must be 'join' or an existing .json"),
    ],
)
def test_faulty_tables_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        attach_dense(source(), str(tmp_path / name))
    with pytest.raises(UserError, match="must be 'join' or an existing"):
        attach_dense(source(), str(tmp_path / "nothing.json"))


def test_line_order_is_known_for_text_files_and_flickr30k_names(tmp_path):
    lines = d2s(tmp_path / "lines.jsonl", 2)
    write_text_files(tmp_path / "text", "train", [9, 73], [str(i) for i in range(10)])
    assert dense(Coco(str(tmp_path / "text"), dense=str(lines)).read())[1] == ["long text 1 🎈"]
    images = [{"filename": f"{i}.jpg", "split": "train", "captions": ["x"], "cocoid": i} for i in (1, 2)]
    write_karpathy(tmp_path / "k" / "dataset_coco.json", images)
    with pytest.raises(UserError, match="--layout text"):
        Coco(str(tmp_path / "k"), dense=str(lines)).read()
    write_karpathy(tmp_path / "k" / "dataset_flickr30k.json", images)
    assert dense(Flickr30K(str(tmp_path / "k"), dense=str(lines)).read())[1] == ["long text 1 🎈"]
    write_karpathy(tmp_path / "k" / "dataset_flickr30k.json", images[::-1])
    with pytest.raises(UserError, match="this layout has a different order"):
        Flickr30K(str(tmp_path / "k"), dense=str(lines)).read()


def test_the_real_dense_captions(shared, tmp_path):
    folder, file = shared / "data" / "captions" / "f30k", shared / "data" / "flickr30k-sample/dense_llava_sample.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    data = Flickr30K(str(folder), dense=str(file)).read()
    train = data.entries["train"]
    assert sum(bool(entry.dense) for entry in train) == len(rows) == 72
    for row in rows:  # the lines are in the order of the images
        assert train[row["train_index"]].image == row["image"]
        assert train[row["train_index"]].dense == [" ".join(row["text"].split())]
        assert train[row["train_index"]].captions[0] == " ".join(row["captions"][0].split())
