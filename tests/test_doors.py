"""The core stands on its own: without each door in turn, and without all of them, it trains, tests and writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from padim_bottle.runs.environment import CORE
from padim_bottle.runs.run import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]

PACKAGE = Path(__file__).parents[1] / "src" / "padim_bottle"
DOORS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if path.parent.name not in CORE)
ALL = ",".join(DOORS)
WRITTEN = {"config.yaml", "figures", "metrics.json", "model.ckpt", "predictions.csv", "training_photos.csv"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of each check, and the checks that failed."""
    output = tmp_path_factory.mktemp("doors")
    command = [sys.executable, Path(__file__).with_name("core_alone.py"), output, *DOORS, ALL]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    return output, done.stdout.split()


@pytest.mark.parametrize("doors", [*DOORS, ALL])
def test_the_core_is_imported_without_each_door_and_tested_without_any(alone, doors):
    output, failed = alone
    assert doors not in failed, (output / doors / "log.txt").read_text()[-3000:]


def test_the_core_trains_and_writes_without_any_door(alone, run_folder):
    (found,) = (alone[0] / ALL).glob("results/*/seed_*")
    run, whole = Run.read(found), Run.read(run_folder)
    for name in ("image_AUROC", "pixel_AUROC", "pixel_AUPRO", "confusion_matrix", "per_defect", "calibration"):
        assert run.metrics[name] == whole.metrics[name]
    pd.testing.assert_frame_equal(run.predictions.drop(columns="strip"), whole.predictions.drop(columns="strip"))
    assert run.arrays.keys() == whole.arrays.keys()
    assert {path.name for path in run.folder.iterdir()} == WRITTEN
    assert "padim_bottle.report is not installed" in (alone[0] / ALL / "log.txt").read_text()
    # What was written then is enough for the report.
    assert json.loads((run.folder / "metrics.json").read_text())["seconds"].keys() >= {"train", "test"}
