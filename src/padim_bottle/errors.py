"""The exceptions that are meant for people."""

import errno
import re


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The scripts print the message alone, without a traceback, and exit with 2.
    """


class UnavailableError(UserError):
    """Data or weights are neither on this machine nor to be had from the network."""


# EFBIG: the file is larger than the user's limit or the file system allow.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KILLED_WORKER = re.compile(
    r"DataLoader worker \(pid\S* ([\d, ]+)\) (?:exited unexpectedly|is killed by signal: (\w+))"
)
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def explain_failure(error: BaseException) -> str | None:
    """Return what to tell the user where their input or the machine, and not the program, is at fault.

    Args:
        error: whatever ended a command; what the machine did to it may be among the errors that led to it.

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
        cause = cause.__cause__ or cause.__context__
    return None


def _explain_machine(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
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
