"""Anomalib's own ways to use a checkpoint: its engine and its command line, to predict and to export."""

import sys
from pathlib import Path

import cv2
import pandas as pd
import pytest
from anomalib.cli.cli import main
from anomalib.data import PredictDataset
from anomalib.deploy import OpenVINOInferencer
from anomalib.engine import Engine

from padim_bottle import Padim
from padim_bottle.data.images import read_image
from padim_bottle.predict.predictor import load_predictor

pytestmark = pytest.mark.slow


@pytest.fixture
def table(run_folder):
    return pd.read_csv(run_folder / "predictions.csv").set_index("image_path")


@pytest.fixture
def good(table):
    """The folder of the good test photos."""
    return Path(table.index[~table["label"]][0]).parent


@pytest.fixture
def model(run_folder):
    return Padim.load_from_checkpoint(run_folder / "model.ckpt")


@pytest.fixture
def engine(tmp_path):
    return Engine(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)


def test_the_engine_predicts_with_a_checkpoint(engine, model, run_folder, table, good):
    batches = engine.predict(
        model=model, dataset=PredictDataset(good), ckpt_path=run_folder / "model.ckpt", return_predictions=True
    )
    verdicts = {
        path: bool(label) for batch in batches for path, label in zip(batch.image_path, batch.pred_label, strict=True)
    }
    assert len(verdicts) == 4
    assert verdicts == table.loc[list(verdicts), "predicted_label"].to_dict()


@pytest.fixture
def anomalib(tmp_path, monkeypatch):
    """Run anomalib's command line with the settings of the model; what a checkpoint does not tell it has to be said."""
    monkeypatch.chdir(tmp_path)

    def run(verb, *arguments):
        model = ["--model", "padim_bottle.Padim", "--model.pre_trained", "false", "--model.n_features", "30"]
        model += ["--model.image_size", "[64,64]", "--default_root_dir", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["anomalib", verb, *model, *map(str, arguments)])
        main()

    return run


def test_anomalibs_command_predicts_with_a_checkpoint(anomalib, run_folder, good, tmp_path):
    # Pictures are off unless they are asked for: ResultsWriter draws them.
    anomalib("predict", "--data", good, "--ckpt_path", run_folder / "model.ckpt", "--model.visualizer", "true")
    assert len(list(tmp_path.rglob("*.png"))) == 4


def test_what_anomalibs_command_exports_predicts(anomalib, run_folder, table, tmp_path):
    pytest.importorskip("openvino")
    anomalib("export", "--export_type", "openvino", "--ckpt_path", run_folder / "model.ckpt")
    (written,) = tmp_path.rglob("*.xml")
    inferencer = OpenVINOInferencer(written, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})
    # anomalib's exporter switches antialiasing off: at the network's own size nothing is resized.
    photos = [cv2.resize(read_image(path), (64, 64), interpolation=cv2.INTER_AREA) for path in table.index]
    for photo, expected in zip(photos, load_predictor(run_folder, device="cpu").predict(photos), strict=True):
        actual = inferencer.predict(photo)
        assert actual.pred_score.item() == pytest.approx(expected.normalised_score, abs=1e-4)
        assert bool(actual.pred_label) == expected.anomalous
