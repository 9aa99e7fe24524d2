"""The one exception that a user is meant to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user can put right: the message names the thing and the way out.

    The command line prints it alone, without a traceback, and exits with status 1.
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
