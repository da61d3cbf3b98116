"""Watching a folder: each photo once, whatever is damaged, slow or killed."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from padim_bottle.errors import UserError
from padim_bottle.predict import inbox
from padim_bottle.predict.drift import DriftMonitor
from padim_bottle.predict.predictor import Predictor
from padim_bottle.predict.verdict_table import LOG_FIELDS, VerdictLog
from padim_bottle.predict.watch import watch

CARD = {
    "input": {"model_size": [8, 8]},
    "thresholds": {"image": 0.5, "image_scale": 1.0},
    "calibration": {"scores": [0.1, 0.2, 0.3]},
    "drift": {"map_means": [0.0], "pixel_scale": None},
}


def stub(slow: float = 0.0) -> Predictor:
    """A model that takes a photo's mean brightness for its score."""

    def run(photos):
        time.sleep(slow)
        scores = photos.mean(axis=(1, 2, 3))[:, None]
        maps = np.zeros((len(photos), 1, 8, 8), np.float32)
        return {"raw_score": scores, "pred_score": scores, "anomaly_map": maps, "pred_mask": maps > 0}

    return Predictor("stub", CARD, run)


def photo(path: Path, brightness: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((16, 16, 3), brightness, np.uint8))
    return path


def rows(file: Path) -> list[dict]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def watch_until(folder: Path, file: Path, count: int, act=lambda: None, seconds: float = 20.0) -> list[dict]:
    """Watch until there are so many lines, or time is up; ``act`` runs meanwhile."""
    stop = threading.Event()

    def end() -> None:
        act()
        until = time.monotonic() + seconds
        while time.monotonic() < until and len(rows(file)) < count:
            time.sleep(0.05)
        stop.set()

    with VerdictLog(file) as log:
        thread = threading.Thread(target=end)
        thread.start()
        yielded = list(watch(stub(), folder, log, stop, monitor=DriftMonitor([0.0])))
        thread.join()
    assert len(yielded) <= count
    return rows(file)


@pytest.mark.parametrize("reported", [True, False])
def test_photos_are_judged_as_they_arrive(tmp_path, monkeypatch, reported, capsys):
    if not reported:

        def fail(*_, **__):
            raise OSError("inotify watch limit reached")

        monkeypatch.setattr("watchdog.observers.Observer", fail)
        monkeypatch.setattr(inbox, "POLL", 0.2)
    folder = tmp_path / "photos"
    photo(folder / "early.png")
    (folder / "notes.txt").touch()

    def act():
        time.sleep(0.5)
        photo(folder / "deep" / "er" / "late.png", 255)
        photo(folder / ".hidden.png")
        photo(tmp_path / "elsewhere.bmp").rename(folder / "moved.bmp")

    found = {Path(row["path"]).name: row for row in watch_until(folder, tmp_path / "v.csv", 3, act)}
    assert set(found) == {"early.png", "late.png", "moved.bmp"}
    assert (found["early.png"]["verdict"], found["late.png"]["verdict"]) == ("good", "anomalous")
    assert found["late.png"]["p_value"] == "0.25"
    assert all(Path(row["path"]).is_absolute() and not row["error"] for row in found.values())
    assert ("looking every" in capsys.readouterr().err) != reported


def test_a_photo_that_is_being_written_is_waited_for(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    content = photo(tmp_path / "whole.png").read_bytes()

    def act():
        with (folder / "slow.png").open("wb") as file:
            for start in range(0, len(content), 20):
                file.write(content[start : start + 20])
                file.flush()
                time.sleep(1.5 if start == 0 else 0.1)  # longer than it takes to count as whole

    (row,) = watch_until(folder, tmp_path / "v.csv", 1, act)
    assert row["verdict"] == "good"


def test_a_damaged_photo_has_a_line_that_says_so_and_may_be_mended(tmp_path, monkeypatch):
    monkeypatch.setattr(inbox, "PATIENCE", 1.5)
    folder = tmp_path / "photos"
    whole = photo(tmp_path / "whole.png").read_bytes()
    folder.mkdir()
    (folder / "damaged.png").write_bytes(whole[: len(whole) // 2])
    photo(folder / "good.png")
    found = {Path(row["path"]).name: row for row in watch_until(folder, tmp_path / "v.csv", 2)}
    assert "damaged.png" in found["damaged.png"]["error"]
    assert found["damaged.png"]["verdict"] == ""
    assert found["good.png"]["verdict"] == "good"
    # Not again, until it changes.
    assert len(watch_until(folder, tmp_path / "v.csv", 3, seconds=3)) == 2
    (folder / "damaged.png").write_bytes(whole)
    assert watch_until(folder, tmp_path / "v.csv", 3)[2]["verdict"] == "good"


def _watch_for_ever(folder: Path, file: Path) -> None:
    with VerdictLog(file) as log:
        for _ in watch(stub(slow=0.002), folder, log, threading.Event(), batch_size=2):
            pass


def test_ten_kills_lose_no_photo_and_judge_none_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(inbox, "SETTLE", 0.05)
    folder, file = tmp_path / "photos", tmp_path / "v.csv"
    folder.mkdir()
    generator = np.random.default_rng(0)
    counts = []
    for kill in range(10):
        process = get_context("fork").Process(target=_watch_for_ever, args=(folder, file))
        process.start()
        for i in range(20):
            photo(folder / f"{kill}_{i}.png")
        time.sleep(generator.uniform(0.1, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        counts.append(len(rows(file)) if file.exists() else 0)
        if kill == 5:  # the moment in the middle of a line
            with file.open("ab") as stream:
                stream.write(b"/somewhere/half a li")
    assert len(set(counts)) > 3, counts
    found = watch_until(folder, file, 200)
    assert sorted(Path(row["path"]).name for row in found) == sorted(path.name for path in folder.iterdir())
    assert all(row["verdict"] == "good" for row in found)


def test_the_evidence_of_drift_goes_on_where_it_stopped(tmp_path):
    folder, monitor = tmp_path / "photos", DriftMonitor([0.0])
    for count in (2, 5):
        for i in range(count):
            photo(folder / f"{i}.png")
        found = watch_until(folder, tmp_path / "v.csv", count)
    assert [float(row["drift"]) for row in found] == [monitor.add(float(row["map_mean"])) for row in found]


def test_a_table_is_used_by_one_and_is_its_own(tmp_path):
    with VerdictLog(tmp_path / "v.csv"), pytest.raises(UserError, match="another process"):
        VerdictLog(tmp_path / "v.csv").__enter__()
    (tmp_path / "other.csv").write_text("path,score\na,1\n")
    with pytest.raises(UserError, match="no table of"):
        VerdictLog(tmp_path / "other.csv").__enter__()
    assert (tmp_path / "other.csv").read_text() == "path,score\na,1\n"
    with pytest.raises(UserError, match="no folder"), VerdictLog(tmp_path / "v.csv") as log:
        list(watch(stub(), tmp_path / "nowhere", log, threading.Event()))


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_a_summary(run_folder, tmp_path):
    table = pd.read_csv(run_folder / "predictions.csv")
    folder, file = tmp_path / "in", tmp_path / "v.csv"
    folder.mkdir()
    for i, path in enumerate(table["image_path"]):
        shutil.copy(path, folder / f"{i:02}.png")
    command = [sys.executable, Path(__file__).parents[2] / "scripts" / "predict.py", "--model", run_folder]
    command += ["--device", "cpu", "--watch", folder, "--csv", file, "--output", tmp_path / "out"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while time.monotonic() < until and (not file.exists() or len(rows(file)) < len(table)):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    bad = int(table["predicted_label"].sum())
    assert f"{bad} anomalous, {len(table) - bad} good" in err
    assert len(out.splitlines()) == len(table)
    found = pd.read_csv(file).sort_values("path").reset_index(drop=True)
    assert tuple(pd.read_csv(file).columns) == LOG_FIELDS
    np.testing.assert_allclose(found["score"], table["score"], rtol=1e-5, atol=1e-5)
    assert ((found["verdict"] == "anomalous") == table["predicted_label"]).all()
    assert len(list((tmp_path / "out").glob("*_heatmap.png"))) == len(table)
    command[command.index(tmp_path / "out")] = folder / "out"
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert (done.returncode, "would be judged too" in done.stderr) == (2, True)
