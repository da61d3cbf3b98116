"""How all commands read their arguments."""

import argparse


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


def rate(text: str) -> float:
    """Return an argument that is a share between 0 and 1.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number
