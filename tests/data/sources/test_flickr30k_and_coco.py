"""Flickr30K and COCO from each file layout, caption by caption, and the messages about faulty files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from itr.data.sources.coco import Coco
from itr.data.sources.flickr30k import Flickr30K
from itr.errors import UserError
from raw_trees import (
    ODD,
    captions_of,
    collapsed,
    make_image,
    write_json,
    write_karpathy,
    write_official,
    write_text_files,
)

FLICKR = {
    "train": {"1000.jpg": ODD, "1002.jpg": ["one", "two", "three", "four", "five"]},
    "val": {"2000.jpg": ["a", "b", "c", "d", "e"]},
    "test": {"3000.jpg": ["f", "g", "h", "i", "j"]},
}
COCO = [
    {"filename": "COCO_val2014_000000000042.jpg", "filepath": "val2014", "split": "test", "cocoid": 42,
     "captions": ["a dog", "b", "c", "d", "e", "a sixth"], "sentids": [7, 8, 9, 12, 30, 31]},
    {"filename": "COCO_val2014_000000000073.jpg", "filepath": "val2014", "split": "restval", "cocoid": 73,
     "captions": ["a bike ", "two bikes"], "sentids": [1, 2]},
    {"filename": "COCO_train2014_000000000009.jpg", "filepath": "train2014", "split": "train", "cocoid": 9,
     "captions": ["food", "more  food", "x"], "sentids": [70, 71, 72]},
    {"filename": "COCO_val2014_000000000074.jpg", "filepath": "val2014", "split": "val", "cocoid": 74,
     "captions": ["a cat"], "sentids": [50]},
]  # fmt: skip
TRAIN, VAL = "train2014/COCO_train2014_", "val2014/COCO_val2014_"


def flickr_images(root: Path, folder: str = "flickr30k-images") -> None:
    for found in FLICKR.values():
        for name in found:
            make_image(root / folder / name)


def expected(folder: str = "flickr30k-images") -> dict[str, dict[str, list[str]]]:
    return {
        split: {f"{folder}/{name}": list(map(collapsed, captions)) for name, captions in found.items()}
        for split, found in FLICKR.items()
    }


def flickr_karpathy(root: Path) -> None:
    images = [
        {"filename": name, "split": split, "captions": captions}
        for split, found in FLICKR.items() for name, captions in found.items()
    ]  # fmt: skip
    write_karpathy(root / "dataset_flickr30k.json", images)


def flickr_text(root: Path, end: str = "\n") -> None:
    ids, mapping = {}, {}
    for found in FLICKR.values():
        for name in found:
            ids[name] = len(ids)
            mapping[str(ids[name])] = name
    write_json(root / "id_mapping.json", mapping)
    for split, found in FLICKR.items():
        repeat = 1 if split == "train" else 5  # as in the published files
        write_text_files(
            root / "precomp", "dev" if split == "val" else split, [ids[n] for n in found for _ in range(repeat)],
            [caption for captions in found.values() for caption in captions], end,
        )  # fmt: skip


def flickr_rows(root: Path) -> None:
    """As in ALBEF: one caption per row in train, a list in val and test."""
    for split, found in FLICKR.items():
        rows = [{"image": f"flickr30k-images/{name}", "caption": texts} for name, texts in found.items()]
        if split == "train":
            rows = [{**row, "caption": text, "image_id": 7} for row in rows for text in row["caption"]]
        write_json(root / f"flickr30k_{split}.json", rows)


def all_captions(data) -> dict[str, dict[str, list[str]]]:
    return {split: captions_of(data, split) for split in data.entries}


@pytest.mark.parametrize(
    ("name", "write"), [("karpathy", flickr_karpathy), ("text", flickr_text), ("rows", flickr_rows)]
)
def test_flickr30k_captions_are_the_same_in_every_layout(tmp_path, capsys, name, write):
    flickr_images(tmp_path)
    write(tmp_path)
    data = Flickr30K(str(tmp_path)).read()
    assert all_captions(data) == expected()
    assert list(data.entries) == ["train", "val", "test"]
    assert all((data.image_root / entry.image).is_file() for found in data.entries.values() for entry in found)
    assert data.settings == {"layout": name}
    output = capsys.readouterr().out
    assert f"layout {name}" in output
    assert "train has 2 images; the published split has 29,000" in output
    assert all_captions(Flickr30K(str(tmp_path), layout=name, splits="test").read()) == {"test": expected()["test"]}


def test_windows_line_endings_and_a_byte_order_mark_are_ignored(tmp_path):
    flickr_images(tmp_path)
    flickr_text(tmp_path, "\r\n")
    path = tmp_path / "precomp" / "train_caps.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n")  # and a trailing empty line
    assert all_captions(Flickr30K(str(tmp_path)).read()) == expected()


def test_images_are_found_in_a_user_supplied_folder(tmp_path):
    flickr_karpathy(tmp_path / "captions")
    flickr_images(tmp_path, "elsewhere")
    data = Flickr30K(str(tmp_path / "captions"), image_root=str(tmp_path / "elsewhere")).read()
    assert set(captions_of(data, "train")) == {"1000.jpg", "1002.jpg"}
    with pytest.raises(UserError, match=r"nowhere does not exist; .*--image_root"):
        Flickr30K(str(tmp_path / "captions"), image_root=str(tmp_path / "nowhere")).read()


def test_cusa_rows_keep_ids_and_any_number_of_captions(tmp_path):
    rows = [{"image_path": "images/a.jpg", "caption": text, "image_id": 12} for text in ("x", "y", "", "z")]
    write_json(tmp_path / "new_train.json", [*rows, {"image_path": "images/b.jpg", "caption": "one", "image_id": 3}])
    data = Flickr30K(str(tmp_path)).read()
    assert captions_of(data, "train") == {"images/a.jpg": ["x", "y", "z"], "images/b.jpg": ["one"]}
    assert [entry.meta["source_id"] for entry in data.entries["train"]] == [12, 3]


def coco_tree(root: Path) -> None:
    for image in COCO:
        make_image(root / image["filepath"] / image["filename"])


def official_files(root: Path) -> None:
    for part in ("train", "val"):
        images = {}
        for image in COCO:
            texts = dict(zip(image["sentids"], image["captions"], strict=True))
            if image["filepath"] == f"{part}2014":
                images[image["cocoid"]] = image["filename"], dict(reversed(texts.items()))
        write_official(root / "annotations" / f"captions_{part}2014.json", images)


COCO_EXPECTED = {
    "train": {
        f"{VAL}000000000073.jpg": ["a bike", "two bikes"],
        f"{TRAIN}000000000009.jpg": ["food", "more food", "x"],
    },
    "val": {f"{VAL}000000000074.jpg": ["a cat"]},
    "test": {f"{VAL}000000000042.jpg": ["a dog", "b", "c", "d", "e", "a sixth"]},
}


@pytest.mark.parametrize("layout", ["karpathy", "official"])
def test_coco_with_the_karpathy_split(tmp_path, capsys, layout):
    coco_tree(tmp_path)
    write_karpathy(tmp_path / "dataset_coco.json", COCO)
    if layout == "official":
        official_files(tmp_path)
    data = Coco(str(tmp_path)).read()
    assert all_captions(data) == COCO_EXPECTED
    assert data.settings == {"layout": layout, "restval": True}
    test = data.entries["test"][0]
    assert test.meta == {"source_id": 42, "coco_caption_ids": [7, 8, 9, 12, 30, 31], "standard": 5}
    output = capsys.readouterr().out
    assert "loading annotations" not in output
    assert "test has 1 images; the published split has 5,000" in output
    assert all((data.image_root / entry.image).is_file() for found in data.entries.values() for entry in found)
    without_restval = Coco(str(tmp_path), restval=False).read()
    assert set(captions_of(without_restval, "train")) == {f"{TRAIN}000000000009.jpg"}


def test_official_coco_without_a_split_and_with_id_lists(tmp_path, capsys):
    coco_tree(tmp_path)
    official_files(tmp_path)
    own = Coco(str(tmp_path)).read()
    assert {split: len(found) for split, found in own.entries.items()} == {"train": 1, "val": 3}
    assert own.settings["split"] == "official"
    assert "no Karpathy split" in capsys.readouterr().out
    lists = tmp_path / "precomp"
    for name, ids in (("train", [73, 9, 555]), ("dev", [74]), ("testall", [42] * 5)):
        write_text_files(lists, name, ids, [])
        (lists / f"{name}_caps.txt").unlink()
    data = Coco(str(tmp_path), split_file=str(lists)).read()
    assert all_captions(data) == COCO_EXPECTED
    assert "skipped images of precomp that are not in the captions files: 1 (555)" in capsys.readouterr().out
    assert all_captions(Coco(str(tmp_path)).read()) == COCO_EXPECTED
    assert Coco(str(tmp_path), split_file="official").read().entries.keys() == {"train", "val"}


def test_coco_text_files_without_a_mapping_find_images_by_number(tmp_path):
    for image in COCO:
        make_image(tmp_path / "images" / image["filepath"] / image["filename"])
    write_text_files(tmp_path, "train", [73, 9], [f"t{i}" for i in range(10)])
    write_text_files(tmp_path, "dev", [74] * 3, ["x", "y", "z"])
    write_text_files(tmp_path, "test", [42] * 5, list("vwxyz"))
    data = Coco(str(tmp_path)).read()
    assert captions_of(data, "train") == {
        f"images/{VAL}000000000073.jpg": [f"t{i}" for i in range(5)],
        f"images/{TRAIN}000000000009.jpg": [f"t{i}" for i in range(5, 10)],
    }
    assert captions_of(data, "val") == {f"images/{VAL}000000000074.jpg": ["x", "y", "z"]}
    write_text_files(tmp_path, "testall", [42] * 5 + [999] * 5, list("abcdefghij"))
    assert list(captions_of(Coco(str(tmp_path)).read(), "test")) == [
        f"images/{VAL}000000000042.jpg", f"{VAL}000000000999.jpg",
    ]  # fmt: skip


def test_coco_rows(tmp_path):
    rows = [{"image": image["filename"], "caption": image["captions"], "image_id": image["cocoid"]} for image in COCO]
    write_json(tmp_path / "coco_karpathy_test.json", rows[:1])
    write_json(tmp_path / "coco_train.json", rows[1:3])
    coco_tree(tmp_path)
    data = Coco(str(tmp_path)).read()
    assert all_captions(data) == {split: COCO_EXPECTED[split] for split in ("train", "test")}


def check_error(root: Path, match: str, source=Flickr30K, **options) -> None:
    with pytest.raises(UserError, match=match):
        source(str(root), **options).read()


def test_captions_that_do_not_match_the_ids(tmp_path):
    flickr_images(tmp_path)
    flickr_text(tmp_path)
    path = tmp_path / "precomp" / "train_caps.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join(lines[:8]) + "\n", encoding="utf-8")
    check_error(tmp_path, "train_caps.txt has 8 captions but .*train_ids.txt has 2 ids; .* must be 2 or 10 captions")
    path.write_text("\n".join(["more", *lines]), encoding="utf-8")
    check_error(tmp_path, "has 11 captions but .*train_ids.txt has 2 ids")
    write_text_files(tmp_path / "precomp", "train", [0, 0], ["x"] * 10)
    check_error(tmp_path, r"10 captions but .* has 2 ids \(id 0 appears more than once\)")


def test_empty_caption_lines_are_reported_and_the_others_keep_their_images(tmp_path, capsys):
    write_json(tmp_path / "id_mapping.json", {"0": "a.jpg", "1": "b.jpg"})
    write_text_files(tmp_path, "train", [0, 1], ["a1", " \x00", "a3", "a4", "a5", "b1", "b2", "b3", "b4", ""])
    data = Flickr30K(str(tmp_path)).read()
    assert captions_of(data, "train") == {"a.jpg": ["a1", "a3", "a4", "a5"], "b.jpg": ["b1", "b2", "b3", "b4"]}
    assert "train_caps.txt: skipped empty lines: 2 (line 2, line 10)" in capsys.readouterr().out


def test_a_missing_text_file_unknown_ids_and_other_encodings(tmp_path):
    flickr_images(tmp_path)
    flickr_text(tmp_path)
    (tmp_path / "precomp" / "test_caps.txt").unlink()
    check_error(tmp_path, "test_ids.txt exists but test_caps.txt does not; .*--splits")
    assert set(Flickr30K(str(tmp_path), splits="train,val").read().entries) == {"train", "val"}
    write_json(tmp_path / "id_mapping.json", {"0": "1000.jpg"})
    check_error(tmp_path, r"train_ids.txt: 1 ids are not in id_mapping.json \(first 1\)", splits="train")
    (tmp_path / "id_mapping.json").unlink()
    check_error(tmp_path, "2 ids match no image, and id_mapping.json does not exist", splits="train")
    (tmp_path / "precomp" / "train_caps.txt").write_bytes(b"good\nna\xefve\n")
    check_error(tmp_path, "train_caps.txt, line 2, is not valid UTF-8", splits="train")


def test_no_layout_and_several_layouts(tmp_path):
    check_error(
        tmp_path,
        r"no files of any known layout in .*\n.*karpathy: dataset_flickr30k.json\n.*text: .*\n.*rows: flickr30k_",
    )
    check_error(tmp_path / "nowhere", "does not exist")
    flickr_karpathy(tmp_path)
    check_error(tmp_path, "found no text files in", layout="text")
    flickr_rows(tmp_path)
    check_error(tmp_path, r"several layouts: karpathy \(.*\), rows .*pass --layout karpathy or rows")
    assert Flickr30K(str(tmp_path), layout="rows").read().settings == {"layout": "rows"}
    flickr_karpathy(tmp_path / "other")
    assert Flickr30K(str(tmp_path), layout="karpathy").read().entries
    (tmp_path / "dataset_flickr30k.json").unlink()
    flickr_karpathy(tmp_path / "copy")
    check_error(tmp_path, "found several candidates", layout="karpathy")
    check_error(tmp_path, "--splits has the unknown split 'dev'", layout="rows", splits="dev")


def test_an_image_in_two_splits_or_twice_in_one_is_rejected(tmp_path):
    images = [{"filename": "a.jpg", "split": split, "captions": ["x"]} for split in ("train", "test")]
    write_karpathy(tmp_path / "dataset_flickr30k.json", images)
    check_error(tmp_path, "a.jpg is in both train and test")
    write_karpathy(tmp_path / "dataset_flickr30k.json", [images[0], images[0]])
    check_error(tmp_path, "a.jpg appears 2 times in train")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dataset_flickr30k.json", "{", "is not valid JSON"),
        ("dataset_flickr30k.json", "[1]", "no list `images`"),
        (
            "dataset_flickr30k.json",
            '{"images": [{"filename": "x.jpg"}]}',
            "image 0 of `images` has no split, sentences",
        ),
        ("dataset_flickr30k.json", '{"images": [3]}', "image 0 of `images` has no filename"),
        ("dataset_flickr30k.json", '{"images": [{"filename": "x", "split": "dev", "sentences": []}]}', "split 'dev'"),
        (
            "dataset_flickr30k.json",
            '{"images": [{"filename": "x", "split": "val", "sentences": [1]}]}',
            "no string `raw`",
        ),
        ("dataset_flickr30k.json", '{"images": []}', "no image with a caption"),
        ("train.json", "{}", "is not a list of objects"),
        ("train.json", '[{"image": "x.jpg"}]', "row 1: needs a path"),
        ("train.json", '[{"caption": "x"}]', "row 1: needs a path"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    check_error(tmp_path, message)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "is not a COCO captions file"),
        (
            {"images": [{"id": 1, "file_name": "x"}], "annotations": [{"id": 2, "image_id": 5, "caption": "x"}]},
            "image 5",
        ),
        ({"images": [{"id": 1, "file_name": "x"}], "annotations": [{"id": 2, "image_id": 1}]}, "has no 'caption'"),
        ({"images": [{"id": 1}], "annotations": []}, "file_name"),
    ],
)
def test_malformed_coco_captions_files_are_named(tmp_path, value, message):
    write_json(tmp_path / "captions_train2014.json", value)
    check_error(tmp_path, message, Coco)


def test_a_split_of_other_images(tmp_path):
    official_files(tmp_path)
    write_karpathy(tmp_path / "dataset_coco.json", [{**COCO[0], "cocoid": 1}])
    check_error(tmp_path, "have no image in common", Coco)
    check_error(tmp_path, "nothing.json does not exist; --split_file", Coco, split_file=str(tmp_path / "nothing.json"))


def test_a_path_outside_the_root_is_left_unchanged(tmp_path):
    make_image(tmp_path / "images" / "a.jpg")
    write_json(tmp_path / "train.json", [{"image": "../x/a.jpg", "caption": "x"}, {"image": "/a.jpg", "caption": "x"}])
    assert set(captions_of(Flickr30K(str(tmp_path)).read(), "train")) == {"../x/a.jpg", "/a.jpg"}


# The real files.


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


@pytest.mark.slow
def test_the_real_flickr30k_files(shared):
    folder, sample = shared / "data" / "captions" / "f30k", shared / "data" / "flickr30k-sample"
    data = Flickr30K(str(folder), image_root=str(sample)).read()
    assert {split: len(found) for split, found in data.entries.items()} == {"train": 29000, "val": 1014, "test": 1000}
    assert sum(len(entry.captions) for found in data.entries.values() for entry in found) == 155_070
    for split, name in (("train", "train"), ("val", "dev"), ("test", "test")):
        raw = [collapsed(line) for line in lines(folder / f"{name}_caps.txt")]
        assert [caption for entry in data.entries[split] for caption in entry.captions] == raw
    names = {Path(entry.image).name: split for split, found in data.entries.items() for entry in found}
    existing = {entry.image for found in data.entries.values() for entry in found if "/" in entry.image}
    assert existing == {f"images/{path.name}" for path in (sample / "images").iterdir()}
    for split in ("train", "val"):
        for row in map(json.loads, lines(sample / f"{split}.jsonl")):
            assert names[Path(row["image"]).name] == split


def test_the_real_coco_files(shared):
    folder = shared / "data" / "captions" / "coco"
    check_error(folder, "train_ids.txt exists but train_caps.txt does not", Coco)
    data = Coco(str(folder), splits="val,test").read()
    assert {split: len(found) for split, found in data.entries.items()} == {"val": 1000, "test": 5000}
    assert all(len(entry.captions) == 5 == entry.meta["standard"] for entry in data.entries["test"])
    raw = [collapsed(line) for line in lines(folder / "testall_caps.txt")]
    assert [caption for entry in data.entries["test"] for caption in entry.captions] == raw
    assert data.entries["test"][0].image == "val2014/COCO_val2014_000000391895.jpg"


def test_coco_built_from_the_real_sample(shared, tmp_path):
    sample, karpathy_rows, expected = shared / "data" / "coco-sample", [], {}
    for split in ("train", "val"):
        images = {}
        for row in map(json.loads, lines(sample / f"{split}.jsonl")):
            name, number = Path(row["image"]).name, int(row["image"][-16:-4])
            texts = row["captions"]
            images[number] = (name, {number * 10 + i: text for i, text in enumerate(texts)})
            karpathy_rows.append(
                {"filename": name, "filepath": "images", "split": split, "cocoid": number, "captions": texts}
            )
            expected[row["image"]] = [collapsed(text) for text in texts]
        write_official(tmp_path / "annotations" / f"captions_{split}2014.json", images)
    own = Coco(str(tmp_path), image_root=str(sample)).read()
    assert {split: len(found) for split, found in own.entries.items()} == {"train": 600, "val": 201}
    assert captions_of(own, "train") | captions_of(own, "val") == expected
    assert {len(captions) for captions in expected.values()} >= {2, 5, 6}
    write_karpathy(tmp_path / "dataset_coco.json", karpathy_rows)
    for layout in ("official", "karpathy"):
        data = Coco(str(tmp_path), layout=layout, image_root=str(sample)).read()
        assert {split: captions_of(data, split) for split in ("train", "val")} == {
            split: captions_of(own, split) for split in ("train", "val")
        }
