"""A name for the content of a data set: two runs with the same one saw the same files."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from padim_bottle.errors import UserError, first_few


def file_digests(files: Iterable[Path], folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file, by its path relative to ``folder``, with forward slashes.

    Raises:
        UserError: Files cannot be read; it names the first few.
    """
    files = list(files)

    def digest(path: Path) -> str | OSError:
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            return error

    # hashlib lets go of the interpreter lock, so threads are enough.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = dict(zip(files, pool.map(digest, files), strict=True))
    errors = {path: error for path, error in digests.items() if isinstance(error, OSError)}
    if errors:
        named = first_few([f"{path} ({error.strerror})" for path, error in errors.items()])
        raise UserError(f"Cannot read {named}. Check the permissions, or copy the files again.")
    return {path.relative_to(folder).as_posix(): str(value) for path, value in digests.items()}


def fingerprint_of(digests: dict[str, str]) -> str:
    """Return the hexadecimal SHA-256 of the lines ``<sha256>  <relative path>``, sorted by path."""
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()
