"""Texts in every common encoding, compressed ones, and those that cannot be read."""

from __future__ import annotations

import gzip

import pytest

from itr.data.raw.files import read_json
from itr.data.tables.reading import read_rows
from itr.data.tables.text_files import split_lines
from itr.errors import UserError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_lines_are_the_same_in_every_encoding(encoding):
    text = "a dog\r\n\nna\u00efve \u72ac\u2028 x\r y\nlast"
    assert split_lines(text.encode(encoding), "t.txt") == ["a dog", "", "na\u00efve \u72ac\u2028 x\r y", "last"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a dog\ncaf\xe9\n", r"t.txt, line 2, is not valid UTF-8"),
        ("a dog".encode("utf-16") + b"x", r"t.txt, line 1, is not valid UTF-16"),
        (b"a dog\ra cat\r", r"t.txt has carriage returns but no line feeds"),
    ],
)
def test_other_texts_are_refused(raw, message):
    with pytest.raises(UserError, match=message):
        split_lines(raw, "t.txt")


def test_nothing_but_line_ends_and_zeros_are_lines_too():
    assert split_lines(b"", "") == []
    assert split_lines(b"\0\0\n\r\n", "") == ["\0\0", ""]
    assert split_lines(b"one\r", "") == ["one"]


def test_a_truncated_or_damaged_compressed_table_is_named(tmp_path):
    packed = gzip.compress(b'{"image": "a.jpg", "caption": "x"}\n' * 1000)
    damaged = packed[:30] + bytes(10) + packed[40:]
    for name in ("t.jsonl.gz", "t.csv.gz", "t.json.gz"):
        for content in (packed[:60], damaged, b"no gzip"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError, match=rf"could not read .*{name}"):
                list(read_rows(tmp_path / name))


def test_a_key_that_a_json_file_has_twice_is_refused(tmp_path):
    (tmp_path / "dense.json").write_text('{"a.jpg": "one", "a.jpg": "two"}')
    with pytest.raises(UserError, match=r"dense.json is not valid JSON: an object has the key 'a.jpg' twice"):
        read_json(tmp_path / "dense.json")
