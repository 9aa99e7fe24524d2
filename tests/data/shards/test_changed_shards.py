"""Shards that change while a run reads them, on disk and at a URL: no sample of another version is used unnoticed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from itr.data.shards import remote, streams
from itr.data.shards.locations import find_split
from itr.data.shards.schema import Shard
from itr.data.shards.seen import Seen
from itr.data.shards.tars import read_tar
from itr.errors import UserError
from third_party import downloaded
from web import Web

CHANGED = "changed since the run began"


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "WAITS", (0.01, 0.02))
        yield


@pytest.fixture
def shards(scenes, tmp_path) -> Path:
    shutil.copytree(scenes, tmp_path / "shards")
    return tmp_path / "shards"


def other_content(tar: Path) -> bytes:
    """The same tar with other captions of the same length."""
    return tar.read_bytes().replace(b" is ", b" IS ").replace(b"image", b"IMAGE")


def first_shard(root: Path | str, split: str) -> Shard:
    return find_split(root, split).shards[0]


def captions(shard: Shard, strict: bool = True) -> list[str]:
    return [sample.captions[0] for sample in read_tar(shard.place, strict=strict)]


def replace(tar: Path, data: bytes) -> None:
    """Move another file to this name, as `itr prepare` does."""
    tar.with_suffix(".new").write_bytes(data)
    tar.with_suffix(".new").replace(tar)


def write_in_place(tar: Path, data: bytes) -> None:
    """Write over the file, and give it its old time."""
    before = tar.stat()
    tar.write_bytes(data)
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(data: bytes) -> bytes:
    """Flip a bit in the middle, which changes no count and no size."""
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize("change", [replace, write_in_place])
@pytest.mark.parametrize("strict", [True, False])
def test_a_shard_with_a_manifest_that_changes_is_refused(shards, change, strict):
    shard = first_shard(shards, "train")
    tar = Path(shard.place.location)
    before = captions(shard)
    change(tar, flip(tar.read_bytes()))
    # A file written in place with its old time looks unchanged; its checksum differs, which is a warning in training.
    if change is write_in_place and not strict:
        captions(shard, strict)
        assert shard.place.seen.warned
        return
    with pytest.raises(UserError, match=f"000000.tar ({CHANGED}; start again|is not the shard that the manifest)"):
        captions(shard, strict)
    assert before


def test_the_same_shards_prepared_or_copied_again_are_accepted(shards):
    shard = first_shard(shards, "train")
    tar = Path(shard.place.location)
    before = captions(shard)
    replace(tar, tar.read_bytes())
    assert captions(shard) == before


def test_a_link_that_points_elsewhere_is_refused(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "new")
    replace(tmp_path / "new" / "train" / "000000.tar", flip((shards / "train" / "000000.tar").read_bytes()))
    link = tmp_path / "link"
    link.symlink_to(shards)
    shard = first_shard(link, "train")
    captions(shard)
    link.unlink()
    link.symlink_to(tmp_path / "new")
    with pytest.raises(UserError, match=CHANGED):
        captions(shard)


def test_a_tar_without_a_manifest_that_is_replaced_is_refused(tmp_path):
    shard = first_shard(downloaded(tmp_path, 1), "*.tar")
    captions(shard)
    tar = Path(shard.place.location)
    replace(tar, other_content(tar))
    with pytest.raises(UserError, match=rf"00000.tar {CHANGED}"):
        captions(shard)


def test_a_shard_that_is_written_while_it_is_read_is_refused(tmp_path):
    shard = first_shard(downloaded(tmp_path, 1, 8, size=512), "*.tar")
    tar = Path(shard.place.location)
    samples = read_tar(shard.place)
    next(samples)
    tar.write_bytes(other_content(tar))
    with pytest.raises(UserError, match=r"00000.tar changed while it was read"):
        list(samples)


def test_what_differs_from_the_manifest_from_the_start_is_refused_in_evaluation_and_reported_in_training(
    shards, caplog
):
    tar = shards / "train" / "000000.tar"
    replace(tar, flip(tar.read_bytes()))
    shard = first_shard(shards, "train")
    with pytest.raises(UserError, match=r"is not the shard that the manifest describes: its checksum differs"):
        captions(shard)
    assert captions(shard, strict=False)
    assert captions(shard, strict=False)
    (line,) = [message for message in caplog.messages if "its checksum differs" in message]
    assert "itr data verify" in line


def test_the_checksum_is_computed_once(shards, monkeypatch):
    computed = []
    digest_of = streams.hashlib.file_digest
    monkeypatch.setattr(streams.hashlib, "file_digest", lambda *given: computed.append(1) or digest_of(*given))
    shard = first_shard(shards, "train")
    captions(shard)
    captions(shard)
    assert computed == [1]


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize("if_range", [True, False])
def test_a_remote_shard_of_the_same_size_is_not_continued(tmp_path, tags, if_range):
    tar = downloaded(tmp_path, 1, 8, size=512) / "00000.tar"
    with Web(tmp_path, tags=tags, if_range=if_range) as web, streams.open_stream(f"{web.url}/00000.tar") as stream:
        stream.read(10)
        replace(tar, other_content(tar))
        os.utime(tar, (1e9, 1e9))
        stream.raw._drop()  # as after a fault of the network
        what = "ETag" if tags else "Last-Modified"
        with pytest.raises(UserError, match=rf"00000.tar changed while it was read: its {what} was .* and is now"):
            stream.read()


def test_a_partial_answer_without_its_range_is_refused(tmp_path):
    downloaded(tmp_path, 1, 8, size=512)
    with (
        Web(tmp_path, cut=200_000, vague=True) as web,
        streams.open_stream(f"{web.url}/00000.tar") as stream,
        pytest.raises(UserError, match=r"the server returned a part without saying which"),
    ):
        stream.read()


def test_a_remote_shard_that_is_replaced_between_two_epochs_is_refused(tmp_path):
    tar = downloaded(tmp_path, 1) / "00000.tar"
    with Web(tmp_path) as web:
        shard = first_shard(web.url, "00000.tar")
        assert len(captions(shard)) == 5
        replace(tar, other_content(tar))
        os.utime(tar, (1e9, 1e9))
        with pytest.raises(UserError, match=r"changed while it was read: its Last-Modified was"):
            captions(shard)


def test_a_remote_shard_is_compared_with_its_manifest(shards, tmp_path, caplog):
    tar = shards / "train" / "000000.tar"
    replace(tar, flip(tar.read_bytes()))
    with Web(shards) as web:
        with pytest.raises(UserError, match=r"is not the shard that the manifest describes"):
            captions(first_shard(web.url, "train"))
        assert captions(first_shard(web.url, "train"), strict=False)
        assert "its checksum differs" in caplog.text
        copies = tmp_path / "copies"
        shard = find_split(web.url, "train", str(copies)).shards[0]
        with pytest.raises(UserError, match=r"is not the shard that the manifest describes"):
            captions(shard)
        assert not list(copies.glob("*.tar"))


def test_no_copy_mixes_two_versions(tmp_path):
    tar = downloaded(tmp_path / "cc", 1, 8, size=512) / "00000.tar"
    old, new = tar.read_bytes(), other_content(tar)
    assert len(old) == len(new) != 0
    copies = tmp_path / "copies"
    with Web(tmp_path / "cc", cut=400_000, tags=True, if_range=False) as web:
        shard = find_split(web.url, "00000.tar", str(copies)).shards[0]
        replace(tar, new)
        os.utime(tar, (1e9, 1e9))
        with pytest.raises(UserError, match="changed while it was read"):
            captions(shard)
        assert not list(copies.glob("*.tar"))


def test_another_date_with_the_same_etag_is_the_same_content():
    seen = Seen(headers={"ETag": '"a"', "Last-Modified": "Monday", "size": "9"})
    seen.check_response("a.tar", {"ETag": 'W/"a"', "Last-Modified": "Tuesday", "size": "9"})
    with pytest.raises(UserError, match=r"a.tar changed while it was read: its size was 9 and is now 8"):
        seen.check_response("a.tar", {"ETag": '"a"', "size": "8"})
    without_tag = Seen(headers={"Last-Modified": "Monday"})
    with pytest.raises(UserError, match="its Last-Modified was Monday and is now Tuesday"):
        without_tag.check_response("a.tar", {"ETag": '"a"', "Last-Modified": "Tuesday"})
