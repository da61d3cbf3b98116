"""A folder that fills while a line runs: each photo is judged once, when it is whole, whatever stops the watching.

The table is the memory: a photo that has its line is done. A line is written in one piece; what a killed process may
leave of one is cut off at the next start, and its photo judged again.
"""

import contextlib
import csv
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from padim_bottle.data.layout import IMAGE_SUFFIXES
from padim_bottle.errors import UserError
from padim_bottle.predict.drift import DriftMonitor
from padim_bottle.predict.heatmaps import Pictures
from padim_bottle.predict.judge import judge
from padim_bottle.predict.predictor import Predictor
from padim_bottle.predict.verdict_table import FIELDS, Row, verdict_row

LOG_FIELDS = (*FIELDS, "time")

# Seconds that a photo has to stay as it is before it counts as whole, where nobody says that its writer closed it.
SETTLE = 1.0
# Seconds after its last change that an unreadable photo is waited for: it may be a slow copy.
PATIENCE = 10.0
# Seconds between looks at the whole folder: they find what the system does not report, as on network drives.
RESCAN = 10.0
POLL = 1.0


def watch(
    predictor: Predictor,
    folder: Path,
    log: "VerdictLog",
    stop: threading.Event,
    *,
    batch_size: int = 8,
    pictures: Pictures | None = None,
    monitor: DriftMonitor | None = None,
) -> Iterator[Row]:
    """Judge what lies in a folder and in those below it, and what arrives, until told to stop.

    Args:
        predictor: the model.
        folder: to watch; hidden files are left alone.
        log: gets a line a photo, before the photo's row is returned.
        stop: ends the watching after the photo that is being judged.
        batch_size: photos at a time, where many are waiting.
        pictures: draws each photo, too.
        monitor: watches for drift; first it takes the photos that the log has already.

    Raises:
        UserError: the folder is missing, or something cannot be written.
    """
    if pictures is not None and pictures.folder.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{pictures.folder} lies in the folder that is watched: its pictures would be judged too.")
    if monitor is not None:
        for map_mean in log.map_means:
            monitor.add(map_mean)
    with Inbox(folder, log.has) as inbox:
        while not stop.is_set():
            for path, outcome in judge(predictor, inbox.whole(), batch_size):
                if isinstance(outcome, UserError):
                    if inbox.put_back(path):
                        continue
                elif pictures is not None:
                    pictures.write(path, outcome)
                row = verdict_row(predictor.rule, path, outcome, monitor)
                log.add(row)
                inbox.remove(path)
                yield row
                if stop.is_set():
                    break


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM within into an event; a second one ends the process as usual."""
    stop = threading.Event()
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

    def ask(*_: object) -> None:
        stop.set()
        restore()

    def restore() -> None:
        for name, handler in before.items():
            signal.signal(name, handler)

    for name in before:
        signal.signal(name, ask)
    try:
        yield stop
    finally:
        restore()


class VerdictLog:
    """A table that grows by a line a photo, and goes on where an earlier process stopped.

    Args:
        file: the CSV file.

    Raises:
        UserError: on entering: it is in use, is no such table, or cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        # Of the photos that earlier processes judged, in their order.
        self.map_means: list[float] = []
        self._lock = FileLock(f"{file}.lock")
        # Photos that are done; those that could not be read with the time of their line.
        self._done: dict[str, float | None] = {}

    def __enter__(self) -> "VerdictLog":
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._stream = self.file.open("a+", newline="", encoding="utf-8", errors="surrogateescape")
        except Timeout:
            raise UserError(f"{self.file} is being written by another process: stop that, or name another.") from None
        except OSError as error:
            raise UserError(f"Cannot write {self.file}: {error.strerror}.") from error
        try:
            self._resume()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._lock.release()

    def _resume(self) -> None:
        whole = self.file.read_bytes().rfind(b"\n") + 1
        self._stream.truncate(whole)
        self._stream.seek(0)
        reader = csv.DictReader(self._stream)
        if whole and tuple(reader.fieldnames or ()) != LOG_FIELDS:
            raise UserError(f"{self.file} is no table of predict.py --watch: name a file of its own.")
        for row in reader:
            self._remember(row)
            if row["map_mean"]:
                self.map_means.append(float(row["map_mean"]))
        self._writer = csv.DictWriter(self._stream, LOG_FIELDS, lineterminator="\n")
        if not whole:
            self._writer.writeheader()
            self._stream.flush()

    def _remember(self, row: Row) -> None:
        self._done[row["path"]] = datetime.fromisoformat(row["time"]).timestamp() if row.get("error") else None

    def __len__(self) -> int:
        return len(self._done)

    def has(self, path: Path) -> bool:
        """Whether a photo is done; one that could not be read is not, once it has changed."""
        if str(path) not in self._done:
            return False
        failed = self._done[str(path)]
        return failed is None or path.stat().st_mtime <= failed

    def add(self, row: Row) -> None:
        """Write a row, with the time, so that it stays whatever happens next."""
        row["time"] = datetime.now().astimezone().isoformat(timespec="microseconds")
        self._writer.writerow(row)
        self._stream.flush()
        self._remember(row)


class _Photo(NamedTuple):
    size: int
    changed: int
    since: float  # when it was first seen like this


class Inbox:
    """The photos of a folder that wait to be judged.

    Args:
        folder: to watch.
        is_done: whether a photo has been judged.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, folder: Path, is_done: Callable[[Path], bool]) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100 - links stay as they were named
        if not self.folder.is_dir():
            raise UserError(f"There is no folder {folder} to watch.")
        self._is_done = is_done
        self._waiting: dict[Path, _Photo] = {}
        self._closed: set[Path] = set()
        self._unreadable: set[Path] = set()
        self._reports: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._next_scan = 0.0

    def __enter__(self) -> "Inbox":
        self._observer = _observe(self.folder, self._reports)
        return self

    def __exit__(self, *_: object) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()

    def whole(self) -> list[Path]:
        """Wait a moment, and return the photos that are whole by now, in the order in which they were written."""
        self._take_reports()
        now = time.monotonic()
        if now >= self._next_scan:
            self._next_scan = now + (POLL if self._observer is None else RESCAN)
            for path in self.folder.rglob("*"):
                self._look_at(path)
        for path in list(self._waiting):
            self._look_at(path)
        now = time.monotonic()
        ready = [
            path
            for path, photo in self._waiting.items()
            if path in self._closed or now - photo.since >= (PATIENCE if path in self._unreadable else SETTLE)
        ]
        return sorted(ready, key=lambda path: (self._waiting[path].changed, path))

    def put_back(self, path: Path) -> bool:
        """Let an unreadable photo wait, unless it has not changed for long."""
        if time.monotonic() - self._waiting[path].since >= PATIENCE:
            return False
        self._unreadable.add(path)
        self._closed.discard(path)
        return True

    def remove(self, path: Path) -> None:
        """Forget a photo that was judged."""
        del self._waiting[path]
        self._closed.discard(path)
        self._unreadable.discard(path)

    def _take_reports(self) -> None:
        timeout: float | None = 0.1
        try:
            while True:
                kind, name = self._reports.get(timeout=timeout)
                timeout = 0.0
                path = Path(os.fsdecode(name))
                self._look_at(path)
                if path.is_dir():
                    self._next_scan = 0.0  # it may have come with photos in it
                elif kind in ("closed", "moved") and path in self._waiting:
                    self._closed.add(path)
        except Empty:
            pass

    def _look_at(self, path: Path) -> None:
        if path.suffix.lower() not in IMAGE_SUFFIXES or any(
            part.startswith(".") for part in path.relative_to(self.folder).parts
        ):
            return
        try:
            if not path.is_file() or self._is_done(path):
                self._waiting.pop(path, None)
                return
            stat = path.stat()
        except OSError:  # it is gone
            self._waiting.pop(path, None)
            return
        known = self._waiting.get(path)
        if known is None or (known.size, known.changed) != (stat.st_size, stat.st_mtime_ns):
            self._waiting[path] = _Photo(stat.st_size, stat.st_mtime_ns, time.monotonic())
            # Whoever writes it again has not closed it yet, and may mend it.
            self._closed.discard(path)
            self._unreadable.discard(path)


def _observe(folder: Path, reports: SimpleQueue[tuple[str, str]]) -> Any:
    """Let the system report changes; return None where it cannot."""
    try:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                if event.event_type in ("created", "modified", "closed"):
                    reports.put((event.event_type, str(event.src_path)))
                elif event.event_type == "moved" and event.dest_path:
                    reports.put(("moved", str(event.dest_path)))

        observer = Observer()
        observer.schedule(Handler(), str(folder), recursive=True)
        observer.start()
    except (ImportError, OSError) as error:
        print(f"The system reports no changes ({error}): looking every {POLL:g} s instead.", file=sys.stderr)
        return None
    return observer
