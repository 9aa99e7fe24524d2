"""Resumable passes: killed at any moment, shared, locked, continued only with the same settings."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.context import ForkProcess as Process
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from itr.data.features.stored import FeaturePaths, Header
from itr.data.features.writer import FeatureWriter
from itr.errors import UserError
from itr.files.locks import BusyError, locked
from itr.files.passes import Pass
from itr.passes.dense_writer import DenseWriter

ITEMS, CHUNK = 61, 2
CHUNKS = -(-ITEMS // CHUNK)


def feature_writer(folder: Path, teacher: str = "t", overwrite: bool = False) -> FeatureWriter:
    header = Header(teacher, "image", 5, ITEMS, "data", {"batch_size": CHUNK})
    return FeatureWriter(FeaturePaths(folder, "train", "image"), header, CHUNK, overwrite)


def dense_writer(folder: Path, model: str = "t", process: int = 0, overwrite: bool = False) -> DenseWriter:
    (folder / "train").mkdir(parents=True, exist_ok=True)
    return DenseWriter(folder / "train", {"model": model, "settings": {}, "data": "d"}, CHUNKS, process, overwrite)


def write_chunk(writer: Pass, number: int) -> None:
    ids = [(17 * row) % ITEMS for row in range(number * CHUNK, min((number + 1) * CHUNK, ITEMS))]  # not ascending
    if isinstance(writer, FeatureWriter):
        writer.write(number, ids, torch.tensor(ids)[:, None] + torch.arange(5) / 8, ids, [])
    else:
        assert isinstance(writer, DenseWriter)
        writer.write(number, {i: f"caption {i} 猫" for i in ids})


def work(kind: str, folder: Path, process: int, of: int, pause: float = 0.0) -> bool:
    """One process's share of a pass."""
    writer: Pass = feature_writer(folder) if kind == "features" else dense_writer(folder, process=process)
    with writer:
        for number in writer.todo(range(process * CHUNKS // of, (process + 1) * CHUNKS // of)):
            write_chunk(writer, number)
            time.sleep(pause)
    return writer.finish()


def start(kind: str, folder: Path, process: int = 0, of: int = 1, pause: float = 0.0) -> Process:
    started = get_context("fork").Process(target=work, args=(kind, folder, process, of, pause))
    started.start()
    return started


def end(started: Process) -> int | None:
    started.join()
    return started.exitcode


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["features", "dense"])
def test_a_pass_killed_at_random_moments_ends_with_the_same_bytes(kind, tmp_path):
    assert work(kind, tmp_path / "whole", 0, 1)
    rng, deaths = random.Random(kind), 0
    for _ in range(4):
        started = start(kind, tmp_path / "killed", pause=0.02)
        time.sleep(rng.uniform(0.01, 0.4))
        started.kill()
        deaths += end(started) == -signal.SIGKILL
    assert deaths
    assert work(kind, tmp_path / "killed", 0, 1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["features", "dense"])
def test_processes_share_a_pass_and_the_last_one_completes_it(kind, tmp_path):
    assert work(kind, tmp_path / "whole", 0, 1)
    both = [start(kind, tmp_path / "shared", process, 2) for process in (0, 1)]
    assert [end(started) for started in both] == [0, 0]
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")
    assert work(kind, tmp_path / "one", 1, 2) is False
    assert work(kind, tmp_path / "one", 0, 2) is True
    assert contents(tmp_path / "one") == contents(tmp_path / "whole")


class Killed(BaseException):
    """Raised instead of SIGKILL, at a chosen call."""


@pytest.mark.parametrize("kind", ["features", "dense"])
def test_a_pass_killed_while_it_is_completed_can_be_completed_again(kind, tmp_path, monkeypatch):
    """At each rename and each removal in turn."""
    assert work(kind, tmp_path / "whole", 0, 1)
    for moment in range(30):
        folder, left = tmp_path / str(moment), moment

        def dying(real: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left == -1:
                    raise Killed
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(Path, "unlink", dying(Path.unlink))
            with suppress(Killed):
                work(kind, folder, 0, 1)
        if left >= 0:
            break
        assert work(kind, folder, 0, 1)
        feature_writer(folder) if kind == "features" else dense_writer(folder)  # removes the remaining parts
        assert contents(folder) == contents(tmp_path / "whole")
    assert 5 < moment < 29


@pytest.mark.parametrize("make", [feature_writer, dense_writer])
def test_other_settings_are_refused_until_overwriting(make, tmp_path):
    writer = make(tmp_path)
    write_chunk(writer, 3)
    writer.flush()
    assert make(tmp_path).todo(range(2, 5)) == [2, 4]
    with pytest.raises(UserError, match=r"was begun with (teacher|model) 't', but .* 'u'.*--overwrite true"):
        make(tmp_path, "u")
    for number in writer.todo(range(CHUNKS)):
        write_chunk(writer, number)
    assert writer.finish()
    assert make(tmp_path).complete
    with pytest.raises(UserError, match=r"already exists with (teacher|model) 't', but .* 'u'.*--overwrite true"):
        make(tmp_path, "u")
    again = make(tmp_path, "u", overwrite=True)
    assert not again.complete
    assert not again.done.any()
    assert not writer.results[0].exists()


@pytest.mark.parametrize("make", [feature_writer, dense_writer])
def test_an_older_process_does_not_write_into_a_pass_that_replaced_its_own(make, tmp_path):
    old = make(tmp_path)
    new = make(tmp_path, "u", overwrite=True)
    write_chunk(old, 3)
    old.flush()
    assert not make(tmp_path, "u").done.any()
    assert not new.done.any()


def test_a_pass_begun_by_an_earlier_version_is_continued(tmp_path):
    """Its header has no line breaks, and its parts the same names."""
    folder = tmp_path / "train"
    folder.mkdir()
    facts = {"format": "itr-dense/1", "model": "t", "settings": {}, "data": "d"}
    (folder / "dense.json.begun").write_text(json.dumps(facts))
    (folder / "dense.0.part").write_bytes(b'[5, [[1, "old"]]]\n\n[7, [[2, "cu')
    writer = dense_writer(tmp_path)
    assert np.flatnonzero(writer.done).tolist() == [5]
    for number in writer.todo(range(CHUNKS)):
        writer.write(number, {})
    assert writer.finish()
    assert (folder / "dense.jsonl").read_text() == '{"image_id": 1, "text": "old"}\n'


def test_a_damaged_header_is_reported(tmp_path):
    feature_writer(tmp_path)
    (tmp_path / "train" / "image.json.part").write_text("{")
    with pytest.raises(UserError, match=r"could not read .*image.json.part: .*--overwrite true"):
        feature_writer(tmp_path)
    assert not feature_writer(tmp_path, overwrite=True).complete


def test_the_lock_of_a_killed_process_does_not_block(tmp_path):
    path = tmp_path / "a.lock"
    mine, theirs = get_context("fork").Pipe()

    def hold() -> None:
        with locked(path):
            theirs.send("held")
            time.sleep(600)

    holder = get_context("fork").Process(target=hold)
    holder.start()
    assert mine.recv() == "held"
    with pytest.raises(BusyError, match=r"holds .*a\.lock"), locked(path, wait=False):
        pass
    holder.kill()
    assert end(holder) == -signal.SIGKILL
    assert path.exists()
    with locked(path, wait=False):
        pass


def test_where_files_cannot_be_locked_a_warning_says_so(tmp_path, monkeypatch, caplog):
    import errno
    import fcntl

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path / "a.lock"):
        pass
    assert "has no locks" in caplog.text
