"""One of several implementations that are measured in turn, in a process of its own.

In turn (A B A B ...), so that a machine that slows down slows all of them; in a process of its own, for its memory and
its threads.
"""

import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from padim_bottle.errors import UserError

# Seconds before each call: threads of another contender may spin for a while after theirs.
PAUSE = 0.1


class Contender:
    """A process that calls one function again and again.

    Args:
        make: a function of a module; called once in the process, it returns the function to measure, which returns
            what it measured itself, or None for the seconds of the whole.
        arguments: of ``make``.
    """

    def __init__(self, make: Callable[..., Callable[..., Any]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
        self._process.start()
        other.close()
        self._receive()

    def __call__(self, *arguments: Any) -> tuple[Any, int]:
        """Call the function; return what it measured, and how far the process's peak memory has grown since then."""
        time.sleep(PAUSE)
        self._connection.send(arguments)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            raise UserError("A measured process was killed: most often memory ran out.") from None
        if isinstance(answer, str):
            raise UserError(f"A measured process failed:\n{answer}")
        return answer


def _serve(connection: Connection, make: Callable[..., Callable[..., Any]], arguments: tuple) -> None:
    from padim_bottle.console import quiet

    try:
        quiet()
        function = make(*arguments)
        before = peak_bytes()
        connection.send((0.0, 0))
        while True:
            arguments = connection.recv()
            start = time.perf_counter()
            own = function(*arguments)
            seconds = time.perf_counter() - start
            connection.send((seconds if own is None else own, peak_bytes() - before))
    except EOFError:
        return
    except Exception:
        connection.send(traceback.format_exc())


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had (Linux, macOS)."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: on Linux that starts at the size of the parent.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])

    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
