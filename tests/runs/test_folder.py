"""The folder of a run, published whole or not at all: by processes that die at any step, and by several at once."""

import json
import os
import shutil
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from padim_bottle.errors import UserError
from padim_bottle.runs.folder import RUN_FILES, PartialRun, picture_path, recover


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def publish(root, *configs, survived=None):
    """Publish a run of each of these configurations; die before the change of the file system that follows so many."""
    watching = False

    def count(event, arguments):
        nonlocal survived
        if watching and event in ("os.rename", "os.remove", "os.rmdir"):
            survived -= 1
            if survived < 0:
                os._exit(9)

    if survived is not None:
        sys.addaudithook(count)
    for config in configs:
        partial = PartialRun(root / "seed_0")
        for name in RUN_FILES:
            by = [os.getpid(), config] if name == "metrics.json" else None
            (partial.path / name).write_text(json.dumps({"config": config, "by": by}))
        watching = True
        partial.publish()
        watching = False


def publishing(root, *configs, **options):
    """Start a process that publishes."""
    process = get_context("fork").Process(target=publish, args=(root, *configs), kwargs=options)
    process.start()
    return process


def end_of(process):
    process.join(timeout=100)
    return process.exitcode


@pytest.mark.parametrize("config", ["same", "another"])
def test_a_kill_at_any_step_of_publishing_loses_no_finished_run(tmp_path, config):
    """The process dies before its first, second, ... rename or removal; the next run begins by tidying up."""
    for survived in range(100):
        root = tmp_path / str(survived)
        root.mkdir()
        publish(root, "same")
        first = (root / "seed_0" / "metrics.json").read_text()
        code = end_of(publishing(root, config, survived=survived))
        visible = {path.name for path in root.iterdir() if not path.name.startswith(".")}
        for name in visible:
            assert {path.name for path in (root / name).iterdir()} == set(RUN_FILES)
        recover(root / "seed_0")
        assert not hidden(root)
        runs = {path.name: (path / "metrics.json").read_text() for path in root.iterdir()}
        assert first in runs.values() or (config == "same" and len(runs) == 1)
        if code == 0:
            assert runs["seed_0"] != first
            assert len(runs) == (1 if config == "same" else 2)
            break
        assert code == 9
        # What was whole when its process died has its name now.
        assert runs["seed_0"] != first
        # The next run tidies up what was about to be deleted.
        publish(root, config)
        assert len(list(root.iterdir())) == (1 if config == "same" else 2)
    assert survived >= 2


def configurations(root):
    return [json.loads((run / "metrics.json").read_text())["config"] for run in root.iterdir()]


@pytest.mark.parametrize("file", ["config.yaml", "predictions.csv"])
def test_a_run_that_differs_is_kept_though_its_record_is_the_same(tmp_path, file):
    """Other data or other code: the settings, and so their digest in metrics.json, are the same."""
    publish(tmp_path, "same")
    path = tmp_path / "seed_0" / file
    path.write_text("other")
    publish(tmp_path, *["same"] * 10)
    assert {path.name for path in tmp_path.iterdir()} == {"seed_0", "seed_0.previous_1"}
    assert (tmp_path / "seed_0.previous_1" / file).read_text() == "other"


def test_processes_that_publish_to_one_folder_at_once_lose_nothing(tmp_path):
    configs = [[f"{process}-{turn}" for turn in range(30)] for process in range(4)]
    assert [end_of(process) for process in [publishing(tmp_path, *some) for some in configs]] == [0] * 4
    assert not hidden(tmp_path)
    assert sorted(configurations(tmp_path)) == sorted(config for some in configs for config in some)


def test_the_same_configuration_published_at_once_leaves_one_run(tmp_path):
    assert [end_of(process) for process in [publishing(tmp_path, *["same"] * 20) for _ in range(4)]] == [0] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["seed_0"]
    assert {path.name for path in (tmp_path / "seed_0").iterdir()} == set(RUN_FILES)


def write_files(folder, by, names=RUN_FILES):
    for name in names:
        (folder / name).write_text("same" if name != "metrics.json" else json.dumps({"by": by}))


def test_two_writers_of_one_run_at_once_never_share_a_folder(tmp_path):
    """As in two containers, which have one host name and one number of their process."""
    first, second = PartialRun(tmp_path / "seed_0"), PartialRun(tmp_path / "seed_0")
    write_files(first.path, 1, RUN_FILES[:2])
    write_files(second.path, 2)
    second.publish()
    third = PartialRun(tmp_path / "seed_0")
    write_files(first.path, 1)
    first.publish()
    third.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["seed_0"]
    assert json.loads((tmp_path / "seed_0" / "metrics.json").read_text()) == {"by": 1}
    assert {path.name for path in (tmp_path / "seed_0").iterdir()} == set(RUN_FILES)


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_folder_that_lacks_a_file_is_refused(tmp_path, name):
    partial = PartialRun(tmp_path / "a" / "seed_0")
    write_files(partial.path, 1, [other for other in RUN_FILES if other != name])
    with pytest.raises(UserError, match=f"no {name}"):
        partial.publish()
    partial.discard()
    assert list(tmp_path.iterdir()) == []


def test_what_was_put_into_a_run_is_there_after_it_ran_again(tmp_path):
    run = tmp_path / "seed_0"
    for by in (1, 2):
        partial = PartialRun(run)
        write_files(partial.path, by)
        partial.publish()
        if by == 1:
            (run / "export" / "onnx").mkdir(parents=True)
            (run / "export" / "onnx" / "model.onnx").write_bytes(b"a model")
            (run / "mine" / "deeper").mkdir(parents=True)
            (run / "mine" / "deeper" / "photo.txt").write_text("a photo")
            (run / "notes.txt").write_text("a note")
    assert [path.name for path in tmp_path.iterdir()] == ["seed_0"]
    assert json.loads((run / "metrics.json").read_text()) == {"by": 2}
    assert (run / "export" / "onnx" / "model.onnx").read_bytes() == b"a model"
    assert (run / "mine" / "deeper" / "photo.txt").read_text() == "a photo"
    assert (run / "notes.txt").read_text() == "a note"


@pytest.mark.parametrize("earlier", [False, True])
def test_a_whole_run_that_cannot_get_its_name_is_kept_and_the_message_says_where(tmp_path, monkeypatch, earlier):
    run = tmp_path / "seed_0"
    if earlier:
        partial = PartialRun(run)
        write_files(partial.path, 1)
        partial.publish()
    partial = PartialRun(run)
    write_files(partial.path, 2)
    rename = Path.rename
    refused = {str(run)}  # as where a file in it is open on Windows, or where something is mounted

    def refuse(path, target):
        if str(path) in refused or str(target) in refused:
            raise PermissionError(13, "in use", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="in use") as caught:
        partial.publish()
    partial.discard()
    kept = Path(str(caught.value).rpartition("kept as ")[2].rstrip("."))
    assert json.loads((kept / "metrics.json").read_text()) == {"by": 2}
    assert {path.name for path in kept.iterdir()} == set(RUN_FILES)
    if earlier:
        assert json.loads((run / "metrics.json").read_text()) == {"by": 1}
    monkeypatch.undo()
    # The next run of the same settings finds its place, and one is enough then.
    partial = PartialRun(run)
    write_files(partial.path, 3)
    partial.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["seed_0"]


def test_a_kept_run_never_gets_a_name_that_is_taken(tmp_path):
    publish(tmp_path, *"abc")
    shutil.rmtree(tmp_path / "seed_0.previous_1")
    publish(tmp_path, *"def")
    assert sorted(configurations(tmp_path)) == list("bcdef")


def test_images_of_one_name_have_pictures_of_their_own():
    taken = set()
    images = ["hole/a.png", "good/a.png", "hole/a.jpg", "hole/b.jpg", "hole/a.png", "hole/a.png"]
    pictures = [picture_path(Path("test", image), taken) for image in images]
    assert [str(path) for path in pictures] == [
        "images/hole/a.png", "images/good/a.png", "images/hole/a.jpg.png", "images/hole/b.png",
        "images/hole/a.png.png", "images/hole/a_2.png",
    ]  # fmt: skip
