"""Ways to damage bytes and structures, as hypothesis strategies that shrink to no damage."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

Edit = tuple[str, int, int, bytes]  # kind, where, how much, with what

EDITS = ("flip", "cut", "write", "insert", "remove", "repeat", "zero", "deep", "swap")


def edits(most: int = 4) -> st.SearchStrategy[list[Edit]]:
    """A few changes to bytes."""
    place = st.one_of(st.integers(0, 600), st.integers(0, 2**20))
    one = st.tuples(st.sampled_from(EDITS), place, st.integers(0, 600), st.binary(max_size=16))
    return st.lists(one, max_size=most)


DEEP = [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 50_000 + b"]" * 50_000]


def broken(data: bytes, changes: list[Edit]) -> bytes:
    """The bytes after these changes; positions wrap around."""
    for kind, where, size, new in changes:
        at = where % (len(data) + 1)
        head, part, tail = data[:at], data[at : at + size], data[at + size :]
        if kind == "flip":
            data = head + bytes([data[at] ^ (1 << size % 8)]) + data[at + 1 :] if at < len(data) else data
        elif kind == "cut":
            data = head
        elif kind == "write":
            data = head + new + data[at + len(new) :]
        elif kind == "insert":
            data = head + new * (1 + size % 40) + part + tail
        elif kind == "remove":
            data = head + tail
        elif kind == "repeat":
            data = head + part + part + tail
        elif kind == "deep":
            data = DEEP[where % len(DEEP)]
        elif kind == "zero":
            data = head + bytes(len(part)) + tail
        else:
            data = head + tail[:size] + part + tail[size:]
    return data


def odd_texts() -> st.SearchStrategy[str]:
    """Unusual text: NUL, lone surrogates, both writing directions, joined emoji, markup, very long or only blanks."""
    special = [
        "", " ", "\x00", "\ud800", "\udfff x \ud83c\udf88", "\u202eabc", "שלום עולם", "👩‍👩‍👧‍👦 🎈", "é\u0301" * 50,
        "\u2028", "\ufeff", "\x1b[31m", "<script>alert(1)</script>", "a\"b'c&d<e>", "&lt;b&gt;", "</p></style>",
        "x" * 5000,
        "a b " * 2000, "\u200b", "\u3000\u2003", "'; DROP", "{0}", "%s %d", "[]", '["a", "b"]', "null", "NaN",
        "\r\n\t\x0b\x0c",
    ]  # fmt: skip
    return st.one_of(st.sampled_from(special), letters(40))


def letters(most: int) -> st.SearchStrategy[str]:
    """Any code points, including surrogates. `st.text` first sorts all of Unicode, which takes seconds per process."""
    one = st.one_of(st.sampled_from("ab 09,\"'<&\n"), st.integers(0, 0x10FFFF).map(chr), st.integers(0, 255).map(chr))
    return st.lists(one, max_size=most).map("".join)


def odd_names() -> st.SearchStrategy[str]:
    """File names that lead outside a folder, or look as if they did."""
    special = [
        "../x.jpg", "../../../../tmp/itr-fuzz-escaped.jpg", "/etc/passwd", "/tmp/itr-fuzz-escaped.jpg",
        "a/../b.jpg", "./0.jpg",
        "0.jpg", "a.b.c.jpg", ".jpg", "x", "", ".", "..", "~/x.jpg", "C:\\x.jpg", "a\\b.jpg", "x.pkl", "x.pyd",
        "x.pth",
        "x.npy", "x.JPG", "x.json", "x.txt", "x.cls", "__worker__.json", "x\x00.jpg", "n" * 300 + ".jpg",
        "é\ud800.jpg",
        "000000000.jpg", "000000000.json", "000000001.json", "file:///etc/passwd", "pipe:touch x", "http://[::1",
        "{0..9}.jpg",
    ]  # fmt: skip
    return st.one_of(st.sampled_from(special), letters(12), odd_texts())


def json_values(leaves: int = 8) -> st.SearchStrategy[Any]:
    """Any JSON value, and some that only Python's parser accepts."""
    whole = st.one_of(st.integers(), st.sampled_from([-1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400]))
    leaf = st.one_of(st.none(), st.booleans(), whole, st.floats(), odd_texts(), odd_names())
    return st.recursive(
        leaf,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(odd_texts(), inner, max_size=4)),
        max_leaves=leaves,
    )


Twist = tuple[str, int, Any]


def twists(values: st.SearchStrategy[Any] | None = None, most: int = 3) -> st.SearchStrategy[list[Twist]]:
    """A few changes to a structure of lists and dictionaries."""
    kinds = st.sampled_from(["replace", "remove", "double", "rename"])
    return st.lists(st.tuples(kinds, st.integers(0, 200), json_values() if values is None else values), max_size=most)


def twisted(value: Any, changes: list[Twist]) -> Any:
    """A structure after these changes; positions number its nodes by depth."""
    value = copy.deepcopy(value)
    for kind, where, new in changes:
        places = list(_places(value))
        if not places:
            return new
        holder, key = places[where % len(places)]
        _change(holder, key, kind, copy.deepcopy(new))
    return value


def _change(holder: Any, key: Any, kind: str, new: Any) -> None:
    if kind == "remove":
        del holder[key]
    elif kind == "double" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif kind == "rename" and isinstance(holder, dict):
        holder[new if isinstance(new, str) else str(key) + "x"] = holder.pop(key)
    else:
        holder[key] = new


def _places(value: Any) -> Any:
    level = [value] if isinstance(value, (dict, list)) else []
    while level:
        below = []
        for holder in level:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            yield from ((holder, key) for key in keys)
            below += [holder[key] for key in keys if isinstance(holder[key], (dict, list))]
        level = below
