"""Cells of captions and keys, as each program writes them."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from itr.data.tables.cells import cell_key, cell_texts
from itr.data.tables.parquet import InnerImage
from itr.errors import UserError, bounded, shown

TEXTS = ["first caption", "it's the second", 'a "third", with a comma', "a \\ backslash and ünï 🎈"]


@pytest.mark.parametrize(
    "cell",
    [
        TEXTS,
        tuple(TEXTS),
        json.dumps(TEXTS),
        json.dumps(TEXTS, ensure_ascii=False),
        str(TEXTS),
        str(tuple(TEXTS)),
        str(np.array(TEXTS, dtype=object)),
        f" {TEXTS} ",
        [{"raw": text, "tokens": []} for text in TEXTS],
        {"raw": TEXTS, "sentid": [1, 2, 3, 4]},
        [*TEXTS, None, "  ", float("nan")],
        repr(np.array(TEXTS, dtype=object)),
        repr(np.array(TEXTS)),
        repr([np.str_(text) for text in TEXTS]),
        repr(tuple(map(np.str_, TEXTS))),
        repr(deque(TEXTS)),
        repr([text.encode() for text in TEXTS]),
        f"[{', '.join('u' + repr(text) for text in TEXTS)}]",
        f"{{{', '.join(map(repr, TEXTS))}}}",
        f"{str(TEXTS)[:-1]}, nan, None]",
        json.dumps(json.dumps(TEXTS)),
        json.dumps({"raw": TEXTS}),
        str([{"raw": text, "tokens": []} for text in TEXTS]),
        str({"raw": TEXTS, "sentid": [1, 2, 3, 4]}),
    ],
    ids=lambda cell: f"{type(cell).__name__}: {str(cell)[:12]}",
)
def test_several_captions_in_a_cell(cell):
    assert cell_texts(cell, "t.csv, line 2", "captions") == TEXTS


@pytest.mark.parametrize(
    "text",
    [
        "[z] w", "[a sign]", "(a dog)", "('hello')", "[1, 2]", "[", "[]x", "it's ['x", "{a}", "['90s style dog", '"hi"',
        "'[sic] dog'", "array of dogs (3)", "list(all)", "b'tter", "[object Object]", "a 'b' 'c'", "{" * 300, "[" * 300,
        "array([1, 2])", "5", "nan", "{1: 2 dogs}", "[f('x')]",
    ],
)  # fmt: skip
def test_a_caption_with_brackets_is_one_caption(text):
    assert cell_texts(text, "", "") == [text]


@pytest.mark.parametrize("cell", [None, float("nan"), "", "  ", [], "[]", [None], "[null]", "[None]"])
def test_an_empty_cell_has_no_caption(cell):
    assert cell_texts(cell, "", "") == []


def test_one_string_written_as_a_list_of_one():
    assert cell_texts("['one only']", "", "") == ["one only"]
    assert cell_texts(str(np.array(["a dog", "it's b"])), "", "") == ["a dog", "it's b"]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            "['it's wrong', 'x']",
            r"t.csv, line 7: the column captions looks like a list .*; write the list as JSON",
        ),
        (5, "holds a number instead of a text: 5"),
        (["x", 5], "holds a number instead of a text: 5"),
        ('["x", 5]', "holds a number instead of a text: 5"),
        (b"\x00\xff", "holds bytes instead of a text: 2 bytes"),
        ({"text": "x"}, "holds an object instead of a text"),
        ([["x"]], "holds a list instead of a text"),
        (repr([np.array(["x", "y"])]), "holds a list instead of a text"),
        ("{'text': 'x'}", "holds an object instead of a text"),
        ("['one', 'two', 'thr", "looks like a list of texts .* could not be read as one"),
        ('["one", "two"', "looks like a list of texts"),
        ("[np.str_('it's'), np.str_('x')]", "looks like a list of texts"),
        (str(np.array([f"caption {n}" for n in range(1200)])), "looks like a list of texts"),
        ("{'raw': 'it's'}", "looks like a list of texts"),
        (InnerImage(Path("t.parquet"), "c", 0, "", "12", b"a dog"), "holds bytes instead of a text$"),
    ],
)
def test_a_cell_of_something_else_is_refused(cell, message):
    with pytest.raises(UserError, match=message):
        cell_texts(cell, "t.csv, line 7", "captions")


def test_what_a_cell_says_is_never_run():
    for text in ("[print('x')]", "[__import__('os').system('x'), 'y']", "[open('x').read()]"):
        assert cell_texts(text, "", "") == [text]


def test_empty_texts_among_others_are_counted():
    blank: list[str] = []
    assert cell_texts(["x", "", " "], "line 2", "", blank) == cell_texts("['x', '']", "line 3", "", blank) == ["x"]
    assert cell_texts("", "line 4", "", blank) == []
    assert blank == ["line 2", "line 2", "line 3"]


def test_keys():
    cells = (" a b.jpg ", 7, 7.0, "007", None, float("nan"))
    assert [cell_key(cell, "", "") for cell in cells] == ["a b.jpg", "7", "7", "007", "", ""]
    with pytest.raises(UserError, match="the column id holds a list instead of a name"):
        cell_key(["a"], "t.csv, line 2", "id")


def test_values_in_messages_are_short_and_printable():
    for value in (
        "x" * 10**6,
        ["y" * 10**6] * 1000,
        {"k" * 10**5: "v" * 10**5},
        b"\0" * 10**6,
        list(range(10**5)),
        "\x1b[31m",
    ):
        text = shown(value)
        assert len(text) <= 80
        assert text.isprintable()
    assert shown(b"\0" * 1234567) == "1,234,567 bytes"
    assert shown("short") == "'short'"
    assert bounded("a" * 10_000 + "end", 100).endswith("end")
    assert len(bounded("a" * 10_000, 100)) < 200
