"""A name for the content of a data set: two runs with the same one saw the same files."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from padim_bottle.errors import UserError, first_few
from padim_bottle.files import printable, sha256
from padim_bottle.stages import cores


def file_digests(files: Iterable[Path]) -> dict[Path, str]:
    """Return the SHA-256 of every file; one that is as it was is not read again by this process.

    Raises:
        UserError: files cannot be read, or the tables of a run could not name them; it names the first few.
    """
    files = list(dict.fromkeys(files))
    nameless = [printable(path) for path in files if printable(path) != str(path)]
    if nameless:
        raise UserError(f"Names that are not valid Unicode: {first_few(nameless)}. Rename them.")

    def digest(path: Path) -> str | OSError:
        try:
            status = path.stat()
            return _digest(path, status.st_size, status.st_mtime_ns, status.st_ino)
        except OSError as error:
            return error

    # hashlib lets go of the interpreter lock, so threads are enough.
    with ThreadPoolExecutor(min(8, cores())) as pool:
        digests = dict(zip(files, pool.map(digest, files), strict=True))
    errors = {path: error for path, error in digests.items() if isinstance(error, OSError)}
    if errors:
        named = first_few([f"{printable(path)} ({error.strerror})" for path, error in errors.items()])
        raise UserError(f"Cannot read {named}. Check the permissions, or copy the files again.")
    return {path: str(value) for path, value in digests.items()}


@cache
def _digest(path: Path, size: int, changed: int, inode: int) -> str:
    return sha256(path)


def fingerprint_of(digests: Mapping[Path, str]) -> str:
    """Name the content of files.

    Returns:
        Hexadecimal SHA-256 of the lines ``<sha256>  <path>``, sorted by path: the path from the deepest folder that
        holds all files, with forward slashes.
    """
    paths = {Path(os.path.abspath(path)): digest for path, digest in digests.items()}  # noqa: PTH100 - links stay
    folder = os.path.commonpath([path.parent for path in paths])
    names = {path.relative_to(folder).as_posix(): digest for path, digest in paths.items()}
    lines = "".join(f"{names[name]}  {name}\n" for name in sorted(names))
    return hashlib.sha256(lines.encode()).hexdigest()
