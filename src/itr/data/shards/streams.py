"""Reading the bytes of a URL or a file despite temporary faults, and copying a URL to disk."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.asyn import sync

from itr.data.shards.remote import connect, is_url, redacted, version_of, with_retries
from itr.data.shards.seen import HEADERS, Seen, headers_of
from itr.errors import UnreadableError, UserError
from itr.files.states import FileState
from itr.files.writing import whole_file

BLOCK = 2**23  # bytes per request to a store other than HTTP


class HttpResponse:
    """The response to one HTTP request for a file from byte `first` on; the server need not support ranges.

    The file class of fsspec requests block after block, and fails if the server does not support ranges.

    Attributes:
        position: the byte of the file that `read` returns next.
    """

    response: Any = None

    def __init__(self, system: Any, url: str, first: int, known: Mapping[str, str]) -> None:
        self.loop = system.loop
        self._ahead = b""
        headers = {"Accept-Encoding": "identity"}
        if first:
            headers["Range"] = f"bytes={first}-"
            strong = [known[key] for key in HEADERS if key in known and not known[key].startswith("W/")]
            if strong:
                headers["If-Range"] = strong[0]  # a server that has another version then returns all of it
        try:
            sync(self.loop, self._ask, system, url, headers)
            self.position = self._first(first)
        except BaseException:
            self.close()
            raise

    def _first(self, wanted: int) -> int:
        """The byte of the file that the response begins with."""
        if self.response.status != 206:
            return 0
        given = self.response.headers.get("Content-Range", "")
        if not given.startswith(f"bytes {wanted}-"):
            what = given or "a part without saying which"
            raise ValueError(f"the server returned {what}, but all bytes from {wanted} on were requested")
        return wanted

    @property
    def version(self) -> dict[str, str]:
        """What changes with the content, as far as the server states it: size of the whole file, and headers."""
        headers = self.response.headers
        size = headers.get("Content-Length", "")
        if self.response.status == 206:
            size = headers.get("Content-Range", "").rpartition("/")[2]
        known = {"size": size} if size.isdigit() and "Content-Encoding" not in headers else {}
        return known | headers_of(headers)

    async def _ask(self, system: Any, url: str, headers: dict[str, str]) -> None:
        session = await system.set_session()
        self.response = await session.get(system.encode_url(url), headers=headers)
        self.response.raise_for_status()
        self._ahead = await self._gather(2**18)

    async def _gather(self, size: int) -> bytes:
        """Up to `size` bytes. Bytes that came before a fault are returned; the next call raises the fault."""
        parts: list[bytes] = []
        try:
            while size and (data := await self.response.content.read(size)):
                parts.append(data)
                size -= len(data)
        except Exception:  # of any network library; it is raised where no bytes are lost by it
            if not parts:
                raise
        return b"".join(parts)

    def pass_over(self, target: int) -> None:
        """Read on to byte `target`."""
        while self.position < target and self.read(min(target - self.position, BLOCK)):
            pass

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; empty at the end."""
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        data = data or bytes(sync(self.loop, self._gather, size))
        self.position += len(data)
        return data

    def seekable(self) -> bool:
        """No."""
        return False

    def close(self) -> None:
        """Close the connection."""
        if self.response is not None:
            self.loop.call_soon_threadsafe(self.response.close)


class UrlStream(io.RawIOBase):
    """The bytes of a URL in order. After a network fault, reading continues at the same position.

    Args:
        url: where they are.
        seen: the version that was read before; another one is refused.
        strict: whether content that is not as the manifest says is an error, or a warning.
    """

    def __init__(self, url: str, seen: Seen, strict: bool = True) -> None:
        self.url, self.seen, self.strict = url, seen, strict
        self._file: Any = None
        self._position = 0
        self._digest = hashlib.sha256() if seen.sha256 else None

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill part of the buffer; 0 at the end."""
        data = with_retries(self.url, lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        if self._digest is not None:
            self._digest.update(data)
            if not data and len(buffer) and self._digest.hexdigest() != self.seen.sha256:
                what = f"{redacted(self.url)} is not the shard that the manifest describes: its checksum differs"
                self.seen.differs(what, self.strict)
        return len(data)

    def close(self) -> None:
        """Close the connection."""
        self._drop()
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._opened()
            if self._file.seekable():  # all readers of a file in memory share one position
                self._file.seek(self._position)
            data = bytes(self._file.read(size))
            size = int(self.seen.headers.get("size", 0))
            if not data and self._position < size:
                raise EOFError(f"it ended after {self._position} of {size} bytes")
            return data
        except BaseException:
            self._drop()
            raise

    def _opened(self) -> Any:
        system, path = connect(self.url)
        name = redacted(self.url)
        if not self.url.startswith("http"):
            file = system.open(path, "rb", block_size=BLOCK)
            version, size = version_of(system.info(path)), getattr(file, "size", None)
            self.seen.check_response(name, {"version": version} | ({} if size is None else {"size": str(size)}))
            return file
        response = HttpResponse(system, path, self._position, self.seen.headers)
        try:
            self.seen.check_response(name, response.version)
            response.pass_over(self._position)
        except BaseException:
            response.close()
            raise
        return response

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class LocalFile(io.FileIO):
    """The bytes of a file. After a temporary fault it is opened again, and reading continues at the same position."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._resume_at: int | None = None  # set after a fault
        with_retries(path, partial(super().__init__, path))
        self._state = FileState.of(self.fileno())

    def readinto(self, buffer: Any) -> int:
        """Fill part of the buffer; 0 at the end."""
        return with_retries(self.path, partial(self._read, buffer))

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, at most `size`, by `readinto`, which `FileIO.read` does not call."""
        return io.RawIOBase.read(self, -1 if size is None else size)

    def readall(self) -> bytes:
        """The bytes to the end, also by `readinto`."""
        return io.RawIOBase.readall(self)

    def _read(self, buffer: Any) -> int:
        if self._resume_at is not None:
            self._reopen(self._resume_at)
        try:
            count = super().readinto(buffer)
            if count is None:  # what Python makes of EAGAIN
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return count
        except OSError:
            self._resume_at = self.tell()
            raise

    def _reopen(self, position: int) -> None:
        super().__init__(self.path)  # closes the file that failed
        if not FileState.of(self.fileno()).same_content(self._state):
            raise UnreadableError(f"{self.path} changed while it was read; start again")
        self.seek(position)
        self._resume_at = None


def open_stream(location: str, seen: Seen | None = None, strict: bool = True) -> io.BufferedReader:
    """A stream of the bytes of a file, or of a URL, which can be read only once and in order.

    Args:
        location: path or URL.
        seen: what is known of the content of a URL; another version is refused.
        strict: whether a URL whose content is not as the manifest says is an error, or a warning.
    """
    if not is_url(location):
        return io.BufferedReader(LocalFile(location))
    return io.BufferedReader(UrlStream(location, seen or Seen(), strict), 2**20)


def download(url: str, target: Path, seen: Seen | None = None) -> None:
    """Copy a URL to a file, complete or not at all; the caller holds a lock."""
    try:
        with open_stream(url, seen) as stream, whole_file(target, ".part") as file:
            shutil.copyfileobj(stream, file, 2**20)
    except OSError as error:
        raise UserError(f"could not write {target}: {error.strerror}; free space or choose another folder") from None
