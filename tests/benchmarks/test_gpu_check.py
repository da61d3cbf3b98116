"""The GPU check on the CPU: one device stands for both, so that all but CUDA itself is run."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import gpu_check
import pandas as pd
import pytest
import torch
from gpu_check import TOLERANCE, compare

from padim_bottle.experiment.config import ExperimentConfig

ROOT = Path(__file__).parents[2]


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.command([]) == 2
    assert "error: No GPU to check" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_device_twice_agrees_to_the_last_digit(run_folder, tmp_path, monkeypatch, capsys):
    """Each time the finished run stands for a training, of which the arguments are checked."""

    def train(command, environment):
        words = dict(pairwise(command))
        place = Path(words["--results"])
        parsed = ExperimentConfig(Path(words["--config"]), command[command.index("--trainer.accelerator") :])
        assert environment["NVIDIA_TF32_OVERRIDE"] == "0" and place.parent == Path(words["--default_root_dir"]).parent
        asked.append((parsed.settings.trainer.accelerator, parsed.settings.model.init_args.n_features))
        shutil.copytree(run_folder, place / "an_experiment" / "seed_1")

    asked = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(gpu_check, "run_measured", train)
    arguments = ["--config", "configs/demo.yaml", "--accelerator", "cpu", "--output", str(tmp_path)]
    assert gpu_check.command([*arguments, "--model.init_args.n_features", "20"]) == 0
    assert asked == [("cpu", 20), ("cpu", 20)]
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert record["difference"]["agree"]
    assert set(record["difference"]["metrics"].values()) == {0.0}
    assert record["difference"]["scores"] == 0
    assert record["seconds"]["gpu"]["total"] > 0
    assert "They agree within 0.001" in capsys.readouterr().out


def run_of(scores, auroc=0.9, recall=1.0):
    metrics = {"image_AUROC": auroc, "seed": 1, "per_defect": {"hole": {"images": 2, "recall": recall}}}
    table = pd.DataFrame({"image_path": [f"{i}.png" for i in range(len(scores))], "score": scores})
    return metrics, table.assign(predicted_label=table["score"] >= 5)


def test_differences_are_the_largest_ones_and_relative_where_they_should_be():
    found = compare(*run_of([1.0, 4.99, 8.0], auroc=0.9, recall=1.0), *run_of([1.0, 5.01, 10.0], 0.9004, 0.5))
    assert found["metrics"] == {"image_AUROC": pytest.approx(0.0004), "hole: recall": 0.5}
    assert found["scores"] == pytest.approx(0.2)
    assert found["verdicts"] == 1
    assert not found["agree"]


@pytest.mark.parametrize(
    ("changed", "agree"),
    [
        ({}, True),
        ({"auroc": 0.9 + 0.9 * TOLERANCE}, True),
        ({"auroc": 0.9 + 1.1 * TOLERANCE}, False),
        ({"recall": 1 - 1.1 * TOLERANCE}, False),
        ({"recall": None}, False),
        ({"auroc": float("nan")}, False),
        ({"scores": [1.0, 10 * (1 + 1.1 * TOLERANCE)]}, False),
        ({"scores": [float("nan"), float("nan")]}, False),
        ({"scores": [1.0, 10.0, 2.0]}, False),
    ],
)
def test_what_is_within_the_tolerance_agrees(changed, agree):
    assert compare(*run_of(**{"scores": [1.0, 10.0]} | changed), *run_of([1.0, 10.0]))["agree"] is agree
