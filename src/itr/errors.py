"""Exceptions whose messages are meant for users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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
