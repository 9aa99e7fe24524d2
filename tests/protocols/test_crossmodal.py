"""The commands `itr evaluate coco | eccv | cxc | transfer`, with embeddings and with shards and a checkpoint."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from itr.cli import main
from itr.data.shards.schema import Sample
from itr.embedding.files import load_embeddings, pooled_only
from itr.errors import UserError
from itr.evaluation.correlation import correlation
from itr.evaluation.gallery import Gallery
from itr.protocols.coco import caption_ids, count_queries, judged, standard, truth_of
from itr.protocols.scored import by_coco_ids
from tiny import save_checkpoint


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic embeddings of the whole COCO test set, in random order, and of one image with two captions more."""
    rng = np.random.default_rng(0)
    owner, ids = judged("original", "t2i"), rng.permutation([*caption_ids(), 1, 2])
    image_id = rng.permutation([*sorted(judged("original", "i2t")), 1])
    path = tmp_path_factory.mktemp("coco") / "e.npz"
    text = {"text": rng.normal(size=(25002, 4)).astype(np.float32), "caption_id": ids}
    image = {"image": rng.normal(size=(5001, 4)).astype(np.float32), "image_id": image_id}
    owners = np.array([owner[i][0] if i > 2 else 1 for i in ids.tolist()])
    image["image_same_as"] = np.where(np.isin(image_id, image_id[image_id > 1][:3]), 1, image_id)  # three are equal
    np.savez(path, **image, **text, caption_image_id=owners)
    return path


def run(protocol: str, out: Path, *options: str) -> dict:
    assert main(["evaluate", protocol, "--out", str(out), "--device", "cpu", *options]) == 0
    return json.loads(out.read_text())


@pytest.mark.slow
def test_coco_of_embeddings(embeddings, tmp_path, capsys):
    found = run("coco", tmp_path / "a.json", "--embeddings", str(embeddings))
    assert {"coco5k/i2t_r1", "coco5k/rsum", "coco1k/t2i_r10", "coco1k/rsum", "about"} <= set(found)
    assert found["coco1k/t2i_r10"] == pytest.approx(1.0, abs=0.3)  # chance
    assert "25,000 captions" in found["about"]["protocol"]
    assert len(found["about"]["model"]["blake2b"]) == 32
    # The published protocol keeps equal images: they are counted and reported, and the image and captions that are not
    # in it are not counted.
    assert found["about"]["data"] == {"images": 5000, "captions": 25000, "equal_images": 2}
    assert 5000 * found["coco5k/i2t_meanr"] == pytest.approx(round(5000 * found["coco5k/i2t_meanr"]))
    printed = capsys.readouterr().out
    assert "2 images are equal to another one; the protocol keeps them" in printed
    assert "wrote" in printed


@pytest.mark.parametrize("judge", ["eccv", "cxc"])
def test_queries_are_counted_as_they_are_ranked(embeddings, judge):
    gallery, truth = standard(load_embeddings(embeddings)), truth_of(judge)
    counted = count_queries(gallery, truth)
    for way, expected in zip(("i2t", "t2i"), {"eccv": (1261, 1332), "cxc": (5000, 24972)}[judge], strict=True):
        assert counted[way] == expected
        queries = torch.tensor([query for query, matches in truth[way].items() if matches])
        assert len(queries) == expected


@pytest.mark.slow
def test_eccv_and_plausible_matches_of_embeddings(embeddings, tmp_path, capsys):
    found = run("eccv", tmp_path / "b.json", "--embeddings", str(embeddings))
    assert set(found) == {f"eccv/{w}_{n}" for w in ("i2t", "t2i") for n in ("r1", "map_at_r", "r_precision")} | {
        "about"
    }
    assert found["about"]["data"]["queries"] == {"eccv": {"i2t": 1261, "t2i": 1332}}
    some = {str(i): [int(n) for n in judged("original", "i2t")[i]] for i in sorted(judged("original", "i2t"))[:40]}
    (tmp_path / "pm_image_to_caption.json").write_text(json.dumps(some))
    few = {str(n): [int(i)] for i, numbers in some.items() for n in numbers}
    (tmp_path / "pm_caption_to_image.json").write_text(json.dumps(few))
    found = run("eccv", tmp_path / "d.json", "--embeddings", str(embeddings), "--plausible", str(tmp_path))
    assert 0 <= found["pmrp/i2t"] < 5
    queries = found["about"]["data"]["queries"]["pmrp"]
    assert queries == {"i2t": len(some), "t2i": len(set(few) & set(map(str, caption_ids())))}
    (tmp_path / "pm_image_to_caption.json").unlink()
    assert (
        main(["evaluate", "eccv", "--embeddings", str(embeddings), "--out", "e.json", "--plausible", str(tmp_path)])
        == 1
    )
    assert "could not read the plausible matches" in capsys.readouterr().err


@pytest.mark.slow
def test_cxc_with_its_judgments(embeddings, tmp_path, capsys):
    ids, images = caption_ids()[:60], sorted(judged("original", "i2t"))[:60]
    rng = np.random.default_rng(1)
    names = {"sts": [f"COCO_val2014:sentid:{i}" for i in ids], "sis": [f"COCO_val2014_{i:012d}.jpg" for i in images]}
    columns = {"sts": ("caption1", "caption2"), "sis": ("image1", "image2"), "sits": ("caption", "image")}
    scores = rng.random(200) * 5
    picks = rng.integers(60, size=(200, 2))
    for name, (first, second) in columns.items():
        opened = gzip.open if name == "sis" else open
        with opened(tmp_path / f"{name}_test.csv{'.gz' * (name == 'sis')}", "wt", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow([first, second, "agg_score", "sampling_method"])
            sides = [names["sis" if "image" in column else "sts"] for column in (first, second)]
            writer.writerows([sides[0][a], sides[1][b], s, "x"] for (a, b), s in zip(picks, scores, strict=True))
    found = run("cxc", tmp_path / "c.json", "--embeddings", str(embeddings), "--root", str(tmp_path))
    with np.load(embeddings) as arrays:
        rows = {int(i): row for i, row in zip(arrays["caption_id"], arrays["text"].astype(np.float64), strict=True)}
    unit = [rows[int(i)] / np.linalg.norm(rows[int(i)]) for i in ids]
    wanted = correlation(np.array([unit[a] @ unit[b] for a, b in picks]).astype(np.float32), scores)
    assert found["cxc/sts_all"] == pytest.approx(100 * wanted)
    assert {"cxc/i2t_r1", "cxc/sis", "cxc/sis_std", "cxc/sits_all"} <= set(found)
    data = found["about"]["data"]
    assert (data["images"], data["captions"]) == (5000, 25000)
    assert data["pairs"] == {"sts": 200, "sis": 200, "sits": 200}
    hits = data["queries"]["cxc"]["t2i"] * found["cxc/t2i_r1"] / 100
    assert hits == pytest.approx(round(hits), abs=1e-6)
    assert abs(found["cxc/sts"]) < 30
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["evaluate", "cxc", "--embeddings", str(embeddings), "--root", str(empty), "--out", "x.json"]) == 1
    assert "contains neither sts_test.csv nor sts_test.csv.gz" in capsys.readouterr().err


@pytest.mark.slow
def test_transfer_evaluates_one_model_on_several_data_sets(scenes, tmp_path, capsys):
    checkpoint = save_checkpoint(tmp_path / "run", scenes)
    other = tmp_path / "other"
    other.symlink_to(scenes)
    options = ["--ckpt_path", checkpoint, "--data", str(scenes), "--num_workers", "0"]
    found = run("transfer", tmp_path / "t.json", *options, "--further", f"[{other}]")
    name = scenes.name
    assert found[f"transfer/{name}/rsum"] == found["transfer/other/rsum"] > 0
    assert found["about"]["data"]["other"]["images"] == 17
    assert found["about"]["data"][name]["split"] == "test"
    arguments = ["evaluate", "transfer", "--out", str(tmp_path / "u.json"), *options]
    assert main([*arguments, "--further", f"[{scenes}]"]) == 1
    assert "the same name" in capsys.readouterr().err
    assert main(["evaluate", "coco", "--out", str(tmp_path / "u.json"), *options]) == 1
    assert "no source_id, which is COCO's image id" in capsys.readouterr().err
    assert main(["evaluate", "coco", "--out", "u.json", "--ckpt_path", checkpoint]) == 1
    assert "give either --embeddings FILE, or --ckpt_path CKPT or --model NAME, and --data" in capsys.readouterr().err


def sample(image_id: int, source: int, ids: list[int], numbers: list[int] | None) -> Sample:
    meta = {"source_id": source} | ({"coco_caption_ids": numbers} if numbers else {})
    return Sample("a.tar:x", "x", b"", image_id, [""] * len(ids), ids, meta)


def test_shards_give_the_coco_ids():
    gallery = Gallery(
        pooled_only(torch.eye(2)), torch.arange(2), pooled_only(torch.eye(3)), torch.arange(3), torch.tensor([0, 0, 1])
    )
    samples = [sample(0, 391895, [0, 1], [771687, 770337]), sample(1, 60623, [2], [7])]
    found = by_coco_ids(gallery, iter(samples))
    assert found.image_id.tolist() == [60623, 391895]
    assert found.text_id.tolist() == [7, 770337, 771687]
    assert found.text_image_id.tolist() == [60623, 391895, 391895]
    assert torch.equal(found.text.pooled, torch.eye(3)[[2, 1, 0]])
    plain = [sample(0, 391895, [0, 1], None), sample(1, 60623, [2], None)]
    with pytest.raises(UserError, match="order of the 25,000"):
        by_coco_ids(gallery, iter(plain))


def test_plain_lines_in_the_order_of_the_list_have_its_ids():
    ids, owner = caption_ids(), judged("original", "t2i")
    images = [owner[int(i)][0] for i in ids[::5]]
    samples = [sample(n, image, list(range(5 * n, 5 * n + 5)), None) for n, image in enumerate(images)]
    gallery = Gallery(
        pooled_only(torch.ones(5000, 1)), torch.arange(5000),
        pooled_only(torch.arange(25000.0)[:, None] + 1), torch.arange(25000), torch.arange(25000) // 5,
    )  # fmt: skip
    found = by_coco_ids(gallery, iter(samples))
    place = {int(number): row for row, number in enumerate(ids)}
    assert found.text.pooled[:, 0].tolist() == [place[int(i)] + 1 for i in found.text_id]
    assert all(owner[int(i)][0] == int(image) for i, image in zip(found.text_id, found.text_image_id, strict=True))
