"""From words to typed functions, and what every command says of itself."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest

from padim_bottle.commands.arguments import Override, positive
from padim_bottle.commands.command_line import VERBS, call, main

ROOT = Path(__file__).parents[2]
HEAVY = set("torch torchvision anomalib lightning numpy pandas scipy matplotlib cv2 gradio ray".split(" "))  # noqa: SIM905


def judge(
    *photos: str,
    model: Path,
    batch_size: Annotated[int, positive] = 8,
    formats: list[Literal["onnx", "openvino"]] | None = None,
    dry_run: bool = False,
) -> int:
    """Judge photos.

      an example, as it is written

    Args:
        photos (PATH): at most 1 % of them
        model (FOLDER): a run
        batch_size: photos at
            a time
        formats: of the model
        dry_run: list them
    """
    judge.seen = (photos, model, batch_size, formats, dry_run)
    return 1 if photos else None


def hand_on(*overrides: Override, seed: int | None = None) -> None:
    """Hand on what is not known.

    Args:
        overrides: of another program
        seed: of this one
    """
    hand_on.seen = (overrides, seed)


def test_a_signature_is_a_command_line():
    assert call(judge, ["--model", "run"], "judge") == 0
    assert judge.seen == ((), Path("run"), 8, None, False)
    words = "a b --batch-size=2 --formats onnx openvino --formats onnx --dry-run --model x"
    assert call(judge, words.split(), "judge") == 1
    assert judge.seen == (("a", "b"), Path("x"), 2, ["onnx", "openvino", "onnx"], True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--model"),
        (["--model", "x", "--batch-size", "0"], "0 is less than 1"),
        (["--model", "x", "--batch-size", "two"], "--batch-size"),
        (["--model", "x", "--formats", "caffe"], "'caffe'"),
        (["--model", "x", "--batch", "3"], "unrecognized arguments: --batch"),
    ],
)
def test_wrong_words_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        call(judge, words, "judge")
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_docstring_is_the_help(capsys):
    with pytest.raises(SystemExit) as end:
        call(judge, ["--help"], "judge")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "\n  an example, as it is written\n" in text
    for words in ("at most 1 % of them", "photos at a time (default: 8)", "--model FOLDER", "{onnx,openvino}"):
        assert words in text
    assert "Args:" not in text


def test_what_is_not_known_is_handed_on_in_order():
    call(hand_on, ["--data.root", "there", "--seed", "7", "--trainer.fast", "x"], "hand_on")
    assert hand_on.seen == (("--data.root", "there", "--trainer.fast", "x"), 7)


def python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


def test_help_answers_at_once_because_nothing_heavy_is_imported():
    code = (
        "import sys; from padim_bottle.commands.command_line import VERBS, main\n"
        "for verb in VERBS:\n"
        "    sys.argv = ['padim-bottle', verb, '--help']\n"
        "    try: main()\n"
        f"    except SystemExit as end: assert end.code == 0\nprint(sorted({HEAVY!r} & {{*sys.modules}}))"
    )
    said = python("-c", code, check=True).stdout
    assert re.findall(r"^usage: padim-bottle (\w+) ", said, re.M) == [*VERBS]
    assert said.splitlines()[-1] == "[]"


def test_light_modules_import_neither_torch_nor_anomalib():
    rooms = ("data.download", "data.images", "data.layout", "experiment.config_check", "evaluation.metrics")
    code = f"import sys, {', '.join(f'padim_bottle.{room}' for room in rooms)}; print(*sys.modules)"
    assert not {"torch", "anomalib", "huggingface_hub"} & {*python("-c", code, check=True).stdout.split()}


def test_every_verb_has_a_script():
    scripts = {path.stem: path.read_text() for path in (ROOT / "scripts").glob("*.py") if path.stem != "door"}
    assert scripts.keys() == {*VERBS}
    assert all(f'enter("{verb}")' in text for verb, text in scripts.items())
    assert "usage: report.py" in python(ROOT / "scripts" / "report.py", "--help", check=True).stdout


@pytest.mark.parametrize(
    ("words", "code", "named"), [([], 2, VERBS), (["--help"], 0, VERBS), (["trian"], 2, ["trian"])]
)
def test_padim_bottle_says_what_there_is(words, code, named, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["padim-bottle", *words])
    try:
        ended = main()
    except SystemExit as end:
        ended = end.code
    output = capsys.readouterr()
    assert ended == code
    assert all(word in output.out + output.err for word in named)


def test_a_python_without_the_package_gives_no_verdict(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import predict, door; door.enter('predict')"
    done = python("-I", "-S", "-c", code)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "pip install" in done.stderr
