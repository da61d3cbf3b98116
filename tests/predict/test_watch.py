"""Watching a folder: each photo once, whatever is damaged, slow or killed."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from soak import CARD, brightness_model, brightness_predictor, soak, write_photo

from padim_bottle.commands.command_line import run_verb
from padim_bottle.data.images import read_image
from padim_bottle.errors import SystemTroubleError, UserError
from padim_bottle.predict import inbox
from padim_bottle.predict.drift import DriftMonitor
from padim_bottle.predict.heatmaps import Pictures
from padim_bottle.predict.predictor import Predictor
from padim_bottle.predict.verdict_log import VerdictLog
from padim_bottle.predict.verdict_table import LOG_FIELDS, VerdictTable
from padim_bottle.predict.watch import CurrentModel, watch


def rows(file: Path) -> list[dict]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def wait_for(file: Path, count: int, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and len(rows(file)) < count:
        time.sleep(0.05)


def watch_until(
    folder: Path, file: Path, count: int, act=lambda: None, seconds: float = 20.0, model=None, **options
) -> list[dict]:
    """Watch until there are so many lines, or time is up; ``act`` runs meanwhile."""
    stop = threading.Event()

    def end() -> None:
        while not file.exists():
            time.sleep(0.01)
        act()
        wait_for(file, count, seconds)
        stop.set()

    with VerdictLog(file) as log:
        thread = threading.Thread(target=end)
        thread.start()
        yielded = list(watch(model or brightness_model(), folder, log, stop, **options))
        thread.join()
    assert len([row for row in yielded if not row.get("error")]) <= count
    return rows(file)


@pytest.mark.parametrize("reported", [True, False])
def test_photos_are_judged_as_they_arrive(tmp_path, monkeypatch, reported, capsys):
    if not reported:

        def fail(*_, **__):
            raise OSError("inotify watch limit reached")

        monkeypatch.setattr("watchdog.observers.Observer", fail)
        monkeypatch.setattr(inbox, "POLL", 0.2)
    folder = tmp_path / "photos"
    write_photo(folder / "early.png")
    (folder / "notes.txt").touch()

    def act():
        time.sleep(0.5)
        write_photo(folder / "deep" / "er" / "late.png", 255)
        write_photo(folder / ".hidden.png")
        write_photo(tmp_path / "elsewhere.bmp").rename(folder / "moved.bmp")

    found = {Path(row["path"]).name: row for row in watch_until(folder, tmp_path / "v.csv", 3, act)}
    assert set(found) == {"early.png", "late.png", "moved.bmp"}
    assert (found["early.png"]["verdict"], found["late.png"]["verdict"]) == ("good", "anomalous")
    assert found["late.png"]["p_value"] == "0.25"
    assert all(Path(row["path"]).is_absolute() and not row["error"] for row in found.values())
    assert ("looking every" in capsys.readouterr().err) != reported


def test_a_photo_that_is_being_written_is_waited_for(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    content = write_photo(tmp_path / "whole.png").read_bytes()

    def act():
        with (folder / "slow.png").open("wb") as file:
            for start in range(0, len(content), 20):
                file.write(content[start : start + 20])
                file.flush()
                time.sleep(1.5 if start == 0 else 0.1)  # longer than it takes to count as whole

    (row,) = watch_until(folder, tmp_path / "v.csv", 1, act)
    assert row["verdict"] == "good"


@pytest.fixture
def short_times(monkeypatch):
    """Short times."""
    for name, seconds in (("SETTLE", 0.1), ("PATIENCE", 0.5), ("RETRY", 0.1), ("RESCAN", 0.5)):
        monkeypatch.setattr(inbox, name, seconds)


def test_a_damaged_photo_has_a_line_that_says_so_and_may_be_mended(tmp_path, short_times):
    folder = tmp_path / "photos"
    whole = write_photo(tmp_path / "whole.png").read_bytes()
    folder.mkdir()
    (folder / "damaged.png").write_bytes(whole[: len(whole) // 2])
    write_photo(folder / "good.png")
    found = {Path(row["path"]).name: row for row in watch_until(folder, tmp_path / "v.csv", 2)}
    assert "damaged.png" in found["damaged.png"]["error"]
    assert found["damaged.png"]["verdict"] == ""
    assert found["good.png"]["verdict"] == "good"
    # Not again, until it changes.
    assert len(watch_until(folder, tmp_path / "v.csv", 3, seconds=1.5)) == 2
    (folder / "damaged.png").write_bytes(whole)
    assert watch_until(folder, tmp_path / "v.csv", 3)[2]["verdict"] == "good"


@pytest.mark.parametrize("while_watched", [True, False])
def test_a_name_that_gets_another_photo_is_judged_again(tmp_path, short_times, while_watched):
    """A camera's ``latest.png``, a counter that wraps, a folder that is emptied at night."""
    folder, file = tmp_path / "photos", tmp_path / "v.csv"
    contents = [(0, 1_600_000_000), (255, 1_600_000_001), (0, 1_500_000_000)]

    def put(content):
        (folder / "latest.png").unlink(missing_ok=True)
        os.utime(write_photo(folder / "latest.png", content[0]), (content[1], content[1]))

    def put_all():
        for done, content in enumerate(contents):
            put(content)
            wait_for(file, done + 1)

    folder.mkdir()
    if while_watched:
        found = watch_until(folder, file, 3, put_all)
    else:
        for done, content in enumerate(contents):
            put(content)
            found = watch_until(folder, file, done + 1)
    assert [row["verdict"] for row in found] == ["good", "anomalous", "good"]
    assert [int(row["mtime_ns"]) for row in found] == [seconds * 10**9 for _, seconds in contents]
    # The same photo, once more: nothing to do.
    assert len(watch_until(folder, file, 4, seconds=1.5)) == 3


def test_a_broken_photo_is_final_until_it_changes_whatever_the_clocks_say(tmp_path, short_times):
    """A copy that stalls, and keeps its old time or one that is ahead of this machine's clock."""
    folder, file, now = tmp_path / "photos", tmp_path / "v.csv", time.time()
    whole = write_photo(tmp_path / "whole.png").read_bytes()
    folder.mkdir()

    def put(content):
        for name, when in (("old.png", now - 3600), ("ahead.png", now + 3600)):
            (folder / name).write_bytes(content)
            os.utime(folder / name, (when, when))

    put(whole[: len(whole) // 2])
    found = watch_until(folder, file, 3, seconds=2.5)
    assert len(found) == 2 and all(row["error"] and not row["verdict"] for row in found)
    found = watch_until(folder, file, 4, lambda: put(whole))
    assert [bool(row["error"]) for row in found] == [True, True, False, False]


def test_what_the_system_fails_to_read_is_tried_again_and_leaves_no_line_before(tmp_path, short_times, monkeypatch):
    path = write_photo(tmp_path / "photos" / "a.png")
    attempts, said = [], []

    def read(path):
        attempts.append(time.monotonic())
        if len(attempts) <= 4:
            raise SystemTroubleError(f"Cannot read the image {path}: Input/output error.")
        return read_image(path)

    predictor = brightness_predictor()
    monkeypatch.setattr(predictor, "read", read)
    stop = threading.Event()
    with VerdictLog(tmp_path / "v.csv") as log:
        for row in watch(CurrentModel(path, lambda _: predictor, print), path.parent, log, stop):
            said.append(row)
            if "error" not in row:
                stop.set()
            else:
                assert len(log) == 0
    assert ["error" in row for row in said] == [True, False]
    pauses = np.diff(attempts)
    assert (pauses > 0.09 * 2.0 ** np.arange(4)).all()
    assert [row["verdict"] for row in rows(tmp_path / "v.csv")] == ["good"]


def test_a_folder_that_vanishes_while_one_looks_and_a_name_too_long_for_pictures_end_nothing(
    tmp_path, short_times, monkeypatch
):
    folder = tmp_path / "photos"
    write_photo(folder / "tray" / "a.png")
    write_photo(folder / f"{'n' * 240}.png")
    is_photo, said = inbox.is_photo, []

    def take_away(path):
        shutil.rmtree(folder / "tray", ignore_errors=True)
        return is_photo(path)

    monkeypatch.setattr(inbox, "is_photo", take_away)
    pictures = Pictures(tmp_path / "out", root=folder)
    found = watch_until(folder, tmp_path / "v.csv", 2, seconds=1.5, pictures=pictures, say=said.append)
    assert [Path(row["path"]).name for row in found] == [f"{'n' * 240}.png"]
    (sentence,) = said
    assert sentence.startswith("no pictures: ") and "File name too long" in sentence


def test_the_disk_is_asked_about_few_of_the_photos_that_are_done(tmp_path, monkeypatch):
    folder, asked, content_of = tmp_path / "photos", [], inbox._content
    for i in range(1000):
        write_photo(folder / f"{i}.png")

    def content(path):
        asked.append(path)
        return content_of(path)

    monkeypatch.setattr(inbox, "_content", content)
    with VerdictLog(tmp_path / "v.csv") as log:
        for path in folder.iterdir():
            log.add({"path": str(path)}, content_of(path))
        with inbox.Inbox(folder, log, print) as box:
            for look in range(1, 6):
                assert box.whole() == []
                assert len(asked) == look * inbox.CHECKS
    # In turn all of them.
    assert len(set(asked)) == 1000


def test_names_that_are_no_utf_8_and_files_that_are_no_photos(tmp_path, short_times):
    folder = tmp_path / "photos"
    write_photo(folder / os.fsdecode(b"caf\xe9\n.png"))
    write_photo(folder / "without_suffix.png").rename(folder / "without_suffix")
    (folder / "notes").write_text("no photo")
    found = watch_until(folder, tmp_path / "v.csv", 3, seconds=2)
    assert {row["path"] for row in found} == {f"{folder}/caf\\xe9\\n.png", f"{folder}/without_suffix"}
    assert len((tmp_path / "v.csv").read_text().splitlines()) == 3
    assert len(watch_until(folder, tmp_path / "v.csv", 3, seconds=1)) == 2


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_soak_judges_every_content_once(tmp_path, capfd):
    assert soak(tmp_path, photos=260, kill_every=90, names=100) == 0, capfd.readouterr().out


def test_half_a_line_of_a_killed_process_is_cut_off_and_its_photo_judged_again(tmp_path, short_times):
    folder, file = tmp_path / "photos", tmp_path / "v.csv"
    write_photo(folder / "a.png")
    watch_until(folder, file, 1)
    whole = file.read_bytes()
    with file.open("ab") as stream:
        stream.write(b"/somewhere/half a li")
    with VerdictLog(file) as log:
        assert len(log) == 1 and file.read_bytes() == whole
    write_photo(folder / "b.png")
    assert [Path(row["path"]).name for row in watch_until(folder, file, 2)] == ["a.png", "b.png"]


def test_the_evidence_of_drift_goes_on_where_it_stopped(tmp_path, short_times):
    folder, monitor = tmp_path / "photos", DriftMonitor([0.0])
    for count in (2, 5):
        for i in range(count):
            write_photo(folder / f"{i}.png")
        found = watch_until(folder, tmp_path / "v.csv", count)
    assert [float(row["drift"]) for row in found] == [monitor.add(float(row["map_mean"])) for row in found]


def test_drift_goes_on_from_the_lines_of_the_same_model_alone(tmp_path):
    for model in ("old", "new", "new"):
        with VerdictLog(tmp_path / "v.csv") as log:
            log.model = model
            log.add({"path": "a.png", "map_mean": 0.5 if model == "old" else 0.25}, (1, 2))
    with VerdictLog(tmp_path / "v.csv") as resumed:
        # What earlier processes wrote, and what one has written itself.
        assert resumed.map_means == log.map_means == {"old": [0.5], "new": [0.25, 0.25]}
        assert len(resumed) == 1


def test_a_model_that_is_exchanged_judges_from_the_next_photo_on_in_the_same_log(tmp_path, short_times):
    """The file's content is the brightness from which a photo is anomalous."""
    folder, file, said = tmp_path / "photos", tmp_path / "v.csv", []
    for path in (folder, tmp_path / "run"):
        path.mkdir()

    def put(threshold):
        (tmp_path / "partial").write_text(threshold)
        (tmp_path / "partial").replace(tmp_path / "run" / "model.ckpt")

    def load(path):
        threshold = (path / "model.ckpt").read_text()
        if not threshold.replace(".", "").isdigit():
            raise UserError("The file is damaged.")
        card = {**CARD, "thresholds": {**CARD["thresholds"], "image": float(threshold)}, "calibration": None}
        return Predictor("stub", card, brightness_predictor().run, digest=threshold)

    def act():
        for done, threshold in enumerate(["0.5", "0.1", "damaged", None], 1):
            write_photo(folder / f"{done}.png", 60)
            wait_for(file, done)
            if threshold is None:
                (tmp_path / "run").rename(tmp_path / "run.previous_1")  # as long as a run takes the other's place
            else:
                put(threshold)
        write_photo(folder / "5.png", 60)

    put("0.5")
    model = CurrentModel(tmp_path / "run", load, said.append)
    found = watch_until(folder, file, 5, act, model=model)
    assert [row["verdict"] for row in found] == ["good", "good", *["anomalous"] * 3]
    assert [row["model"] for row in found] == ["0.5", "0.5", "0.1", "0.1", "0.1"]
    assert [row["drift"] != "" for row in found] == [True] * 5
    changed, refused = said
    assert "0.1, threshold 0.1000" in changed and "The file is damaged" in refused and "the one before stays" in refused


def test_a_row_is_given_out_before_it_is_done(tmp_path, short_times):
    """So that what reads the rows loses none where all is killed in between."""
    write_photo(tmp_path / "photos" / "a.png")
    for _ in range(2):
        with VerdictLog(tmp_path / "v.csv") as log:
            given = watch(brightness_model(), tmp_path / "photos", log, threading.Event())
            assert Path(next(given)["path"]).name == "a.png"
            given.close()
            assert len(log) == 0


def test_the_log_of_an_earlier_version_goes_on_with_its_own_columns(tmp_path):
    header = "path,score,normalised_score,p_value,verdict,threshold,map_mean,drift,error,size,mtime_ns,model,time\n"
    (tmp_path / "v.csv").write_text(f"{header}a.png,1,0.5,0.2,good,2,0.25,1,,10,20,m,now\n")
    with VerdictLog(tmp_path / "v.csv") as log:
        assert log.content("a.png") == (10, 20) and log.map_means == {"m": [0.25]}
        log.add({"path": "b.png", "regions": [{"box": [1, 2, 3, 4]}]}, (1, 2))
    assert (tmp_path / "v.csv").read_text().startswith(header)
    with VerdictLog(tmp_path / "v.csv") as log:
        assert len(log) == 2
    with pytest.raises(UserError, match="is the log of"):
        VerdictTable(str(tmp_path / "v.csv"))


def test_a_table_is_used_by_one_and_is_its_own(tmp_path):
    with VerdictLog(tmp_path / "v.csv"), pytest.raises(UserError, match="another process"):
        VerdictLog(tmp_path / "v.csv").__enter__()
    (tmp_path / "other.csv").write_text("path,score\na,1\n")
    with pytest.raises(UserError, match="no table of"):
        VerdictLog(tmp_path / "other.csv").__enter__()
    assert (tmp_path / "other.csv").read_text() == "path,score\na,1\n"
    for name in (tmp_path, Path("/dev/null")):
        with pytest.raises(UserError, match="is no file"):
            VerdictLog(name).__enter__()
    (tmp_path / "link.csv").symlink_to("v.csv")
    with VerdictLog(tmp_path / "v.csv") as log, pytest.raises(UserError, match="another process"):
        VerdictLog(tmp_path / "link.csv").__enter__()
    with (tmp_path / "v.csv").open("a") as file:
        file.write("mended,by,hand\n")
    with pytest.raises(UserError, match=r"v\.csv, line 2"):
        VerdictLog(tmp_path / "v.csv").__enter__()
    (tmp_path / "v.csv").unlink()
    with pytest.raises(UserError, match="no folder"), VerdictLog(tmp_path / "v.csv") as log:
        list(watch(brightness_model(), tmp_path / "nowhere", log, threading.Event()))


@pytest.mark.slow
@pytest.mark.parametrize("screen", [True, False])
def test_ctrl_c_ends_the_command_with_a_summary(run_folder, tmp_path, screen, capsys):
    """Also where nobody reads the lines any more; in a process of its own, or the signal meets the test's."""
    table, folder, file = pd.read_csv(run_folder / "predictions.csv"), tmp_path / "in", tmp_path / "v.csv"
    folder.mkdir()
    for i, path in enumerate(table["image_path"]):
        shutil.copy(path, folder / f"{i:02}.png")
    arguments = list(map(str, ["--model", run_folder, "--device", "cpu", "--watch", folder, "--csv", file, "--output"]))
    command = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "predict.py"), *arguments]
    process = subprocess.Popen(
        [*command, str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if not screen:
        process.stdout.close()
        process.stdout = None
    until = time.monotonic() + 60
    while time.monotonic() < until and (not file.exists() or len(rows(file)) < len(table)):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    bad = int(table["predicted_label"].sum())
    assert f"{bad} anomalous, {len(table) - bad} good" in err
    assert not screen or len(out.splitlines()) == len(table)
    found = pd.read_csv(file).sort_values("path").reset_index(drop=True)
    assert tuple(pd.read_csv(file).columns) == LOG_FIELDS
    np.testing.assert_allclose(found["score"], table["score"], rtol=1e-5, atol=1e-5)
    assert ((found["verdict"] == "anomalous") == table["predicted_label"]).all()
    assert len(list((tmp_path / "out").glob("*_heatmap.png"))) == len(table)
    assert run_verb("predict", [*arguments, str(folder / "out")]) == 2
    assert "would be judged too" in capsys.readouterr().err
