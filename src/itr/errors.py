"""The exceptions that a user is meant to read."""


class UserError(ValueError):
    """Something the user can put right: the message names the thing and the way out.

    The command line prints it alone, without a traceback, and exits with status 1.
    """


class UnreadableError(UserError):
    """A file or URL that is missing, damaged, or can't be read to its end.

    Training may be allowed to do without some shards; whatever else is wrong stops it.
    """
