"""Exceptions whose messages are meant for users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

QUOTED_LENGTH = 300  # characters of another library's message


class UserError(ValueError):
    """An error that the user can correct: the message names what is wrong and what to do.

    The command line prints the message without a traceback and exits with status 1.
    """


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

    That is the first line of its message; a line that ends with a colon only announces the next ones.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = lines.pop(0)
    while lines and reason.endswith(":"):
        reason = f"{reason} {lines.pop(0)}"
    return reason if len(reason) <= QUOTED_LENGTH else f"{reason[:QUOTED_LENGTH]}..."
