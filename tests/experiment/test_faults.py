"""Killed processes, full disks, two runs at once: whatever happens, a folder that looks whole is whole."""

import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from small import NAME, file_size_limit, small_config, write_config

from padim_bottle import SyntheticBottles
from padim_bottle.commands.command_line import run_verb
from padim_bottle.errors import UserError, explain_failure

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="signals, limits and forks")]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A current folder with small.yaml, and its data in place."""
    monkeypatch.chdir(tmp_path)
    config = small_config(report=False)
    write_config(Path("small.yaml"), config)
    SyntheticBottles(**config["data"]["init_args"]).prepare_data()
    return tmp_path


@pytest.fixture
def earlier(workplace, run_folder):
    """An earlier run's folder, in place."""
    return Path(shutil.copytree(run_folder, workplace / "results" / NAME / "seed_0"))


def snapshot(folder):
    """Return what is in a folder: the digest of each file, and when each folder last changed."""
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else path.stat().st_mtime_ns
        for path in [folder, *folder.rglob("*")]
    }


def assert_whole(run):
    """Everything is there and can be read, and the parts belong together."""
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["config_sha256"] == hashlib.sha256((run / "config.yaml").read_bytes()).hexdigest()
    assert metrics["checkpoint_bytes"] == (run / "model.ckpt").stat().st_size
    images = sum(metrics["images"].values())
    assert len((run / "predictions.csv").read_text().splitlines()) == 1 + images
    assert len(list(run.glob("images/*/*.png"))) == images


def hidden(folder):
    return [path.name for path in folder.rglob(".*") if path.is_dir()]


# --- A full disk ---


@pytest.mark.parametrize(
    ("limit", "seed", "words"),
    [
        (100_000, "7", ["Cannot keep the features", "TMPDIR"]),
        (5_000_000, "0", ["No space left"]),  # the checkpoint, of a run that an earlier one's place waits for
    ],
)
def test_a_full_disk_is_one_line_and_leaves_earlier_results_alone(workplace, earlier, error_line, limit, seed, words):
    def found():
        return {path: value for path, value in snapshot(earlier.parent).items() if path != Path()}

    before = found()
    with file_size_limit(limit):
        assert run_verb("train", ["--config", "small.yaml", "--seed", seed]) == 2
    line = error_line()
    assert all(word in line for word in words), line
    assert found() == before
    assert not list(workplace.rglob("*.ckpt.*"))


def test_a_sweep_on_a_full_disk_says_so_and_goes_on_when_there_is_room(workplace, capsys):
    Path("sweep.yaml").write_text("experiments: [small.yaml]\nseeds: 0\ncache_folder: cache\n")
    with file_size_limit(300_000):
        assert run_verb("sweep", ["--config", "sweep.yaml"]) == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert re.search("failed: .*seed_0: Cannot keep the features in cache.*cache_folder", errors)
    assert not list(Path("cache").rglob("*"))
    with file_size_limit(0):  # not even the record of the failure can be written
        assert run_verb("sweep", ["--config", "sweep.yaml", "--results", "other"]) == 1
    assert "failure is not recorded" in capsys.readouterr().err
    assert not [path for path in Path("other").rglob("*") if path.suffix == ".json"]
    assert run_verb("sweep", ["--config", "sweep.yaml"]) == 0
    assert_whole(Path("results", NAME, "seed_0"))


# --- Other places and neighbours ---


def test_data_that_can_only_be_read_and_results_on_another_file_system(workplace):
    """Nothing is written beneath the data folder (root could write there all the same)."""
    other = Path("/dev/shm")
    if not other.is_dir() or not os.access(other, os.W_OK) or other.stat().st_dev == workplace.stat().st_dev:
        pytest.skip("needs a second file system that can be written: /dev/shm")
    data = workplace / "datasets"
    before = snapshot(data)
    for path in [data, *data.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with tempfile.TemporaryDirectory(dir=other) as results:
            assert run_verb("train", ["--config", "small.yaml", "--results", results]) == 0
            assert_whole(Path(results, NAME, "seed_42"))
            assert not hidden(Path(results))
        assert snapshot(data) == before
    finally:
        for path in [data, *data.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_killed_data_worker_is_one_line(workplace, error_line, monkeypatch):
    """As the system does when memory runs out."""
    mine = os.getpid()

    def die(*_):
        assert os.getpid() != mine
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("padim_bottle.data.dataset.read_image", die)
    assert run_verb("train", ["--config", "small.yaml", "--data.num_workers", "2"]) == 2
    line = error_line()
    assert "killed" in line
    assert "num_workers" in line
    assert not Path("results", NAME).exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "big.ckpt"), ["big.ckpt", "No space left"]),
        (OSError(errno.ENOSPC, "full", "whole.ckpt", None, "copy.ckpt"), ["copy.ckpt", "No space left"]),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "out.png"), ["out.png", "Read-only"]),
        (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), ["12, 13", "killed"]),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ..."),
            ["7", "(Bus)", "shared memory"],
        ),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), ["Memory"]),
        (MemoryError(), ["Memory"]),
    ],
)
def test_what_the_machine_did_is_told_apart_from_what_the_program_did(error, words):
    wrapped = ValueError("something else")
    wrapped.__cause__ = error
    for one in (error, wrapped):
        assert all(word in explain_failure(one) for word in words), explain_failure(one)
    defect = KeyError("a defect of the program")
    defect.__context__ = UserError("met and mended before")
    assert explain_failure(defect) is None


def test_ctrl_c_says_that_nothing_was_left(workplace, capsys, monkeypatch):
    from padim_bottle.runs.writer import ResultsWriter

    def press(self, trainer, model):
        raise KeyboardInterrupt

    monkeypatch.setattr(ResultsWriter, "on_test_end", press)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert run_verb("train", ["--config", "small.yaml"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from the first one on
    assert "nothing half-written was left behind" in capsys.readouterr().err
    assert not Path("results", NAME).exists()


# --- Killed at any moment ---

ZYGOTE = """
import json, os, sys
from padim_bottle.commands.command_line import run_verb
import padim_bottle.sweep.feature_cache, padim_bottle.runs.writer, padim_bottle.compare.outputs
import padim_bottle.data.synthetic, padim_bottle.report.callback, padim_bottle.report.screen
import padim_bottle.commands.train_command, padim_bottle.commands.sweep_command, padim_bottle.experiment.variants
import padim_bottle.model.padim, padim_bottle.compare.markdown, filelock, rich.progress, omegaconf
import pandas.io.formats.csvs

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")

def die_after(survived):
    changes = 0

    def count(event, arguments):
        nonlocal changes
        if event in CHANGES or event == "open" and arguments[2] & os.O_CREAT:
            if changes == survived:
                os.kill(os.getpid(), 9)
            changes += 1

    sys.addaudithook(count)
    return lambda: changes

print("ready", flush=True)
for line in sys.stdin:
    children = []
    folder, survived, commands = json.loads(line)
    for command, arguments in commands:
        child = os.fork()
        if not child:
            os.setsid()
            os.chdir(folder)
            sys.stdout = sys.stderr = open("errors.txt", "w")
            count = die_after(survived)
            code = run_verb(command, arguments)
            with open("changes.txt", "w") as file:
                file.write(str(count()))
            os._exit(code)
        children.append(child)
    print(json.dumps(children), flush=True)
    print(json.dumps([os.waitpid(child, 0)[1] for child in children]), flush=True)
"""


@pytest.fixture(scope="module")
def zygote():
    """A process that has done the imports; each command is a fork of it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", ZYGOTE], **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


@pytest.fixture
def start(workplace, zygote):
    """Start commands at once, in processes of their own; return these and a function that waits for their ends.

    With ``survived`` they kill themselves before the change of the disk that follows so many others.
    """

    def start(*commands, survived=-1):
        zygote.stdin.write(json.dumps([str(workplace), survived, commands]) + "\n")
        zygote.stdin.flush()
        return json.loads(zygote.stdout.readline()), lambda: json.loads(zygote.stdout.readline())

    return start


def kill_at(children, moment, wait):
    time.sleep(moment)
    for child in children:
        for kill in (os.killpg, os.kill):  # it may not have made its own group yet, or have ended already
            with suppress(ProcessLookupError):
                kill(child, signal.SIGKILL)
    return wait()


def numbers(run):
    metrics = json.loads((run / "metrics.json").read_text())
    own = {
        "seconds",
        "profile",
        "peak_memory_bytes",
        "finished",
        "features_from_seed",
        "checkpoint_bytes",
        "git_commit",
        "code_sha256",
    }
    return {key: value for key, value in metrics.items() if key not in own}


@pytest.mark.timeout(300)
def test_killed_at_random_moments_nothing_half_written_looks_whole(workplace, earlier, start):
    Path("sweep.yaml").write_text("experiments: [small.yaml]\nseeds: 1-2\n")
    # A shard: it draws no comparison, which would take most of the time.
    command, seeds = ("sweep", ["--config", "sweep.yaml", "--shard", "1/1"]), (1, 2)
    results = workplace / "results" / NAME

    before = snapshot(earlier)
    began = time.monotonic()
    _, wait = start(command)
    assert wait() == [0], Path("errors.txt").read_text(errors="replace")[-2000:]
    duration = time.monotonic() - began
    expected = {seed: numbers(results / f"seed_{seed}") for seed in seeds}

    rng = random.Random(0)
    finished_early = 0
    for turn in range(4):
        if turn % 2:  # else finished runs are there, and kept
            for seed in seeds:
                shutil.rmtree(results / f"seed_{seed}", ignore_errors=True)
        kept = {run: run.stat().st_ino for run in results.glob("seed_*")}
        children, wait = start(command)
        (status,) = kill_at(children, rng.uniform(0, duration), wait)
        finished_early += status == 0
        for run in results.glob("seed_*"):
            assert_whole(run)
        assert all(run.stat().st_ino == inode for run, inode in kept.items())
        assert not list(Path("results").rglob("padim-*")), "features vanish with the process"
        assert snapshot(earlier) == before
    assert finished_early < 4

    _, wait = start(command)
    assert wait() == [0], Path("errors.txt").read_text(errors="replace")[-2000:]
    assert {path.name for path in results.glob("seed_*")} == {f"seed_{seed}" for seed in (0, *seeds)}
    assert {seed: numbers(results / f"seed_{seed}") for seed in seeds} == expected
    assert snapshot(earlier) == before
    assert not hidden(workplace / "results")  # .sweep neither


@pytest.mark.timeout(300)
def test_killed_before_any_change_of_the_disk_nothing_half_written_looks_whole(workplace, start):
    """Moments that a clock hardly meets: between the files of a result, and while it gets its name."""
    run, command = workplace / "results" / NAME / "seed_42", ("train", ["--config", "small.yaml"])
    _, wait = start(command)
    assert wait() == [0]
    changes = int(Path("changes.txt").read_text())
    expected = numbers(run)
    for turn, survived in enumerate(random.Random(0).sample(range(changes * 2 // 3, changes), 5)):
        if turn % 2:
            shutil.rmtree(run, ignore_errors=True)
        _, wait = start(command, survived=survived)
        wait()
        for found in run.parent.glob("seed_*"):
            assert_whole(found)
    _, wait = start(command)
    assert wait() == [0]
    assert numbers(run) == expected
    assert [path.name for path in run.parent.iterdir()] == ["seed_42"]


def test_two_runs_at_once_into_the_same_folder(workplace, start):
    """Several times, with the same configuration and with two: both end well, and what they leave is whole."""
    same = ("train", ["--config", "small.yaml"])
    other = ("train", ["--config", "small.yaml", "--model.alpha", "0.3"])
    for pair in ((same, same), (other, same)):
        _, wait = start(*pair)
        assert wait() == [0, 0], Path("errors.txt").read_text(errors="replace")[-2000:]
        for run in Path("results", NAME).iterdir():
            assert_whole(run)
        assert not hidden(Path("results"))
