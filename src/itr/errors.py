"""The exceptions that a user is meant to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user can put right: the message names the thing and the way out.

    The command line prints it alone, without a traceback, and exits with status 1.
    """


class UnreadableError(UserError):
    """A file or URL that is missing, damaged, or can't be read to its end.

    Training may be allowed to do without some shards; whatever else is wrong stops it.
    """


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever goes wrong with a stranger's file, as one error that begins with `what`.

    A crafted file shows itself as anything from a missing key to a wrong type, far from where it was read.

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
