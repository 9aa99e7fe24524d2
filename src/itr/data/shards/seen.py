"""Whether a shard is still the one that a run began with, and the one that its manifest describes."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from itr.errors import UnreadableError
from itr.files.states import FileState

HEADERS = ("ETag", "Last-Modified")  # of HTTP; they change with the content
AGAIN = "start again, on shards that do not change"
log = logging.getLogger(__name__)


@dataclass
class Seen:
    """What a process knows of the content of a shard; every worker has its own copy.

    Attributes:
        size: its size in the manifest, in bytes; 0 if unknown.
        sha256: its checksum in the manifest; empty if unknown.
        state: the file when the run found it; None if it did not exist, or is at a URL.
        verified: the file whose checksum was last found to be that of the manifest.
        headers: of a URL, see `HEADERS`, and its size.
        warned: whether a difference was reported.
    """

    size: int = 0
    sha256: str = ""
    state: FileState | None = None
    verified: FileState | None = None
    headers: dict[str, str] = field(default_factory=dict)
    warned: bool = False

    def check_opened(self, name: str, stream: io.BufferedReader, strict: bool) -> FileState:
        """Check a file that was just opened; returns its state.

        Its checksum is computed once for each process, and again only if the file system says that the file changed.

        Args:
            name: the file, for messages.
            stream: the file, at its beginning.
            strict: whether a file that is not as its manifest says is an error; otherwise it is a warning.

        Raises:
            UnreadableError: it changed since the run began, or is not as its manifest says.
        """
        state = FileState.of(stream.fileno())
        changed = self.state is not None and not state.same_content(self.state)
        if self.sha256 and state.size == self.size:
            if state != self.verified and digest_of(stream) == self.sha256:
                self.verified = state
            if state == self.verified:
                return state
        if changed:
            raise UnreadableError(f"{name} changed since the run began; {AGAIN}")
        if self.sha256 and state.size == self.size:
            self.differs(f"{name} is not the shard that the manifest describes: its checksum differs", strict)
        return state

    def check_read(self, name: str, stream: io.BufferedReader, opened: FileState, strict: bool) -> None:
        """Check a file that was read to its end.

        Raises:
            UnreadableError: it changed since it was opened, or has another size than its manifest says.
        """
        if not FileState.of(stream.fileno()).same_content(opened):
            raise UnreadableError(f"{name} changed while it was read; {AGAIN}")
        if self.sha256 and opened.size != self.size:
            self.differs(f"{name} has {opened.size:,} bytes, but the manifest says {self.size:,}", strict)

    def check_response(self, name: str, headers: Mapping[str, str]) -> None:
        """Compare size and headers of a URL with those of earlier responses; the date only if there is no ETag.

        Raises:
            UnreadableError: they differ, so the file was replaced.
        """
        tagged = "ETag" in self.headers.keys() & headers.keys()
        for key, value in headers.items():
            earlier = self.headers.setdefault(key, value)
            if key == "Last-Modified" and tagged:
                continue  # the same content may be stored again
            if earlier.removeprefix("W/") != value.removeprefix("W/"):  # a weak ETag is one of the same content
                raise UnreadableError(
                    f"{name} changed while it was read: its {key} was {earlier[:80]} and is now {value[:80]}; {AGAIN}"
                )

    def differs(self, what: str, strict: bool) -> None:
        """Report a shard that is not as its manifest says: in training, once for each process.

        Raises:
            UnreadableError: `strict`.
        """
        message = f"{what}. `itr data verify` lists every such shard; prepare or copy the shards again"
        if strict:
            raise UnreadableError(message)
        if not self.warned:
            self.warned = True
            log.warning("%s. Training goes on with it", message)


def digest_of(stream: io.BufferedReader) -> str:
    """The SHA-256 of a file from its beginning, to which it returns."""
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    stream.seek(0)
    return digest


def headers_of(found: Mapping[str, object]) -> dict[str, str]:
    """The headers of a response that change with the content."""
    return {key: str(found[key]) for key in HEADERS if found.get(key)}
