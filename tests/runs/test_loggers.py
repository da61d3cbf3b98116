"""Lightning's loggers, by YAML alone: what arrives there is what the run's own files say."""

import csv
import json
from importlib import import_module
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from small import QUIET

from padim_bottle.experiment.config import ExperimentConfig
from padim_bottle.experiment.train import build, train
from padim_bottle.runs.loggers import log_results

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LOGGERS = ROOT / "configs" / "loggers"
METRICS = {"image_AUROC": 0.75, "thresholds": {"image": 3.5, "source": "a test", "pixel": None},
           "per_defect": {"hole": {"images": 2, "recall": 0.5}}, "synthetic": True}  # fmt: skip
NUMBERS = {"image_AUROC": 0.75, "thresholds/image": 3.5, "per_defect/hole/images": 2.0, "per_defect/hole/recall": 0.5}


@pytest.fixture
def arguments(bottles, random_weights, tmp_path, monkeypatch):
    """Those of a tiny experiment, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVTEC_AD_ROOT", str(bottles))
    small = ["--model.pre_trained", "false", "--model.image_size", "[64, 64]", "--model.n_features", "20"]
    return [*QUIET, *small, "--data.verify", "false", "--trainer.logger"]


def run_with(logger, arguments):
    """Train with a logger; return the run's folder and its metrics."""
    folder = train(ROOT / "configs" / "padim_resnet18.yaml", [*arguments, logger], seed=3).results_writer.folder
    return folder, json.loads((folder / "metrics.json").read_text())


@pytest.fixture
def finished(tmp_path):
    """A finished run's folder with a figure."""
    folder = tmp_path / "run"
    for name in ("figures", "images/hole"):
        (folder / name).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "figures" / "roc.png")
    Image.fromarray(pixels).save(folder / "images" / "hole" / "000.png")
    (folder / "figures" / "roc.svg").write_text("<svg/>")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "model.ckpt").write_bytes(b"large")
    return folder, pixels


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def test_csv_and_tensorboard_have_the_metrics_and_the_configuration(arguments):
    both = [yaml.safe_load((LOGGERS / f"{name}.yaml").read_text()) for name in ("csv", "tensorboard")]
    folder, metrics = run_with(json.dumps(both), arguments)
    with Path("results/logs/csv/version_0/metrics.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    seen = events("results/logs/tensorboard/version_0")
    scalars = {name: [event.value for event in seen.Scalars(name)] for name in seen.Tags()["scalars"]}
    for name in ("image_AUROC", "pixel_AUPRO", "image_F1Score"):
        assert float(row[name]) == metrics[name]
        assert scalars[name] == [pytest.approx(metrics[name])]
    assert float(row["thresholds/image"]) == metrics["thresholds"]["image"]
    assert float(row["per_defect/contamination/recall"]) == metrics["per_defect"]["contamination"]["recall"]
    assert float(row["seconds/train"]) > 0
    hparams = yaml.safe_load(Path("results/logs/csv/version_0/hparams.yaml").read_text())
    assert hparams["model"]["init_args"]["n_features"] == 20
    assert hparams["trainer"]["logger"][0]["class_path"].endswith("CSVLogger")
    assert "hp_metric" not in scalars
    figures = {f"figures/{path.stem}" for path in (folder / "figures").glob("*.png")}
    assert set(seen.Tags()["images"]) == figures
    assert len(figures) >= 5
    (text,) = seen.Tensors("config/text_summary")
    assert (folder / "config.yaml").read_text() in text.tensor_proto.string_val[0].decode()


def test_figures_arrive_in_tensorboard_pixel_by_pixel(finished, tmp_path):
    folder, pixels = finished
    log_results([TensorBoardLogger(tmp_path, "tb")], METRICS, "model: {seed: 1}\n", folder)
    seen = events(tmp_path / "tb" / "version_0")
    assert set(NUMBERS) <= set(seen.Tags()["scalars"])
    assert seen.Tags()["images"] == ["figures/roc"]
    (image,) = seen.Images("figures/roc")
    np.testing.assert_array_equal(np.array(Image.open(BytesIO(image.encoded_image_string))), pixels)


def test_figures_arrive_beside_the_csv(finished, tmp_path):
    folder, _ = finished
    loggers = [CSVLogger(tmp_path, "one"), CSVLogger(tmp_path, "two")]
    log_results(loggers, METRICS, "model: {seed: 1}\n", folder)
    for name in ("one", "two"):
        (row,) = csv.DictReader((tmp_path / name / "version_0" / "metrics.csv").open())
        assert {key: float(value) for key, value in row.items() if key != "step"} == NUMBERS
        copied = tmp_path / name / "version_0" / "figures" / "roc.png"
        assert copied.read_bytes() == (folder / "figures" / "roc.png").read_bytes()


def test_mlflow_has_the_metrics_and_every_file_but_the_checkpoint(arguments):
    mlflow = pytest.importorskip("mlflow", reason="needs MLflow, an extra: pip install mlflow")
    folder, metrics = run_with(str(LOGGERS / "mlflow.yaml"), arguments)
    client = mlflow.MlflowClient("sqlite:///results/logs/mlflow/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("padim_bottle").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["pixel_AUPRO"] == pytest.approx(metrics["pixel_AUPRO"])
    assert run.data.params["model/init_args/n_features"] == "20"
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert artifacts == {path.name for path in folder.iterdir()} - {"model.ckpt"}
    assert {"config.yaml", "images", "metrics.json", "predictions.csv"} <= artifacts


@pytest.mark.parametrize("config", sorted(LOGGERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_documented_logger_is_what_its_command_names(config, arguments):
    text = config.read_text()
    assert f"--trainer.logger configs/loggers/{config.name}" in text
    logger = yaml.safe_load(text)
    module, _, name = logger["class_path"].rpartition(".")
    named = getattr(import_module(module), name)
    assert issubclass(named, Logger)
    assert "results/logs" in str(logger["init_args"])
    if config.stem != "mlflow":  # an extra
        built = build(ExperimentConfig(ROOT / "configs" / "padim_resnet18.yaml", [*arguments, str(config)]))
        read = built.settings.trainer.logger
        assert read.class_path == logger["class_path"]
        assert {**read.init_args.as_dict(), **logger["init_args"]} == read.init_args.as_dict()
