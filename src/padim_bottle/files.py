"""Files and folders that appear whole or not at all."""

import contextlib
import glob
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

# In the hidden folder of a folder that is being written: what is written, what it replaces, and who is alive.
_NEW, _OLD, _LOCK = "new", "old", "lock"


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file under a hidden name and rename it, so that it is whole or not there; its folder is made if missing.

    Args:
        path: the file; one that is there is replaced.
        content: bytes, or text that is written as UTF-8.

    Raises:
        OSError: it cannot be written; an earlier file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.partial-{os.getpid()}-{threading.get_ident()}")
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def printable(path: str | Path) -> str:
    """Return a path as it can be written anywhere: bytes that are no UTF-8 are spelled ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@contextlib.contextmanager
def whole_folder(folder: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``folder`` when the block ends without an error.

    It lies in a hidden folder beside that one. What killed processes left there is put in order first: an earlier
    folder that had stepped aside for one that was whole, but not in its place yet, is replaced by that one.

    Args:
        folder: may be there, and is replaced then; its parent is made if missing.
        keep: leave one that is there by then, as another process made it.

    Raises:
        OSError: it cannot be written; an earlier folder is untouched.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for hidden in abandoned_folders(folder):
        _settle(hidden, folder)
    hidden, lock = locked_folder(folder)
    try:
        (hidden / _NEW).mkdir()
        yield hidden / _NEW
        if not keep:
            with contextlib.suppress(FileNotFoundError):
                folder.rename(hidden / _OLD)
        try:
            (hidden / _NEW).rename(folder)
        except OSError:
            if not (keep and folder.exists()):
                raise
    finally:
        lock.release()
        _settle(hidden, folder)


def _settle(hidden: Path, folder: Path) -> None:
    """Finish, or take back, what a process that ended in ``whole_folder`` had begun."""
    if (hidden / _OLD).exists():  # so the new one is whole
        for name in (_NEW, _OLD):
            with contextlib.suppress(OSError):
                if not folder.exists():
                    (hidden / name).rename(folder)
        if not folder.exists():
            return
    shutil.rmtree(hidden, ignore_errors=True)


def abandoned_folders(folder: Path) -> Iterator[Path]:
    """Yield the hidden folders beside one whose processes are gone; each is locked while it is dealt with."""
    for hidden in folder.parent.glob(f".{glob.escape(folder.name)}.partial-*"):
        lock = FileLock(hidden / _LOCK)
        # Else it is being written, or another process clears it away.
        with contextlib.suppress(Timeout, OSError), lock.acquire(timeout=0):
            yield hidden


def locked_folder(folder: Path) -> tuple[Path, BaseFileLock]:
    """Return a new hidden folder beside one, and the lock in it that says that its process is alive."""
    while True:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Another process may take it for an abandoned one before it is locked, or remove the empty parent.
        with contextlib.suppress(Timeout, FileNotFoundError, FileExistsError):
            hidden = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
            lock = FileLock(hidden / _LOCK)
            lock.acquire(timeout=0)
            if (hidden / _LOCK).exists():
                return hidden, lock
            lock.release()
