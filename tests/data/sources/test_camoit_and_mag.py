"""CamoIT, MAGB's sets and Ele-fashion from raw folders laid out as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from itr.data.sources.camoit import CamoIT
from itr.data.sources.mag import Mag
from itr.errors import UserError
from raw_trees import captions_of, make_image, write_ele_fashion, write_json, write_magb, write_rows


def camoit(root: Path, train: int = 20, test: int = 5, suffix: str = ".jpg") -> Path:
    folder = root / "CamoIT"
    for split, numbers in (("train", range(train)), ("test", range(train, train + test))):
        rows = [
            {
                "name": f"camo_{i}{suffix}",
                "caption1": "a frog",
                "caption2": "a green frog",
                "caption3": f"frog {i} 🐸 ",
            }
            for i in numbers
        ]
        write_json(folder / f"{split}.json", rows)
        for i in numbers:
            make_image(folder / "images" / f"camo_{i}.jpg")
    make_image(folder / "mask_zoomnext" / "camo_0.png")
    return root


@pytest.mark.parametrize("suffix", [".jpg", ""])
def test_camoit(tmp_path, capsys, suffix):
    data = CamoIT(str(camoit(tmp_path, suffix=suffix)), holdout_val=0.1).read()
    assert {split: len(found) for split, found in data.entries.items()} == {"train": 18, "val": 2, "test": 5}
    assert captions_of(data, "test") == {f"images/camo_{i}.jpg": [f"frog {i} 🐸"] for i in range(20, 25)}
    combined = captions_of(data, "train") | captions_of(data, "val")
    assert combined == {f"images/camo_{i}.jpg": [f"frog {i} 🐸"] for i in range(20)}
    assert all((data.image_root / entry.image).is_file() for found in data.entries.values() for entry in found)
    output = capsys.readouterr().out
    assert "CamoIT has no val split: drew 2 of its 20 training images for it" in output
    assert "test has 5 images; the published split has 3,000" in output
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


def test_camoit_with_only_the_test_split(tmp_path):
    (camoit(tmp_path) / "CamoIT" / "train.json").unlink()
    assert set(CamoIT(str(tmp_path)).read().entries) == {"test"}


def test_camoit_errors(tmp_path, capsys):
    with pytest.raises(UserError, match=r"found no train.json or test.json of CamoIT in"):
        CamoIT(str(tmp_path)).read()
    with pytest.raises(UserError, match=r"holdout_val=1.5"):
        CamoIT(str(tmp_path), holdout_val=1.5).read()
    write_json(tmp_path / "test.json", [{"name": "a", "caption1": "x"}])
    with pytest.raises(UserError, match="has no caption3, only name, caption1; choose another --level"):
        CamoIT(str(tmp_path)).read()
    write_json(tmp_path / "test.json", [{"caption3": "x"}])
    with pytest.raises(UserError, match="must be a list of rows with `name`"):
        CamoIT(str(tmp_path)).read()
    write_json(tmp_path / "test.json", [{"name": "a", "caption3": "x"}])
    assert captions_of(CamoIT(str(tmp_path)).read(), "test") == {
        "a.jpg": ["x"]
    }  # so that the message about a missing image shows it
    rows = [{"name": "a.jpg", "caption3": "x"}, {"name": "b.jpg", "caption3": " "}]
    write_json(tmp_path / "test.json", rows)
    assert captions_of(CamoIT(str(tmp_path)).read(), "test") == {"a.jpg": ["x"]}
    assert "skipped rows without caption3: 1 (b.jpg)" in capsys.readouterr().out
    write_json(tmp_path / "train.json", rows[:1])
    with pytest.raises(UserError, match=r"a.jpg is in both train and test"):
        CamoIT(str(tmp_path), holdout_val=0).read()
    with pytest.raises(UserError, match=r"does not exist; .*--image_root"):
        CamoIT(str(tmp_path), image_root=str(tmp_path / "nowhere")).read()


MAGB = [
    ("movies", "Movies", "Movies"), ("toys", "Toys", "Toys"), ("grocery", "Grocery", "Grocery"),
    ("reddit-s", "Reddit-S", "RedditS"), ("reddit-m", "Reddit-M", "RedditM"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "folder", "stem"), MAGB)
@pytest.mark.parametrize("extracted", [False, True])
def test_each_magb_data_set(tmp_path, capsys, name, folder, stem, extracted):
    write_magb(tmp_path, folder, stem, 30, missing=(4, 11), extracted=extracted)
    data = Mag(str(tmp_path), name).read()
    order = np.random.RandomState(42).permutation(30)
    nodes = {"train": order[:18], "val": order[18:24], "test": order[24:]}
    for split, expected in nodes.items():
        assert [entry.meta["node"] for entry in data.entries[split]] == sorted(set(expected.tolist()) - {4, 11})
        for entry in data.entries[split]:
            node = entry.meta["node"]
            text = f"post {node} 🎈" if "Reddit" in stem else f"Title: title {node}; Description: long {node}"
            assert entry.captions == [text]
            assert entry.image.endswith(f"{stem}Images/{node}.jpg")
            assert (data.image_root / entry.image).is_file()
            assert entry.meta["label"] == node % 3
    output = capsys.readouterr().out
    assert "skipped nodes without an image: 2 (" in output
    assert "60/20/20 of 30 nodes, by NumPy's permutation with seed 42" in output
    all_nodes = Mag(str(tmp_path / folder), name, split="all").read()
    assert [entry.meta["node"] for entry in all_nodes.entries["all"]] == [n for n in range(30) if n not in (4, 11)]


def test_titles_as_captions_and_texts_as_dense_captions(tmp_path):
    data = Mag(str(write_magb(tmp_path, "Toys", "Toys", 9)), "toys", texts="title", dense_column="text").read()
    for entry in data.entries["train"]:
        node = entry.meta["node"]
        assert entry.captions == [f"title {node}"]
        assert entry.dense == [f"Title: title {node}; Description: long {node}"]
    assert data.settings["dense"] == "column text"
    write_rows(tmp_path / "dense.jsonl", [{"image": i, "dense": f"dense {i}"} for i in range(9)])
    table = Mag(str(tmp_path), "toys", dense=str(tmp_path / "dense.jsonl")).read()
    assert all(entry.dense == [f"dense {entry.meta['node']}"] for entry in table.entries["train"])
    with pytest.raises(UserError, match="not both"):
        Mag(str(tmp_path), "toys", dense="join", dense_column="text").read()


def test_magb_errors(tmp_path, capsys):
    with pytest.raises(UserError, match=r"found no Movies.csv in"):
        Mag(str(tmp_path), "movies").read()
    write_magb(tmp_path, "Movies", "Movies", 5, missing=tuple(range(5)))
    with pytest.raises(UserError, match=r"has no images in MoviesImages, .*--image_root"):
        Mag(str(tmp_path), "movies").read()
    make_image(tmp_path / "elsewhere" / "3.jpg")
    data = Mag(str(tmp_path), "movies", split="all", image_root=str(tmp_path / "elsewhere")).read()
    assert captions_of(data, "all") == {"3.jpg": ["Title: title 3; Description: long 3"]}
    assert "skipped nodes without an image: 4 (0, 1, 2, 4)" in capsys.readouterr().out
    make_image(tmp_path / "Movies" / "MoviesImages" / "3.jpg")
    with pytest.raises(UserError, match="no column 'plot'; choose one of id, category"):
        Mag(str(tmp_path), "movies", texts="plot").read()
    with pytest.raises(UserError, match=r"split.pt does not exist, the data set's own split; use --split random"):
        Mag(str(tmp_path), "movies", split="own").read()
    path = tmp_path / "Movies" / "Movies.csv"
    path.write_text("id,text\n1,x\n1,y\n")
    with pytest.raises(UserError, match="the id 1 twice"):
        Mag(str(tmp_path), "movies").read()
    path.write_text("id,text\nx,y\n")
    with pytest.raises(UserError, match="'x' is not an integer"):
        Mag(str(tmp_path), "movies").read()
    path.write_text("id,text\n3,\n")
    with pytest.raises(UserError, match="no image with a caption"):
        Mag(str(tmp_path), "movies", split="all").read()
    assert "skipped nodes without a text: 1 (3)" in capsys.readouterr().out


def test_a_very_long_description_is_read(tmp_path):
    make_image(tmp_path / "MoviesImages" / "0.jpg")
    write_rows(tmp_path / "Movies.csv", [{"id": 0, "text": "word " * 100_000}])
    data = Mag(str(tmp_path), "movies", split="all").read()
    assert len(data.entries["all"][0].captions[0]) == 499_999


def test_ele_fashion(tmp_path, capsys):
    data = Mag(str(write_ele_fashion(tmp_path, 12, missing=(3,))), "ele-fashion").read()
    assert {split: len(found) for split, found in data.entries.items()} == {"train": 7, "val": 2, "test": 2}
    for found in data.entries.values():
        for entry in found:
            node = entry.meta["node"]
            assert entry.captions == [f"shoe {node}"]
            assert entry.image == f"ele-fashion-images/B{node:03d}.jpg"
            assert (entry.meta["asin"], entry.meta["label"]) == (f"B{node:03d}", node % 11)
    output = capsys.readouterr().out
    assert "skipped nodes without an image: 1 (B003)" in output
    assert "ele-fashion has 12 nodes; the published data set has 97,766" in output
    assert "the data set's own" in output


@pytest.mark.parametrize("kind", ["by node", "list"])
def test_ele_fashion_with_user_supplied_images_and_titles(tmp_path, kind):
    folder = write_ele_fashion(tmp_path, 6) / "ele-fashion"
    keys = [f"B{number:03d}" for number in range(6)]
    torch.save(keys if kind == "list" else dict(enumerate(keys)), folder / "node_mapping.pt")
    (folder / "ele-fashion-images").rename(tmp_path / "images")
    (folder / "ele-fashion-raw-text.jsonl").unlink()
    with pytest.raises(UserError, match=r"ele-fashion-raw-text.jsonl does not exist; .*--titles"):
        Mag(str(folder), "ele-fashion").read()
    write_rows(tmp_path / "titles.csv", [{"asin": key, "title": f"title of {key}"} for key in keys])
    write_json(tmp_path / "titles.json", {key: [f"title of {key}"] for key in keys})
    for name in ("titles.csv", "titles.json"):
        options = {"titles": str(tmp_path / name), "image_root": str(tmp_path / "images")}
        data = Mag(str(folder), "ele-fashion", split="random", **options).read()
        assert {e.image: e.captions for found in data.entries.values() for e in found} == {
            f"{key}.jpg": [f"title of {key}"] for key in keys
        }


class Unsafe:
    pass


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("split.pt", {"train_idx": torch.arange(3)}, "must be a dictionary with train_idx, val_idx, test_idx"),
        ("split.pt", {f"{s}_idx": torch.arange(2) for s in ("train", "val", "test")}, "4 nodes more than once"),
        ("split.pt", Unsafe(), "as tensors and plain values"),
        ("node_mapping.pt", {"a": 1, "b": 1}, "a node or a product twice"),
        ("node_mapping.pt", torch.tensor(3), "does not map nodes to products"),
        ("node_mapping.pt", None, "node_mapping.pt does not exist, which maps nodes to products"),
    ],
)
def test_ele_fashion_errors(tmp_path, name, value, message):
    path = write_ele_fashion(tmp_path, 6) / "ele-fashion" / name
    torch.save(value, path)
    if value is None:
        path.unlink()
    with pytest.raises(UserError, match=message):
        Mag(str(tmp_path), "ele-fashion").read()
    with pytest.raises(UserError, match="one text per node"):
        Mag(str(tmp_path), "ele-fashion", texts="title").read()
