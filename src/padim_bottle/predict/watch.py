"""A folder that fills while a line runs: each content of each photo is judged once, even if it is stopped in between.

The log is the memory: a photo that has its line, with its size and time, is done. A line is written in one piece; what
a killed process may leave of one is cut off at the next start, and its photo judged again.
"""

import contextlib
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from padim_bottle.errors import SystemTroubleError, UserError
from padim_bottle.predict.card import CARD
from padim_bottle.predict.drift import DriftMonitor, monitor_of
from padim_bottle.predict.heatmaps import Pictures, check_place
from padim_bottle.predict.inbox import ChangedError, Inbox
from padim_bottle.predict.judge import judge
from padim_bottle.predict.predictor import Predictor
from padim_bottle.predict.verdict_log import VerdictLog
from padim_bottle.predict.verdict_table import Row, verdict_row


class CurrentModel:
    """A model that may be exchanged while it is used: its file is replaced whole, and loaded anew.

    Args:
        path: as of ``load_predictor``.
        load: loads the model at that path.
        say: prints a sentence.

    Attributes:
        predictor: the model as it was loaded last.

    Raises:
        UserError: as ``load_predictor``; later a model that cannot be loaded is named, and the one before stays.
    """

    def __init__(self, path: Path, load: Callable[[Path], Predictor], say: Callable[[str], None]) -> None:
        self._path, self._load, self._say = path, load, say
        self._loaded = self._content()
        self.predictor = load(path)

    def changed(self) -> bool:
        """Whether another file lies in the place of the model's; not while there is none."""
        return self._content() not in (self._loaded, None)

    def renew(self) -> bool:
        """Load the model anew if its file changed; return whether there is another one now."""
        if not self.changed():
            return False
        self._loaded = self._content()
        try:
            predictor = self._load(self._path)
        except UserError as error:
            self._say(f"The model was exchanged, and the new one cannot be used; the one before stays. {error}")
            return False
        if predictor.digest == self.predictor.digest:
            return False
        self.predictor = predictor
        self._say(f"Another model from here on: {predictor.digest[:12]}, threshold {predictor.rule.threshold:.4f}.")
        return True

    def _content(self) -> tuple[int, ...] | None:
        for file in (self._path / CARD, self._path / "model.ckpt", self._path):
            with contextlib.suppress(OSError):
                status = file.stat()
                if stat.S_ISREG(status.st_mode):
                    return status.st_ino, status.st_size, status.st_mtime_ns
        return None


def watch(
    model: CurrentModel,
    folder: Path,
    log: VerdictLog,
    stop: threading.Event,
    *,
    batch_size: int = 8,
    pictures: Pictures | None = None,
    say: Callable[[str], None] = lambda sentence: print(sentence, file=sys.stderr),
) -> Iterator[Row]:
    """Judge what lies in a folder and in those below it, and what arrives, until told to stop.

    A photo that cannot be decoded is done, with its error, until it changes. One that the system fails to read is
    returned as an error once and tried again, also after a restart: the log does not have it. A model that is exchanged
    judges from the next photo on, and is watched for drift by itself.

    Args:
        model: judges.
        folder: to watch; hidden files are left alone.
        log: gets a line a photo, when the next row is asked for.
        stop: ends the watching after the photo that is being judged.
        batch_size: photos at a time, where many are waiting.
        pictures: draws each photo, too.
        say: prints a sentence.

    Raises:
        UserError: the folder is missing, or the log cannot be written.
    """
    if pictures is not None:
        check_place(pictures.folder, [folder])
    monitor = _resume(model.predictor, log)
    with Inbox(folder, log, say) as inbox:
        while not stop.is_set():
            photos = inbox.whole()
            if model.renew():
                monitor = _resume(model.predictor, log)
            predictor = model.predictor
            if pictures is not None:
                pictures.read = predictor.read
            for path, outcome in judge(predictor, photos, batch_size, partial(inbox.read, read=predictor.read)):
                if isinstance(outcome, ChangedError):
                    continue
                if isinstance(outcome, SystemTroubleError):
                    if inbox.postpone(path) == 1:
                        yield verdict_row(predictor.rule, path, outcome)
                    continue
                if isinstance(outcome, UserError) and inbox.put_back(path):
                    continue
                if pictures is not None:
                    pictures.write(path, outcome, say)
                row = verdict_row(predictor.rule, path, outcome, monitor)
                # Given out first: where the process is killed in between, it comes twice, and never not at all.
                yield row
                log.add(row, inbox.done(path))
                if stop.is_set() or model.changed():
                    break


def _resume(predictor: Predictor, log: VerdictLog) -> DriftMonitor | None:
    """Let the log's rows be of a model, and return its watch for drift, which has taken the photos that it judged."""
    log.model = predictor.digest
    monitor = monitor_of(predictor.card)
    if monitor is not None:
        for map_mean in log.map_means.get(predictor.digest, ()):
            monitor.add(map_mean)
    return monitor


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
