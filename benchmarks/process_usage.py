"""Time and memory of a whole process.

Nothing heavy is imported: on Linux a child's ``ru_maxrss`` starts at the size of the process that starts it, so what
measures must stay smaller than what is measured.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from padim_bottle.errors import UserError


@dataclass(frozen=True)
class Usage:
    """What a process used, the processes it waited for included.

    Attributes:
        wall_seconds: from start to exit.
        cpu_seconds: user and system time.
        peak_bytes: largest resident memory of any one of its processes.
        tree_peak_bytes: largest proportional set size of all its processes together, if sampled.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    tree_peak_bytes: int | None = None


def measure(command: Sequence[str], *, sample_tree: bool = False) -> Usage:
    """Run a command and measure it.

    Args:
        command: program and arguments.
        sample_tree: also sample the memory of the process and its descendants, where ``/proc`` tells it. This reads
            page tables, so do not ask for it in a run whose time counts.

    Raises:
        UserError: the command failed, with the end of its output, or the platform cannot tell.
    """
    if not hasattr(os, "wait4"):
        raise UserError("Benchmarks need os.wait4, which Windows lacks: run them on Linux or macOS.")
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            with _TreeSampler(process.pid) if sample_tree else contextlib.nullcontext() as sampler:
                _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        wall = time.perf_counter() - start
        # Popen did not see the process end, and would warn of one that is still running.
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            tail = "\n".join(output.read().decode(errors="replace").splitlines()[-30:])
            raise UserError(f"{' '.join(command)}\nfailed with exit code {process.returncode}:\n{tail}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, maxrss_bytes(usage.ru_maxrss), sampler and sampler.peak)


def maxrss_bytes(maxrss: int) -> int:
    """Return ``ru_maxrss`` in bytes: Linux counts kilobytes."""
    return maxrss if sys.platform == "darwin" else maxrss * 1024


class _TreeSampler:
    """Samples the proportional set size of a session's processes five times a second."""

    def __init__(self, session: int) -> None:
        self.session = session
        self.peak: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "_TreeSampler":
        if Path("/proc/self/smaps_rollup").exists():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.2):
            self.peak = max(self.peak or 0, sum(map(_proportional_bytes, _session_members(self.session))))


def _session_members(session: int) -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # After the name, which may hold anything: state, parent, group, session.
            if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                yield process


def _proportional_bytes(process: Path) -> int:
    # A process may be gone by now.
    with contextlib.suppress(OSError):
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
