"""The photos of a watched folder that wait to be judged.

A photo is its path, size and time: what differs from what the log has is judged. Events tell at once what changed;
looks at the folder find what the system does not report, as on network drives. No time of a file is compared with this
machine's clock, which may be another's.
"""

import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_bottle.data.images import read_image
from padim_bottle.data.listing import is_photo, walk_files
from padim_bottle.errors import UserError
from padim_bottle.predict.verdict_log import VerdictLog
from padim_bottle.predict.verdict_table import spell_path

# Seconds that a photo has to stay as it is before it counts as whole, where nobody says that its writer closed it.
SETTLE = 1.0
# Seconds after its last change that a photo that cannot be decoded is waited for: it may be a slow copy.
PATIENCE = 10.0
# Seconds before a photo that the system could not read is tried again: doubled each time, up to the second number.
RETRY, LONGEST_RETRY = 1.0, 600.0
# Seconds between looks at the names in the whole folder, with the system's events and without.
RESCAN, POLL = 10.0, 1.0
# A look that takes longer is taken less often: this share of the time is spent on looking.
SHARE = 0.05
# Photos that were there at the last look, of which size and time are compared with the log's, ten times a second.
CHECKS = 200

Content = tuple[int, int]
"""Size and time (nanoseconds) of a file: another content has others."""


class ChangedError(UserError):
    """A photo is not what it was when it was found: it is looked at again."""


@dataclass
class _Photo:
    content: Content
    not_before: float  # on the monotonic clock
    since: float = field(default_factory=time.monotonic)  # when it was first seen like this
    failures: int = 0


class Inbox:
    """The photos of a folder that wait to be judged.

    Args:
        folder: to watch, with those below it; what is hidden is left alone.
        log: knows what is done.
        say: prints a sentence.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, folder: Path, log: VerdictLog, say: Callable[[str], None]) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100 - links stay as they were named
        if not self.folder.is_dir():
            raise UserError(f"There is no folder {folder} to watch.")
        self._log = log
        self._say = say
        self._waiting: dict[Path, _Photo] = {}
        self._others: dict[Path, Content] = {}  # files that are no photos
        self._reports = _Reports()
        self._present: list[str] = []
        self._checked = 0
        self._next_scan = 0.0

    def __enter__(self) -> "Inbox":
        self._observer = _observe(self.folder, self._reports, self._say)
        return self

    def __exit__(self, *_: object) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()

    def whole(self) -> list[Path]:
        """Wait a moment, and return the photos that are whole by now, in the order in which they were written."""
        for name, closed in self._reports.take(0.1).items():
            path = Path(name)
            if path.is_dir():
                self._scan(path)
            elif not any(part.startswith(".") for part in path.relative_to(self.folder).parts):
                self._look_at(path)
                if closed and path in self._waiting:
                    self._waiting[path].not_before = 0.0
        self._look_around()
        for path in list(self._waiting):
            self._look_at(path)
        now = time.monotonic()
        ready = [path for path, photo in self._waiting.items() if photo.not_before <= now]
        for path in [path for path in ready if not is_photo(path)]:
            self._others[path] = self._waiting.pop(path).content
        return sorted(self._waiting.keys() & ready, key=lambda path: (self._waiting[path].content[1], path))

    def read(self, path: Path, read: Callable[[Path], NDArray[np.uint8]] = read_image) -> NDArray[np.uint8]:
        """Read a photo that waits.

        Args:
            path: the photo.
            read: as the model reads it.

        Raises:
            ChangedError: it changed, or went, meanwhile.
            UserError: it cannot be read.
        """
        content = self._waiting[path].content
        try:
            photo = read(path)
        except UserError as error:
            if _content(path) != content:
                raise ChangedError(f"{path} changed.") from error
            raise
        if _content(path) != content:
            raise ChangedError(f"{path} changed.")
        return photo

    def put_back(self, path: Path) -> bool:
        """Let a photo that cannot be decoded wait, unless it has not changed for long."""
        photo = self._waiting[path]
        photo.not_before = photo.since + PATIENCE
        return time.monotonic() < photo.not_before

    def postpone(self, path: Path) -> int:
        """Let a photo that the system could not read wait, longer each time; return how often it has failed."""
        photo = self._waiting[path]
        photo.not_before = time.monotonic() + min(RETRY * 2**photo.failures, LONGEST_RETRY)
        photo.failures += 1
        return photo.failures

    def done(self, path: Path) -> Content:
        """Forget a photo that was judged, and return what it was."""
        return self._waiting.pop(path).content

    def _look_around(self) -> None:
        """Look at all names from time to time, and at some of the photos that were there always."""
        begin = time.monotonic()
        if begin >= self._next_scan:
            self._present = self._scan(self.folder)
            self._checked = 0
            self._others = {path: self._others[path] for path in map(Path, self._present) if path in self._others}
            end = time.monotonic()
            self._next_scan = end + max(POLL if self._observer is None else RESCAN, (end - begin) / SHARE)
        if self._present:
            begin_at = self._checked % len(self._present)
            for name in self._present[begin_at : begin_at + CHECKS]:
                self._look_at(Path(name))
            self._checked = begin_at + CHECKS

    def _scan(self, folder: Path) -> list[str]:
        """Look at what is new in a folder, and return all names; the disk is not asked about what is known."""
        names = [entry.path for entry in walk_files(folder)]
        others = set(map(str, self._others))
        for name in names:
            if self._log.content(spell_path(name)) is None and name not in others:
                self._look_at(Path(name))
        return names

    def _look_at(self, path: Path) -> None:
        content = _content(path)
        if content is None or content in (self._log.content(spell_path(path)), self._others.get(path)):
            self._waiting.pop(path, None)
        elif path not in self._waiting or self._waiting[path].content != content:
            self._waiting[path] = _Photo(content, time.monotonic() + SETTLE)


def _content(path: Path) -> Content | None:
    """Return what a file is now; ``None`` where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


class _Reports:
    """What the system reported about paths, and whether it said that a file was whole."""

    def __init__(self) -> None:
        self._paths: dict[str, bool] = {}
        self._some = threading.Condition()

    def put(self, path: str, *, closed: bool) -> None:
        with self._some:
            # Its writer has not closed it yet.
            self._paths[path] = closed
            self._some.notify()

    def take(self, seconds: float) -> dict[str, bool]:
        with self._some:
            if not self._paths:
                self._some.wait(seconds)
            paths, self._paths = self._paths, {}
        return paths


def _observe(folder: Path, reports: _Reports, say: Callable[[str], None]) -> Any:
    """Let the system report changes; return None where it cannot."""
    try:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                if event.is_directory and event.event_type == "modified":
                    return  # something in it was created or has gone, which is reported as well
                if event.event_type in ("created", "modified", "closed"):
                    reports.put(os.fsdecode(event.src_path), closed=event.event_type == "closed")
                elif event.event_type == "moved" and event.dest_path:
                    reports.put(os.fsdecode(event.dest_path), closed=True)

        observer = Observer()
        observer.schedule(Handler(), str(folder), recursive=True)
        observer.start()
    except (ImportError, OSError) as error:
        say(f"The system reports no changes ({error}): looking every {POLL:g} s instead.")
        return None
    return observer
