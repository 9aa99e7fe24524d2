"""Reading the bytes of a URL or a file despite temporary faults, and copying a URL to disk."""

from __future__ import annotations

import errno
import io
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.asyn import sync

from itr.data.shards.remote import connect, is_url, redacted, with_retries
from itr.errors import UnreadableError, UserError
from itr.files.writing import whole_file

BLOCK = 2**23  # bytes per request to a store other than HTTP


class HttpResponse:
    """The response to one HTTP request for a file from byte `first` on; the server need not support ranges.

    The file class of fsspec requests block after block, and fails if the server does not support ranges.
    """

    response: Any = None

    def __init__(self, system: Any, url: str, first: int) -> None:
        self.loop = system.loop
        self._ahead = b""
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={first}-"} if first else {})}
        try:
            sync(self.loop, self._ask, system, url, headers)
            given = self.response.headers.get("Content-Range", "")
            if self.response.status == 206 and given and not given.startswith(f"bytes {first}-"):
                raise ValueError(f"the server returned {given}, but all bytes from {first} on were requested")
            self._pass_over(0 if self.response.status == 206 else first)
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int | None:
        """Size of the whole file in bytes; None if the server does not state it."""
        headers = self.response.headers
        size = headers.get("Content-Length", "")
        if self.response.status == 206:
            size = headers.get("Content-Range", "").rpartition("/")[2]
        return int(size) if size.isdigit() and "Content-Encoding" not in headers else None

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
        except Exception:
            if not parts:
                raise
        return b"".join(parts)

    def _pass_over(self, left: int) -> None:
        while left and (data := self.read(min(left, BLOCK))):
            left -= len(data)

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; empty at the end."""
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data or bytes(sync(self.loop, self._gather, size))

    def seekable(self) -> bool:
        """No."""
        return False

    def close(self) -> None:
        """Close the connection."""
        if self.response is not None:
            self.loop.call_soon_threadsafe(self.response.close)


class UrlStream(io.RawIOBase):
    """The bytes of a URL in order. After a network fault, reading continues at the same position."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._file: Any = None
        self._position = 0
        self._size: int | None = None

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill part of the buffer; 0 at the end."""
        data = with_retries(self.url, lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
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
            if not data and self._position < (self._size or 0):
                raise EOFError(f"it ended after {self._position} of {self._size} bytes")
            return data
        except BaseException:
            self._drop()
            raise

    def _opened(self) -> Any:
        system, path = connect(self.url)
        if not self.url.startswith("http"):
            file = system.open(path, "rb", block_size=BLOCK)
            self._expect(getattr(file, "size", None))
            return file
        answer = HttpResponse(system, path, self._position)
        self._expect(answer.size)
        return answer

    def _expect(self, size: int | None) -> None:
        if size is not None and self._size not in (None, size):
            raise UnreadableError(f"{redacted(self.url)} changed while it was read; start again")
        self._size = size if size is not None else self._size

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
        self._state = self._size_and_time()

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
        if self._size_and_time() != self._state:
            raise UnreadableError(f"{self.path} changed while it was read; start again")
        self.seek(position)
        self._resume_at = None

    def _size_and_time(self) -> tuple[int, int]:
        found = os.fstat(self.fileno())
        return found.st_size, found.st_mtime_ns


def open_stream(location: str) -> io.BufferedReader:
    """A stream of the bytes of a file, or of a URL, which can be read only once and in order."""
    return io.BufferedReader(UrlStream(location), 2**20) if is_url(location) else io.BufferedReader(LocalFile(location))


def download(url: str, target: Path) -> None:
    """Copy a URL to a file, complete or not at all; the caller holds a lock."""
    try:
        with open_stream(url) as stream, whole_file(target, ".part") as file:
            shutil.copyfileobj(stream, file, 2**20)
    except OSError as error:
        raise UserError(f"could not write {target}: {error.strerror}; free space or choose another folder") from None
