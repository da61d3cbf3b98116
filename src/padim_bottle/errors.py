"""The exceptions that are meant for people."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The scripts print the message alone, without a traceback, and exit with 2.
    """


class UnavailableError(UserError):
    """Data or weights are neither on this machine nor to be had from the network."""
