"""Shards at URLs: whole runs, network faults, copies on disk."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch

from itr.cli import main
from itr.data.model_fields import ModelFields
from itr.data.shards import remote, streams
from itr.data.shards.counts import count_shards
from itr.data.shards.locations import find_split, read_positives
from itr.data.shards.schema import Place, Sample, data_identity
from itr.data.shards.tars import open_shard, read_tar
from itr.errors import UserError
from itr.passes.features import make_features
from launching import ENOUGH
from third_party import downloaded
from tiny import TINY_VSE
from tiny_teachers import save_image_teacher
from web import Web


@pytest.fixture(scope="module", autouse=True)
def quick():
    """The usual number of tries, without the long waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "WAITS", (0.01, 0.02, 0.05, 0.1))
        yield


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Shards larger than what is read at once."""
    return downloaded(tmp_path_factory.mktemp("large"), 2, 8, stats=False, size=512)


def samples(root: Path | str, split: str = "train", cache: str | None = None) -> list[Sample]:
    return [sample for shard in find_split(root, split, cache).shards for sample in read_tar(shard.place)]


def same(first: list[Sample], second: list[Sample]) -> bool:
    parts = [[(s.image_id, s.caption_ids, s.captions, s.image) for s in found] for found in (first, second)]
    return parts[0] == parts[1]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_folder_with_a_manifest_is_read_by_its_url(scenes, ranges):
    with Web(scenes, ranges=ranges) as web:
        assert same(samples(web.url + "/"), samples(scenes))
        assert web.count(".tar", "HEAD") == 0  # the manifest has all counts
        assert data_identity(find_split(web.url, "train")) == data_identity(find_split(scenes, "train"))
        for ours, theirs in zip(read_positives(web.url, "test"), read_positives(scenes, "test"), strict=True):
            assert np.array_equal(ours, theirs)
        assert read_positives(web.url, "none") is None
        with pytest.raises(UserError, match=r"no split 'tests' \(it has: test, train, val\)"):
            find_split(web.url, "tests")


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("stats", [True, False])
def test_third_party_tars_are_read_by_their_urls(tmp_path, ranges, stats):
    here = samples(downloaded(tmp_path, stats=stats), "*.tar")
    with Web(tmp_path, ranges=ranges) as web:
        for root, split in (
            (web.url, "{00000..00002}.tar"), (f"{web.url}/*.tar", "x"), ("nowhere", f"{web.url}/*.tar"),
            ("nowhere", web.url), (web.url, "0000{0..1}.tar,00002.tar"),
        ):  # fmt: skip
            assert same(samples(root, split), here), (root, split)
        assert data_identity(find_split(web.url, "*.tar")) == data_identity(find_split(tmp_path, "*.tar"))
        read = web.count(".tar")
        assert read == 5 * 3 + (0 if stats else 3)  # once for each list, and once to count without stats
        assert web.count("_stats.json") == 3


def test_an_object_store(scenes, tmp_path):
    store = fsspec.filesystem("memory")
    store.put(str(scenes), "/bucket/shards", recursive=True)
    store.put(str(downloaded(tmp_path)), "/bucket/cc", recursive=True)
    try:
        assert same(samples("memory://bucket/shards"), samples(scenes))
        assert read_positives("memory://bucket/shards", "test") is not None
        assert same(samples("memory://bucket/cc/*.tar"), samples(f"{tmp_path}/*.tar"))
        copied = samples("memory://bucket/cc", "{00000..00002}.tar", str(tmp_path / "copies"))
        assert same(copied, samples(tmp_path, "*.tar"))
        assert len(list((tmp_path / "copies").glob("*.tar"))) == 3
        with pytest.raises(UserError, match=r"no shards match memory://bucket/cc/\*\.tra \(.*cc holds 00000\.parquet"):
            find_split("memory://bucket/cc/*.tra,a.tar", "x")
        with pytest.raises(UserError, match=r"memory://bucket/cc/7\.tar does not exist; check the address"):
            find_split("memory://bucket/cc", "7.tar")
    finally:
        store.rm("/bucket", recursive=True)


@pytest.mark.parametrize("faults", [{"fail_every": 3}, {"cut": 400_000}, {"cut": 400_000, "fail_every": 4}])
def test_temporary_faults_lose_and_repeat_nothing(large, faults):
    with Web(large, **faults) as web:
        assert same(samples(web.url, "0000{0..1}.tar"), samples(large, "*.tar"))
        if "cut" in faults:
            starts = [int(span.removeprefix("bytes=").rstrip("-")) for _, _, span in web.seen if span]
            assert starts
            assert min(starts) > 0  # reading continued at the same position


def test_a_server_without_ranges_is_read_again_up_to_the_same_position(large):
    with Web(large, ranges=False, fail_every=3) as web:
        stream = streams.open_stream(f"{web.url}/00000.tar")
        whole = (large / "00000.tar").read_bytes()
        found = stream.read(1_500_000)
        stream.raw._drop()  # as after a fault
        assert found + stream.read() == whole
        stream.close()


def test_a_shard_that_changes_while_it_is_read_is_reported(tmp_path):
    tar = downloaded(tmp_path, 1, 8, size=512) / "00000.tar"
    with Web(tmp_path) as web, streams.open_stream(f"{web.url}/00000.tar") as stream:
        stream.read(10)
        tar.write_bytes(tar.read_bytes() + b"\0" * 512)
        stream.raw._drop()
        with pytest.raises(UserError, match=r"00000.tar changed while it was read"):
            stream.read()


def test_a_response_with_the_wrong_range_is_reported(large):
    with (
        Web(large, cut=200_000, shift=512) as web,
        streams.open_stream(f"{web.url}/00000.tar") as stream,
        pytest.raises(
            UserError, match=r"the server returned bytes 200512-\d+/\d+, but all bytes from 200000 on were requested"
        ),
    ):
        stream.read()


def test_permanent_faults_are_reported(large, tmp_path):
    with Web(large, fail_every=1) as web:
        with pytest.raises(
            UserError, match=r"could not read http://\S+/00000.tar after 5 tries: HTTP 503; check the address"
        ):
            find_split(web.url, "00000.tar")
        with pytest.raises(UserError, match=r"could not read http://\S+/manifest.json after 5 tries: HTTP 503"):
            find_split(web.url, "train")
    with (
        Web(large, forbidden=True) as web,
        pytest.raises(UserError, match=r"access to http://\S+/00000.tar was denied \(HTTP 403\)"),
    ):
        find_split(web.url, "00000.tar")
    with Web(large, page=True) as web:
        with pytest.raises(UserError, match=r"00000.tar is a web page .*Please log in.*, not a tar"):
            find_split(web.url, "00000.tar")
        with pytest.raises(UserError, match=r"manifest.json is not a manifest of shards"):
            find_split(web.url, "train")
    with Web(large) as web:
        with pytest.raises(UserError, match=r"http://\S+/7.tar does not exist \(HTTP 404\); check the address"):
            find_split(web.url, "00000.tar,7.tar")
        with pytest.raises(UserError, match=r"http://\S+/train/\*.tar does not exist"):
            find_split(web.url, "train")
        cut = tmp_path / "00000.tar"
        cut.write_bytes((large / "00000.tar").read_bytes()[:300_000])
    with (
        Web(tmp_path) as web,
        pytest.raises(UserError, match=r"could not read shard http://\S+/00000.tar: unexpected end of data"),
    ):
        find_split(web.url, "00000.tar")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=r"could not read http://\S+/manifest.json after 5 tries: .*[Cc]onnect"):
        find_split(url, "train")


def test_secrets_of_a_url_stay_out_of_messages():
    url = "https://user:secret@example.org/a.tar?signature=secret"
    assert remote.redacted(url) == "https://example.org/a.tar"
    assert remote.redacted("/a/b?c.tar") == "/a/b?c.tar"


def test_copies_are_fetched_once_and_completely(large, tmp_path):
    copies = tmp_path / "copies"
    here = samples(large, "*.tar")
    with Web(large, cut=400_000) as web:
        split = find_split(web.url, "0000{0..1}.tar", str(copies))
        web.seen.clear()
        whole = [sample for shard in split.shards for sample in read_tar(shard.place)]
        assert same(whole, here)
        fetched = len(web.seen)
        again = [sample for shard in split.shards for sample in read_tar(shard.place)]
        assert same(again, here)
        assert len(web.seen) == fetched
        (first,) = copies.glob("00000-*.tar")
        first.rename(f"{first}.part")  # as left by a run that was killed
        os.truncate(f"{first}.part", 1000)
        assert same([s for shard in split.shards for s in read_tar(shard.place)], here)
        assert not list(copies.glob("*.part"))


def test_each_version_has_its_own_copy(tmp_path):
    folder, copies = downloaded(tmp_path / "cc", 1), str(tmp_path / "copies")
    with Web(folder) as web:
        first = samples(web.url, "00000.tar", copies)
        downloaded(folder, 1, 4)
        os.utime(folder / "00000.tar", (1, 1))
        assert len(samples(web.url, "00000.tar", copies)) == 4 != len(first)


@pytest.mark.slow
def test_processes_on_one_machine_share_copies_and_counts(large, tmp_path):
    program = (
        "import sys; from itr.data.shards.locations import find_split; from itr.data.shards.tars import read_tar\n"
        "split = find_split(sys.argv[1], '0000{0..1}.tar', sys.argv[2])\n"
        "print(sum(1 for shard in split.shards for _ in read_tar(shard.place)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(tmp_path / "counts")}
    with Web(large) as web:
        command = [sys.executable, "-c", program, web.url, str(tmp_path / "copies")]
        running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        assert [process.communicate(timeout=ENOUGH)[0] for process in running] == ["16\n"] * 3
        assert web.count(".tar") == 2  # the samples are counted in the copies


def test_an_unwritable_folder_for_copies_is_reported(large, tmp_path):
    (tmp_path / "file").write_text("")
    with Web(large) as web, pytest.raises(UserError, match=r"data.cache: could not write to \S+file/copies"):
        samples(web.url, "00000.tar", str(tmp_path / "file" / "copies"))


def test_the_next_run_starts_without_reading(large, caplog):
    with Web(large) as web:
        with caplog.at_level("WARNING"):
            logging.getLogger("itr").propagate = True
            count_shards([Place(f"{web.url}/00000.tar")])
        assert "1 tars (0.00 GB) have no counts: they are read once now" in caplog.text
        web.seen.clear()
        assert count_shards([Place(f"{web.url}/00000.tar")])[0].images == 8
        assert [kind for kind, _, _ in web.seen] == ["HEAD"]
        with open_shard(Place(f"{web.url}/00000.tar")) as stream:
            assert not stream.seekable()


def fit(folder: Path, root: str, *options: str) -> dict:
    still = [option.replace("intermediate_size", "hidden_dropout_prob: 0.0, intermediate_size") for option in TINY_VSE]
    still = [option.replace("hidden_size", "attention_probs_dropout_prob: 0.0, hidden_size") for option in still]
    still += ["--model.backbone.visual_token_drop=0", "--model.backbone.word_mask=0", "--data.batch_size=8"]
    still += ["--model.optimizer.schedule=constant", "--model.optimizer.warmup=0", "--trainer.max_epochs=2"]
    still += ["--data.num_workers=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["fit", f"--data.root={root}", f"--trainer.default_root_dir={folder}", *still, *options]) == 0
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_runs_over_the_network_end_at_the_same_weights(scenes, tmp_path):
    keep = ["--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.dirpath={tmp_path}"]
    keep += ["--trainer.callbacks.every_n_train_steps=7", "--trainer.callbacks.filename=step"]
    here = fit(tmp_path / "here", str(scenes))
    with Web(scenes, fail_every=5) as web:
        there = fit(tmp_path / "there", web.url, *keep)
        (tmp_path / "there" / "checkpoints" / "last.ckpt").unlink()
        rest = fit(
            tmp_path / "there", web.url, f"--ckpt_path={tmp_path / 'step.ckpt'}", f"--data.cache={tmp_path / 'c'}"
        )
        where = [f"--data.root={web.url}", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        assert main(["test", *where, f"--trainer.default_root_dir={tmp_path / 'there'}", "--ckpt_path=last"]) == 0
    for found in (there, rest):
        assert here["global_step"] == found["global_step"] == 10
        assert all(torch.equal(value, found["state_dict"][name]) for name, value in here["state_dict"].items())


@pytest.mark.slow
def test_third_party_tars_are_trained_on_by_their_urls(tmp_path):
    downloaded(tmp_path / "cc", 3, size=32)
    with Web(tmp_path) as web:
        lists = [f"--data.train_split={web.url}/cc/{{00000..00001}}.tar", "--data.val_split=cc/00002.tar"]
        fit(tmp_path / "run", str(tmp_path), *lists, "--data.batch_size=5")
        embed = [
            "embed",
            f"--ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}",
            f"--out={tmp_path / 'e.npz'}",
        ]
        assert main([*embed, f"--data={web.url}/cc/*.tar", "--device=cpu", f"--cache={tmp_path / 'copies'}"]) == 0
        with np.load(tmp_path / "e.npz") as arrays:
            assert len(arrays["image"]) == len(set(arrays["image_id"].tolist())) == 15


def test_features_of_tars_by_url_fit_the_same_tars_on_disk(tmp_path, capsys):
    downloaded(tmp_path / "cc", 2, size=32)
    model = save_image_teacher(tmp_path / "teacher")
    with Web(tmp_path) as web:
        make_features(f"{web.url}/cc/*.tar", "image", str(tmp_path / "f"), model, num_workers=0, device="cpu")
        with pytest.raises(UserError, match="give it one name with --splits"):
            make_features(f"{web.url}/cc/*.tar", "image", str(tmp_path / "f"), model, splits="train,val")
    tars = "cc/{00000..00001}.tar"
    split = find_split(tmp_path, tars)
    method = SimpleNamespace(needs=("teacher_image",), fields=lambda: [])
    backbone = SimpleNamespace(image_field=None, needs=(), fields=lambda: [])
    model = SimpleNamespace(backbone=backbone, method_callbacks=[method], methods={})
    fields = ModelFields(model, split, str(tmp_path), tars, "captions", tmp_path / "f")
    file = fields.open()[0].file
    assert file.rows([s.image_id for shard in split.shards for s in read_tar(shard.place)]).shape[0] == 10
    shutil.rmtree(tmp_path / "f")
    with pytest.raises(UserError, match=r"--data '\S+/cc/\{00000..00001\}.tar' --modality image .* --splits train"):
        fields.open()
