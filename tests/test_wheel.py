"""The wheel holds all that a user needs: it is built, installed where the repository is not, and runs the demo."""

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("src", "configs", "pyproject.toml", "README.md", "LICENSE")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def pip(*words):
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *words], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy: building leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, copy / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(copy / "dist"), str(copy))
    (built,) = (copy / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """padim-bottle, installed in an environment that has what it needs and not this repository."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    site.joinpath("needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    return environment / "bin" / "padim-bottle"


def run(command, folder, *words):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([command, *words], cwd=folder, env=environment, capture_output=True, text=True, check=True)


def test_it_holds_every_module_template_and_config(wheel):
    expected = {
        str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "padim_bottle").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }  # fmt: skip
    expected |= {f"padim_bottle/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_the_demo_runs_and_a_config_is_found_by_its_name(command, tmp_path):
    assert run(command, tmp_path, "--version").stdout.startswith("padim-bottle ")
    size = ["--data.size", "96", "--data.train_good", "12", "--data.test_good", "4", "--data.test_per_defect", "3"]
    model = ["--model.image_size", "[64, 64]", "--model.n_features", "30", "--model.alpha", "0.2"]
    quiet = ["--trainer.enable_progress_bar", "false"]
    run(command, tmp_path, "train", "--config", "demo.yaml", *size, *model, *quiet)
    (folder,) = tmp_path.glob("results/*/seed_*")
    assert json.loads((folder / "metrics.json").read_text())["data"]["synthetic"] is True
    assert (folder / "report.html").is_file()
