"""All categories of MVTec AD in one sweep: two models' runs of two categories, and one that cannot be had."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from recorded_runs import write_run
from small import small_config, write_config

from padim_bottle.commands.command_line import run_verb
from padim_bottle.compare.outputs import write_comparison
from padim_bottle.data.layout import CATEGORIES
from padim_bottle.errors import UnavailableError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_category_that_cannot_be_had_fails_alone(bottles, tmp_path, monkeypatch):
    settings = yaml.safe_load((ROOT / "configs" / "sweep_mvtec_ad.yaml").read_text())
    assert sorted(settings["overrides"]["data.init_args.category"]) == sorted(CATEGORIES)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toothbrush").symlink_to(bottles / "bottle")
    config = small_config(report=False)
    data = {"root": str(tmp_path / "data"), "verify": False, "num_workers": 0}
    config["data"] = {"class_path": "padim_bottle.MVTecAD", "init_args": data}
    config["trainer"]["callbacks"][0]["init_args"]["experiment"] = "one"
    settings["overrides"]["data.init_args.category"] = ["toothbrush", "zipper"]
    settings |= {
        "experiments": [str(write_config(tmp_path / "one.yaml", config))],
        "seeds": "3",
        "results": str(tmp_path / "results"),
    }

    def unavailable(*_, **__):
        raise UnavailableError("zipper cannot be had: no network.")

    monkeypatch.setattr("padim_bottle.data.mvtec.download_category", unavailable)
    assert run_verb("sweep", ["--config", str(write_config(tmp_path / "sweep.yaml", settings))]) == 1
    found = sorted(path.relative_to(tmp_path / "results").as_posix() for path in tmp_path.glob("results/*/seed_*"))
    assert found == ["one,category=toothbrush/seed_3", "one,category=zipper/seed_3.failed.json"]


def test_there_is_a_row_a_category_and_their_mean(tmp_path):
    folders = []
    for number, name in enumerate(f"{model},category={of}" for model in ("one", "two") for of in ("bottle", "zipper")):
        for seed in range(2 - number // 2):  # two seeds of the one, one of the other
            run = write_run(tmp_path / name / f"seed_{seed}", seed=10 * number + seed, experiment=name, pictures=False)
            metrics = json.loads((run / "metrics.json").read_text())
            metrics["data"]["category"], metrics["seed"] = name.split("=")[1], seed
            (run / "metrics.json").write_text(json.dumps(metrics))
        folders.append(tmp_path / name)
    text = write_comparison(folders).read_text()
    table = pd.read_csv(tmp_path / "categories.csv")
    runs = pd.read_csv(tmp_path / "summary.csv").query("row == 'run'")
    assert list(table["model"].value_counts()) == [3, 3]  # two categories and the mean
    for model, rows in table.groupby("model"):
        own = runs[runs["experiment"].str.startswith(f"{model},")]
        mean = rows[rows["category"] == "Mean"].iloc[0]
        assert mean["image_AUROC"] == pytest.approx(own.groupby("category")["image_AUROC"].mean().mean())
        assert mean["false_alarms"] == own["false_positive"].sum()
        assert mean["good_images"] == 8 * len(own)
        assert mean["alarm_low"] <= mean["alarm_rate"] <= mean["alarm_high"]
    assert "**Mean**" in text
    assert "| zipper |" in text
    assert ".8910" not in text, "published means stand beside real data only"
