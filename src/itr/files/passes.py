"""Resumable passes: work in numbered chunks that several processes share and that may be killed at any time.

A pass writes to parts, which become the results when every chunk is done. Two headers record its state:

    begun    the parts belong to a pass with these settings; written after the parts exist
    header   the results are complete; written last
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from itr.errors import UserError
from itr.files.locks import locked
from itr.files.writing import whole_file


class Pass(ABC):
    """The life cycle of a pass: begun or continued, shared, finished by the last process, removed by `overwrite`.

    A subclass defines how chunks are stored: by a method `write`, and by the methods below whose names begin with an
    underscore, which run under the lock.

    Args:
        header: header of the complete results.
        begun: header of an unfinished pass.
        results: the files that the pass writes; messages name the first one.
        facts: what the results depend on; a pass is continued only if these are equal.
        num_chunks: number of chunks.
        overwrite: remove earlier results and parts.

    Attributes:
        complete: whether the results exist already.
        done: which chunks were stored at the start [num_chunks], bool.

    Raises:
        UserError: results or parts with other facts exist, or a header is damaged.
    """

    def __init__(
        self,
        header: Path,
        begun: Path,
        results: Sequence[Path],
        facts: Mapping[str, Any],
        num_chunks: int,
        overwrite: bool = False,
    ) -> None:
        self.finished_header, self.begun_header, self.results = header, begun, results
        self.facts, self.num_chunks = facts, num_chunks
        header.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if overwrite:
                _remove([header, *results])
                self._remove_parts()
            self.complete = self._matches(header, "already exists")
            if self.complete:
                self._remove_parts()  # left by a process that was killed just before it ended
                self.done = np.ones(num_chunks, dtype=bool)
            else:
                self._begin_or_continue()

    def todo(self, numbers: Iterable[int]) -> list[int]:
        """Those of the chunks `numbers` that are not done."""
        return [number for number in numbers if not self.done[number]]

    def flush(self) -> None:  # noqa: B027  # a pass that stores each chunk at once has nothing to do
        """Sync what was written to disk, then record it as done."""

    def finish(self) -> bool:
        """Turn the parts into results if every process is done; returns whether the results are complete."""
        self.flush()
        with self._locked():
            if self.finished_header.is_file():
                return True
            if not self._read_done().all():
                return False
            further = self._make_results()
            _write_header(self.finished_header, {**self.facts, **further})
            self._remove_parts()
            return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.flush()

    @abstractmethod
    def _parts(self) -> list[Path]:
        """The files that hold chunks of an unfinished pass."""

    @abstractmethod
    def _begin(self) -> None:
        """Create the parts; none exists."""

    @abstractmethod
    def _read_done(self) -> np.ndarray:
        """Which chunks are in the parts of all processes [num_chunks], bool."""

    @abstractmethod
    def _make_results(self) -> dict[str, Any]:
        """Turn the parts into results, even if a killed process has begun this; returns more fields of the header."""

    def _open(self) -> None:  # noqa: B027  # not every pass keeps its parts open
        """Open the parts to write the chunks that are missing."""

    def _begin_or_continue(self) -> None:
        if not self._matches(self.begun_header, "was begun"):
            _remove(self._parts())  # without their header they are useless
            self._begin()
            _write_header(self.begun_header, self.facts)
        self.done = self._read_done()
        if not self.done.all():
            self._open()

    def _matches(self, path: Path, state: str) -> bool:
        """Whether a header exists; UserError if its facts differ."""
        if not path.is_file():
            return False
        found = _read_header(path)
        for name, wanted in self.facts.items():
            if found.get(name) != wanted:
                raise UserError(
                    f"{self.results[0]} {state} with {name} {found.get(name)!r}, but this command has {wanted!r}; give "
                    "the same settings, write to another folder, or use --overwrite true to start again"
                )
        return True

    def _remove_parts(self) -> None:
        # The header goes first: parts without one are never continued.
        _remove([self.begun_header, *self._parts()])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self.finished_header.with_name(f".{self.finished_header.stem}.lock")):
            yield


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _write_header(path: Path, facts: Mapping[str, Any]) -> None:
    with whole_file(path, sync=True) as file:
        file.write((json.dumps(facts, indent=1) + "\n").encode())


def _read_header(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"it contains a {type(found).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"could not read {path}: {error}; use --overwrite true to start again") from None
    return found
