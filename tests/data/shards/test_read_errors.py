"""Reads of a local file that really fail: a preloaded library makes read() return an error."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from itr.data.shards.remote import WAITS
from itr.data.shards.streams import open_stream
from itr.data.shards.tars import read_tar
from itr.errors import UnreadableError
from launching import ENOUGH
from third_party import downloaded

READ = """
import hashlib, logging, sys
from pathlib import Path
from itr.data.shards import remote
from itr.data.shards.tars import read_tar
from itr.errors import UserError
remote.WAITS = tuple(wait / 100 for wait in remote.WAITS)
logging.basicConfig(format="%(message)s")
try:
    for sample in read_tar(Path(sys.argv[1])):
        print(sample.captions[0], hashlib.sha256(sample.image).hexdigest())
except UserError as error:
    sys.exit(f"named: {error}")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    if not sys.platform.startswith("linux") or shutil.which("gcc") is None:
        pytest.skip("needs Linux and gcc, to make read() fail")
    target = tmp_path_factory.mktemp("library") / "failing.so"
    source = Path(__file__).parents[2] / "helpers" / "failing_read.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", target, source, "-ldl"], check=True)
    return target


@pytest.fixture(scope="module")
def tar(tmp_path_factory) -> Path:
    return (downloaded(tmp_path_factory.mktemp("tar"), 1, 8, size=128) / "00000.tar").resolve()


def read_failing(library: Path, tar: Path, times: int, number: int, first: int = 60_000) -> tuple[str, str]:
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LD_PRELOAD": str(library), "FAILING_PATH": str(tar),
        "FAILING_TIMES": str(times), "FAILING_ERRNO": str(number), "FAILING_FROM": str(first),
    }  # fmt: skip
    command = [sys.executable, "-c", READ, str(tar)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=ENOUGH)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("number", "times"),
    [
        (errno.EIO, 2),
        pytest.param(errno.ESTALE, 1, marks=pytest.mark.slow),
        pytest.param(errno.EAGAIN, 4, marks=pytest.mark.slow),
    ],
)
def test_a_temporary_read_error_loses_and_repeats_nothing(library, tar, number, times):
    found, messages = read_failing(library, tar, times, number)
    wanted = [f"{s.captions[0]} {hashlib.sha256(s.image).hexdigest()}" for s in read_tar(tar)]
    assert found.splitlines() == wanted
    retry = f"{tar}: {os.strerror(number)}; trying again"
    assert messages.splitlines() == [retry] * (times - 1)  # the first fault is not reported


@pytest.mark.parametrize(
    ("number", "first", "words"),
    [
        (errno.EIO, 60_000, f"after {len(WAITS) + 1} tries: Input/output error"),
        pytest.param(errno.EINVAL, 0, ": Invalid argument", marks=pytest.mark.slow),
    ],
)
def test_a_permanent_read_error_is_one_named_error(library, tar, number, first, words):
    found, messages = read_failing(library, tar, 10**6, number, first)
    assert bool(found) == bool(first)  # the samples before it were read
    assert len(found.splitlines()) < 8
    assert messages.splitlines()[-1].startswith(
        f"named: could not read {tar}{' ' if first else ''}{words}; check the disk"
    )
    assert len(messages.splitlines()) == (len(WAITS) if first else 1)


def test_a_file_that_changes_while_it_is_read_is_reported(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(100_000))
    with open_stream(str(path)) as stream:
        stream.read(10)
        path.write_bytes(bytes(90_000))
        stream.raw._resume_at = stream.raw.tell()  # as after a fault
        with pytest.raises(UnreadableError, match=r"a.tar changed while it was read; start again"):
            stream.read()


def test_a_file_that_cannot_be_opened_is_reported_at_once(tmp_path):
    with pytest.raises(UnreadableError, match=r"a.tar does not exist; check the path"):
        list(read_tar(tmp_path / "a.tar"))
    with pytest.raises(UnreadableError, match=r"could not read \S+: Is a directory"):
        list(read_tar(tmp_path))
