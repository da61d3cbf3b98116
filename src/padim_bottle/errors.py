"""Errors for people, and how a command ends."""

import contextlib
import errno
import os
import re
import select
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import TextIO


class UserError(Exception):
    """A mistake that the user can mend: the message says what is wrong, where, and what to do.

    The scripts print the message alone, without a traceback, and exit with 2.
    """


class SystemTroubleError(UserError):
    """The system did not give what it has, such as a file of a drive that is away: it may, when asked later."""


class UnavailableError(UserError):
    """Data or weights are neither on this machine nor to be had from the network."""


# EFBIG: the file is larger than the user's limit or the file system allow.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KILLED_WORKER = re.compile(
    r"DataLoader worker \(pid\S* ([\d, ]+)\) (?:exited unexpectedly|is killed by signal: (\w+))"
)
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


MISTAKE, UNEXPECTED, INTERRUPTED = 2, 70, 130


def run_command(command: Callable[[], int]) -> int:
    """Run a script's command, and turn what ends it into a message and an exit code.

    0 and 1 are the command's own verdicts. 2: the user's mistake or trouble of the machine, in one sentence. 70: an
    unexpected error (``EX_SOFTWARE`` of sysexits.h), in one sentence, with its traceback in a file. 130: Ctrl-C.

    Args:
        command: does the work and returns 0 or 1, or 2 where it has said itself what is wrong.

    Returns:
        The exit code.

    Raises:
        SystemExit: the command asked for it.
    """
    try:
        code = command()
        # What a full disk or a reader that went away keep from being printed is known here, and not when Python ends.
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as end:
        # Lightning turns Ctrl-C into this.
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        return _interrupted()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and close_broken_streams():
            return MISTAKE
        _drop_what_cannot_be_printed()
        message = explain_failure(error)
        if message is not None:
            _say(f"error: {message}")
            return MISTAKE
        name, reason = type(error).__name__, in_a_line(error)
        _say(f"unexpected error: {name if reason == name else f'{name}: {reason}'}. {_log(error)}")
        return UNEXPECTED


def _interrupted() -> int:
    _say("interrupted: what was finished is kept, and nothing half-written was left behind")
    return INTERRUPTED


def _say(text: str) -> None:
    # Where nobody reads it, the exit code still says it.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def _drop_what_cannot_be_printed() -> None:
    """Drop lines that cannot be written: Python would complain of them at its end, with an exit code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def in_a_line(error: object) -> str:
    """Return what an error, or a text, says in one line without its last full stop, or the error's type if nothing.

    Of more than 400 characters the middle is left out.
    """
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"


def close_broken_streams() -> bool:
    """Return whether a reader of standard output or error has gone; what is printed there from now on is dropped."""
    broken = [stream for stream in (sys.stdout, sys.stderr) if _is_broken(stream)]
    for stream in broken:
        # Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(broken)


def _is_broken(stream: TextIO) -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it has no file, or the system no such question
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return bool(poll.poll(0))
    return False


def _log(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="padim-bottle-", suffix=".log", encoding="utf-8", delete=False
        ) as file:
            file.write(text)
    except OSError:
        return f"This is a fault of the program; please report it with this traceback:\n{text}"
    return f"This is a fault of the program; please report it with {file.name}."


def explain_failure(error: BaseException) -> str | None:
    """Return what to tell the user where their input or the machine, and not the program, is at fault.

    Args:
        error: what ended a command; the machine's part in it may be among the errors that led to it.

    Returns:
        The message, or ``None`` for an error whose traceback is needed.
    """
    if isinstance(error, UserError):
        # An error in a DataLoader's worker arrives with the worker's traceback in front of its message.
        return str(error).rsplit("UserError: ", 1)[-1].strip()
    cause: BaseException | None = error
    while cause is not None:
        if message := _explain_machine(cause):
            return message
        # Libraries turn what the machine did into these. Any other error that an error's handler raises is its own.
        wrapped = isinstance(cause, OSError | RuntimeError) and not cause.__suppress_context__
        cause = cause.__cause__ or (cause.__context__ if wrapped else None)
    return None


def _explain_machine(error: BaseException) -> str | None:
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("padim_bottle"):
        return f"{error.name} is not installed in {sys.executable}: install this package with all that it needs."
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        path = error.filename2 or error.filename  # of a copy the second one
        where = f" for {path}" if path else ""
        return f"No space left{where} ({error.strerror}): free some, and run the same command again."
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return f"{error.filename or 'A file'}: {error.strerror}. Check its permissions, or choose another folder."
    if killed := _KILLED_WORKER.search(str(error)):
        signal = f" ({killed[2]})" if killed[2] else ""
        return (
            f"A process that reads images, {killed[1]}, was killed{signal}: most often memory, or shared memory, ran "
            "out. Close other programs, or lower data.init_args.num_workers or the batch sizes."
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return "Memory ran out: close other programs, or lower the batch sizes, n_features or image_size."
    return None


def first_few(problems: list[str]) -> str:
    """Spell out a list that may be long: its first five members, and how many more there are."""
    more = f" and {len(problems) - 5} more ({len(problems)} in all)" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more
