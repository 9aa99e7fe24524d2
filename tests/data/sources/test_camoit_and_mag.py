"""CamoIT, MAGB's sets and Ele-fashion from raw trees as they are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from itr.data.sources.camoit import CamoIT
from itr.data.sources.mag import Mag
from itr.errors import UserError
from raw_trees import captions_of, ele_fashion, magb, make_image, write_json, write_rows


def camoit(root: Path, train: int = 20, test: int = 5, ending: str = ".jpg") -> Path:
    folder = root / "CamoIT"
    for split, numbers in (("train", range(train)), ("test", range(train, train + test))):
        rows = [
            {
                "name": f"camo_{at}{ending}",
                "caption1": "a frog",
                "caption2": "a green frog",
                "caption3": f"frog {at} 🐸 ",
            }
            for at in numbers
        ]
        write_json(folder / f"{split}.json", rows)
        for at in numbers:
            make_image(folder / "images" / f"camo_{at}.jpg")
    make_image(folder / "mask_zoomnext" / "camo_0.png")
    return root


@pytest.mark.parametrize("ending", [".jpg", ""])
def test_camoit(tmp_path, capsys, ending):
    data = CamoIT(str(camoit(tmp_path, ending=ending)), holdout_val=0.1).read()
    assert {split: len(found) for split, found in data.entries.items()} == {"train": 18, "val": 2, "test": 5}
    assert captions_of(data, "test") == {f"images/camo_{at}.jpg": [f"frog {at} 🐸"] for at in range(20, 25)}
    every = captions_of(data, "train") | captions_of(data, "val")
    assert every == {f"images/camo_{at}.jpg": [f"frog {at} 🐸"] for at in range(20)}
    assert all((data.image_root / entry.image).is_file() for found in data.entries.values() for entry in found)
    said = capsys.readouterr().out
    assert "CamoIT has no val: 2 of its 20 training images are drawn for it" in said
    assert "test has 5 images here; the published split has 3,000" in said
    again = CamoIT(str(tmp_path / "CamoIT"), holdout_val=0.1).read()
    assert again.entries == data.entries
    other = CamoIT(str(tmp_path), holdout_val=0.1, seed=1).read()
    assert captions_of(other, "val") != captions_of(data, "val")
    masks = [entry.meta["mask"] for found in data.entries.values() for entry in found if "mask" in entry.meta]
    assert masks == ["mask_zoomnext/camo_0.png"]


def test_camoit_levels_and_no_val(tmp_path, capsys):
    data = CamoIT(str(camoit(tmp_path)), level=2, holdout_val=0, dense="join").read()
    assert {split: len(found) for split, found in data.entries.items()} == {"train": 20, "test": 5}
    assert data.entries["test"][0].captions == data.entries["test"][0].dense == ["a green frog"]
    assert "--data.val_split null" in capsys.readouterr().out


def test_camoit_for_transfer_needs_the_test_alone(tmp_path):
    (camoit(tmp_path) / "CamoIT" / "train.json").unlink()
    assert set(CamoIT(str(tmp_path)).read().entries) == {"test"}


def test_faults_of_camoit(tmp_path, capsys):
    with pytest.raises(UserError, match=r"is no CamoIT: looked there .* for train.json and test.json"):
        CamoIT(str(tmp_path)).read()
    with pytest.raises(UserError, match=r"holdout_val is 1.5"):
        CamoIT(str(tmp_path), holdout_val=1.5).read()
    write_json(tmp_path / "test.json", [{"name": "a", "caption1": "x"}])
    with pytest.raises(UserError, match=r"has no caption3; its rows have name, caption1; see --level"):
        CamoIT(str(tmp_path)).read()
    write_json(tmp_path / "test.json", [{"caption3": "x"}])
    with pytest.raises(UserError, match="no list of rows with `name`"):
        CamoIT(str(tmp_path)).read()
    write_json(tmp_path / "test.json", [{"name": "a", "caption3": "x"}])
    assert captions_of(CamoIT(str(tmp_path)).read(), "test") == {"a.jpg": ["x"]}  # for the message on a missing image
    rows = [{"name": "a.jpg", "caption3": "x"}, {"name": "b.jpg", "caption3": " "}]
    write_json(tmp_path / "test.json", rows)
    assert captions_of(CamoIT(str(tmp_path)).read(), "test") == {"a.jpg": ["x"]}
    assert "rows without caption3 left out: 1 (b.jpg)" in capsys.readouterr().out
    write_json(tmp_path / "train.json", rows[:1])
    with pytest.raises(UserError, match=r"a.jpg is in train and in test"):
        CamoIT(str(tmp_path), holdout_val=0).read()
    with pytest.raises(UserError, match=r"no folder .*--image_root"):
        CamoIT(str(tmp_path), image_root=str(tmp_path / "nowhere")).read()


MAGB = [
    ("movies", "Movies", "Movies"), ("toys", "Toys", "Toys"), ("grocery", "Grocery", "Grocery"),
    ("reddit-s", "Reddit-S", "RedditS"), ("reddit-m", "Reddit-M", "RedditM"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "folder", "stem"), MAGB)
@pytest.mark.parametrize("extracted", [False, True])
def test_every_set_of_magb(tmp_path, capsys, name, folder, stem, extracted):
    magb(tmp_path, folder, stem, 30, without=(4, 11), extracted=extracted)
    data = Mag(str(tmp_path), name).read()
    order = np.random.RandomState(42).permutation(30)
    nodes = {"train": order[:18], "val": order[18:24], "test": order[24:]}
    for split, wanted in nodes.items():
        assert [entry.meta["node"] for entry in data.entries[split]] == sorted(set(wanted.tolist()) - {4, 11})
        for entry in data.entries[split]:
            node = entry.meta["node"]
            text = f"post {node} 🎈" if "Reddit" in stem else f"Title: title {node}; Description: long {node}"
            assert entry.captions == [text]
            assert entry.image.endswith(f"{stem}Images/{node}.jpg")
            assert (data.image_root / entry.image).is_file()
            assert entry.meta["label"] == node % 3
    said = capsys.readouterr().out
    assert "nodes without an image, left out: 2 (" in said
    assert "60/20/20 of 30 nodes by numpy's permutation of seed 42" in said
    every = Mag(str(tmp_path / folder), name, split="all").read()
    assert [entry.meta["node"] for entry in every.entries["all"]] == [n for n in range(30) if n not in (4, 11)]


def test_titles_as_captions_and_texts_as_dense_captions(tmp_path):
    data = Mag(str(magb(tmp_path, "Toys", "Toys", 9)), "toys", texts="title", dense_column="text").read()
    for entry in data.entries["train"]:
        node = entry.meta["node"]
        assert entry.captions == [f"title {node}"]
        assert entry.dense == [f"Title: title {node}; Description: long {node}"]
    assert data.settings["dense"] == "column text"
    write_rows(tmp_path / "dense.jsonl", [{"image": at, "dense": f"dense {at}"} for at in range(9)])
    table = Mag(str(tmp_path), "toys", dense=str(tmp_path / "dense.jsonl")).read()
    assert all(entry.dense == [f"dense {entry.meta['node']}"] for entry in table.entries["train"])
    with pytest.raises(UserError, match="not both"):
        Mag(str(tmp_path), "toys", dense="join", dense_column="text").read()


def test_faults_of_magb(tmp_path, capsys):
    with pytest.raises(UserError, match=r"has no Movies.csv"):
        Mag(str(tmp_path), "movies").read()
    magb(tmp_path, "Movies", "Movies", 5, without=tuple(range(5)))
    with pytest.raises(UserError, match=r"holds no image in MoviesImages, .*--image_root"):
        Mag(str(tmp_path), "movies").read()
    make_image(tmp_path / "else" / "3.jpg")
    data = Mag(str(tmp_path), "movies", split="all", image_root=str(tmp_path / "else")).read()
    assert captions_of(data, "all") == {"3.jpg": ["Title: title 3; Description: long 3"]}
    assert "nodes without an image, left out: 4 (0, 1, 2, 4)" in capsys.readouterr().out
    make_image(tmp_path / "Movies" / "MoviesImages" / "3.jpg")
    with pytest.raises(UserError, match=r"no column 'plot'; it has id, category"):
        Mag(str(tmp_path), "movies", texts="plot").read()
    with pytest.raises(UserError, match=r"no .*split.pt, the set's own split; --split random"):
        Mag(str(tmp_path), "movies", split="own").read()
    path = tmp_path / "Movies" / "Movies.csv"
    path.write_text("id,text\n1,x\n1,y\n")
    with pytest.raises(UserError, match="the id 1 twice"):
        Mag(str(tmp_path), "movies").read()
    path.write_text("id,text\nx,y\n")
    with pytest.raises(UserError, match="'x' is no number"):
        Mag(str(tmp_path), "movies").read()
    path.write_text("id,text\n3,\n")
    with pytest.raises(UserError, match="no image with a caption"):
        Mag(str(tmp_path), "movies", split="all").read()
    assert "nodes without a text, left out: 1 (3)" in capsys.readouterr().out


def test_a_very_long_description_is_read(tmp_path):
    make_image(tmp_path / "MoviesImages" / "0.jpg")
    write_rows(tmp_path / "Movies.csv", [{"id": 0, "text": "word " * 100_000}])
    data = Mag(str(tmp_path), "movies", split="all").read()
    assert len(data.entries["all"][0].captions[0]) == 499_999


def test_ele_fashion(tmp_path, capsys):
    data = Mag(str(ele_fashion(tmp_path, 12, without=(3,))), "ele-fashion").read()
    assert {split: len(found) for split, found in data.entries.items()} == {"train": 7, "val": 2, "test": 2}
    for found in data.entries.values():
        for entry in found:
            node = entry.meta["node"]
            assert entry.captions == [f"shoe {node}"]
            assert entry.image == f"ele-fashion-images/B{node:03d}.jpg"
            assert (entry.meta["asin"], entry.meta["label"]) == (f"B{node:03d}", node % 11)
    said = capsys.readouterr().out
    assert "nodes without an image, left out: 1 (B003)" in said
    assert "ele-fashion has 12 nodes here; the published set has 97,766" in said
    assert "the set's own" in said


@pytest.mark.parametrize("kind", ["by node", "list"])
def test_ele_fashion_with_images_and_titles_of_the_users_choice(tmp_path, kind):
    folder = ele_fashion(tmp_path, 6) / "ele-fashion"
    keys = [f"B{number:03d}" for number in range(6)]
    torch.save(keys if kind == "list" else dict(enumerate(keys)), folder / "node_mapping.pt")
    (folder / "ele-fashion-images").rename(tmp_path / "images")
    (folder / "ele-fashion-raw-text.jsonl").unlink()
    with pytest.raises(UserError, match=r"ele-fashion-raw-text.jsonl; .*--titles"):
        Mag(str(folder), "ele-fashion").read()
    write_rows(tmp_path / "titles.csv", [{"asin": key, "title": f"title of {key}"} for key in keys])
    write_json(tmp_path / "titles.json", {key: [f"title of {key}"] for key in keys})
    for name in ("titles.csv", "titles.json"):
        options = {"titles": str(tmp_path / name), "image_root": str(tmp_path / "images")}
        data = Mag(str(folder), "ele-fashion", split="random", **options).read()
        assert {e.image: e.captions for found in data.entries.values() for e in found} == {
            f"{key}.jpg": [f"title of {key}"] for key in keys
        }


class Other:
    pass


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("split.pt", {"train_idx": torch.arange(3)}, "must hold train_idx, val_idx, test_idx"),
        ("split.pt", {f"{s}_idx": torch.arange(2) for s in ("train", "val", "test")}, "4 nodes more than once"),
        ("split.pt", Other(), "can't be read as tensors and plain values"),
        ("node_mapping.pt", {"a": 1, "b": 1}, "a node or a product twice"),
        ("node_mapping.pt", torch.tensor(3), "does not map nodes to products"),
        ("node_mapping.pt", None, "no .*node_mapping.pt, which says what product a node is"),
    ],
)
def test_faults_of_ele_fashion(tmp_path, name, value, message):
    path = ele_fashion(tmp_path, 6) / "ele-fashion" / name
    torch.save(value, path)
    if value is None:
        path.unlink()
    with pytest.raises(UserError, match=message):
        Mag(str(tmp_path), "ele-fashion").read()
    with pytest.raises(UserError, match="one text a node"):
        Mag(str(tmp_path), "ele-fashion", texts="title").read()
