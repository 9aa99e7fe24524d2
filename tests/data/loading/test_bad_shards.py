"""Missing and damaged shards: training continues without a limited number of them, evaluation does not."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from itr.backbones import VSE
from itr.cli import main
from itr.data.shards.tars import read_tar
from itr.errors import UserError
from loaders import make_loader, same, small_backbone
from third_party import write_tar
from tiny import TINY_VSE


@pytest.fixture(scope="module")
def backbone() -> VSE:
    return small_backbone()


@pytest.fixture
def shards(scenes, tmp_path) -> Path:
    """44 training images in five shards."""
    shutil.copytree(scenes, tmp_path / "shards")
    return tmp_path / "shards"


def members_of(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as opened:
        return {member.name: opened.extractfile(member).read() for member in opened}


def headers_of(tar: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(tar) as opened:
        return opened.getmembers()


def truncate(tar: Path) -> None:
    """Truncate the tar in the middle of the first file of the fifth sample."""
    tar.write_bytes(tar.read_bytes()[: headers_of(tar)[8].offset_data + 10])


def flip(tar: Path) -> None:
    """Flip one bit in the header of the fifth sample, so that everything after it is lost."""
    data = bytearray(tar.read_bytes())
    data[headers_of(tar)[8].offset + 3] ^= 8
    tar.write_bytes(data)


def shorten(tar: Path) -> None:
    """Write an intact tar with fewer samples than the manifest says."""
    write_tar(tar, dict(list(members_of(tar).items())[:10]))


def lengthen(tar: Path) -> None:
    members = members_of(tar)
    write_tar(tar, members | {f"more{Path(name).suffix}": data for name, data in list(members.items())[:2]})


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "could not read .*: unexpected end of data"),
    "missing": (Path.unlink, "000002.tar does not exist"),
    "empty": (lambda tar: tar.write_bytes(b""), "it is empty"),
    "no tar": (lambda tar: tar.write_bytes(b"PK\3\4 a zip"), "it is not a tar"),
    "a page": (lambda tar: tar.write_bytes(b"<html>404"), "is a web page"),
    "a flipped bit": (flip, "contains fewer samples than the 9 that were counted"),
    "fewer": (shorten, "contains fewer samples than the 9 that were counted"),
    "more": (lengthen, "contains more samples than the 9 that were counted"),
}


@pytest.fixture(params=DAMAGES)
def damaged(shards, request) -> tuple[Path, str]:
    damage, message = DAMAGES[request.param]
    damage(shards / "train" / "000002.tar")
    return shards, message


def test_training_continues_without_a_bad_shard_and_reports_it(damaged, backbone, caplog):
    folder, message = damaged
    loader = make_loader(folder, "train", backbone, True, strict=False, max_bad_shards=1)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch.image) for batch in batches] == [4] * 11
        assert loader.dataset.bad_shards == 1
        assert loader.dataset.skipped == 0
    (named,) = [text for text in caplog.messages if "replace the missing ones" in text]  # once for both epochs
    assert re.search(rf"{message}.* Samples of the following shards replace the missing ones", named)


def test_by_default_the_first_bad_shard_stops_training(damaged, backbone):
    folder, message = damaged
    with pytest.raises(UserError, match=rf"(?s){message}.*makes 1 bad shard\(s\), more than data.max_bad_shards = 0"):
        list(make_loader(folder, "train", backbone, True, strict=False))


def test_evaluation_is_strict_whatever_training_allows(damaged, backbone):
    folder, message = damaged
    with pytest.raises(UserError, match=f"{message}|checksum differs|but the manifest says"):
        list(make_loader(folder, "train", backbone, False, strict=False, max_bad_shards=9, max_skipped=99))


def ids(loader) -> list[int]:
    return [int(i) for batch in loader for i in batch.image_id]


def test_samples_before_the_damage_are_used_and_the_next_shard_gives_the_rest(shards, backbone):
    whole = ids(make_loader(shards, "train", backbone, True, shuffle_buffer=0))
    tar = shards / "train" / "000002.tar"
    inside = [sample.image_id for sample in read_tar(tar)]
    truncate(tar)
    lost = set(inside[4:])
    found = ids(make_loader(shards, "train", backbone, True, shuffle_buffer=0, max_bad_shards=1))
    assert len(found) == len(whole)
    for before, after in zip(whole, found, strict=True):
        assert before not in lost or after not in inside  # replaced by a sample of another shard
        assert before in lost or before == after  # all others keep their positions


def spoil_two(shards: Path) -> None:
    truncate(shards / "train" / "000001.tar")
    (shards / "train" / "000003.tar").unlink()


@pytest.mark.parametrize(("workers", "captions"), [(0, 1), (0, "all"), (2, 1)])
def test_an_epoch_with_bad_shards_is_resumed_with_the_next_batch(shards, backbone, workers, captions):
    spoil_two(shards)
    settings = {"strict": False, "max_bad_shards": 2, "workers": workers, "captions": captions}
    whole = list(make_loader(shards, "train", backbone, True, (5, 0), **settings))
    for done in (3, 6):
        rest = list(make_loader(shards, "train", backbone, True, (5, done), **settings))
        assert len(rest) == len(whole) - done
        assert all(same(a, b) for a, b in zip(whole[done:], rest, strict=True))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_all_processes_use_the_same_replacements(shards, backbone, workers):
    spoil_two(shards)
    settings = {"strict": False, "max_bad_shards": 2, "shuffle_buffer": 0}
    one = ids(make_loader(shards, "train", backbone, True, **settings))
    three = [
        make_loader(shards, "train", backbone, True, rank=r, world=3, workers=workers, **settings) for r in range(3)
    ]
    assert [len(loader) for loader in three] == [3, 3, 3]
    if workers:  # they take turns
        assert sorted(i for loader in three for i in ids(loader)) == sorted(one[:36])
    else:
        assert [i for loader in three for i in ids(loader)] == one[:36]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_more_bad_shards_than_allowed_stop_the_run(shards, backbone, workers):
    spoil_two(shards)
    loader = make_loader(shards, "train", backbone, True, strict=False, max_bad_shards=1, workers=workers)
    with pytest.raises(UserError, match=r"makes 2 bad shard\(s\), more than data.max_bad_shards = 1; repair"):
        list(loader)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_run_stops_when_no_shard_is_left(shards, backbone, workers):
    for tar in (shards / "train").glob("*.tar"):
        tar.write_bytes(b"")
    loader = make_loader(shards, "train", backbone, True, max_bad_shards=99, workers=workers)
    with pytest.raises(UserError, match="No other shard is left to replace it"):
        list(loader)


@pytest.mark.parametrize(
    ("of_image", "data", "message"),
    [(False, None, "has no caption"), (True, None, "has no image"), (False, b"{", "not valid JSON")],
)
def test_an_incomplete_sample_is_skipped_in_training_and_refused_in_evaluation(
    shards, backbone, caplog, of_image, data, message
):
    tar = shards / "train" / "000002.tar"
    members = members_of(tar)
    name = next(name for name in list(members)[2:] if name.endswith(".json") != of_image)
    del members[name]
    write_tar(tar, dict(sorted((members if data is None else {**members, name: data}).items())))
    loader = make_loader(shards, "train", backbone, True, max_skipped=1)
    assert [len(batch.image) for batch in loader] == [4] * 11
    assert (loader.dataset.skipped, loader.dataset.bad_shards) == (1, 0)
    assert [text for text in caplog.messages if message in text and "000002.tar" in text]
    with pytest.raises(UserError, match=rf"{message}.*1 bad images, more than data.max_skipped = 0"):
        list(make_loader(shards, "train", backbone, True, max_skipped=0))
    with pytest.raises(UserError, match=message):
        list(make_loader(shards, "train", backbone, False, max_skipped=99))


@pytest.mark.slow
def test_a_run_reports_the_number_of_bad_shards(shards, tmp_path, capsys):
    spoil_two(shards)
    options = [*TINY_VSE, f"--data.root={shards}", "--data.num_workers=2", "--data.batch_size=8"]
    options += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=1"]
    options += [f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert main(["fit", *options]) == 1
    assert "000003.tar of the manifest does not exist" in capsys.readouterr().err
    assert main(["fit", *options, "--data.max_bad_shards=1"]) == 1
    assert "more than data.max_bad_shards = 1" in capsys.readouterr().err
    assert main(["fit", *options, "--data.max_bad_shards=2"]) == 0
    assert "2 bad shards" in "".join(capsys.readouterr())
    assert main(["fit", *options, "--data.max_bad_shards=-1", "--overwrite=true"]) != 0
    assert "it must be 0 or more" in capsys.readouterr().err
