"""Headers of tars in all formats are read as by tarfile."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from itr.data.shards.schema import Place
from itr.data.shards.tars import _Header, count_tar, read_tar
from itr.errors import UnreadableError

LONG = "folder/" * 20 + "name" * 30
KEYS = ["plain", "a/b", "caf\u00e9", LONG, "folder/" * 15 + "name"]


def write(path: Path, kind: int, size: int = 700) -> Path:
    with tarfile.open(path, "w", format=kind, encoding="utf-8") as tar:
        for key in KEYS:
            for ending, data in ((".jpg", b"x" * size), (".txt", key.encode())):
                info = tarfile.TarInfo(key + ending)
                info.size, info.mtime = len(data), 2**34
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_names_of_any_length_in_any_format(tmp_path, kind, ending):
    path = write(tmp_path / "0.tar", kind)
    if ending == "tar.gz":
        import gzip

        path = tmp_path / "0.tar.gz"
        path.write_bytes(gzip.compress((tmp_path / "0.tar").read_bytes()))
    samples = list(read_tar(path))
    assert [sample.captions for sample in samples] == [[key] for key in KEYS]
    assert [sample.where.rpartition(":")[2] for sample in samples] == KEYS
    assert all(sample.image == b"x" * 700 for sample in samples)
    assert [sample.captions for sample in read_tar(path, skip=3)] == [[key] for key in KEYS[3:]]
    assert count_tar(Place(str(path))) == (5, 5)


def outcome(kind: type[tarfile.TarInfo], block: bytes) -> tuple[object, ...]:
    try:
        found = kind.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return (type(error), str(error))
    return found.name, found.size, found.type, found.isreg(), found.issparse()


def test_headers_are_read_or_refused_as_by_tarfile():
    rng = np.random.default_rng(0)
    info = tarfile.TarInfo("folder/name.jpg")
    info.size = 123456
    blocks = [info.tobuf(kind) for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)]
    info.size = 2**40  # which GNU tar writes in binary
    blocks.append(info.tobuf(tarfile.GNU_FORMAT))
    for block in blocks:
        assert outcome(_Header, block) == outcome(tarfile.TarInfo, block)
        for _ in range(300):
            changed = bytearray(block)
            for at in rng.choice(512, 2):
                changed[at] = rng.integers(256)
            assert outcome(_Header, bytes(changed)) == outcome(tarfile.TarInfo, bytes(changed))
    for length in (0, 100, 512):
        assert outcome(_Header, bytes(length)) == outcome(tarfile.TarInfo, bytes(length))


def test_unused_fields_of_a_header_with_a_correct_checksum_may_be_malformed():
    block = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    block[108:116] = b"root\0\0\0\0"  # the owner, in letters
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
    assert _Header.frombuf(bytes(block), "utf-8", "strict").name == "a.jpg"


def test_a_truncated_image_is_reported(tmp_path):
    whole = write(tmp_path / "0.tar", tarfile.GNU_FORMAT, size=5000).read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:3000])
    with pytest.raises(UnreadableError, match=r"could not read shard \S+1.tar: unexpected end of data"):
        list(read_tar(tmp_path / "1.tar"))
