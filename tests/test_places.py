"""Where data, weights and configs are looked for when nobody says it, and that make and CI follow."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from padim_bottle.places import data_root, find_config, weights_folders

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in ("MVTEC_AD_ROOT", "PADIM_WEIGHTS_DIR"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "checkout"
    folder.mkdir()
    return folder


def test_data_lie_in_a_checkout_or_beside_it_and_a_variable_goes_first(checkout, monkeypatch):
    assert data_root(checkout) == checkout / "datasets" / "MVTecAD"  # nowhere: that is where they are downloaded
    # From the last place to the first.
    for place in ("shared/data/MVTecAD", "datasets/MVTecAD", "checkout/datasets/MVTecAD"):
        folder = checkout.parent / place
        folder.mkdir(parents=True)
        assert data_root(checkout).resolve() == folder
    monkeypatch.setenv("MVTEC_AD_ROOT", "~/elsewhere")
    assert data_root(checkout) == Path.home() / "elsewhere"


def test_weights_are_looked_for_in_the_same_order(checkout, monkeypatch):
    places = ["checkout/weights", "weights", "shared/weights"]
    assert [os.path.relpath(path, checkout.parent) for path in weights_folders(checkout)] == places
    monkeypatch.setenv("PADIM_WEIGHTS_DIR", "named")
    assert weights_folders(checkout)[0] == Path("named")


def test_a_config_of_the_package_is_found_by_its_name(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    for name in ("demo.yaml", "configs/demo.yaml", "peers/dfm_resnet18.yaml"):
        assert find_config(Path(name)) == ROOT / "configs" / name.removeprefix("configs/")
    Path("demo.yaml").write_text("mine: true\n")
    assert find_config(Path("demo.yaml")) == Path("demo.yaml")
    for name in ("nowhere.yaml", "elsewhere/demo.yaml", "/nowhere/demo.yaml"):
        assert find_config(Path(name)) == Path(name)


def test_ci_names_no_folder_outside_the_repository():
    text = (ROOT / ".ci" / "run").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert not [line for line in lines if re.search(r"\.\./\w|shared", line)]


def test_an_environment_that_failed_half_way_blocks_nothing(tmp_path):
    failing = tmp_path / "python"
    failing.write_text('#!/bin/sh\nmkdir -p "$4/bin"; echo half > "$4/bin/python"; exit 1\n')
    failing.chmod(0o755)
    target = tmp_path / "venv" / "bin" / "python"
    words = [str(target), f"VENV={tmp_path / 'venv'}", f"PYTHON={failing}"]
    assert subprocess.run(["make", *words], cwd=ROOT, capture_output=True).returncode != 0
    assert not target.exists()
