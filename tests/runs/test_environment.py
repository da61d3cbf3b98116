"""What a record says of the code it was made by."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import padim_bottle
from padim_bottle.runs import environment

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
    """The digest of a copy of the package, after a file of it was changed."""
    copy = tmp_path / "padim_bottle"
    shutil.copytree(Path(padim_bottle.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(environment, "__file__", str(copy / "runs" / "environment.py"))

    def change(name=None):
        if name is not None:
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).write_text((copy / name).read_text() + "# a typo mended" if (copy / name).exists() else "")
        return environment.code_digest.__wrapped__()

    return change


@pytest.mark.parametrize("name", ["app/browser.py", "report/html.py", "commands/train.py", "compare/markdown.py"])
def test_a_typo_mended_in_a_door_is_no_other_code(digest_of, name):
    before = digest_of()
    assert digest_of(name) == before


@pytest.mark.parametrize("name", ["errors.py", "heat.py", "model/padim.py", "runs/writer.py", "data/new.py"])
def test_a_change_of_the_core_is_other_code(digest_of, name):
    before = digest_of()
    assert digest_of(name) != before


def test_the_core_is_what_the_contract_of_imports_says():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = contract["layers"]
    rooms = {room.strip() for layer in layers[layers.index("experiment") :] for room in layer.split("|")}
    assert {name.removesuffix(".py") for name in environment.CORE} == rooms


def test_the_commit_is_that_of_the_code_and_of_no_repository_around_it(tmp_path, monkeypatch):
    """As where an environment lies in somebody's repository."""
    package = tmp_path / "venv" / "runs"
    package.mkdir(parents=True)
    (package / "environment.py").write_text("")
    (tmp_path / "theirs.txt").write_text("")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(tmp_path)]
    for arguments in (["init", "-q"], ["add", "theirs.txt"], ["commit", "-q", "-m", "theirs"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    assert environment.git_commit() is None
    subprocess.run([*git, "add", "venv"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "ours"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert environment.git_commit() == head
    (package / "environment.py").write_text("# changed")
    assert environment.git_commit() == f"{head}-dirty"
