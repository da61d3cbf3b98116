"""The tune command on a few small synthetic bottles, whose test photos nobody can read."""

import itertools
import json
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from small import ROOT, small_config, write_config

from padim_bottle.commands.command_line import run_verb
from padim_bottle.data.defects import add_anomaly
from padim_bottle.data.images import read_image
from padim_bottle.data.synthetic import write_bottles
from padim_bottle.experiment.config import ExperimentConfig
from padim_bottle.experiment.train import train
from padim_bottle.experiment.variants import spell_argument
from padim_bottle.model.extractor import FrozenBackbone
from padim_bottle.tune.measure import make_splits, training_paths
from padim_bottle.tune.settings import METRICS, TuneSettings, read_grid, read_settings

PHOTOS = 24
SETTINGS = {"splits": 2, "seeds": [3, 4], "anomalies": {"size": [0.2, 0.4], "scratch_width": [0.03, 0.05]}}
GRID = [
    "model.init_args.grids=[null, [[layer1], [layer1, layer2]]]",
    "model.init_args.layers=[[layer1, layer2], [layer2]]",
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a config, settings, and bottles whose test photos and masks are no pictures."""
    folder = tmp_path_factory.mktemp("tuning")
    bottle = write_bottles(folder / "data", size=96, train_good=PHOTOS, test_good=2, test_per_defect=1)
    for path in [*bottle.glob("test/*/*"), *bottle.glob("ground_truth/*/*")]:
        path.unlink()
        path.mkdir()  # cannot be opened, whoever tries
    config = small_config(n_features=None)
    data = {"root": str(folder / "data"), "verify": False}
    config["data"] = {"class_path": "padim_bottle.MVTecAD", "init_args": data}
    write_config(folder / "small.yaml", config)
    (folder / "tune.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


def tune(workplace, *arguments, grid=GRID):
    words = ["--config", workplace / "small.yaml", "--settings", workplace / "tune.yaml"]
    words += ["--results", workplace / "results", *(word for values in grid for word in ("--grid", values))]
    return run_verb("tune", [*map(str, words), *arguments])


def watched(patch):
    """Return a list which gets the number of images and the type of the features of each of the backbone's passes."""
    forward, seen = FrozenBackbone.forward, []

    def watch(self, inputs):
        features = forward(self, inputs)
        (dtype,) = {feature.dtype for feature in features.values()}
        seen.append((len(inputs), dtype))
        return features

    patch.setattr(FrozenBackbone, "forward", watch)
    return seen


@pytest.fixture(scope="module")
def tuned(workplace):
    """The folder of a tuning, and the backbone's features of its photos."""
    with pytest.MonkeyPatch.context() as patch:
        seen = watched(patch)
        assert tune(workplace) == 0
    return workplace / "results" / "small,grids,layers", seen


def test_every_setting_is_fitted_on_every_split_in_one_pass(tuned):
    folder, seen = tuned
    fits = pd.read_csv(folder / "scores.csv")
    # Two grids keep all channels: no seed, one fit a split. PaDiM's own: two seeds.
    assert fits.groupby("setting").size().to_dict() == {
        "grids null, layers [layer1, layer2]": 4,
        "grids null, layers [layer2]": 4,
        "grids [[layer1], [layer1, layer2]], layers [layer1, layer2]": 2,
        "grids [[layer1], [layer1, layer2]], layers [layer2]": 2,
    }
    random = fits["setting"].str.startswith("grids null")
    assert set(fits.loc[random, "seed"]) == {3, 4}
    assert fits.loc[~random, "seed"].isna().all()
    assert fits[["image_AUROC", "pixel_AUROC", "pixel_AUPRO"]].notna().all(axis=None)
    assert sum(count for count, _ in seen) == 2 * PHOTOS
    assert {dtype for _, dtype in seen} == {torch.float32}


def test_a_fit_is_what_training_on_the_same_photos_gives(workplace, tuned, tmp_path):
    """The held-out photos, damaged, are written as a test set of their own, and the experiment runs as users run it."""
    settings = read_settings(workplace / "tune.yaml")
    paths = training_paths(ExperimentConfig(workplace / "small.yaml"))
    split = make_splits(paths, [None], settings)[1]
    bottle = tmp_path / "data" / "bottle"
    for number in split.fitted:
        target = bottle / "train" / "good" / paths[number].name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths[number], target)
    for index in split.shown:
        number = index % PHOTOS
        kind = settings.anomalies.kinds[number % 5] if index >= PHOTOS else "good"
        picture = read_image(paths[number])
        if kind != "good":
            picture, mask = add_anomaly(picture, kind, settings.anomalies, int(number))
            target = bottle / "ground_truth" / kind / f"{paths[number].stem}_mask.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(target)
        target = bottle / "test" / kind / f"{paths[number].stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target)
    arguments = ["--data.init_args.root", str(tmp_path / "data"), "--model.init_args.layers", "[layer2]"]
    train(workplace / "small.yaml", arguments, seed=4, results=tmp_path / "results")
    (found,) = tmp_path.glob("results/*/seed_4/metrics.json")
    metrics = json.loads(found.read_text())

    fits = pd.read_csv(tuned[0] / "scores.csv")
    (row,) = fits[
        (fits["setting"] == "grids null, layers [layer2]") & (fits["split"] == 1) & (fits["seed"] == 4)
    ].to_dict("records")
    for name in ("image_AUROC", "pixel_AUROC", "pixel_AUPRO"):
        assert row[name] == pytest.approx(metrics[name], abs=1e-6)


def test_the_best_setting_is_a_config_to_use(tuned):
    folder, _ = tuned
    record = json.loads((folder / "tuning.json").read_text())
    fits = pd.read_csv(folder / "scores.csv")
    names = [name for name in METRICS if fits[name].notna().all()]
    best = fits.groupby("setting")[names].mean().mean(axis=1).idxmax()
    assert record["best"] == best == record["settings"][0]["setting"]
    model = ExperimentConfig(folder / "best.yaml").settings.model.init_args
    assert best == f"grids {json.dumps(model.grids)}, layers {json.dumps(model.layers)}".replace('"', "")
    assert model.alpha == 0.2  # what was not tuned is as it was
    assert ExperimentConfig(folder / "best.yaml").writer_settings.experiment == "demo_synthetic_random_weights_tuned"
    assert (folder / "anomalies.png").stat().st_size > 1000
    summary = (folder / "summary.md").read_text()
    assert best in summary
    assert "No test photo was opened" in summary


def test_a_plain_folder_of_photos_is_tuned_on_as_any_other_data(workplace, tuned, capsys):
    photos, folder = workplace / "plain photos", workplace / "results" / "plain"
    shutil.copytree(workplace / "data" / "bottle" / "train" / "good", photos)
    grid = ["model.init_args.grids=[[[layer1], [layer1, layer2]]]"]
    assert tune(workplace, "--photos", str(photos), "--name", "plain", grid=grid) == 0
    fits = pd.read_csv(folder / "scores.csv")
    same = pd.read_csv(tuned[0] / "scores.csv")
    same = same[same["setting"].str.endswith("layers [layer1, layer2]") & same["setting"].str.startswith("grids [[")]
    np.testing.assert_allclose(fits[list(METRICS)], same[list(METRICS)], atol=1e-9)
    best = ExperimentConfig(folder / "best.yaml")
    assert best.settings.data.class_path == "padim_bottle.Photos"
    assert Path(best.settings.data.init_args.folder) == photos
    recorded = json.loads((folder / "tuning.json").read_text())["command"]
    assert recorded in (folder / "summary.md").read_text()
    assert ("--photos", str(photos)) in itertools.pairwise(shlex.split(recorded))
    # The recorded command finds the same.
    assert run_verb("tune", shlex.split(recorded)[2:]) == 0
    pd.testing.assert_frame_equal(
        pd.read_csv(folder / "scores.csv").drop(columns="seconds"), fits.drop(columns="seconds")
    )
    recorded = json.loads((tuned[0] / "tuning.json").read_text())["command"]
    assert read_grid([word for word in shlex.split(recorded) if word.startswith("model.")]) == read_grid(GRID)
    assert tune(workplace, "--name", tuned[0].name, grid=GRID[:1]) == 2
    assert "holds the results of another tuning" in capsys.readouterr().err


def test_a_group_without_photos_is_refused(workplace, capsys):
    assert tune(workplace, "--group", "parent-folder", grid=GRID[:1]) == 2
    assert "--group belongs to --photos" in capsys.readouterr().err


@pytest.mark.parametrize("groups", [[r"(\d+)_"], [None, r"(\d+)_"]])
def test_photos_that_any_setting_takes_for_one_part_stay_together(groups):
    paths = [Path(f"{part}_{photo}.png") for part in range(12) for photo in "ab"]
    for split in make_splits(paths, groups, TuneSettings(splits=4)):
        shown = split.shown % 24
        assert {*split.fitted} | {*shown} == {*range(24)}
        assert not {*(split.fitted // 2)} & {*(shown // 2)}
        assert len(shown) == 8
        assert (split.shown >= 24).sum() == 4


def test_the_yaml_in_configs_says_the_defaults():
    settings, defaults = read_settings(ROOT / "configs" / "tune.yaml"), TuneSettings()
    assert settings.held_out == pytest.approx(defaults.held_out, abs=1e-3)
    settings.held_out = defaults.held_out
    assert settings == defaults


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (["model.init_args.support"], ["give a list of values", "model.init_args.support=[0, 0.5, 1]"]),
        (["model.init_args.support=1"], ["give a list of values"]),
        (["model.init_args.support=[1"], ["--grid", "expected"]),
        (["data.init_args.category=[cable]"], ["only the model's arguments"]),
        (["model.init_args.seed=[1, 2]"], ["seeds stand in the YAML"]),
        (["model.init_args.suport=[1]"], ["suport"]),
        (["model.init_args.layers=[[layer1, layer2], [layer9]]"], ["no layer9"]),
        (["model.init_args.support=[1]", "model.init_args.support=[2]"], ["given twice"]),
    ],
)
def test_a_mistake_in_the_grid_is_refused_in_one_line(workplace, grid, words, error_line):
    assert tune(workplace, "--name", "mistake", grid=grid) == 2
    line = error_line()
    assert all(word in line for word in words), line
    assert not (workplace / "results" / "mistake").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split": 3}, ["split"]),
        ({"splits": 1}, ["splits: 1 is less than 2"]),
        ({"held_out": 0.99}, ["too few"]),
        ({"choose_by": ["AUPRO"]}, ["choose_by", "pixel_AUPRO"]),
        ({"anomalies": {"kinds": ["rust"]}}, ["kinds", "scratch"]),
        ({"anomalies": {"size": [0.3, 0.1]}}, ["anomalies.size", "smaller one first"]),
    ],
)
def test_a_mistake_in_the_yaml_is_refused_in_one_line(workplace, settings, words, error_line, tmp_path):
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump(settings))
    assert tune(workplace, "--settings", str(tmp_path / "tune.yaml"), "--name", "mistake") == 2
    line = error_line()
    assert all(word in line for word in words), line


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "dtypes"), [("bf16-mixed", {torch.bfloat16}), ("bf16-true", set())])
def test_the_backbone_computes_in_the_trainers_precision(workplace, precision, dtypes, monkeypatch, capsys):
    config = yaml.safe_load((workplace / "small.yaml").read_text())
    config["trainer"]["precision"] = precision
    seen = watched(monkeypatch)
    words = ["--config", write_config(workplace / "precise.yaml", config), "--settings", workplace / "tune.yaml"]
    words += ["--results", workplace / "results", "--name", precision]
    assert run_verb("tune", list(map(str, words))) == (0 if dtypes else 2)
    assert {dtype for _, dtype in seen} == dtypes
    if not dtypes:
        assert "trainer.precision: bf16-true" in capsys.readouterr().err


def test_only_our_model_can_be_tuned(capsys):
    assert run_verb("tune", ["--config", str(ROOT / "configs" / "padim_resnet18_anomalib.yaml")]) == 2
    assert "padim_bottle.Padim can" in capsys.readouterr().err


@pytest.mark.parametrize("record", sorted(ROOT.glob("results/reference/tuning/*/tuning.json")))
def test_a_committed_record_can_be_made_again(record):
    command = json.loads(record.read_text())["command"]
    inputs = json.loads(record.read_text())["inputs"]
    words = dict(itertools.pairwise(shlex.split(command)))
    settings = asdict(read_settings(ROOT / words["--settings"]))
    assert inputs["settings"] == {name: settings[name] for name in inputs["settings"]}
    grid = read_grid([value for name, value in itertools.pairwise(shlex.split(command)) if name == "--grid"])
    assert inputs["grid"] == {key: spell_argument(values) for key, values in grid.items()}
    assert (ROOT / words["--config"]).is_file()
    assert command in (record.parent / "summary.md").read_text()
