"""A watch that runs for long, in short: many photos under few names, kills, broken photos, folders that come and go.

    python benchmarks/soak.py --photos 20000

Writes photos into a folder that a child process watches, with a model that takes a photo's brightness for its score,
and kills that process again and again. At the end every content of every photo has its line in the log exactly once,
with the score of that content; else it exits with 1. It prints memory and open files of the watching process.
"""

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from padim_bottle.predict import inbox
from padim_bottle.predict.predictor import Predictor
from padim_bottle.predict.verdict_log import VerdictLog
from padim_bottle.predict.watch import CurrentModel, watch

CARD = {
    "input": {"model_size": [8, 8]},
    "thresholds": {"image": 0.5, "image_scale": 1.0, "pixel": 0.5},
    "calibration": {"scores": [0.1, 0.2, 0.3]},
    "drift": {"map_means": [0.0], "pixel_scale": None},
}
# A time long before now, and one after it, as copies and other machines' clocks have them.
OLD, AHEAD = 1_000_000_000, 4_000_000_000


def brightness_predictor(slow: float = 0.0) -> Predictor:
    """Return a model that takes a photo's mean brightness for its score, after some seconds a batch."""

    def run(photos: np.ndarray) -> dict[str, np.ndarray]:
        time.sleep(slow)
        scores = photos.mean(axis=(1, 2, 3))[:, None]
        maps = np.zeros((len(photos), 1, 8, 8), np.float32)
        return {"raw_score": scores, "pred_score": scores, "anomaly_map": maps}

    return Predictor("stub", CARD, run, digest="soak")


def brightness_model(slow: float = 0.0) -> CurrentModel:
    """Return the same as a model that nobody exchanges."""
    predictor = brightness_predictor(slow)
    return CurrentModel(Path("no file"), lambda _: predictor, print)


def write_photo(path: Path, brightness: int = 0) -> Path:
    """Write a small photo of one brightness; folders are made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(brightness))
    return path


def encoded(brightness: int) -> bytes:
    """Return a small photo of one brightness as a PNG."""
    return cv2.imencode(".png", np.full((16, 16, 3), brightness, np.uint8))[1].tobytes()


def watch_for_ever(folder: Path, log_file: Path) -> None:
    """Watch with short times: the writer below is fast."""
    inbox.SETTLE, inbox.PATIENCE, inbox.RESCAN = 0.2, 1.0, 1.0
    with VerdictLog(log_file) as log:
        for _ in watch(brightness_model(), folder, log, threading.Event(), batch_size=32):
            pass


class Line:
    """Writes photos, and knows what the log has to say about them."""

    def __init__(self, folder: Path, names: int) -> None:
        self.folder = folder / "photos"
        self.folder.mkdir(parents=True)
        self.log = folder / "log.csv"
        self.names = names
        self.expected: dict[tuple[str, int, int], float | None] = {}
        self.found: Counter[tuple[str, int, int]] = Counter()
        self.wrong: list[str] = []
        self.latest: dict[Path, tuple[str, int, int]] = {}
        self._read = 0

    def follow(self) -> None:
        """Read the lines that the log has got."""
        if not self.log.exists():
            return
        with self.log.open("rb") as stream:
            stream.seek(self._read)
            whole = stream.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        for row in csv.reader(whole.decode().splitlines()):
            if row[0] == "path":
                self._header = row
                continue
            named = dict(zip(self._header, row, strict=True))
            key = (named["path"], int(named["size"]), int(named["mtime_ns"]))
            self.found[key] += 1
            score = self.expected.get(key)
            same = bool(named["error"]) if score is None else abs(score - float(named["score"] or "nan")) < 1e-6
            if not same:
                self.wrong.append(f"{key}: {named['score']} {named['error']}, not {score}")
        self._read += len(whole)

    def wait(self, path: Path) -> None:
        """Wait until what a name held has been judged: what is overwritten earlier nobody can judge."""
        while path in self.latest and not self.found[self.latest[path]]:
            time.sleep(0.01)
            self.follow()

    def expect(self, path: Path, score: float | None) -> None:
        """Note what the log has to say about a file as it is."""
        status = path.stat()
        self.latest[path] = key = (str(path), status.st_size, status.st_mtime_ns)
        self.expected[key] = score

    def write(self, number: int) -> None:
        """Write the next photo, in one of the ways in which photos arrive."""
        kind, brightness = number % 10, (7 * number) % 200
        path = self.folder / f"photo_{number % self.names:05}.png"
        if kind == 7:
            path = self.folder / f"tray_{number % 50}" / path.name
        self.wait(path)
        content = encoded(brightness)
        if number % 500 == 250:  # a copy that stalls, keeps its old time, and goes on when it has been called broken
            self._put(path, content[: len(content) // 2], OLD + number)
            self.expect(path, None)
            self.wait(path)
            self._put(path, content, OLD + number)
        elif kind == 3:  # renamed into its place
            write_photo(self.folder / f".{path.name}.partial", brightness).rename(path)
        elif kind == 5:  # cp -p
            self._put(path, content, OLD + number)
        elif kind == 6:  # by a machine whose clock is ahead
            self._put(path, content, AHEAD + number)
        else:
            write_photo(path, brightness)
        self.expect(path, brightness / 255)
        if kind == 7:  # the tray is taken away when its photo has been judged, and another comes and goes
            self.wait(path)
            shutil.rmtree(path.parent)
            (self.folder / f"empty_{number}").mkdir()
            (self.folder / f"empty_{number}").rmdir()

    def _put(self, path: Path, content: bytes, seconds: int) -> None:
        # Its time is set before it is closed, as rsync and robocopy may: no moment has it whole with another time.
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.utime(path, (seconds, seconds))


def start(line: Line) -> subprocess.Popen[bytes]:
    """Start to watch the folder of a line."""
    return subprocess.Popen([sys.executable, __file__, "--watch", line.folder, line.log])


def resources(process: int) -> tuple[float, int]:
    """Return the memory (MB) and the open files of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    memory = next(int(entry.split()[1]) / 1000 for entry in status.splitlines() if entry.startswith("VmRSS"))
    return memory, len(os.listdir(f"/proc/{process}/fd"))  # noqa: PTH208 - names are not needed


def soak(folder: Path, photos: int, kill_every: int, names: int) -> int:
    """Run it in an empty folder; return 0 if every content of every photo was judged exactly once."""
    line = Line(folder, names)
    begin, kills, process = time.monotonic(), 0, start(line)
    try:
        for number in range(1, photos + 1):
            line.write(number)
            if number % max(photos // 20, 1) == 0:
                memory, files = resources(process.pid)
                seconds = time.monotonic() - begin
                print(f"{number} photos, {seconds:.0f} s, {memory:.0f} MB, {files} open files", flush=True)
            # The last quarter is one process's: what grows, grows there.
            if number % kill_every == 0 and number <= 0.75 * photos:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills, process = kills + 1, start(line)
        until = time.monotonic() + 60
        while line.expected.keys() - line.found.keys() and time.monotonic() < until:
            time.sleep(0.1)
            line.follow()
        time.sleep(2)
        line.follow()
    finally:
        process.kill()
        process.wait()
    missed = line.expected.keys() - line.found.keys()
    twice = [key for key, count in line.found.items() if count > 1]
    invented = line.found.keys() - line.expected.keys()
    print(
        f"{len(line.expected)} contents of {len(line.latest)} names, {kills} kills: {len(missed)} missed, {len(twice)} "
        f"judged twice, {len(invented)} judged that were none, {len(line.wrong)} with another verdict"
    )
    for problem in [*sorted(missed)[:5], *twice[:5], *sorted(invented)[:5], *line.wrong[:5]]:
        print(" ", problem)
    return 1 if missed or twice or invented or line.wrong else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--kill-every", type=int, default=1_000)
    parser.add_argument("--names", type=int, default=3_000, help="the names repeat after so many photos")
    parser.add_argument("--watch", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        watch_for_ever(*options.watch)
        return 0
    with tempfile.TemporaryDirectory(prefix="padim-soak-") as folder:
        return soak(Path(folder), options.photos, options.kill_every, options.names)


if __name__ == "__main__":
    sys.exit(main())
