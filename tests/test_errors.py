"""How a command ends: the exit code, and what is said on the screen."""

import subprocess
import sys
from pathlib import Path

import pytest

from padim_bottle.errors import UnavailableError, UserError, explain_failure, in_a_line, run_command


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize("verdict", [0, 1, 2])
def test_a_verdict_is_the_exit_code(verdict, capsys):
    assert run_command(lambda: verdict) == verdict
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("seeds: name at least one."), "error: seeds: name at least one."),
        (UnavailableError("No weights."), "error: No weights."),
        (OSError(28, "No space left on device", "model.ckpt"), "error: No space left for model.ckpt"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_2(error, line, capsys):
    assert run_command(raising(error)) == 2
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ZeroDivisionError("division by zero"), "unexpected error: ZeroDivisionError: division by zero. "),
        (AssertionError(), "unexpected error: AssertionError. "),
        (RuntimeError("first line\nlast line"), "unexpected error: RuntimeError: first line last line. "),
    ],
)
def test_a_fault_of_the_program_is_70_never_a_verdict_and_its_traceback_is_in_a_file(
    error, line, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_command(raising(error)) == 70
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(line)
    (log,) = tmp_path.iterdir()
    assert str(log) in printed
    assert "Traceback" in log.read_text()
    assert type(error).__name__ in log.read_text()


def test_a_traceback_that_cannot_be_written_is_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert run_command(raising(KeyError("name"))) == 70
    assert "Traceback" in capsys.readouterr().err


def ctrl_c_as_lightning_passes_it_on():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize("command", [raising(KeyboardInterrupt()), ctrl_c_as_lightning_passes_it_on])
def test_ctrl_c_is_130(command, capsys):
    assert run_command(command) == 130
    assert capsys.readouterr().err.startswith("interrupted")


def test_an_exit_that_somebody_else_asked_for_is_not_called_an_interruption(capsys):
    with pytest.raises(SystemExit) as end:
        run_command(raising(SystemExit(5)))
    assert end.value.code == 5
    assert capsys.readouterr().err == ""


def test_a_reader_that_went_away_is_no_fault():
    code = (
        "import sys; from padim_bottle.errors import run_command\n"
        "def command():\n    for number in range(10**6): print(number)\n    return 0\n"
        "sys.exit(run_command(command))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 2


def test_a_pipe_of_the_program_that_breaks_is_a_fault_and_is_said(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_command(raising(BrokenPipeError(32, "Broken pipe"))) == 70
    assert "BrokenPipeError: [Errno 32] Broken pipe. " in capsys.readouterr().err


def test_a_fault_while_a_refusal_is_handled_is_a_fault():
    def fail(error):
        try:
            raise PermissionError(13, "Permission denied", "photo.png")
        except PermissionError:
            if isinstance(error, RuntimeError):
                raise error from None
            raise error  # noqa: B904 - as a fault in the handler

    for error in (KeyError("name"), RuntimeError("from None")):
        with pytest.raises(type(error)) as fault:
            fail(error)
        assert explain_failure(fault.value) is None
    try:
        try:
            raise OSError(28, "No space left on device", "model.ckpt")
        except OSError:
            raise RuntimeError("PytorchStreamWriter failed writing file")  # noqa: B904 - as torch does
    except RuntimeError as wrapped:
        assert explain_failure(wrapped).startswith("No space left for model.ckpt")


def test_an_error_in_a_line():
    assert in_a_line(ValueError("one\n  two.\n")) == "one two"
    assert in_a_line(AssertionError()) == "AssertionError"
    assert in_a_line("a" * 300 + "b" * 300) == "a" * 200 + " ... " + "b" * 200


def test_a_package_that_is_missing_is_named(capsys):
    assert run_command(lambda: __import__("no_such_package")) == 2
    assert "no_such_package is not installed" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which only Linux has")
def test_lines_that_find_no_space_are_an_error():
    code = (
        "import sys; from padim_bottle.errors import run_command\n"
        "def command():\n    print('verdict')\n    return 0\n"
        "sys.exit(run_command(command))"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    (line,) = done.stderr.splitlines()
    assert "No space left" in line
    assert done.returncode == 2
