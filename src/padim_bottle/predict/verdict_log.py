"""The table that a watch goes on with: a line a photo, and what was judged already."""

import csv
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from padim_bottle.errors import UserError, in_a_line
from padim_bottle.predict.verdict_table import LOG_FIELDS, Row, flat, is_log


class VerdictLog:
    """A table that grows by a line a photo, and goes on where an earlier process stopped.

    Args:
        file: the CSV file; links are followed.

    Attributes:
        model: digest of the model whose rows are written.
        map_means: of the photos that were judged, in their order, by the digest of their model.

    Raises:
        UserError: on entering: it is in use, is no such table, or cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file.resolve()
        self.model = ""
        self.map_means: dict[str, list[float]] = {}
        self._lock = FileLock(f"{self.file}.lock")
        self._done: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> "VerdictLog":
        if self.file.exists() and not self.file.is_file():
            raise UserError(f"{self.file} is no file: a watch goes on with what its table has. Name a file.")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._stream = self.file.open("a+", newline="", encoding="utf-8", errors="replace")
        except Timeout:
            raise UserError(f"{self.file} is being written by another process: stop that, or name another.") from None
        except OSError as error:
            self._lock.release()
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
        if whole and not is_log(reader.fieldnames or ()):
            raise UserError(f"{self.file} is no table of predict.py --watch: name a file of its own.")
        try:
            for row in reader:
                self._done[row["path"]] = (int(row["size"]), int(row["mtime_ns"]))
                self._remember(row)
        except (TypeError, ValueError) as error:
            where = f"{self.file}, line {reader.line_num}"
            raise UserError(f"{where}: {in_a_line(error)}. Mend the line, or name another file.") from error
        fields = reader.fieldnames if whole else LOG_FIELDS
        self._writer = csv.DictWriter(self._stream, fields or (), extrasaction="ignore", lineterminator="\n")
        if not whole:
            self._writer.writeheader()
            self._stream.flush()

    def __len__(self) -> int:
        return len(self._done)

    def content(self, path: str) -> tuple[int, int] | None:
        """Return size and time of the file as it was when it was judged last; ``None`` if it never was."""
        return self._done.get(path)

    def add(self, row: Row, content: tuple[int, int]) -> None:
        """Write a row; it stays even if the process is killed next."""
        size, mtime_ns = content
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        row = {**row, "size": size, "mtime_ns": mtime_ns, "model": self.model, "time": now}
        self._writer.writerow(flat(row))
        self._stream.flush()
        self._done[row["path"]] = content
        self._remember(row)

    def _remember(self, row: Row) -> None:
        if row.get("map_mean") not in (None, ""):
            self.map_means.setdefault(row["model"], []).append(float(row["map_mean"]))
