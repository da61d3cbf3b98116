"""Time and memory of a whole command, with all the processes that it starts."""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from padim_bottle.errors import UserError

# Seconds between two looks at the memory.
INTERVAL = 0.25


@dataclass(frozen=True)
class Usage:
    """What a command used.

    Attributes:
        seconds: from start to exit.
        cpu_seconds: of all its processes.
        largest_bytes: largest resident memory of any one of its processes.
        together_bytes: largest memory of all its processes at one time, what they share counted once (proportional set
            size; where the system has none, the sum of their resident memory).
    """

    seconds: float
    cpu_seconds: float
    largest_bytes: int
    together_bytes: int


def run_measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end and measure it.

    Memory is sampled, so a peak shorter than ``INTERVAL`` may be missed.

    Raises:
        UserError: the command failed; the message has the end of its output.
    """
    largest = together = high = 0
    with tempfile.TemporaryFile() as output:
        start, cpu = time.perf_counter(), _cpu_seconds_of_children()
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while not _ended(process):
                resident = {member: _bytes(member, "memory_info", "rss") for member in _family(process)}
                largest = max([largest, *resident.values()])
                # Proportional sizes take long to ask for: only where the sum of resident memory is a new high.
                if sum(resident.values()) > 1.01 * high:
                    high = sum(resident.values())
                    together = max(together, sum(_bytes(member, "memory_full_info", "pss") for member in resident))
        except BaseException:
            for member in _family(process):
                with contextlib.suppress(psutil.Error):
                    member.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            tail = "\n".join(output.read().decode(errors="replace").splitlines()[-30:])
            raise UserError(f"{' '.join(command)}\nfailed with exit code {process.returncode}:\n{tail}")
    return Usage(seconds, _cpu_seconds_of_children() - cpu, largest, together)


def _cpu_seconds_of_children() -> float:
    """Return what child processes that have ended took, and theirs."""
    times = os.times()
    return times.children_user + times.children_system


def _ended(process: psutil.Popen) -> bool:
    try:
        process.wait(INTERVAL)
    except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
        return False
    return True


def _family(process: psutil.Popen) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [*process.children(recursive=True), process]
    return []


def _bytes(process: psutil.Process, question: str, kind: str) -> int:
    try:
        answer = getattr(process, question)()
    except psutil.Error:  # it is gone
        return 0
    return getattr(answer, kind, answer.rss)
