"""Third-party features: matched by source ids and by nodes, and converted to files that training reads."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from itr.data.features.stored import FeatureFile
from itr.data.shards.locations import find_split
from itr.data.shards.schema import data_identity
from itr.data.shards.tars import read_tar
from itr.errors import UserError
from itr.passes.features import make_features
from raw_trees import make_image


def shards(folder: Path, splits: dict[str, list[dict]]) -> Path:
    """Write one shard per split; each sample has the given fields and one caption."""
    make_image(folder / "image.jpg")
    for split, metas in splits.items():
        (folder / split).mkdir()
        with tarfile.open(folder / split / "000000.tar", "w") as tar:
            for at, meta in enumerate(metas):
                text = {"image_id": at, "captions": ["x"], "caption_ids": [at], "name": f"{at}.jpg", **meta}
                image = (folder / "image.jpg").read_bytes()
                for ending, data in (("jpg", image), ("json", json.dumps(text).encode())):
                    member = tarfile.TarInfo(f"{at:06d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


NODES = {"train": [4, 0, 2], "test": [1, 5]}


@pytest.fixture
def graph(tmp_path) -> Path:
    return shards(tmp_path / "shards", {split: [{"node": n} for n in nodes] for split, nodes in NODES.items()})


def rows(folder: Path, out: Path, modality: str, split: str) -> torch.Tensor:
    found = find_split(folder, split)
    samples = [sample for shard in found.shards for sample in read_tar(shard.place)]
    ids = [sample.image_id for sample in samples] if modality == "image" else [s.caption_ids[0] for s in samples]
    return FeatureFile.open(out, split, modality, data_identity(found), folder).rows(ids)


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("dtype", ["float32", "float16", ">f8"])
def test_rows_of_an_array_are_matched_by_node(graph, tmp_path, modality, dtype):
    array = np.random.default_rng(0).normal(size=(6, 5)).astype(dtype)
    np.save(tmp_path / "features.npy", array)
    make_features(
        str(graph), modality, str(tmp_path / "out"), splits="train,test", from_npy=str(tmp_path / "features.npy")
    )
    for split, nodes in NODES.items():
        expected = torch.from_numpy(array[nodes].astype(np.float32)).half()
        assert torch.equal(rows(graph, tmp_path / "out", modality, split), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_contains_the_text_then_the_image(graph, tmp_path, dtype, zipped):
    both = torch.randn(6, 8).to(dtype)
    file = tmp_path / "clip_feat.pt"
    torch.save(both, file, _use_new_zipfile_serialization=zipped)
    for modality, half in (("text", both[:, :4]), ("image", both[:, 4:])):
        make_features(str(graph), modality, str(tmp_path / "out"), splits="train,test", from_npy=str(file))
        for split, nodes in NODES.items():
            assert torch.equal(rows(graph, tmp_path / "out", modality, split), half[nodes].half())


def fails(data: Path, file: Path, message: str, modality: str = "image", **options) -> None:
    with pytest.raises(UserError, match=message):
        make_features(str(data), modality, str(file.parent / "out"), from_npy=str(file), **options)


def test_mismatched_arrays_are_refused(graph, tmp_path):
    file = tmp_path / "features.npy"
    for array, message in (
        (np.zeros((4, 2)), "4 rows, but the shards contain node 4"),
        (np.zeros(4), r"float64 \[4\]; expected floating-point numbers"),
        (np.zeros((9, 2), dtype=np.int64), r"int64 \[9, 2\]; expected floating-point numbers"),
    ):
        np.save(file, array)
        fails(graph, file, message)
    np.save(file, np.zeros((9, 2)))
    fails(graph, file, "remove --model", model="x")
    plain = shards(tmp_path / "plain", {"train": [{}]})
    fails(plain, file, r"has one row per node, but '0.jpg' .*`itr prepare mag`")
    several = shards(tmp_path / "several", {"train": [{"node": 0, "captions": ["x", "y"], "caption_ids": [0, 1]}]})
    fails(several, file, "nodes with several captions", "text")
    file.write_text("<html>")
    fails(graph, file, "is not a NumPy or torch file")
    fails(graph, tmp_path / "gone.npy", "gone.npy does not exist")


def test_mismatched_tensors_are_refused(graph, tmp_path):
    file = tmp_path / "clip_feat.pt"
    for value, message in (
        (torch.zeros(9, 3), r"contains \[9, 3\]"),
        ({"a": torch.zeros(9, 4)}, "contains dict"),
        (tarfile.TarInfo("x"), "could not read .* as a tensor"),
    ):
        torch.save(value, file)
        fails(graph, file, message)
    file.write_text("<html>")
    fails(graph, file, "could not read .* as a tensor")


def test_a_dictionary_is_matched_by_the_id_in_the_source(tmp_path):
    data = shards(tmp_path / "shards", {"train": [{"source_id": at} for at in (2, 0, 1)], "val": [{}]})
    vectors = {at: np.full((1, 3), float(at), np.float32) for at in range(3)}
    file = tmp_path / "train_unicom.npy"
    np.save(file, vectors, allow_pickle=True)
    options = {"trust_pickle": True}
    make_features(str(data), "image", str(tmp_path / "out"), from_npy=str(file), **options)
    assert rows(data, tmp_path / "out", "image", "train")[:, 0].tolist() == [2, 0, 1]
    fails(data, file, "add --trust_pickle true")
    fails(data, file, "covers one split", splits="train,val", **options)
    fails(data, file, "give --modality image", "text", **options)


@pytest.mark.parametrize("key", [str, float, np.int64])
def test_ids_of_a_dictionary_may_be_texts_or_floats(tmp_path, key):
    data = shards(tmp_path / "shards", {"train": [{"source_id": at} for at in (2, 0, 1)]})
    file = tmp_path / "train_unicom.npy"
    np.save(file, {key(at): np.full((1, 3), float(at), np.float32) for at in range(3)}, allow_pickle=True)
    make_features(str(data), "image", str(tmp_path / "out"), from_npy=str(file), trust_pickle=True)
    assert rows(data, tmp_path / "out", "image", "train")[:, 0].tolist() == [2, 0, 1]


def test_ids_that_would_lose_their_fraction_are_refused(tmp_path):
    data = shards(tmp_path / "shards", {"train": [{"source_id": 0}, {"source_id": 1}]})
    file = tmp_path / "train_unicom.npy"
    np.save(file, {at: np.ones((1, 3), np.float32) for at in (0.5, 1.5)}, allow_pickle=True)
    fails(data, file, "the id 0.5 is neither a whole number nor a text", trust_pickle=True)
