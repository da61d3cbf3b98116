"""Where rows go: tables that appear whole, links, devices, and what is refused before any work."""

import csv
import os
import sys
import threading
from pathlib import Path

import pytest

from padim_bottle.commands.command_line import run_verb
from padim_bottle.errors import UserError
from padim_bottle.model.rule import Rule
from padim_bottle.predict.verdict_log import VerdictLog
from padim_bottle.predict.verdict_table import (
    FIELDS,
    Screen,
    VerdictTable,
    explain_together,
    spell_path,
    verdict_row,
)

ROW = {"path": "a.png", "score": 1.5, "p_value": None, "verdict": "good"}


def write(target):
    with VerdictTable(str(target)) as table:
        table.add(ROW)


def test_a_table_replaces_what_a_link_leads_to_and_the_link_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "real" / "table.csv")
    for _ in range(2):
        write(tmp_path / "link.csv")
        assert (tmp_path / "link.csv").is_symlink()
        assert [row["path"] for row in csv.DictReader((tmp_path / "real" / "table.csv").open())] == ["a.png"]
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["table.csv"]


def test_what_is_no_file_is_written_straight(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_text()))
    reader.start()
    write(tmp_path / "pipe")
    reader.join()
    assert received[0].splitlines()[0] == ",".join(FIELDS)
    assert (tmp_path / "pipe").is_fifo()
    write("/dev/null")
    assert Path("/dev/null").is_char_device()


def test_a_failure_leaves_the_earlier_table_and_nothing_else(tmp_path):
    write(tmp_path / "table.csv")
    before = (tmp_path / "table.csv").read_bytes()
    with pytest.raises(ZeroDivisionError), VerdictTable(str(tmp_path / "table.csv")):
        raise ZeroDivisionError
    assert (tmp_path / "table.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_a_folder_and_a_watchs_log_are_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    with VerdictLog(tmp_path / "log.csv") as log:
        log.add(ROW, (1, 2))
    before = (tmp_path / "log.csv").read_bytes()
    (tmp_path / "link.csv").symlink_to("log.csv")
    for name, words in (("folder", "is a folder"), ("log.csv", "is the log"), ("link.csv", "is the log")):
        assert run_verb("predict", ["--model", "nowhere", __file__, "--csv", str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "log.csv").read_bytes() == before
    # Also where the watch began meanwhile.
    with pytest.raises(UserError, match="is the log"), VerdictTable(str(tmp_path / "new.csv")), VerdictLog(
        tmp_path / "new.csv"
    ):  # fmt: skip
        pass
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".csv") == [
        "link.csv",
        "log.csv",
        "new.csv",
    ]


@pytest.mark.parametrize("name", ["=1+1.png", "+1.png", "-1.png", "@sum.png"])
def test_no_name_is_a_formula(name):
    assert spell_path(Path(name)) == f"./{name}"
    assert spell_path(Path("photos", name)) == f"photos/{name}"


def test_a_name_that_is_no_utf_8_is_spelled_in_a_row_and_in_its_error():
    path = Path(os.fsdecode(b"caf\xe9.png"))
    row = verdict_row(Rule(0.0, None, None), path, UserError(f"Cannot read {path}\nat all."))
    assert row == {"path": "caf\\xe9.png", "error": "Cannot read caf\\xe9.png\\nat all."}


@pytest.mark.parametrize("needed", [True, False])
def test_a_screen_that_is_closed_ends_what_needs_it_and_nothing_else(needed, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        screen = Screen(needed=needed)
        if needed:
            with pytest.raises(BrokenPipeError):
                screen.add(ROW)
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        else:
            screen.add(ROW)
            screen.add(ROW)


def test_a_false_discovery_rate_is_explained_by_what_was_judged():
    rule = Rule(0.0, None, [0.1] * 50)
    assert "near 0.5 % or fewer are" in explain_together(rule, 0.005, 40)
    assert "of the 40 photos that were judged none can be" in explain_together(rule, 0.005, 40)
    assert "of the 40 photos that were judged either at least 16 are" in explain_together(rule, 0.05, 40)
