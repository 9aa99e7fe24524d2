"""From shards to batches: order, captions and damaged samples."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data._utils import signal_handling
from torchvision.transforms import InterpolationMode, v2

from itr.backbones import VSE
from itr.data.shards.locations import find_split
from itr.data.shards.schema import stable_id
from itr.data.shards.tars import read_tar
from itr.data.shards.writer import Record, write_split
from itr.errors import UserError
from itr.images.transforms import Augmentation, decode
from loaders import make_loader, same, small_backbone
from third_party import write_tar
from web import Web


@pytest.fixture(scope="module")
def backbone() -> VSE:
    return small_backbone()


def test_training_batches_are_full_equal_and_of_known_length(scenes, backbone):
    seen: Counter[int] = Counter()
    for rank in range(3):
        loader = make_loader(scenes, "train", backbone, True, rank=rank, world=3)
        batches = list(loader)
        assert len(loader) == len(batches) == 3
        assert all(len(batch) == len(batch.image) == 4 for batch in batches)
        seen.update(int(i) for batch in batches for i in batch.image_id)
    assert len(seen) == 36
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("workers", [0, 2])
def test_fewer_shards_than_processes_and_workers_are_enough(tmp_path, backbone, workers):
    """One shard, read in equal parts, each image once. In evaluation, a process without its own images takes part."""
    write_split((bad_record(4 * i + 1) for i in range(26)), tmp_path, "train", 100)
    loaders = [make_loader(tmp_path, "train", backbone, True, rank=r, world=3, workers=workers) for r in range(3)]
    batches = [list(loader) for loader in loaders]
    assert [len(each) for each in batches] == [2, 2, 2]
    ids = [int(i) for each in batches for batch in each for i in batch.image_id]
    assert len(set(ids)) == len(ids) == 24
    many = [make_loader(tmp_path, "train", backbone, False, rank=r, world=40) for r in (0, 17, 39)]
    assert [[len(batch.image) for batch in loader] for loader in many] == [[1], [1], [1]]


def test_order_captions_and_crops_depend_only_on_seed_and_epoch(scenes, backbone):
    first, again = (list(make_loader(scenes, "train", backbone, True)) for _ in range(2))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    for other in ({"position": (1, 0)}, {"seed": 1}):
        assert not any(
            same(a, b) for a, b in zip(first, make_loader(scenes, "train", backbone, True, **other), strict=True)
        )


def test_pixels_order_and_captions_of_a_seed_are_unchanged(scenes, backbone):
    """The crop is that of torchvision v2 with its own seed; the order is hard-coded here."""
    size, mode = backbone.image_spec.size, InterpolationMode(backbone.image_spec.interpolation)
    crop = v2.RandomResizedCrop(size, Augmentation().crop_scale, Augmentation().crop_ratio, interpolation=mode)
    shards = sorted((scenes / "train").glob("*.tar"))
    samples = {sample.image_id: sample for shard in shards for sample in read_tar(shard)}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    stream = make_loader(scenes, "train", backbone, True).dataset
    stream.begin(3, 0)
    batches = list(stream)
    assert torch.equal(torch.get_rng_state(), before)
    assert [batch.image_id.tolist() for batch in batches[:3]] == ORDER
    assert [batch.text_id.tolist() for batch in batches[:3]] == CAPTIONS
    for batch in batches:
        for row, (image, text) in enumerate(zip(batch.image_id.tolist(), batch.text_id.tolist(), strict=True)):
            torch.manual_seed(stable_id(0, 3, image, samples[image].caption_ids.index(text)))
            assert torch.equal(batch.image[row], crop(decode(samples[image].image, 10**6)))


ORDER = [[28, 34, 41, 35], [29, 32, 43, 27], [2, 1, 7, 40]]
CAPTIONS = [[79, 96, 118, 99], [83, 91, 126, 74], [8, 5, 17, 114]]


@pytest.mark.slow
def test_spawned_workers_give_the_same_batches(scenes, backbone):
    here = list(make_loader(scenes, "train", backbone, True))
    spawned = list(make_loader(scenes, "train", backbone, True, workers=1, start_method="spawn"))
    assert all(same(a, b) for a, b in zip(here, spawned, strict=True))


def test_a_worker_that_has_just_started_survives_a_signal(scenes, backbone, monkeypatch):
    """The signal arrives right after torch has installed its own handler in the worker."""

    def then_a_signal(make_ready=signal_handling._set_worker_signal_handlers) -> None:
        make_ready()
        os.kill(os.getpid(), signal.SIGTERM)

    here = list(make_loader(scenes, "train", backbone, True))
    monkeypatch.setattr(signal_handling, "_set_worker_signal_handlers", then_a_signal)
    there = list(make_loader(scenes, "train", backbone, True, workers=1))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_continues_with_the_next_batch(scenes, backbone, workers):
    whole = list(make_loader(scenes, "train", backbone, True, (5, 0), workers=workers))
    rest = list(make_loader(scenes, "train", backbone, True, (5, 3), workers=workers))
    assert len(rest) == len(whole) - 3
    assert all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))


@pytest.mark.slow
def test_shards_behind_a_url_give_the_same_batches(scenes, backbone):
    here = list(make_loader(scenes, "train", backbone, True, workers=2))
    with Web(scenes, fail_every=7) as web:
        there = list(make_loader(web.url, "train", backbone, True, workers=2))
        rest = list(make_loader(web.url, "train", backbone, True, (0, 5), workers=2))
        found = list(make_loader(web.url, "test", backbone, False, rank=1, world=3, workers=2))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert all(same(a, b) for a, b in zip(here[5:], rest, strict=True))
    expected = make_loader(scenes, "test", backbone, False, rank=1, world=3, workers=2)
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))


def test_every_caption_is_eventually_drawn(scenes, backbone):
    drawn = {
        int(i)
        for epoch in range(16)
        for batch in make_loader(scenes, "train", backbone, True, (epoch, 0))
        for i in batch.text_id
    }
    assert len(drawn) > 0.9 * find_split(scenes, "train").captions


def test_every_caption_makes_a_pair(scenes, backbone):
    total = find_split(scenes, "train").captions
    batches = list(make_loader(scenes, "train", backbone, True, captions="all"))
    assert len(batches) == total // 4
    ids = [int(i) for batch in batches for i in batch.text_id]
    assert len(set(ids)) == len(ids) == total // 4 * 4


def test_several_captions_share_one_encoding_of_their_image(scenes, backbone):
    for batch in make_loader(scenes, "train", backbone, True, captions=3):
        assert batch.image.shape[0] == 4
        assert batch.image_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
        assert len(batch) == 12


@pytest.mark.parametrize("world", [1, 2, 5, 20])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_every_image_with_all_its_captions(scenes, backbone, world, workers):
    if workers and world != 2:
        return  # one case with workers is enough
    images, texts, lengths = set(), set(), set()
    for rank in range(world):
        loader = make_loader(scenes, "test", backbone, False, rank=rank, world=world, workers=workers)
        batches = list(loader)
        lengths.add(len(batches))
        for batch in batches:
            images |= set(batch.image_id.tolist())
            texts |= set(batch.text_id.tolist())
            assert set(batch.image_index.tolist()) == set(range(len(batch.image)))
    split = find_split(scenes, "test")
    assert (len(images), len(texts), len(lengths)) == (split.images, split.captions, 1)


def bad_record(number: int) -> Record:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "JPEG")
    return Record(buffer.getvalue()[: None if number % 4 else 100], "jpg", [f"image {number}"], f"{number}.jpg")


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Sixteen images, four of which are truncated."""
    write_split((bad_record(i) for i in range(16)), tmp_path, "train", 5)
    return tmp_path


def test_a_bad_training_image_is_reported_counted_and_replaced(damaged, backbone, caplog):
    loader = make_loader(damaged, "train", backbone, True, max_skipped=4)
    with caplog.at_level(logging.WARNING, logger="itr"):
        logging.getLogger("itr").propagate = True
        batches = list(loader)
    assert [len(batch.image) for batch in batches] == [4] * 4
    assert loader.dataset.skipped == 4
    assert all(int(i) % 4 for batch in batches for i in batch.image_id)
    assert len({message for message in caplog.messages if "could not decode" in message}) == 4
    assert "0.jpg" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_training_images_stop_the_run(damaged, backbone, workers):
    with pytest.raises(UserError, match=r"4 bad images, more than data.max_skipped = 3"):
        list(make_loader(damaged, "train", backbone, True, max_skipped=3, workers=workers))
    assert not multiprocessing.active_children()


def test_evaluation_refuses_a_bad_image_by_name(damaged, backbone):
    with pytest.raises(UserError, match=r"could not decode image .*0\.jpg"):
        list(make_loader(damaged, "train", backbone, False))


def test_tars_of_other_tools_are_read_without_a_manifest(tmp_path, backbone):
    image = bad_record(1).image
    members = {"a.jpg": image, "a.txt": b"one", "b.jpg": image, "b.json": json.dumps({"caption": "two"}).encode()}
    write_tar(tmp_path / "train" / "00000.tar", members)
    (batch,) = make_loader(tmp_path, "train", backbone, False)
    assert len(set(batch.image_id.tolist())) == len(set(batch.text_id.tolist())) == 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"x", "a.json": b'{"key": "a"}'}, "a has no caption"),
        ({"a.jpg": b"x", "a.json": b"{broken"}, "could not read|not valid JSON"),
        ({"a.json": b'{"captions": ["x"]}', "b.jpg": b"x", "b.txt": b"x"}, "a has no image"),
    ],
)
def test_an_incomplete_sample_is_reported(tmp_path, backbone, members, message):
    write_tar(tmp_path / "train" / "0.tar", members)
    with pytest.raises(UserError, match=message):
        list(make_loader(tmp_path, "train", backbone, True, batch_items=1))


def test_samples_with_an_empty_text_are_skipped_in_training_and_refused_in_evaluation(tmp_path, backbone):
    """Large web image collections contain such samples."""
    image = bad_record(1).image
    texts = {"a": b'{"caption": "one"}', "b": b'{"caption": null}', "c": b'{"caption": "  "}', "d": b'{"caption": "4"}'}
    members = {f"{key}.{kind}": data for key, text in texts.items() for kind, data in (("jpg", image), ("json", text))}
    write_tar(tmp_path / "train" / "0.tar", members)
    loader = make_loader(tmp_path, "train", backbone, True, batch_items=4)
    (batch,) = loader
    assert len(batch) == 4
    assert len(set(batch.image_id.tolist())) == 2
    assert loader.dataset.skipped == 2
    with pytest.raises(UserError, match=r"0.tar:b has no caption\. Skipping it would change the metrics"):
        list(make_loader(tmp_path, "train", backbone, False))


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_texts_are_reported_once_with_their_share(tmp_path, backbone, caplog, workers):
    image, limit = bad_record(1).image, backbone.tokenizer.max_length
    records = [Record(image, "jpg", ["red " * (1000 if i % 4 == 0 else limit - 3)], f"{i}.jpg") for i in range(16)]
    write_split(iter(records), tmp_path, "train", 8)
    loader = make_loader(tmp_path, "train", backbone, True, workers=workers)
    for _ in range(2):
        batches = list(loader)
    (warning,) = [text for text in caplog.messages if "are truncated" in text]
    assert warning == f"25% of the first 16 captions reach the limit of {limit} tokens; longer ones are truncated"
    ends = {int(row[mask][-1]) for batch in batches for row, mask in zip(batch.text.ids, batch.text.mask, strict=True)}
    assert ends == {backbone.tokenizer.end_id}  # each keeps its end token, even if truncated
    list(make_loader(tmp_path, "train", backbone, True, rank=1, world=2))
    list(make_loader(tmp_path, "train", backbone, False))
    assert len([t for t in caplog.messages if "are truncated" in t]) == 1  # not by other processes or in evaluation


def test_images_have_any_number_of_captions_and_evaluation_uses_the_standard_ones(tmp_path, backbone):
    image = bad_record(1).image
    records = [Record(image, "jpg", [f"{i} {c}" for c in range(n)], f"{i}.jpg") for i, n in enumerate((1, 6, 2, 7))]
    records[3].meta["standard"] = 5  # as in the shards of COCO
    write_split(iter(records), tmp_path, "train", 4)
    (batch,) = make_loader(tmp_path, "train", backbone, False)
    assert batch.image_index.tolist() == [0] + [1] * 6 + [2] * 2 + [3] * 5
    (batch,) = make_loader(tmp_path, "train", backbone, True, captions=3)
    assert batch.image_index.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3  # images with fewer captions repeat them


def test_missing_shards_are_reported(tmp_path, scenes):
    with pytest.raises(UserError, match=r"the shard folder \S+ does not exist"):
        find_split(tmp_path / "none", "train")
    with pytest.raises(UserError, match=r"no shards match .*train"):
        find_split(tmp_path, "train")
    with pytest.raises(UserError, match=r"no split 'tests' \(it has: test, train, val\)"):
        find_split(scenes, "tests")
    copy = tmp_path / "copy"
    shutil.copytree(scenes, copy)
    (copy / "train" / "000001.tar").unlink()
    with pytest.raises(UserError, match=r"000001.tar of the manifest does not exist"):
        find_split(copy, "train")


def test_a_truncated_shard_is_reported(tmp_path, scenes, backbone):
    shutil.copytree(scenes, tmp_path / "copy")
    shard = tmp_path / "copy" / "train" / "000002.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError, match=r"000002.tar"):
        list(make_loader(tmp_path / "copy", "train", backbone, True))


def test_the_same_records_give_the_same_bytes(tmp_path):
    found = [write_split((bad_record(i) for i in range(7)), tmp_path / str(n), "train", 3) for n in range(2)]
    assert [shard.sha256 for shard in found[0].shards] == [shard.sha256 for shard in found[1].shards]
    assert [shard.images for shard in found[0].shards] == [3, 3, 1]
    assert not list(tmp_path.rglob("*.tmp"))


def test_processes_and_workers_shuffle_in_different_ways(scenes, backbone):
    """If all drew the same places from their buffers, images with equal places would meet in every epoch."""

    def order(rank: int, buffer: int) -> list[int]:
        loader = make_loader(scenes, "train", backbone, True, rank=rank, world=2, shuffle_buffer=buffer)
        return [int(image) for batch in loader for image in batch.image_id]

    places = [[order(rank, 0).index(image) for image in order(rank, 100)] for rank in (0, 1)]
    assert sorted(places[0]) == sorted(places[1])
    assert places[0] != places[1]
