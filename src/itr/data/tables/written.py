"""Lists and objects that a program wrote out as text: JSON, Python, pandas or NumPy.

    ["a", "b"]   ['a', "it's b"]   ['a' 'b']   ('a', 'b')   {'a', 'b'}   [u'a']   [b'a']   b'a'   {'raw': ['a', 'b']}
    [np.str_('a'), np.str_('b')]   array(['a', 'b'], dtype=object)   deque(['a', 'b'])

The text is parsed as an expression of Python, of which only literals and a few names are understood; nothing is run.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

STRING = r"""[uUbB]?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
CALLS = ("array", "deque", "frozenset", "list", "set", "str_", "tuple")  # what Python and NumPy write around items
CALL = rf"(?:\w+\.)?(?:{'|'.join(CALLS)})\("
NAMES = ("NaN", "nan", "null")  # missing items
MAY_BE_WRITTEN = re.compile(rf"""[\[({{]|["']\s*[\[{{]|[bB]["']|{CALL}""")
LOOKS_WRITTEN = re.compile(
    rf"""(?:{CALL})?\[\s*(?:[uUbB]?['"{{]|{CALL}).*['"}})]\s*\](?:,\s*dtype=.*)?\)?\Z"""  # from bracket to bracket
    rf"""|(?:{CALL})?\[\s*(?:{CALL})?{STRING}\)?\s*,?\s*(?:{CALL})?[uUbB]?['"]"""  # cut off after its first item
    rf"""|\{{\s*{STRING}\s*:.*\}}\Z""",
    re.DOTALL,
)
BEFORE_ANOTHER = re.compile(rf"""({STRING})(?=\s+[uUbB]?['"])""", re.DOTALL)


class WrittenError(ValueError):
    """A text looks like a list or an object that was written out, but could not be read as one."""


def read_written(text: str) -> Any:
    """The list or object that a text writes out; or the text, if it is an ordinary one, which may begin with a bracket.

    Raises:
        WrittenError: see there; the list was cut off, or a quotation mark in it is not escaped.
    """
    collapsed = " ".join(text.split())
    if not MAY_BE_WRITTEN.match(collapsed):
        return text
    for parse in (_json, _python):
        try:
            found = parse(collapsed)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, str):  # a list that was written out twice
            found = read_written(found)
        if _holds_more(found):
            return found
    if LOOKS_WRITTEN.match(collapsed):
        raise WrittenError
    return text


def _holds_more(found: Any) -> bool:
    """Whether a value is more than a caption in brackets, such as `[5]`."""
    if isinstance(found, dict):
        return bool(found)
    return isinstance(found, list) and not (found and all(isinstance(item, (int, float)) for item in found))


def _json(text: str) -> Any:
    return json.loads(text)


def _python(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # a backslash that escapes nothing stands for itself
        # NumPy writes no commas, and Python would join strings without commas between them.
        body = ast.parse(BEFORE_ANOTHER.sub(r"\1,", text), mode="eval").body
    found = _value(body)
    is_plain = isinstance(body, ast.Constant) and isinstance(body.value, str)
    return [found] if isinstance(found, str) and not is_plain else found  # b'a' is one caption, and "a" stays as it is


def _value(node: ast.expr) -> Any:
    """The value of an expression.

    Raises:
        ValueError: it is no literal.
    """
    if isinstance(node, ast.Constant) and node.value is not ...:
        return node.value.decode() if isinstance(node.value, bytes) else node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.Name) and node.id in NAMES:
        return None
    if isinstance(node, ast.Call) and len(node.args) == 1:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in CALLS:
            return _value(node.args[0])
    raise ValueError("it is no literal")
