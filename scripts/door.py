"""What the scripts share: each runs a command of the package, or says what to do where that is not installed."""

import sys


def enter(verb: str) -> None:
    """Run a command with the words of the process, and end the process with its exit code.

    A missing package is an error, 2: a caller of predict.py takes 1 for "some photos are anomalous".
    """
    try:
        from padim_bottle.commands.command_line import run_verb
    except ImportError as error:
        print(f"error: {sys.executable} lacks what this needs ({error}): pip install -e .", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(run_verb(verb))
