"""The folder a run leaves behind, through our function and the stock CLI."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from recorded_runs import without_test_images, write_run
from rich.console import Console
from sklearn.metrics import f1_score, roc_auc_score

from padim_bottle.experiment.config import ExperimentConfig
from padim_bottle.report.screen import print_summary
from padim_bottle.runs.record import describe_weights
from padim_bottle.runs.run import Run


def read(folder):
    return json.loads((folder / "metrics.json").read_text())


def without_clocks(metrics):
    # A checkpoint holds the path of Lightning's working folder, so its size varies with that by some bytes.
    changing = {
        "seconds",
        "profile",
        "peak_memory_bytes",
        "finished",
        "config_sha256",
        "checkpoint_bytes",
        "git_commit",
    }
    return {key: value for key, value in metrics.items() if key not in changing}


def test_a_run_leaves_every_file_and_nothing_else(run_folder):
    assert {path.name for path in run_folder.iterdir()} == {
        "config.yaml", "figures", "images", "metrics.json", "model.ckpt", "predictions.csv", "report.html",
        "training_photos.csv",
    }  # fmt: skip
    pictures = sorted(str(path.relative_to(run_folder / "images")) for path in (run_folder / "images").rglob("*.png"))
    assert len(pictures) == 13
    assert pictures[0] == "broken_large/000.png"
    assert Image.open(run_folder / "images" / pictures[0]).size[0] > 3 * 64
    assert [path.name for path in run_folder.parents[1].rglob("*") if "seed_" in path.name] == [run_folder.name]
    assert list(run_folder.parents[1].iterdir()) == [run_folder.parent]


def test_metrics_say_what_they_are_of(run_folder):
    metrics = read(run_folder)
    assert metrics["seed"] == 42
    assert metrics["data"]["synthetic"] is True
    assert metrics["data"]["name"] == "synthetic bottles"
    assert len(metrics["data"]["fingerprint"]) == 64
    assert metrics["weights"] == {"name": "resnet18.tv_in1k", "source": "random", "sha256": None}
    assert metrics["data"]["train_images"] == metrics["calibration"]["training_images"] == 12
    assert metrics["versions"]["anomalib"] == "2.7.0"
    assert metrics["checkpoint_bytes"] == (run_folder / "model.ckpt").stat().st_size
    assert {"train", "test", "evaluate", "total"} <= metrics["seconds"].keys()
    stages = {"reading", "backbone", "fit", "calibration", "copies", "test", "draw", "evaluate", "report"}
    assert stages <= metrics["profile"].keys()
    told = sum(stage["seconds"] for name, stage in metrics["profile"].items() if name != "start")
    assert told == pytest.approx(metrics["seconds"]["total"], abs=0.05)
    assert metrics["profile"]["backbone"]["cpu_seconds"] > 0
    assert ", backbone " in (run_folder / "report.html").read_text().partition("CPU seconds: ")[2]
    assert set(metrics["per_defect"]) == {"broken_large", "broken_small", "contamination"}


def test_predictions_reproduce_the_metrics(run_folder):
    metrics, table = read(run_folder), pd.read_csv(run_folder / "predictions.csv")
    assert len(table) == 13
    assert metrics["image_AUROC"] == pytest.approx(roc_auc_score(table.label, table.score), abs=1e-12)
    assert (table.predicted_label == (table.score >= table.threshold)).all()
    assert metrics["image_F1Score"] == pytest.approx(f1_score(table.label, table.predicted_label))
    counts = metrics["confusion_matrix"]
    assert counts["true_positive"] == (table.label & table.predicted_label).sum()
    assert counts["false_positive"] == (~table.label & table.predicted_label).sum()
    # A p-value is a rank among the leave-one-out scores of the training images.
    scores = np.array(metrics["calibration"]["scores"])
    expected = [(1 + (scores >= score).sum()) / 13 for score in table.score]
    np.testing.assert_allclose(table.p_value, expected, atol=1e-6)


def test_the_written_config_is_read_as_the_one_it_came_from(run_folder):
    assert ExperimentConfig(run_folder / "config.yaml").config_sha256() == read(run_folder)["config_sha256"]


@pytest.mark.slow
def test_the_stock_cli_repeats_a_run_from_its_written_config_with_the_same_numbers_and_files(run_folder, tmp_path):
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    config["trainer"]["callbacks"][0]["init_args"]["root"] = str(tmp_path / "results")
    config["default_root_dir"] = str(tmp_path / "lightning")
    (tmp_path / "stock.yaml").write_text(yaml.safe_dump(config))
    anomalib = Path(sys.executable).with_name("anomalib")
    command = [anomalib, "train", "--config", "stock.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (stock,) = tmp_path.glob("results/*/seed_*")
    assert {path.name for path in stock.iterdir()} == {path.name for path in run_folder.iterdir()}
    assert without_clocks(read(stock)) == without_clocks(read(run_folder))
    assert (stock / "predictions.csv").read_text() == (run_folder / "predictions.csv").read_text()


@pytest.mark.parametrize("tested", [True, False])
def test_the_screen_says_what_a_run_lacks(tmp_path, tested):
    folder = write_run(tmp_path / "seed_0", pictures=False)
    run = Run.read(folder if tested else without_test_images(folder))
    run.metrics["data"]["left_out"] = ["There are no good photos of it."]
    console = Console(record=True, width=140)
    print_summary(run, console)
    text = console.export_text()
    assert "There are no good photos of it." in text
    assert f"Threshold {run.threshold:.3f}" in text
    assert "say nothing about MVTec AD" in text  # of synthetic bottles
    assert ("of 11 defects found" in text) == tested


def test_weights_of_anomalibs_padim_are_described_by_their_folder(random_weights):
    from anomalib.models import Padim

    folder = random_weights / "resnet18.tv_in1k"
    weights = describe_weights(Padim(backbone=f"local-dir:{folder}", n_features=10))
    assert weights["name"] == "resnet18.tv_in1k"
    assert weights["source"] == "folder"
    assert len(weights["sha256"]) == 64
