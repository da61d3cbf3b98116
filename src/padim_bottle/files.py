"""Files that appear whole or not at all."""

import hashlib
import os
import threading
from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file under a hidden name and rename it, so that nobody meets half of it; its folder is made if missing.

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
