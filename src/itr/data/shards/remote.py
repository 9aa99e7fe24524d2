"""Files at URLs, read with fsspec: which protocols are allowed, which files exist, and retries after network faults."""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fsspec.core import url_to_fs

from itr.errors import UnreadableError, UserError

# Allowed protocols, each with the package that reads it. Other protocols of fsspec open archives, run programs or
# follow references in an untrusted file, and `a::b` chains protocols: all of these are refused.
PACKAGES = {
    "http": "aiohttp", "https": "aiohttp", "memory": "fsspec", "hf": "huggingface_hub", "s3": "s3fs", "s3a": "s3fs",
    "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "oci": "ocifs", "oss": "ossfs",
    "hdfs": "pyarrow", "webhdfs": "requests", "ftp": "fsspec", "sftp": "paramiko", "ssh": "paramiko",
}  # fmt: skip
VERSIONS = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "updated", "mtime", "blob_id", "created")
WAITS = (0.1, 0.5, 2.0, 8.0)  # seconds before each retry
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, ValueError, TypeError, ImportError)
BUSY = (408, 425, 429)  # HTTP: try again
# Temporary errors of a network file system, or of a disk that is slow to wake. Not every system defines all of them.
PASSING = {
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EINTR", "EBUSY", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EPIPE",
        "ENOTCONN", "ESHUTDOWN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EREMOTEIO",
        "ECOMM", "EPROTO", "ENOBUFS",
    )
    if hasattr(errno, name)
}  # fmt: skip
log = logging.getLogger(__name__)
T = TypeVar("T")


class AbsentError(UnreadableError):
    """A location does not exist or is forbidden; some stores report one as the other."""


def is_url(location: str) -> bool:
    """Whether it is a URL rather than a path."""
    return "://" in location


def redacted(location: str) -> str:
    """A location for messages, without any password or signature of a URL."""
    return re.sub(r"(?<=://)[^/@]*@", "", location).partition("?")[0] if is_url(location) else location


def check_kind(location: str) -> None:
    """Refuse anything but a path or a URL with an allowed protocol.

    Raises:
        UserError: `pipe:` and the like, chains, and protocols that are not in `PACKAGES`.
    """
    if re.match(r"(pipe|exec|file\+exec):|.*\|\s*$", location):
        raise UserError(f"{location!r} would run a program, which itr never does; give the path or the URL of the tar")
    if not is_url(location):
        return
    protocol = location.partition("://")[0]
    if "::" in location:
        raise UserError(f"{redacted(location)} chains protocols; give a plain URL, and --data.cache DIR to keep copies")
    if protocol not in PACKAGES:
        raise UserError(f"{redacted(location)}: itr does not read {protocol}://; it reads {', '.join(PACKAGES)}")


def connect(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it.

    It is looked up each time: fsspec caches one per thread and process, and a worker must use its own.
    """
    check_kind(url)
    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            # A shard is read at the pace of training, so the limit is on silence, not on the total time.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
        return url_to_fs(url, **options)  # type: ignore[no-any-return]
    except ImportError:
        package = PACKAGES[protocol]
        raise UserError(f"{redacted(url)} needs the package {package}: pip install {package}") from None


def with_retries(location: str, action: Callable[[], T]) -> T:
    """Run an action on a URL or a file, and retry after temporary faults, up to five tries in all.

    Raises:
        AbsentError: it does not exist or is forbidden.
        UnreadableError: it could not be read: the fault is permanent, or the last try failed too.
    """
    tries = 0
    while True:
        try:
            return action()
        except UserError:
            raise
        except Exception as error:  # every store has its own error types
            cause = _cause(error)
            if tries == len(WAITS) or not (_may_pass if is_url(location) else _may_pass_here)(cause):
                raise _explained(location, cause, tries) from None
            if tries:  # a single fault is not worth a message
                log.warning("%s: %s; trying again", redacted(location), _words(cause))
            time.sleep(WAITS[tries])
            tries += 1


def _cause(error: Exception) -> Exception:
    """The network error behind an error: fsspec reports 'not found' for anything that an HTTP server refuses."""
    cause = error.__cause__
    network = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
    return cause if isinstance(cause, Exception) and network else error


def _may_pass(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int) and status >= 400:
        return status >= 500 or status in BUSY
    return not isinstance(error, PERMANENT) and "Credentials" not in type(error).__name__


def _may_pass_here(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in PASSING


def _explained(location: str, error: Exception, tries: int) -> UnreadableError:
    status, name = getattr(error, "status", None), redacted(location)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        thing = "address" if is_url(location) else "path"
        return AbsentError(f"{name} does not exist{f' (HTTP {status})' if status else ''}; check the {thing}")
    if isinstance(error, PermissionError) or status in (401, 403):
        code = f" (HTTP {status})" if status else ""
        return AbsentError(f"access to {name} was denied{code}; check the address and the permissions of your account")
    again = f" after {tries + 1} tries" if tries else ""
    where = "address and the network" if is_url(location) else "disk or the file system it is on"
    return UnreadableError(f"could not read {name}{again}: {_words(error)}; check the {where}")


def _words(error: Exception) -> str:
    status = getattr(error, "status", None)
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return f"HTTP {status}" if status else lines[0] if lines else type(error).__name__


def describe_url(url: str) -> dict[str, Any]:
    """What a server or store says about a file, such as its `size` in bytes."""
    return with_retries(url, lambda: _info(url))


def version_of(found: Mapping[str, Any]) -> str:
    """The version of a file by its description; it changes with the content, and is empty if unknown."""
    return " ".join(str(found[name]) for name in VERSIONS if found.get(name))


def _info(url: str) -> dict[str, Any]:
    system, path = connect(url)
    return system.info(path)  # type: ignore[no-any-return]


def read_bytes(url: str) -> bytes:
    """The content of a small file."""

    def read() -> bytes:
        system, path = connect(url)
        return bytes(system.cat_file(path))

    return with_retries(url, read)


def find_urls(pattern: str) -> list[str]:
    """The URLs that match a pattern with `*`, sorted.

    Raises:
        AbsentError: the folder does not exist, or the server does not list it.
    """
    folder, _, last = pattern.rpartition("/")

    def search() -> list[str]:
        system, path = connect(pattern if "*" in folder else f"{folder}/")
        names = system.glob(path) if "*" in folder else system.ls(path, detail=False)
        return sorted(system.unstrip_protocol(name) for name in names)

    wanted = re.compile(".*".join(map(re.escape, last.split("*"))))
    return [url for url in with_retries(pattern, search) if wanted.fullmatch(url.rstrip("/").rpartition("/")[2])]
