"""The folder a run leaves behind, through Python, our script's function and the stock CLI."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from padim_bottle.commands.command_line import run_verb
from padim_bottle.experiment.train import train
from padim_bottle.runs.record import describe_weights

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
# The demo, smaller: 64 px pictures, 40 channels.
SMALL = [
    "--data.init_args.size", "64", "--data.init_args.train_good", "12", "--data.init_args.test_good", "4",
    "--data.init_args.test_per_defect", "2", "--model.init_args.image_size", "[64, 64]",
    "--model.init_args.n_features", "40", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
    "--trainer.callbacks.report", "false",
]  # fmt: skip
REPORT = ["--trainer.callbacks.report", "true"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """An empty current folder, as a user's checkout would be."""
    folder = tmp_path_factory.mktemp("workplace")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def demo(workplace):
    """The results of the demo config at seed 3."""
    train(CONFIGS / "demo.yaml", [*SMALL, *REPORT], seed=3)
    return workplace / "results" / "demo_synthetic_random_weights" / "seed_3"


def read(folder):
    return json.loads((folder / "metrics.json").read_text())


def without_clocks(metrics):
    # A checkpoint holds the path of Lightning's working folder, so its size varies with that by some bytes.
    changing = {"seconds", "peak_memory_bytes", "finished", "config_sha256", "checkpoint_bytes"}
    return {key: value for key, value in metrics.items() if key not in changing}


def test_a_run_leaves_every_file(demo):
    assert {path.name for path in demo.iterdir()} == {
        "config.yaml", "figures", "images", "metrics.json", "model.ckpt", "predictions.csv", "report.html",
        "training_photos.csv",
    }  # fmt: skip
    pictures = sorted(str(path.relative_to(demo / "images")) for path in (demo / "images").rglob("*.png"))
    assert len(pictures) == 10
    assert pictures[0] == "broken_large/000.png"
    assert Image.open(demo / "images" / pictures[0]).size[0] > 3 * 64


def test_nothing_else_is_left_in_the_results_folder(demo):
    left = {str(path.relative_to(demo.parents[1])) for path in demo.parents[1].glob("*")}
    assert left == {"demo_synthetic_random_weights"}
    assert {path.name for path in demo.parent.iterdir()} == {"seed_3"}


def test_metrics_say_what_they_are_of(demo):
    metrics = read(demo)
    assert metrics["seed"] == 3
    assert metrics["data"]["synthetic"] is True
    assert metrics["data"]["name"] == "synthetic bottles"
    assert len(metrics["data"]["fingerprint"]) == 64
    assert metrics["weights"] == {"name": "resnet18.tv_in1k", "source": "random", "sha256": None}
    assert metrics["data"]["train_images"] == 12
    assert metrics["calibration"]["training_images"] == 12
    assert metrics["versions"]["anomalib"] == "2.7.0"
    assert metrics["checkpoint_bytes"] == (demo / "model.ckpt").stat().st_size
    assert {"train", "test", "evaluate", "total"} <= metrics["seconds"].keys()
    assert set(metrics["per_defect"]) == {"broken_large", "broken_small", "contamination"}


def test_predictions_reproduce_the_metrics(demo):
    metrics, table = read(demo), pd.read_csv(demo / "predictions.csv")
    assert len(table) == 10
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


def test_the_written_config_repeats_the_run(demo, workplace):
    train(demo / "config.yaml", results=workplace / "again")
    again = read(workplace / "again" / "demo_synthetic_random_weights" / "seed_3")
    assert without_clocks(again) == without_clocks(read(demo))


@pytest.mark.slow
def test_the_stock_cli_gives_the_same_numbers_and_files(demo, workplace):
    lightning = str(workplace / "stock" / "lightning")
    settings = [*SMALL, *REPORT, "--model.init_args.seed", "3", "--default_root_dir", lightning]
    config = yaml.safe_load((CONFIGS / "demo.yaml").read_text())
    config["trainer"]["callbacks"][0]["init_args"]["root"] = str(workplace / "stock")
    (workplace / "stock.yaml").write_text(yaml.safe_dump(config))
    anomalib = Path(sys.executable).with_name("anomalib")
    done = subprocess.run(
        [anomalib, "train", "--config", "stock.yaml", *settings], cwd=workplace, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    stock = workplace / "stock" / "demo_synthetic_random_weights" / "seed_3"
    assert {path.name for path in stock.iterdir()} == {path.name for path in demo.iterdir()}
    assert without_clocks(read(stock)) == without_clocks(read(demo))
    assert (stock / "predictions.csv").read_text() == (demo / "predictions.csv").read_text()


def test_a_run_that_fails_leaves_nothing(demo, workplace, capsys):
    """One picture of the test set cannot be read: the run fails after training."""
    shutil.copytree(next((workplace / "datasets" / "synthetic").iterdir()), workplace / "broken")
    (workplace / "broken" / "bottle" / "test" / "good" / "001.png").write_bytes(b"no picture")
    code = run_verb("train",
        ["--config", str(CONFIGS / "demo.yaml"), "--results", "failed", *SMALL[8:],
         "--data", "padim_bottle.MVTecAD", "--data.root", "broken", "--data.verify", "false"]
    )  # fmt: skip
    assert code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error:")
    assert "001.png" in message
    assert not Path("failed").exists() or not list(Path("failed").rglob("*.*"))


def copied_bottles(workplace, name):
    """Copy the demo's bottles; return the category's folder and the arguments that name it."""
    root = workplace / name
    shutil.copytree(next((workplace / "datasets" / "synthetic").iterdir()), root)
    return root / "bottle", ["--data", "padim_bottle.MVTecAD", "--data.root", str(root), "--data.verify", "false"]


def test_without_a_test_set_everything_is_written_after_the_training(demo, workplace, capsys):
    folder, data = copied_bottles(workplace, "no_test")
    shutil.rmtree(folder / "test")
    train(CONFIGS / "demo.yaml", [*SMALL[8:], *data], seed=3, results=folder / "results")
    run = folder / "results" / "demo_synthetic_random_weights" / "seed_3"
    assert {path.name for path in demo.iterdir()} - {path.name for path in run.iterdir()} <= {
        "images",
        "figures",
        "report.html",
    }
    metrics = read(run)
    assert metrics["thresholds"] == read(demo)["thresholds"] | {"image_F1Max": None, "pixel_F1Max": None}
    assert metrics["calibration"] == read(demo)["calibration"]
    assert metrics["image_AUROC"] is metrics["pixel_AUROC"] is metrics["confusion_matrix"] is None
    assert metrics["images"] == {"good": 0, "defective": 0}
    assert metrics["data"]["left_out"] == ["There are no test images, so there are no test metrics."]
    assert len((run / "predictions.csv").read_text().splitlines()) == 1
    printed = capsys.readouterr().out
    assert "There are no test images" in printed
    assert f"Threshold {metrics['thresholds']['image']:.3f}" in printed
    assert {path.name for path in run.parent.iterdir()} == {"seed_3"}


def test_a_model_without_calibration_needs_a_test_set(demo, workplace, capsys):
    folder, data = copied_bottles(workplace, "tuned_without_test")
    shutil.rmtree(folder / "test")
    tuned = ["--model.calibration", "false", "--model.position_calibration", "false"]
    results = folder / "results"
    arguments = ["--config", str(CONFIGS / "demo.yaml"), "--results", str(results), *SMALL[8:], *data, *tuned]
    assert run_verb("train", arguments) == 2
    assert "no threshold without them" in capsys.readouterr().err
    assert not list(folder.rglob("*.json"))


def test_without_masks_there_are_no_pixel_metrics(demo, workplace, capsys):
    """The images are judged as ever."""
    folder, data = copied_bottles(workplace, "unmasked")
    shutil.rmtree(folder / "ground_truth")
    train(CONFIGS / "demo.yaml", [*SMALL[8:-2], *REPORT, *data], seed=3, results=folder / "results")
    run = folder / "results" / "demo_synthetic_random_weights" / "seed_3"
    metrics, whole = read(run), read(demo)
    image_metrics = [name for name in whole if name.startswith("image_")]
    assert [metrics[name] for name in image_metrics] == [whole[name] for name in image_metrics]
    types = sorted(whole["per_defect"])
    assert metrics["data"]["left_out"] == [
        f"There are no masks of {', '.join(types)}: pixel metrics leave their images out."
    ]
    assert metrics["data"]["left_out"][0] in " ".join(capsys.readouterr().out.split())
    assert {name for name, figures in metrics["per_defect"].items() if figures["pixel_AUROC"] is None} == set(types)
    assert (run / "report.html").is_file()
    assert metrics["pixel_AUROC"] is metrics["pixel_AUPRO"] is metrics["pixel_F1Score"] is None


def test_weights_of_anomalibs_padim_are_described_by_their_folder(random_weights):
    from anomalib.models import Padim

    folder = random_weights / "resnet18.tv_in1k"
    weights = describe_weights(Padim(backbone=f"local-dir:{folder}", n_features=10))
    assert weights["name"] == "resnet18.tv_in1k"
    assert weights["source"] == "folder"
    assert len(weights["sha256"]) == 64
