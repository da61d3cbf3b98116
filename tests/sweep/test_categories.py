"""All categories of MVTec AD in one sweep, as small synthetic ones in that layout."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from padim_bottle.commands.command_line import run_verb
from padim_bottle.data.layout import CATEGORIES
from padim_bottle.errors import UnavailableError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
MODELS = {"one_grid": {"n_features": 20}, "two_grids": {"grids": [["layer1"], ["layer2"]], "n_features": None}}


@pytest.fixture(scope="module")
def swept(bottles, tmp_path_factory):
    """Of the sweep's 15 categories two that are there and one that cannot be had."""
    folder = tmp_path_factory.mktemp("categories")
    for category in ("bottle", "toothbrush"):
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / category).symlink_to(bottles / "bottle")
    for name, options in MODELS.items():
        model = {"pre_trained": False, "image_size": [32, 32], "alpha": 0.2, **options}
        writer = {"experiment": name, "report": False, "images": False}
        config = {
            "model": {"class_path": "padim_bottle.Padim", "init_args": model},
            "data": {
                "class_path": "padim_bottle.MVTecAD",
                "init_args": {"root": str(folder / "data"), "verify": False, "num_workers": 0},
            },
            "trainer": {
                "accelerator": "cpu",
                "logger": False,
                "callbacks": [{"class_path": "padim_bottle.ResultsWriter", "init_args": writer}],
            },
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    settings = yaml.safe_load((ROOT / "configs" / "sweep_mvtec_ad.yaml").read_text())
    assert sorted(settings["overrides"]["data.init_args.category"]) == sorted(CATEGORIES)
    settings["overrides"]["data.init_args.category"] = ["bottle", "toothbrush", "zipper"]
    settings |= {
        "experiments": [str(folder / f"{name}.yaml") for name in MODELS],
        "seeds": "3",
        "results": str(folder / "results"),
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(settings))

    def unavailable(*_, **__):
        raise UnavailableError("zipper cannot be had: no network.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("padim_bottle.data.mvtec.download_category", unavailable)
        code = run_verb("sweep", ["--config", str(folder / "sweep.yaml")])
    return code, folder / "results"


def test_a_category_that_cannot_be_had_fails_alone(swept):
    code, results = swept
    assert code == 1
    failed = sorted(path.relative_to(results).as_posix() for path in results.glob("*/*.failed.json"))
    assert failed == [
        "one_grid,category=zipper/seed_3.failed.json",
        "two_grids,category=zipper/seed_3.failed.json",
    ]
    assert len(list(results.glob("*/seed_*/metrics.json"))) == 2 * 2


def test_there_is_a_row_a_category_and_their_mean(swept):
    results = swept[1]
    table = pd.read_csv(results / "categories.csv")
    runs = pd.read_csv(results / "summary.csv").query("row == 'run'")
    assert list(table["model"].value_counts()) == [3, 3]  # two categories and the mean
    for model, rows in table.groupby("model"):
        own = runs[runs["experiment"].str.startswith(f"{model},")]
        mean = rows[rows["category"] == "Mean"].iloc[0]
        assert mean["image_AUROC"] == pytest.approx(own.groupby("category")["image_AUROC"].mean().mean())
        assert mean["false_alarms"] == own["false_positive"].sum()
        assert mean["good_images"] == 4 * len(own)
        assert mean["alarm_low"] <= mean["alarm_rate"] <= mean["alarm_high"]
    text = (results / "summary.md").read_text()
    assert "**Mean**" in text
    assert "| toothbrush |" in text
    assert ".8910" not in text, "published means stand beside real data only"
