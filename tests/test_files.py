import os
from multiprocessing import get_context
from pathlib import Path

import pytest

from padim_bottle.files import whole_folder, write_whole


def test_text_and_bytes_are_written_and_replace_what_was_there(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_whole(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    write_whole(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_failure_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_whole(path, "before")

    def full(self, content):
        with self.open("wb") as stream:
            stream.write(content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "after")
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def write(folder, content):
    with whole_folder(folder) as unfinished:
        (unfinished / "file.txt").write_text(content)


def test_a_folder_is_replaced_whole_and_a_failure_leaves_the_earlier_one(tmp_path):
    folder = tmp_path / "new" / "[folder]"
    for content in ("first", "second"):
        write(folder, content)
        assert (folder / "file.txt").read_text() == content
    with pytest.raises(ZeroDivisionError), whole_folder(folder) as unfinished:
        (unfinished / "file.txt").write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in folder.parent.iterdir()] == ["[folder]"]
    assert [path.read_text() for path in folder.iterdir()] == ["second"]
    assert folder.stat().st_mode == folder.parent.stat().st_mode
    with whole_folder(folder, keep=True) as unfinished:
        (unfinished / "file.txt").write_text("third")
    assert [path.read_text() for path in folder.iterdir()] == ["second"]


@pytest.mark.parametrize(("renames", "content"), [(0, "first"), (1, "second"), (2, "second")])
def test_what_a_killed_process_left_is_put_in_order_by_the_next(tmp_path, renames, content):
    folder = tmp_path / "folder"
    write(folder, "first")

    def die_after_some_renames():
        rename, done = Path.rename, []

        def counted(path, target):
            if len(done) == renames:
                os._exit(9)
            done.append(rename(path, target))
            return done[-1]

        Path.rename = counted
        with whole_folder(folder) as unfinished:
            (unfinished / "file.txt").write_text("second")
            if renames == 2:
                Path.rmdir = os.rmdir = lambda *_, **__: os._exit(9)

    process = get_context("fork").Process(target=die_after_some_renames)
    process.start()
    process.join()
    assert process.exitcode == 9
    assert len(list(tmp_path.glob(".*"))) == 1
    with whole_folder(folder):
        assert (folder / "file.txt").read_text() == content
        (mine,) = tmp_path.glob(".*")
        # Nobody takes the folder of a process that lives for an abandoned one.
        with pytest.raises(ZeroDivisionError), whole_folder(folder):
            raise ZeroDivisionError
        assert mine.is_dir()
    assert not list(tmp_path.glob(".*"))


def test_an_earlier_folder_is_back_where_the_new_one_cannot_be_named(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    write(folder, "first")
    rename = Path.rename

    def refuse(path, target):
        if path.name == "new":
            raise OSError(16, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="busy"):
        write(folder, "second")
    assert (folder / "file.txt").read_text() == "first"
    assert not list(tmp_path.glob(".*"))
