"""What all commands share: how they read their arguments and how they end. Nothing heavy is imported."""

import argparse
import sys

from padim_bottle.errors import explain_failure


def new_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Return a command's parser: its help text as it is written, and no abbreviated options."""
    return argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def positive(text: str) -> int:
    """Return an argument that is a whole number of 1 or more.

    Raises:
        argparse.ArgumentTypeError: it is less.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def fail(error: Exception) -> int:
    """Print in one line what the user can mend, and return the exit code 2.

    Raises:
        Exception: the error itself, where its traceback is needed.
    """
    message = explain_failure(error)
    if message is None:
        raise error
    print(f"error: {message}", file=sys.stderr)
    return 2
