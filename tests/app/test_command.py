"""``scripts/app.py``: what it needs, what it says, and what it leaves behind."""

import contextlib
import re
import sys
from pathlib import Path

import pytest

from padim_bottle.commands.app_command import NO_RECORDS
from padim_bottle.commands.command_line import run_verb


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """What the command sets is undone after a test; its folder is in the test's own."""
    for name in (*NO_RECORDS, "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run_verb("app", ["--model", "nowhere"]) == 2
    assert capsys.readouterr().err == 'error: The app needs gradio: pip install -e ".[app]".\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "There is no model nowhere"),
        (["--model", "nowhere", "--images", "not_there"], "There is no photo not_there"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message, monkeypatch, tmp_path, capsys):
    pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    assert run_verb("app", arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.slow
@pytest.mark.parametrize("gallery", [True, False])
def test_it_serves_until_it_is_stopped_and_leaves_nothing_behind(gallery, run_folder, environment, monkeypatch, capsys):
    pytest.importorskip("gradio")
    asked = []

    class Stop:
        """Asks for the page and then lets the command end."""

        def wait(self):
            import httpx

            address = re.search(r"http://127\.0\.0\.1:\d+/", capsys.readouterr().out)[0]
            asked.append(httpx.get(f"{address}config").text)
            assert list(environment.iterdir())

    monkeypatch.setattr("padim_bottle.predict.watch.stop_signal", lambda: contextlib.nullcontext(Stop()))
    model = run_folder
    if not gallery:
        model = environment.parent / "moved.ckpt"
        model.write_bytes((Path(run_folder) / "model.ckpt").read_bytes())
    assert run_verb("app", ["--model", str(model)]) == 0
    (config,) = asked
    assert ("There are no photos to pick from, for no model lies in a run's folder" in config) == (not gallery)
    assert list(environment.iterdir()) == []
