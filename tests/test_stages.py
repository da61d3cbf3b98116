"""Where time goes: stages within stages, by a clock that the test turns."""

import subprocess
import sys
import time

import pytest

from padim_bottle import stages
from padim_bottle.stages import Clock


@pytest.fixture
def turn(monkeypatch):
    """Turn the clock by so many wall and CPU seconds."""
    now = [0.0, 0.0, 0.0]
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(stages, "_cpu_seconds", lambda: tuple(now[1:]))

    def turn(*passed):
        for clock, seconds in enumerate(passed):
            now[clock] += seconds

    return turn


def test_stages_add_up(turn):
    clock = Clock()
    clock.begin("run")
    turn(1, 2)
    for _ in range(2):
        clock.begin("train")
        turn(10, 20)
        clock.begin("backbone")
        turn(100, 200)
        clock.end("backbone")
        clock.end("train")
    clock.begin("test")
    turn(1000, 1000)
    clock.end("never begun")
    turn(1, 1)
    clock.end("run")  # and the test with it
    turn(5, 5)
    told = {name: (s.seconds, s.own_seconds, s.own_cpu_seconds) for name, s in clock.stages.items()}
    assert told == {
        "run": (1222, 1, 2), "train": (220, 20, 40), "backbone": (200, 200, 400), "test": (1001, 1001, 1001),
    }  # fmt: skip
    clock.restart()
    assert not clock.stages


def test_what_child_processes_take_is_reading_whenever_they_end(turn):
    clock = Clock()
    clock.begin("train")
    turn(1, 2, 4)  # nobody reads yet
    clock.begin("reading")
    turn(10, 20, 40)
    clock.end("reading")
    turn(100, 200, 400)
    clock.end("train")
    assert [clock.stages[name].own_cpu_seconds for name in ("train", "reading")] == [202, 460]


def test_a_stage_ends_whatever_happens_in_it(turn):
    stages.clock.restart()

    @stages.stage("work")
    def fail():
        turn(3, 4)
        raise ValueError

    with pytest.raises(ValueError):
        fail()
    turn(1, 1)
    assert (stages.clock.stages["work"].seconds, stages.clock.stages["work"].own_cpu_seconds) == (3, 4)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the start is not known")
def test_a_process_knows_when_it_started():
    code = "import time; time.sleep(0.3); from padim_bottle.stages import since_start; print(since_start().seconds)"
    before = time.perf_counter()
    told = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.3 < told < time.perf_counter() - before + 0.02


def test_cpu_seconds_are_those_of_child_processes_too():
    before = stages._cpu_seconds()
    subprocess.run([sys.executable, "-c", "sum(range(20_000_000))"], check=True)
    assert stages._cpu_seconds()[1] - before[1] > 0.1
