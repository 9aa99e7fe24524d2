"""webdataset reads shards of itr, and itr those of webdataset; and why itr reads tars itself."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from itr.data.shards.locations import find_split
from itr.data.shards.tars import read_tar
from itr.data.shards.writer import Record, write_split
from itr.errors import UserError
from itr.images.transforms import decode
from third_party import make_image, write_tar

# webdataset does not close the tars that it has read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


def webdataset(path: Path | str) -> wds.WebDataset:
    return wds.WebDataset(str(path), shardshuffle=False)


def fields(path: Path) -> list[tuple[str, list[str]]]:
    """Keys and fields of the samples that webdataset reads."""
    return [(s["__key__"], sorted(name for name in s if not name.startswith("__"))) for s in webdataset(path)]


def test_webdataset_decodes_the_shards_of_itr(tmp_path: Path) -> None:
    images = [make_image(number, 16 + number) for number in range(5)]
    captions = [[f"caption {n}", "caf\u00e9 \U0001f431"] for n in range(5)]
    records = [Record(images[n], "jpg", captions[n], f"{n}.jpg", {"source": "made"}) for n in range(5)]
    split = write_split(records, tmp_path, "train", shard_size=3)
    assert [shard.images for shard in split.shards] == [3, 2]
    read = list(webdataset(f"{tmp_path}/train/{{000000..000001}}.tar").decode("rgb8"))
    assert [sample["__key__"] for sample in read] == [f"{n:09d}" for n in range(5)]
    for number, sample in enumerate(read):
        assert np.array_equal(sample["jpg"], np.asarray(Image.open(io.BytesIO(images[number]))))
        assert sample["json"]["captions"] == captions[number]
        assert sample["json"]["caption_ids"] == [2 * number, 2 * number + 1]
        assert sample["json"]["source"] == "made"


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_itr_reads_shards_of_webdataset(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    grey = rng.random((5, 4, 4, 1)).repeat(3, axis=3)
    pixels = np.kron(grey, np.ones((1, 8, 8, 1))).astype(np.float32)  # in blocks and without colour, as JPEG keeps it
    with wds.ShardWriter(f"{tmp_path}/%05d.tar", maxcount=2, verbose=0) as writer:
        for number in range(5):
            caption = f"caption {number}, caf\u00e9"
            text = caption if kind == "txt" else {"caption": caption}
            writer.write({"__key__": f"folder/{number:04d}", "jpg": pixels[number], kind: text})
    split = find_split(tmp_path, "{00000..00002}.tar")
    assert [shard.images for shard in split.shards] == [2, 2, 1]
    samples = [sample for shard in split.shards for sample in read_tar(shard.place)]
    assert [sample.captions for sample in samples] == [[f"caption {n}, caf\u00e9"] for n in range(5)]
    for sample, wanted in zip(samples, pixels, strict=True):
        error = np.abs(decode(sample.image, 10**9).permute(1, 2, 0).numpy() - 255 * wanted)
        assert error.mean() < 2


# Why itr reads tars itself: see the docstring of itr.data.shards.tars


def test_members_that_are_not_adjacent_are_refused_where_webdataset_loses_samples(tmp_path: Path) -> None:
    members = {"a.jpg": make_image(0), "b.jpg": make_image(1), "a.txt": b"one", "b.txt": b"two"}
    tar = write_tar(tmp_path / "0.tar", members)
    assert fields(tar) == [("a", ["jpg"]), ("b", ["jpg"]), ("a", ["txt"]), ("b", ["txt"])]
    complete = webdataset(tar).select(lambda sample: {"jpg", "txt"} <= sample.keys())
    assert list(complete) == []  # and no message about the two samples
    with pytest.raises(UserError, match="a"):
        list(read_tar(tar))


def test_keys_with_dots_are_refused_where_webdataset_merges_samples(tmp_path: Path) -> None:
    members = {"v1.0.jpg": make_image(0), "v1.0.txt": b"one", "v1.1.jpg": make_image(1), "v1.1.txt": b"two"}
    tar = write_tar(tmp_path / "0.tar", members)
    assert fields(tar) == [("v1", ["0.jpg", "0.txt", "1.jpg", "1.txt"])]
    with pytest.raises(UserError, match="v1"):
        list(read_tar(tar))


def test_pickles_are_skipped_where_webdataset_loads_them(tmp_path: Path) -> None:
    members = {"a.jpg": make_image(0), "a.pyd": pickle.dumps({"width": 3}), "a.txt": b"one"}
    tar = write_tar(tmp_path / "0.tar", members)
    (sample,) = webdataset(tar).decode()
    assert sample["pyd"] == {"width": 3}
    (own,) = read_tar(tar)
    assert own.captions == ["one"]
    assert "pyd" not in json.dumps(own.meta)


def test_reading_can_start_at_a_sample_without_the_images_before_it(tmp_path: Path) -> None:
    members = {}
    for number in range(4):
        members |= {f"{number}.jpg": make_image(number), f"{number}.txt": str(number).encode()}
    tar = write_tar(tmp_path / "0.tar", members)
    assert [sample.captions for sample in read_tar(tar, skip=2)] == [["2"], ["3"]]
    assert not {"skip", "state_dict", "load_state_dict"} & set(dir(webdataset(tar)))
