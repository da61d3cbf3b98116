"""Other models of anomalib's in our YAML: they find our weights, and their results are written like ours."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from small import QUIET

from padim_bottle.commands.command_line import run_verb
from padim_bottle.experiment.config import ExperimentConfig
from padim_bottle.experiment.train import build, train
from padim_bottle.runs.record import run_seed

PEERS = Path(__file__).parents[2] / "configs" / "peers"
MODELS = {"Dfm": {"backbone": "resnet18.tv_in1k", "layer": "layer3"}}


@pytest.fixture
def write(bottles, random_weights, tmp_path, monkeypatch):
    """Write the YAML of one of anomalib's models on the small bottles, with random weights in our folder."""
    monkeypatch.chdir(tmp_path)

    def write_config(name, **more):
        config = {
            "model": {"class_path": f"anomalib.models.{name}", "init_args": MODELS.get(name, {})},
            "data": {
                "class_path": "padim_bottle.MVTecAD",
                "init_args": {"root": str(bottles), "verify": False, "num_workers": 0},
            },
            "trainer": {
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
                "callbacks": [{"class_path": "padim_bottle.ResultsWriter", "init_args": {"experiment": name}}],
            },
            "default_root_dir": "results/lightning",
            **more,
        }
        Path("mine.yaml").write_text(yaml.safe_dump(config))
        return Path("mine.yaml")

    return write_config


@pytest.mark.slow
def test_a_model_is_changed_by_editing_the_yaml(bottles, random_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ["--data.root", str(bottles), "--data.verify", "false"]
    cli = train(PEERS / "dfm_resnet18.yaml", [*QUIET, *data], seed=1)
    folder = Path("results", "dfm_resnet18", "seed_1")
    metrics, table = json.loads((folder / "metrics.json").read_text()), pd.read_csv(folder / "predictions.csv")
    assert metrics["model"]["class"] == "anomalib.models.Dfm"
    assert metrics["weights"]["name"] == "resnet18.tv_in1k"
    assert metrics["weights"]["source"] == "folder"
    assert len(metrics["weights"]["sha256"]) == 64
    # Raw scores, as the model gives them, and the threshold of anomalib's post-processor.
    batch = next(iter(cli.datamodule.test_dataloader()))
    with torch.inference_mode():
        raw = cli.model.model.eval()(cli.model.pre_processor(batch.image)).pred_score.flatten()
    expected = dict(zip(batch.image_path, raw.tolist(), strict=True))
    scores = dict(zip(table.image_path, table.score, strict=True))
    np.testing.assert_allclose([scores[path] for path in expected], list(expected.values()), rtol=1e-4)
    assert metrics["thresholds"]["image"] == pytest.approx(cli.model.post_processor.image_threshold.item())
    assert metrics["thresholds"]["source"] == "anomalib: maximises F1 on the test labels"
    assert metrics["image_AUROC"] == pytest.approx(roc_auc_score(table.label, table.score))
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("name", ["Patchcore", "ReverseDistillation", "Stfpm", "Padim"])
def test_the_weights_are_those_of_our_folder(write, random_weights, name):
    """ReverseDistillation chooses its decoder by the backbone's name, so that has to stay what it is."""
    (random_weights / "resnet18.tv_in1k").rename(random_weights / "resnet18.a1_in1k")  # timm's default tag
    path = write(name)
    config = yaml.safe_load(path.read_text())
    config["model"]["init_args"] = {"backbone": "resnet18", "layers": ["layer1", "layer2", "layer3"]}
    path.write_text(yaml.safe_dump(config))
    cli = build(ExperimentConfig(path).choose(1))
    ours = load_file(random_weights / "resnet18.a1_in1k" / "model.safetensors")["layer1.0.conv1.weight"]
    found = [value for key, value in cli.model.state_dict().items() if key.endswith("layer1.0.conv1.weight")]
    assert any(torch.equal(value, ours) for value in found)
    assert cli.model.weights.source == "folder"


def test_weights_that_are_nowhere_are_one_line(write, monkeypatch, tmp_path, error_line):
    path = write("Dfm")
    shutil.rmtree(tmp_path / "weights")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert run_verb("train", ["--config", str(path)]) == 2
    assert "No weights for resnet18.tv_in1k" in error_line()


@pytest.mark.parametrize("value", [False, True])
def test_an_unseeded_run_is_known_as_one(write, monkeypatch, value):
    monkeypatch.setenv("PL_GLOBAL_SEED", "42")
    torch.manual_seed(42)  # as an earlier, seeded run in this process leaves it
    assert run_seed(build(ExperimentConfig(write("Dfm", seed_everything=value))).model) is None
