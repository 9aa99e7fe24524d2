"""A web server on this machine that serves a folder, well or badly."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread


@dataclass
class Web:
    """Serves `folder` at `url` while it is entered.

    Attributes:
        ranges: whether it supports the header Range.
        fail_every: answers every n-th request with status 503; 0 for no failures.
        cut: closes the connection after this many bytes, regardless of Content-Length; 0 for never.
        forbidden: whether it answers every request with status 403.
        page: whether it answers every request with a web page.
        shift: number of bytes by which a partial answer starts too late.
        tags: whether it gives every version of a file its own ETag.
        if_range: whether it answers a request for part of another version with the whole file.
        vague: whether a partial answer lacks Content-Range.
        seen: (method, path, Range) of each request.
    """

    folder: Path
    ranges: bool = True
    fail_every: int = 0
    cut: int = 0
    forbidden: bool = False
    page: bool = False
    shift: int = 0
    tags: bool = False
    if_range: bool = True
    vague: bool = False
    seen: list[tuple[str, str, str]] = field(default_factory=list)

    def __enter__(self) -> Web:
        self.lock = Lock()
        web = self

        class Handler(Answer):
            state = web

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def count(self, ending: str, method: str = "GET") -> int:
        """The number of requests for files with this ending."""
        return sum(path.endswith(ending) and kind == method for kind, path, _ in self.seen)


class Answer(SimpleHTTPRequestHandler):
    """One answer."""

    state: Web

    def __init__(self, *args: object) -> None:
        super().__init__(*args, directory=str(self.state.folder))  # type: ignore[arg-type]

    def do_HEAD(self) -> None:  # noqa: N802
        if not self.spoiled():
            super().do_HEAD()

    def do_GET(self) -> None:  # noqa: N802
        if self.spoiled():
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return super().do_GET()
        data = path.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.state.ranges else None
        date, tag = self.date_time_string(int(path.stat().st_mtime)), f'"{path.stat().st_mtime_ns}"'
        if self.state.if_range and self.headers.get("If-Range") not in (None, date, tag):
            span = None
        first = int(span[1]) + self.state.shift if span else 0
        last = min(int(span[2]), len(data) - 1) if span and span[2] else len(data) - 1
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Last-Modified", date)
        if self.state.tags:
            self.send_header("ETag", tag)
        if span and not self.state.vague:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        body = data[first : last + 1]
        self.wfile.write(body[: self.state.cut] if self.state.cut else body)
        self.close_connection = True
        return None

    def spoiled(self) -> bool:
        state = self.state
        with state.lock:
            state.seen.append((self.command, self.path, self.headers.get("Range", "")))
            fails = state.fail_every and len(state.seen) % state.fail_every == 0
        if state.page:
            page = b"<!DOCTYPE html><p>Please log in"
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page if self.command == "GET" else b"")
        elif state.forbidden or fails:
            self.send_error(403 if state.forbidden else 503)
        return bool(state.page or state.forbidden or fails)

    def log_message(self, *_: object) -> None:
        pass
