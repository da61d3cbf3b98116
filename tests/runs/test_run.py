"""A finished run, read from its folder."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from recorded_runs import add_training_photos, write_run

from padim_bottle.errors import UserError
from padim_bottle.runs.run import Run

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.mark.parametrize("metrics", sorted(REFERENCE.glob("*/seed_*/metrics.json")), ids=lambda path: path.parts[-3])
def test_every_committed_record_is_read_to_the_last_digit(metrics):
    run = Run.read(metrics.parent)
    assert run.metrics == json.loads(metrics.read_text())
    assert run.is_real and run.is_comparable and not run.is_synthetic
    with (metrics.parent / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(map(repr, run.predictions["score"])) == sorted(repr(float(row["score"])) for row in rows)
    # What the run recorded follows from its predictions alone.
    counts = run.metrics["confusion_matrix"]
    if counts is not None:
        assert run.counts(run.threshold) == counts
    assert run.curve().auroc == pytest.approx(run.metrics["image_AUROC"], abs=1e-12)


def test_a_run_knows_whether_it_is_real_and_comparable(tmp_path):
    real, drawn = Run.read(write_run(tmp_path / "a", real=True)), Run.read(write_run(tmp_path / "b"))
    assert (real.is_real, real.is_comparable, real.is_synthetic, real.is_random) == (True, True, False, False)
    assert (drawn.is_real, drawn.is_comparable, drawn.is_synthetic, drawn.is_random) == (False, False, True, True)
    own = Run(real.folder, {**real.metrics, "data": {**real.metrics["data"], "name": "photos"}})
    assert (own.is_real, own.is_comparable) == (True, False)


def test_missing_values_are_read_by_one_rule(tmp_path):
    folder = write_run(tmp_path / "a", {"good": 4, "NA": 3, "null": 2}, training=0)
    run = Run.read(folder)
    assert run.defects == ["NA", "null"]
    assert run.threshold is None
    assert run.predictions["predicted_label"].isna().all() and run.predictions["p_value"].isna().all()
    assert run.calibration == {} and len(run.calibration_scores) == 0
    assert run.training.empty
    assert run.arrays.keys() >= {"pro_names", "scored_mean"}


def test_training_photos_come_oddest_first(tmp_path):
    run = Run.read(add_training_photos(write_run(tmp_path / "a")))
    assert len(run.training) == 30
    assert np.all(np.diff(run.training["p_value"]) >= 0)
    assert run.training["strip"].notna().all()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("metrics.json", None, "metrics.json is missing"),
        ("metrics.json", "{", "metrics.json is broken"),
        ("metrics.json", "[]", "metrics.json is broken"),
        ("metrics.json", "{}", "lack 'thresholds'"),
        ("predictions.csv", None, "predictions.csv is missing"),
        ("predictions.csv", "image_path,score\nx.png,1\n", "lack 'label'"),
        ("predictions.csv", "image_path,defect_type,label,score,predicted_label\nx,good,maybe,1,\n", "labels"),
        ("predictions.csv", "image_path,defect_type,label,score,predicted_label\nx,good,False,inf,\n", "not finite"),
        ("figures/data.npz", "no archive", "files are broken"),
    ],
)
def test_what_is_broken_is_named(tmp_path, name, content, says):
    folder = write_run(tmp_path / "seed_0")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        _ = Run.read(folder).predictions
    assert str(folder) in str(caught.value)
