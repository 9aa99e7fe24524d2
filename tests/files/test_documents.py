"""YAML and JSON files that are damaged or crafted are refused at once, by name."""

from __future__ import annotations

import json
import os
import time

import pytest

from itr.errors import UserError
from itr.files.documents import DEEPEST, MOST_VALUES, read_json_document, read_yaml_document


def test_a_config_is_read_with_its_aliases(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &shared {x: [1, 2.5]}\nb: *shared\nc:\n  <<: *shared\n  y: null\n# é\n", encoding="utf-8")
    assert read_yaml_document(path) == {"a": {"x": [1, 2.5]}, "b": {"x": [1, 2.5]}, "c": {"x": [1, 2.5], "y": None}}
    path.write_text("")
    assert read_yaml_document(path) is None


def doubling(levels: int) -> str:
    """A text whose value has 2 ** `levels` numbers; here no more than some thousand times what is allowed."""
    lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels))]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (doubling(24), f"it stands for more than {MOST_VALUES:,} values"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), f"or for lists more than {DEEPEST} deep"),
        ("- " * 2000, "nested too deeply"),
        ("a: &a [*a]", "a part of it contains itself"),
        ("a: &a {b: &b {c: *a}}", "a part of it contains itself"),
        ("a: [1,\n", "line 2, is not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("x" * 400_000, "it has more than 300,000 bytes"),
    ],
    ids=["aliases", "deep", "deeper", "itself", "itself within", "syntax", "code", "size"],
)
def test_what_no_config_holds_is_refused_at_once(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    begin = time.monotonic()
    with pytest.raises(UserError, match=message) as refused:
        read_yaml_document(path)
    assert time.monotonic() - begin < 5
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_few_doublings_are_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(doubling(8))
    value = read_yaml_document(path)["a7"]
    for _ in range(7):
        value = value[1]
    assert value == [1, 1]


def test_json_that_is_damaged_deep_or_no_file_is_refused(tmp_path):
    path = tmp_path / "metrics.json"
    for text, message in (("[" * 100_000, "nested too deeply"), ('{"a": ', "Expecting value"), ("9" * 5000, "digits")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_json_document(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="utf-8"):
        read_json_document(path)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="it is not a file"):
        read_json_document(tmp_path / "pipe.json")
    path.write_text(json.dumps({"a": [1, None]}))
    assert read_json_document(path) == {"a": [1, None]}
