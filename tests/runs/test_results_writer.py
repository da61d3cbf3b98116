"""The folder a run leaves behind, through Python, our script's function and the stock CLI."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from padim_bottle import ResultsWriter
from padim_bottle.commands.command_line import run_verb
from padim_bottle.errors import UserError
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


def test_another_seed_gives_other_numbers(demo, workplace):
    train(CONFIGS / "demo.yaml", SMALL, seed=4)
    other = read(demo.with_name("seed_4"))
    assert other["calibration"]["scores"] != read(demo)["calibration"]["scores"]
    assert other["data"]["fingerprint"] == read(demo)["data"]["fingerprint"]


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


def test_the_same_configuration_replaces_its_run_and_another_keeps_it(demo, workplace, caplog):
    results = workplace / "replaced"
    train(CONFIGS / "demo.yaml", SMALL, seed=0, results=results)
    train(CONFIGS / "demo.yaml", SMALL, seed=0, results=results)
    folder = results / "demo_synthetic_random_weights"
    assert {path.name for path in folder.iterdir()} == {"seed_0"}
    first = (folder / "seed_0" / "metrics.json").read_text()
    with caplog.at_level(logging.WARNING):
        train(CONFIGS / "demo.yaml", [*SMALL, "--model.init_args.alpha", "0.3"], seed=0, results=results)
    assert {path.name for path in folder.iterdir()} == {"seed_0", "seed_0.previous_1"}
    assert (folder / "seed_0.previous_1" / "metrics.json").read_text() == first
    assert "it is kept as" in caplog.text


def test_a_writer_that_is_used_again_measures_each_run_on_its_own(demo, workplace, monkeypatch):
    """Its seconds, and the GPU's memory, of which only the most since the last reset is known."""
    from padim_bottle.runs import environment

    resets = []
    monkeypatch.setattr(environment, "start_measuring", resets.append)
    cli = train(CONFIGS / "demo.yaml", [*SMALL, "--trainer.callbacks.images", "false"], seed=5)
    first = cli.results_writer.metrics["seconds"]
    assert len(resets) == 1
    time.sleep(0.5)
    began = time.perf_counter()
    cli.engine.test(model=cli.model, datamodule=cli.datamodule)
    lasted = time.perf_counter() - began
    second = cli.results_writer.metrics["seconds"]
    assert len(resets) == 2
    assert "train" in first
    assert "train" not in second
    assert second["test"] <= second["total"] <= lasted


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


@pytest.mark.parametrize(
    ("removed", "undefined"),
    [("good", ["image_AUROC", "image_false_alarm_rate"]), ("defects", ["image_AUROC", "image_F1Score", "pixel_AUPRO"])],
)
def test_a_test_set_without_goods_or_without_defects_gives_what_it_can(demo, workplace, removed, undefined):
    root = workplace / f"no_{removed}"
    shutil.copytree(next((workplace / "datasets" / "synthetic").iterdir()), root)
    for folder in list((root / "bottle" / "test").iterdir()):
        if (folder.name == "good") == (removed == "good"):
            shutil.rmtree(folder)
            shutil.rmtree(root / "bottle" / "ground_truth" / folder.name, ignore_errors=True)
    data = ["--data", "padim_bottle.MVTecAD", "--data.root", str(root), "--data.verify", "false"]
    train(CONFIGS / "demo.yaml", [*SMALL[8:], *data], seed=3, results=root / "results")
    metrics = read(root / "results" / "demo_synthetic_random_weights" / "seed_3")
    assert all(metrics[name] is None for name in undefined)
    assert metrics["thresholds"]["image"] == read(demo)["thresholds"]["image"]


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


@pytest.mark.parametrize("without", ["broken_large", ""])
def test_types_without_masks_are_left_out_of_pixel_metrics(demo, workplace, capsys, without):
    """Their images are judged as ever, and what remains is what a test set without them gives."""
    folder, data = copied_bottles(workplace, f"unmasked_{without}")
    shutil.rmtree(folder / "ground_truth" / without)
    report = [*SMALL[8:-2], *REPORT, *data]
    train(CONFIGS / "demo.yaml", report, seed=3, results=folder / "results")
    run = folder / "results" / "demo_synthetic_random_weights" / "seed_3"
    metrics, whole = read(run), read(demo)
    image_metrics = [name for name in whole if name.startswith("image_")]
    assert [metrics[name] for name in image_metrics] == [whole[name] for name in image_metrics]
    types = ["broken_large"] if without else sorted(whole["per_defect"])
    assert metrics["data"]["left_out"] == [
        f"There are no masks of {', '.join(types)}: pixel metrics leave their images out."
    ]
    assert metrics["data"]["left_out"][0] in " ".join(capsys.readouterr().out.split())
    assert {name for name, figures in metrics["per_defect"].items() if figures["pixel_AUROC"] is None} == set(types)
    assert (run / "report.html").is_file()
    if not without:
        assert metrics["pixel_AUROC"] is metrics["pixel_AUPRO"] is metrics["pixel_F1Score"] is None
        return
    for name in ("broken_small", "contamination"):
        assert metrics["per_defect"][name] == whole["per_defect"][name]
    shutil.rmtree(folder / "test" / without)
    train(CONFIGS / "demo.yaml", [*SMALL[8:], *data], seed=3, results=folder / "fewer")
    fewer = read(folder / "fewer" / "demo_synthetic_random_weights" / "seed_3")
    pixel_metrics = [name for name in whole if name.startswith("pixel_")]
    assert [metrics[name] for name in pixel_metrics] == [fewer[name] for name in pixel_metrics]


def test_a_folder_that_cannot_be_written_is_refused_before_training(demo, workplace, capsys):
    Path("occupied").write_text("a file, not a folder")
    code = run_verb("train", ["--config", str(CONFIGS / "demo.yaml"), "--results", "occupied", *SMALL])
    assert code == 2
    assert "Cannot write results to occupied/demo_synthetic_random_weights" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../outside", "a/b", "", ".hidden", "nul\0"])
def test_an_experiments_name_cannot_leave_the_results_folder(name):
    with pytest.raises(UserError, match="cannot name a folder"):
        ResultsWriter(experiment=name)


def test_a_killed_runs_leftovers_are_removed_by_the_next(demo, workplace):
    import socket

    folder = workplace / "killed" / "demo_synthetic_random_weights"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = folder / f".seed_3.partial-{socket.gethostname()}-{process.pid}"
    elsewhere = folder / ".seed_3.partial-another-host-1"
    for leftover in (dead, elsewhere):
        leftover.mkdir(parents=True)
    train(CONFIGS / "demo.yaml", SMALL, seed=3, results=workplace / "killed")
    assert {path.name for path in folder.iterdir()} == {"seed_3", elsewhere.name}


def test_weights_of_anomalibs_padim_are_described_by_their_folder(random_weights):
    from anomalib.models import Padim

    folder = random_weights / "resnet18.tv_in1k"
    weights = describe_weights(Padim(backbone=f"local-dir:{folder}", n_features=10))
    assert weights["name"] == "resnet18.tv_in1k"
    assert weights["source"] == "folder"
    assert len(weights["sha256"]) == 64
