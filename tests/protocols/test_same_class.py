"""Same-class image retrieval: exact metrics against naive loops, and every supported folder layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from itr.cli import main
from itr.errors import UserError
from itr.evaluation.ranks import precision_over_all
from itr.protocols.image_sets import read_images
from itr.protocols.same_class import search_same_class
from tiny_teachers import save_image_teacher


def naive(scores, label, queries, gallery):
    """Sort the gallery of each query, with wrong candidates first among equal scores."""
    found = []
    for q in queries:
        others = [g for g in gallery if g != q]
        num_matches = sum(label[g] == label[q] for g in others)
        if not num_matches:
            continue
        order = sorted(others, key=lambda g: (-scores[q][g], label[g] == label[q]))
        hits = [label[g] == label[q] for g in order]
        precision = [sum(hits[: k + 1]) / (k + 1) for k in range(num_matches)]
        average = sum(p for p, hit in zip(precision, hits, strict=False) if hit) / num_matches
        found.append((hits.index(True), average, sum(hits[:num_matches]) / num_matches))
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [2, 3, 1000])
@pytest.mark.parametrize("tile", [1, 5, 16, 1000])
@pytest.mark.parametrize("disjoint", [False, True])
def test_metrics_equal_a_naive_sort(seed, levels, tile, disjoint):
    rng = np.random.default_rng([seed, levels])
    number = int(rng.integers(5, 40))
    label = rng.integers(1 + number // 3, size=number)
    rows = torch.from_numpy(rng.integers(1, levels + 1, size=(number, 3)).astype(np.float32))
    half = int(rng.integers(1, number)) if disjoint else number
    queries = list(range(half))
    gallery = list(range(half, number)) if disjoint else queries
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    expected = naive((unit @ unit.T).float().tolist(), label.tolist(), queries, gallery)
    parts = (torch.tensor(queries), torch.tensor(gallery)) if disjoint else (None, None)
    hits = search_same_class(rows, torch.from_numpy(label), *parts, tile=tile)
    assert len(hits.query) == len(expected)
    if expected:
        first, average, precision = (torch.tensor(part) for part in zip(*expected, strict=True))
        assert torch.equal(hits.first.clamp(max=10), first.clamp(max=10))
        torch.testing.assert_close(hits.average_precision, average.double())
        torch.testing.assert_close(hits.r_precision, precision.double())
        assert hits.figures()["r1"] == pytest.approx(100 * (first == 0).double().mean().item())


def test_metrics_equal_those_of_the_full_matrix():
    torch.manual_seed(0)
    rows, label = torch.randn(300, 8), torch.randint(20, (300,))
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    scores = (unit @ unit.T).float().fill_diagonal_(-2)
    positives = (label[:, None] == label[None, :]).fill_diagonal_(False)
    average, precision = precision_over_all(scores, positives)
    hits = search_same_class(rows, label, tile=64)
    torch.testing.assert_close(hits.average_precision, average)
    torch.testing.assert_close(hits.r_precision, precision)


def test_collapsed_embeddings_do_not_look_perfect():
    hits = search_same_class(torch.ones(40, 4), torch.arange(40) % 20)
    assert hits.figures() == {"r1": 0, "r10": 0, "map_at_r": 0, "r_precision": 0}


# Layouts. Images of a class are identical, so that any encoder retrieves them.


def make_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(256, size=(16, 16, 3), dtype=np.uint8)).save(path)


def cub(root: Path) -> int:
    """Three training classes and three test classes, with half of all images in the official test split."""
    folder, lines, labels, split = root / "CUB_200_2011", [], [], []
    for number, label in enumerate([1, 1, 50, 100, 100, 101, 101, 150, 150, 200, 200, 200], 1):
        name = f"{label:03d}.Bird/Bird_{number:04d}.png"
        make_image(folder / "images" / name, label)
        lines.append(f"{number} {name}")
        labels.append(f"{number} {label}")
        split.append(f"{number} {number % 2}")
    for name, content in {"images": lines, "image_class_labels": labels, "train_test_split": split}.items():
        (folder / f"{name}.txt").write_text("\n".join(content) + "\n")
    return 7


def sop(root: Path) -> int:
    lines = ["image_id class_id super_class_id path"]
    for number, label in enumerate([11319, 11319, 11320, 11320, 11320], 59552):
        name = f"bicycle_final/{label}_{number}.JPG"
        make_image((root / name).with_suffix(".png"), label)
        (root / name).with_suffix(".png").rename(root / name)
        lines.append(f"{number} {label} 1 {name}")
    (root / "Ebay_test.txt").write_text("\n".join(lines) + "\n")
    (root / "Ebay_train.txt").write_text(lines[0] + "\n1 1 1 bicycle_final/nowhere.JPG\n")
    return 5


def inshop(root: Path) -> int:
    lines = []
    for number, (label, part) in enumerate(
        [(1, "train"), (2, "query"), (2, "gallery"), (2, "gallery"), (3, "query"), (3, "gallery"), (4, "gallery")]
    ):
        name = f"img/WOMEN/Dresses/id_{label:08d}/{number:02d}_1_front.png"
        if part != "train":
            make_image(root / "Img" / name, label)
        lines.append(f"{name:70} id_{label:08d}   {part}")
    (root / "Eval").mkdir()
    head = [str(len(lines)), "image_name item_id evaluation_status"]
    (root / "Eval" / "list_eval_partition.txt").write_text("\n".join(head + lines) + "\n")
    return 6


def inaturalist(root: Path) -> int:
    lines = [f"train_val2018/Aves/{label}/{number}.png" for number, label in enumerate([2, 2, 7, 7])]
    for line in lines:
        make_image(root / line, int(line.split("/")[-2]))
    (root / "Inat_dataset_splits").mkdir()
    (root / "Inat_dataset_splits" / "Inaturalist_test_set1.txt").write_text("\n".join(lines) + "\n")
    return 4


def inaturalist_json(root: Path) -> int:
    names = [f"train_val2018/Aves/{label}/{number}.png" for number, label in enumerate([2, 2, 7, 7])]
    for name in names:
        make_image(root / name, int(name.split("/")[-2]))
    images = [{"id": 10 + at, "file_name": name} for at, name in enumerate(names)]
    annotations = [{"image_id": 10 + at, "category_id": int(name.split("/")[-2])} for at, name in enumerate(names)]
    (root / "val2018.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return 4


def folder(root: Path) -> int:
    for name in ("a/0.png", "a/deep/1.png", "b/2.png", "b/3.png", "b/4.png"):
        make_image(root / name, ord(name[0]))
    (root / "notes.txt").write_text("no image")
    return 5


LAYOUTS = {
    "cub": (cub, "cub", 3),
    "sop": (sop, "sop", 2),
    "inshop": (inshop, "inshop", 3),
    "inaturalist": (inaturalist, "inaturalist", 2),
    "inaturalist_json": (inaturalist_json, "inaturalist_val2018", 2),
    "folder": (folder, "some_set", 2),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_image_teacher(tmp_path_factory.mktemp("teacher") / "vit")


def run(root: Path, out: Path, *options: str) -> dict:
    arguments = ["evaluate", "images", "--root", str(root), "--out", str(out), "--num_workers", "0", "--device", "cpu"]
    assert main([*arguments, *options]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("explicit", [False, True])
def test_layouts(tmp_path, teacher, layout, explicit, capsys):
    build, name, classes = LAYOUTS[layout]
    root = tmp_path / "some_set"
    root.mkdir()
    images = build(root)
    options = ["--layout", layout.removesuffix("_json")] if explicit else []
    found = run(root, tmp_path / "new" / "figures.json", "--model", teacher, "--batch_size", "2", *options)
    about = found.pop("about")
    assert found == {f"images/{name}/{figure}": 100 for figure in ("r1", "r10", "map_at_r", "r_precision")}
    data = about["data"]
    assert (data["images"], data["classes"], data["name"]) == (images, classes, name)
    assert data["queries"] == (2 if name == "inshop" else images)
    assert data["queries_left_out"] == 0
    printed = capsys.readouterr().out
    assert f"images/{name}/map_at_r" in printed
    assert ("in the published protocol" in printed) == (layout in ("cub", "sop", "inshop", "inaturalist"))
    assert about["model"]["encoder"] == "vit"
    assert about["space"] == {"images": "cross"}
    assert str(tmp_path) not in json.dumps(about)


@pytest.mark.slow
def test_both_spaces_of_a_checkpoint_are_measured_reproducibly(tmp_path, checkpoint, plain_checkpoint, capsys):
    root = tmp_path / "birds"
    for number in range(12):
        make_image(root / f"{number % 3}" / f"{number}.png", number)
    make_image(root / "alone" / "0.png", 99)
    options = ["--ckpt_path", checkpoint, "--space", "both"]
    found = run(root, tmp_path / "a.json", *options, "--tile", "2")
    assert run(root, tmp_path / "b.json", *options, "--batch_size", "3")["about"] == found["about"]
    run(root, tmp_path / "c.json", *options, "--tile", "2")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "c.json").read_bytes()
    assert found["about"]["space"] == {"images": "uni", "images_cross": "cross"}
    assert found["about"]["model"]["checkpoint"] == "model.ckpt"
    assert found["about"]["data"]["queries_left_out"] == 1
    assert "skipped 1 of 13 queries" in capsys.readouterr().out
    assert found["images/birds/map_at_r"] != found["images_cross/birds/map_at_r"]
    for space, prefix in (("uni", "images"), ("cross", "images_cross")):
        alone = run(root, tmp_path / "d.json", "--ckpt_path", checkpoint, "--space", space)
        assert alone["images/birds/map_at_r"] == pytest.approx(found[f"{prefix}/birds/map_at_r"], rel=1e-12)
    assert run(root, tmp_path / "e.json", "--ckpt_path", plain_checkpoint)["about"]["space"] == {"images": "cross"}


def test_the_counts_are_those_of_the_search(tmp_path, teacher, capsys):
    root = tmp_path / "birds"
    for number in range(6):
        make_image(root / f"{number % 2}" / f"{number}.png", number)
    make_image(root / "alone" / "0.png", 99)
    (root / "0" / "copy.png").write_bytes((root / "0" / "0.png").read_bytes())
    found = run(root, tmp_path / "a.json", "--model", teacher)
    data = found["about"]["data"]
    assert (data["images"], data["queries"], data["gallery"], data["queries_left_out"]) == (8, 8, 8, 1)
    assert data["equal_images"] == 1
    hits = found["images/birds/r1"] * (data["queries"] - data["queries_left_out"]) / 100
    assert hits == pytest.approx(round(hits), abs=1e-6)
    assert "1 images are equal to another one" in capsys.readouterr().out


def fails(root: Path, out: Path, teacher: str, capsys, *options: str) -> str:
    arguments = ["evaluate", "images", "--root", str(root), "--out", str(out), "--num_workers", "0", "--device", "cpu"]
    assert main([*arguments, "--model", teacher, *options]) == 1
    assert not out.exists()
    return capsys.readouterr().err


def test_a_damaged_image_is_named_in_the_error(tmp_path, teacher, capsys):
    folder(tmp_path / "set")
    (tmp_path / "set/b/3.png").write_bytes(b"<html>")
    message = fails(tmp_path / "set", tmp_path / "a.json", teacher, capsys)
    assert "could not decode 1 of 5 images" in message
    assert "b/3.png" in message


def test_wrong_arguments_are_reported(tmp_path, teacher, capsys):
    out = tmp_path / "a.json"
    assert "nowhere does not exist" in fails(tmp_path / "nowhere", out, teacher, capsys)
    (tmp_path / "set").mkdir()
    message = fails(tmp_path / "set", out, teacher, capsys)
    assert "contains neither images in one folder per class" in message
    assert "Ebay_test.txt" in message
    message = fails(tmp_path / "set", out, teacher, capsys, "--layout", "inshop")
    assert "does not contain list_eval_partition" in message
    make_image(tmp_path / "set" / "a.png", 0)
    assert "is not in a class folder" in fails(tmp_path / "set", out, teacher, capsys)
    (tmp_path / "set" / "a.png").unlink()
    make_image(tmp_path / "set" / "a" / "a.png", 0)
    assert "nothing to retrieve" in fails(tmp_path / "set", out, teacher, capsys)
    assert "--tile is 0" in fails(tmp_path / "set", out, teacher, capsys, "--tile", "0")
    assert "ends in .json" in fails(tmp_path / "set", tmp_path / "a.txt", teacher, capsys)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("Ebay_test.txt", "image_id class_id super_class_id path\n1 1 1\n", "line 2: expected 4 words, found 3"),
        ("Ebay_test.txt", "image_id class_id super_class_id path\n1 1 1 a.JPG\n", "1 of 1 images are missing"),
        ("Ebay_test.txt", "image_id class_id super_class_id path\n", "contains no test images"),
        ("val2018.json", "{}", "is not an iNaturalist annotation file"),
        ("Inaturalist_test_set1.txt", "a.png\n", "expected a path such as FOLDER/.../CLASS/IMAGE"),
        ("image_class_labels.txt", "1 101\n", "could not read .*images.txt"),
    ],
)
def test_damaged_lists_are_reported(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_images(tmp_path, "auto")


def test_images_of_one_class_are_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in "ab":
        (tmp_path / "photos" / f"{name}.jpg").touch()
    with pytest.raises(UserError, match="are in one class, 'photos'"):
        read_images(tmp_path, "auto")


def test_in_shop_without_queries(tmp_path, teacher, capsys):
    inshop(tmp_path)
    path = tmp_path / "Eval" / "list_eval_partition.txt"
    path.write_text(path.read_text().replace("query", "train"))
    assert "lists no query images or no gallery images" in fails(tmp_path, tmp_path / "a.json", teacher, capsys)


def test_nan_embeddings_are_refused(tmp_path, plain_checkpoint, capsys):
    weights = torch.load(plain_checkpoint, weights_only=True)
    for value in weights["state_dict"].values():
        if value.is_floating_point():
            value.fill_(torch.nan)
    torch.save(weights, tmp_path / "nan.ckpt")
    folder(tmp_path / "set")
    arguments = ["evaluate", "images", "--root", str(tmp_path / "set"), "--out", str(tmp_path / "a.json")]
    assert main([*arguments, "--ckpt_path", str(tmp_path / "nan.ckpt"), "--device", "cpu", "--num_workers", "0"]) == 1
    assert "the embedding of the image a/0.png is not finite (5 such rows)" in capsys.readouterr().err
