"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Something the user can put right: the message names the thing and the way out.

    The command line prints it alone, without a traceback, and exits with status 1.
    """
