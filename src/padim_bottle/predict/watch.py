"""A folder that fills while a line runs: each content of each photo is judged once, even if it is stopped in between.

The log is the memory: a photo that has its line, with its size and time, is done. A line is written in one piece; what
a killed process may leave of one is cut off at the next start, and its photo judged again.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from padim_bottle.errors import SystemTroubleError, UserError
from padim_bottle.predict.drift import DriftMonitor
from padim_bottle.predict.heatmaps import Pictures, check_place
from padim_bottle.predict.inbox import ChangedError, Inbox
from padim_bottle.predict.judge import judge
from padim_bottle.predict.predictor import Predictor
from padim_bottle.predict.verdict_table import Row, VerdictLog, verdict_row


def watch(
    predictor: Predictor,
    folder: Path,
    log: VerdictLog,
    stop: threading.Event,
    *,
    batch_size: int = 8,
    pictures: Pictures | None = None,
    monitor: DriftMonitor | None = None,
    say: Callable[[str], None] = lambda sentence: print(sentence, file=sys.stderr),
) -> Iterator[Row]:
    """Judge what lies in a folder and in those below it, and what arrives, until told to stop.

    A photo that cannot be decoded is done, with its error, until it changes. One that the system fails to read is
    returned as an error once and tried again, also after a restart: the log does not have it.

    Args:
        predictor: the model.
        folder: to watch; hidden files are left alone.
        log: gets a line a photo, before the photo's row is returned.
        stop: ends the watching after the photo that is being judged.
        batch_size: photos at a time, where many are waiting.
        pictures: draws each photo, too.
        monitor: watches for drift; first it takes the photos that the log has already.
        say: prints a sentence.

    Raises:
        UserError: the folder is missing, or the log cannot be written.
    """
    if pictures is not None:
        check_place(pictures.folder, [folder])
    if monitor is not None:
        for map_mean in log.map_means:
            monitor.add(map_mean)
    with Inbox(folder, log, say) as inbox:
        while not stop.is_set():
            for path, outcome in judge(predictor, inbox.whole(), batch_size, partial(inbox.read, read=predictor.read)):
                if isinstance(outcome, ChangedError):
                    continue
                if isinstance(outcome, SystemTroubleError):
                    if inbox.postpone(path) == 1:
                        yield verdict_row(predictor.rule, path, outcome)
                    continue
                if isinstance(outcome, UserError) and inbox.put_back(path):
                    continue
                if (
                    pictures is not None
                    and not isinstance(outcome, UserError)
                    and (why := pictures.write(path, outcome))
                ):
                    say(f"no pictures: {why}")
                row = verdict_row(predictor.rule, path, outcome, monitor)
                log.add(row, inbox.done(path))
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
