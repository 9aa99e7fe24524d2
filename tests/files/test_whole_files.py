"""Files that are complete or absent."""

from __future__ import annotations

from contextlib import suppress

import pytest

from itr.files.writing import own_ending, whole_file, whole_path


@pytest.mark.parametrize("sync", [False, True])
def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path, sync):
    target = tmp_path / "a.txt"
    for text in (b"first", b"second"):
        with whole_file(target, sync=sync) as file:
            file.write(text)
            assert not target.exists() or target.read_bytes() == b"first"
    with suppress(KeyboardInterrupt), whole_file(target, sync=sync) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"second"}


def test_two_writers_of_one_file_have_two_temporary_files(tmp_path):
    target = tmp_path / "a.txt"
    with whole_file(target, own_ending()) as mine:
        with whole_file(target, ".4194305.tmp") as other:
            other.write(b"other")
        mine.write(b"mine")
    assert target.read_bytes() == b"mine"


def test_the_earlier_file_is_kept_under_another_name(tmp_path):
    for text in ("1", "2", "3"):
        with whole_path(tmp_path / "a", keep_as=tmp_path / "before") as path:
            path.write_text(text)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "3", "before": "2"}
