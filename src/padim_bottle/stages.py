"""Where a run's time goes: wall and CPU seconds of each stage, in one clock a process, and the cores it may use."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

READING = "reading"
"""The stage of the child processes, which read photos; the system tells what they took when they have ended."""


@dataclass
class Stage:
    """What a stage has taken so far.

    Attributes:
        seconds: wall time from its begin to its end, all times together, inner stages included.
        own_seconds: wall time in it and in no stage within it.
        own_cpu_seconds: likewise CPU time, of all threads of this process; of ``READING`` also that of child processes.
    """

    seconds: float = 0.0
    own_seconds: float = 0.0
    own_cpu_seconds: float = 0.0


class Clock:
    """Counts the time for the innermost stage that has begun and not ended, so that stages add up.

    Attributes:
        stages: by name, in the order in which they first began.
    """

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        self._open: list[tuple[str, float]] = []
        self._since = (0.0, 0.0, 0.0)

    def restart(self) -> None:
        """Forget all stages."""
        self.stages = {}
        self._open = []

    def begin(self, name: str) -> None:
        """Let a stage begin within the one that is open."""
        wall = self._settle()
        self.stages.setdefault(name, Stage())
        self._open.append((name, wall))

    def end(self, name: str) -> None:
        """Let a stage end, and with it those that were begun within it; none of this name may be open."""
        wall = self._settle()
        while any(name == other for other, _ in self._open):
            ended, started = self._open.pop()
            self.stages[ended].seconds += wall - started
            if ended == name:
                return

    def _settle(self) -> float:
        now = time.perf_counter(), *_cpu_seconds()
        wall, own, of_children = (after - before for after, before in zip(now, self._since, strict=True))
        if self._open:
            stage = self.stages[self._open[-1][0]]
            stage.own_seconds += wall
            stage.own_cpu_seconds += own
            if READING in self.stages:
                self.stages[READING].own_cpu_seconds += of_children
        self._since = now
        return now[0]


clock = Clock()
"""Of this process."""


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Count what is done within the context, or in the function that this decorates, for a stage."""
    clock.begin(name)
    try:
        yield
    finally:
        clock.end(name)


def since_start() -> Stage | None:
    """Return what this process has taken since it started, as far as the system says when that was."""
    try:
        started = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (AttributeError, OSError, IndexError, ValueError):
        return None
    return Stage(seconds, seconds, sum(_cpu_seconds()))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_seconds() -> tuple[float, float]:
    """Return what this process has taken, and what those of its children have that ended."""
    times = os.times()
    return times.user + times.system, times.children_user + times.children_system
