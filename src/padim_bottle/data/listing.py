"""The photos of a folder: one listing for training, test, prediction, watching, tuning and the app.

``list_photos(folder)`` looks once and returns a :class:`Listing`: the photos in a stable order, and by name what was
left out. ``is_photo(path)`` asks about one file, such as one that has just arrived in a folder. The rules:

- A photo is a file with one of the usual suffixes, or one whose content is of a known format. A file with a suffix
  that cannot be read is a photo all the same, so that reading it says what is wrong with it. So is a dangling link.
- Hidden files and folders, whose names begin with a dot, are passed over.
- Links are followed; a folder that is reached twice counts once, under its own name rather than a link's.
- What vanishes while one looks is not there.
- A name that is not valid UTF-8 is a name like others. Only its spelling needs care: ``files.printable``.
"""

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from padim_bottle.data.images import is_image
from padim_bottle.errors import UserError, first_few
from padim_bottle.files import printable

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("png", "jpg", "jpeg", "jpe", "jfif", "bmp", "dib", "tif", "tiff", "webp", "gif"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "jpx", "heic", "heif", "avif"),
    )
)


@dataclass(frozen=True)
class Listing:
    """What lies in a folder; everything sorted by path.

    Attributes:
        photos: what to read.
        others: files that are no photos.
        folders: folders within, also those that were not searched.
        problems: a sentence for each folder that could not be listed, and of ``find_photos`` for each argument that
            names no photo.
    """

    photos: list[Path]
    others: list[Path]
    folders: list[Path]
    problems: list[str]

    def checked(self) -> "Listing":
        """Return this listing.

        Raises:
            UserError: a folder could not be listed, or an argument names no photo.
        """
        if self.problems:
            raise UserError(first_few(self.problems))
        return self


def list_photos(folder: Path, *, subfolders: bool = True) -> Listing:
    """List the photos of a folder; one that is missing holds none.

    Args:
        folder: what to list. The paths of the listing begin with it.
        subfolders: list the folders within it, too.
    """
    listing = Listing([], [], [], [])
    for entry in walk_files(folder, subfolders=subfolders, listing=listing):
        path = Path(entry.path)
        if is_photo(path):
            listing.photos.append(path)
        elif path.exists():
            listing.others.append(path)
    for found in (listing.photos, listing.others, listing.folders):
        found.sort()
    return listing


def walk_files(
    folder: Path, *, subfolders: bool = True, listing: Listing | None = None
) -> Iterator["os.DirEntry[str]"]:
    """Yield the files of a folder that are not hidden; the disk is asked about folders and links alone.

    Args:
        folder: as of ``list_photos``.
        subfolders: go into the folders within it, too.
        listing: gets the folders, and those that could not be listed.
    """
    seen: set[tuple[int, int]] = set()
    waiting, links = [folder], list[Path]()
    while waiting or links:
        current = waiting.pop() if waiting else links.pop()
        try:
            status = current.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in seen:
                continue
            entries = [entry for entry in os.scandir(current) if not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if listing is not None:
                listing.problems.append(f"Cannot list {printable(current)}: {error.strerror}. Check its permissions.")
            continue
        seen.add(identity)
        for entry in entries:
            if not _is_folder(entry):
                yield entry
                continue
            path = Path(entry.path)
            if listing is not None:
                listing.folders.append(path)
            if subfolders:
                (links if entry.is_symlink() else waiting).append(path)
        links.sort(reverse=True)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_photo(path: Path) -> bool:
    """Tell whether a file, which is not hidden, is a photo."""
    try:
        plain = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        plain = path.is_symlink()  # it is dangling
    # Anything else, such as a pipe, could be waited for without end.
    return plain and (path.suffix.lower() in SUFFIXES or is_image(path))


def find_photos(patterns: Iterable[str]) -> Listing:
    """Resolve files, folders (with all below them) and patterns, each photo once.

    Args:
        patterns: what a command line names. A single file that is named is always taken.

    Returns:
        The photos in the order of the arguments, sorted within each; a problem for each argument that names none.
    """
    photos: dict[Path, None] = {}
    others: dict[Path, None] = {}
    problems = []
    for pattern in patterns:
        # A file whose name has brackets is a file first.
        named = [Path(pattern)] if os.path.lexists(pattern) else sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207
        found: list[Path] = []
        for path in named:
            if path.is_dir():
                listing = list_photos(path)
                found += listing.photos
                others.update(dict.fromkeys(listing.others))
                problems += listing.problems
            elif len(named) == 1 or is_photo(path):
                found.append(path)
            else:
                others[path] = None
        if not found:
            problems.append(f"There is no photo {pattern}." if not named else f"There are no photos in {pattern}.")
        photos.update(dict.fromkeys(found))
    return Listing(list(photos), [path for path in others if path not in photos], [], problems)


def left_out(paths: Iterable[Path], folder: Path | None = None) -> str | None:
    """Return a sentence that names what is left out, with its number; None if that is nothing.

    Args:
        paths: files, and folders that are not searched.
        folder: one that all are in, so that they can be named shortly.
    """
    names = [
        printable(path if folder is None else path.relative_to(folder)) + "/" * path.is_dir() for path in sorted(paths)
    ]
    if not names:
        return None
    where = "" if folder is None else f" of {printable(folder)}"
    return f"Left out{where} ({len(names)}): {first_few(names)}."
