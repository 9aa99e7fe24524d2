"""A checkpoint must not cause downloads or imports while a model is built from it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any

from itr.weights.hub import offline

DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


@contextmanager
def sealed(description: Any) -> Iterator[None]:
    """Offline, and no module that a description names anywhere is imported: to jsonargparse any text may be a path.

    Modules already imported may be named, and code may import what it needs itself.
    """
    refused = _Refuse({name for text in _texts(description) for name in _modules(text)} - set(sys.modules))
    sys.meta_path.insert(0, refused)
    try:
        with offline():
            yield
    finally:
        sys.meta_path.remove(refused)


class _Refuse(MetaPathFinder):
    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:
        """Refuse before any other finder sees the name."""
        if fullname in self.names:
            raise ImportError(f"a checkpoint names the module {fullname}, but must not cause its import")
        return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _modules(text: str) -> Iterator[str]:
    """The modules that a dotted path leads through."""
    if DOTTED.fullmatch(text):
        parts = text.split(".")
        yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))
