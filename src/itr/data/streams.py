"""The bytes of a URL from first to last, through faults of the network; or a copy of them on disk."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

from fsspec.asyn import sync

from itr.data.remote import connect, persist, shown
from itr.errors import UserError

BLOCK = 2**23  # bytes that a store other than HTTP gives at a time


class Answer:
    """An HTTP server's answer to one request for all of a file from byte `first`; it may know no ranges.

    Fsspec's own file asks for block after block, and fails where a server knows no ranges.
    """

    response: Any = None

    def __init__(self, system: Any, url: str, first: int) -> None:
        self.loop = system.loop
        self._ahead = b""
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={first}-"} if first else {})}
        try:
            sync(self.loop, self._ask, system, url, headers)
            self._pass_over(0 if self.response.status == 206 else first)
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int | None:
        """Bytes of the whole file, if the server tells."""
        told = self.response.headers
        size = told.get("Content-Length", "")
        if self.response.status == 206:
            size = told.get("Content-Range", "").rpartition("/")[2]
        return int(size) if size.isdigit() and "Content-Encoding" not in told else None

    async def _ask(self, system: Any, url: str, headers: dict[str, str]) -> None:
        session = await system.set_session()
        self.response = await session.get(system.encode_url(url), headers=headers)
        self.response.raise_for_status()
        self._ahead = await self._gather(2**18)

    async def _gather(self, size: int) -> bytes:
        """Up to `size` bytes. What came before a fault counts: the next call meets the fault."""
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
        """The next bytes, `size` at most; none at the end."""
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data or bytes(sync(self.loop, self._gather, size))

    def seekable(self) -> bool:
        """No."""
        return False

    def close(self) -> None:
        """Let go of the connection."""
        if self.response is not None:
            self.loop.call_soon_threadsafe(self.response.close)


class Stream(io.RawIOBase):
    """The bytes of a URL from first to last. After a fault of the network it goes on where it stood."""

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
        data = persist(self.url, lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Let go of the connection."""
        self._drop()
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._opened()
            if self._file.seekable():  # a file in memory is one for all its readers
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
        answer = Answer(system, path, self._position)
        self._expect(answer.size)
        return answer

    def _expect(self, size: int | None) -> None:
        if size is not None and self._size not in (None, size):
            raise UserError(f"{shown(self.url)} changed while it was read; start again")
        self._size = size if size is not None else self._size

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def open_stream(url: str) -> io.BufferedReader:
    """The bytes of a URL, to be read once from first to last."""
    return io.BufferedReader(Stream(url), 2**20)


def download(url: str, target: Path) -> None:
    """Copy a URL to a file that has its name only when it is whole."""
    part = target.with_name(target.name + ".part")
    try:
        with open_stream(url) as stream, part.open("wb") as file:
            shutil.copyfileobj(stream, file, 2**20)
        os.replace(part, target)
    except OSError as error:
        raise UserError(f"{target} can't be written: {error.strerror}; make room or choose another folder") from None
