"""Judge a target: an example must end cleanly or with one of our errors; everything else is a bug."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hypothesis.strategies import SearchStrategy

from itr.errors import UserError

T = TypeVar("T")
SECONDS = 10.0  # processor time for one example, so that the machine's load does not matter
WAITING = 50.0  # seconds in all after which an example counts as hanging
MEBIBYTES = 768
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "webbrowser.open")
CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


class Bug(BaseException):
    """An example that ended in a way it must not; not an `Exception`, because the code under test may catch those."""


@dataclass(frozen=True)
class Target:
    """A reader of untrusted input.

    Attributes:
        name: the target's name.
        examples: returns the strategy of its examples.
        act: reads an example in its own folder; returns, or raises one of `named`.
        named: our errors that it may raise.
        sound: an undamaged example, which must end cleanly; None if there is none.
        mebibytes: how much one example may increase the memory of the process.
    """

    name: str
    examples: Callable[[], SearchStrategy[Any]]
    act: Callable[[Any, Path], None]
    named: tuple[type[Exception], ...] = (UserError,)
    sound: Any = None
    mebibytes: int = MEBIBYTES

    def judge(self, example: Any) -> str:
        """Run an example; return `clean` or the name of our error.

        Raises:
            Bug: it ended in any other way.
        """
        folder = Path(tempfile.mkdtemp(prefix="example-", dir=home()))
        try:
            with _watched(folder) as deeds, _quiet(), _in_time():
                ended = self._ended(example, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if deeds:
            raise Bug(f"{self.name}: it {deeds[0]}")
        return ended

    def _ended(self, example: Any, folder: Path) -> str:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            self.act(example, folder)
            ended = "clean"
        except self.named as error:
            str(error).encode("utf-8", "backslashreplace")
            ended = type(error).__name__
        except Bug:
            raise
        except BaseException as error:
            raise Bug(f"{self.name}: {type(error).__name__}: {str(error)[:300]}") from error
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if grown > self.mebibytes:
            raise Bug(f"{self.name}: it took {grown:.0f} MiB of memory")
        return ended


def check(holds: bool, otherwise: str) -> None:
    """Assert a property of a clean result.

    Raises:
        Bug: the property does not hold.
    """
    if not holds:
        raise Bug(otherwise)


_home: list[str] = []


def home() -> str:
    """This process's folder for examples and their source material; it is removed when the process ends."""
    if not _home:
        _home.append(tempfile.mkdtemp(prefix="itr-fuzz-"))
        atexit.register(shutil.rmtree, _home[0], ignore_errors=True)
    return _home[0]


_deeds: list[str] | None = None
_allowed: tuple[str, ...] = ()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: note files opened for writing, started programs and connections."""
    if _deeds is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, (str, bytes)) and isinstance(flags, int) and flags & WRITING:
            _look_at(path, "wrote")
    elif event in CHANGING:
        for path in arguments[:2]:
            if isinstance(path, (str, bytes)):
                _look_at(_in_folder(path, arguments[-1]), f"did {event} to")
    elif event in STARTING:
        _deeds.append(f"started a program: {event} {str(arguments)[:200]}")
    elif event in ("socket.connect", "socket.getaddrinfo"):
        _deeds.append(f"went to the network: {event} {str(arguments)[:200]}")


def _in_folder(path: str | bytes, number: Any) -> str:
    """The path, which may be relative to the folder with this file descriptor."""
    opened = f"/proc/self/fd/{number}"
    inside = isinstance(number, int) and number >= 0 and os.path.islink(opened)
    return os.path.join(os.readlink(opened), os.fsdecode(path)) if inside else os.fsdecode(path)


def _look_at(path: str | bytes, what: str) -> None:
    assert _deeds is not None
    place = os.path.abspath(os.fsdecode(path))
    if not (f"{place}{os.sep}".startswith(_allowed) or place == os.devnull or "__pycache__" in place):
        _deeds.append(f"{what} {place}, outside of its folder")


def material(make: Callable[..., T]) -> Callable[..., T]:
    """Cache the source material of examples; its creation may write anywhere."""

    @functools.cache
    def made(*arguments: Any) -> T:
        global _deeds
        kept, _deeds = _deeds, None
        try:
            return make(*arguments)
        except Exception as error:
            raise Bug(f"{make.__name__} can't be made: {error}") from error
        finally:
            _deeds = kept

    return made


@contextlib.contextmanager
def _watched(folder: Path) -> Iterator[list[str]]:
    """What is done meanwhile that may not be done: the list fills up."""
    global _deeds, _allowed
    if not getattr(sys, "_itr_fuzz_audit", False):
        sys.addaudithook(_audit)  # it stays for good, and does nothing outside of this context
        sys._itr_fuzz_audit = True  # type: ignore[attr-defined]
    cache = os.environ.get("XDG_CACHE_HOME")
    scratch = Path(home(), "scratch")
    scratch.mkdir(exist_ok=True)
    found: list[str] = []
    before, tempfile.tempdir = tempfile.tempdir, str(scratch)
    _allowed = tuple(f"{place}{os.sep}" for place in (folder, scratch, cache) if place)
    _deeds = found
    try:
        yield found
    finally:
        _deeds, tempfile.tempdir = None, before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress all output."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")),  # as in `itr`
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """Raise a bug if an example takes longer than `SECONDS` or `WAITING`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> None:
        raise Bug(f"it hangs: still running after {SECONDS:.0f} s of processor time or {WAITING:.0f} s in all")

    limits = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, WAITING))
    earlier = [signal.signal(signum, late) for signum, _, _ in limits]
    for _, timer, seconds in limits:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (signum, timer, _), handler in zip(limits, earlier, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(signum, handler)
