"""Exceptions whose messages are meant for users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

QUOTED_LENGTH = 300  # characters of another library's message


class UserError(ValueError):
    """An error that the user can correct: the message names what is wrong and what to do.

    The command line prints the message without a traceback and exits with status 1.
    """


class WrongOptionError(Exception):
    """An option that does not exist, or one that is missing; the command line exits with status 2."""


class UnreadableError(UserError):
    """A file or URL that is missing, damaged, or could not be read to its end.

    Training may be allowed to skip some shards; any other error stops it.
    """


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn any error that an untrusted file causes into one that begins with `what`.

    A crafted file may cause anything from a missing key to a wrong type, far from where it was read.

    Raises:
        UserError: something went wrong.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error).strip()
        raise UserError(f"{what} ({type(error).__name__}{': ' * bool(text)}{text[:1000]})") from error


def quoted(error: BaseException) -> str:
    """The reason that an exception of another library gives, in one line of bounded length.

    That is the first line of its message; a line that ends with a colon only announces the next ones. Torch's advice
    to let a file run its code is omitted.
    """
    text = str(error).rpartition("WeightsUnpickler error: ")[2].partition(" Please use `torch.serialization")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    reason = lines.pop(0)
    while lines and reason.endswith(":"):
        reason = f"{reason} {lines.pop(0)}"
    return reason if len(reason) <= QUOTED_LENGTH else f"{reason[:QUOTED_LENGTH]}..."


def shown(value: object, most: int = 80) -> str:
    """A value for a message: on one line, without control characters, and of at most about `most` characters.

    Bytes are given as a count, since they say nothing on a screen.

    Args:
        value: what a user or a file contains; it may be of any type and size.
        most: longest text to show in full.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value):,} bytes"
    text = _short_repr(value, most)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _short_repr(value: object, most: int) -> str:
    """`repr` without first writing out the rest of a long text or of a large container."""
    if isinstance(value, str) and len(value) > most:
        kept = max(most - 40, most // 2)
        return f"{value[:kept]!r} and {len(value) - kept:,} more characters"
    if isinstance(value, dict):
        items = [f"{shown(key, most)}: {shown(item, most)}" for key, item in list(value.items())[:4]]
        return f"{{{', '.join([*items, '...'][: len(value)])}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join([*(shown(item, most) for item in value[:4]), '...'][: len(value)])}]"
    return repr(value)


def bounded(text: str, most: int = 4000) -> str:
    """A message with its middle left out if it is very long, so that its beginning and its advice stay readable."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
