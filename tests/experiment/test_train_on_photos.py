"""A folder of photos of good parts is enough: scripts/train.py --photos, and what people get wrong there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from small import small_config, write_config

from padim_bottle.commands.command_line import run_verb
from padim_bottle.errors import UserError
from padim_bottle.runs.run import Run, read_csv

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory, run_folder):
    """The bottles of the small experiment: 'my parts', 12 good ones, and beside it a test folder and its masks."""
    folder = tmp_path_factory.mktemp("photos")
    (bottle,) = run_folder.parents[2].glob("data/*/bottle")
    shutil.copytree(bottle / "train" / "good", folder / "my parts (1)")
    shutil.copytree(bottle / "test", folder / "test")
    shutil.copytree(bottle / "ground_truth", folder / "ground_truth")
    write_config(folder / "small.yaml", small_config(report=False))
    return folder / "my parts (1)"


def train(photos, results, *arguments, folder=None, report="false"):
    config = photos.parent / "small.yaml"
    folder = photos if folder is None else folder
    words = ["--config", config, "--photos", folder, "--results", results, "--trainer.callbacks.report", report]
    return run_verb("train", [*map(str, words), "--data.num_workers", "0", *arguments])


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """The run of a folder of photos, without a test."""
    results = tmp_path_factory.mktemp("results")
    assert train(photos, results, report="true") == 0
    return results / "my parts _1_" / "seed_42"


def read(run):
    return json.loads((run / "metrics.json").read_text())


def test_a_folder_of_photos_gives_a_whole_result(run, photos):
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "figures", "images", "metrics.json", "model.ckpt", "predictions.csv", "report.html",
        "training_photos.csv",
    }  # fmt: skip
    metrics = read(run)
    assert metrics["data"]["name"] == "photos"
    assert metrics["data"]["category"] == photos.name
    assert (metrics["data"]["train_images"], metrics["data"]["test_images"]) == (12, 0)
    assert metrics["image_AUROC"] is metrics["image_F1Score"] is metrics["pixel_AUROC"] is None
    assert len(metrics["calibration"]["scores"]) == 12
    assert metrics["thresholds"]["image"] is not None
    assert list(pd.read_csv(run / "predictions.csv").columns)[:4] == ["image_path", "defect_type", "label", "score"]


def test_training_photos_are_listed_the_oddest_first(run, photos):
    table = pd.read_csv(run / "training_photos.csv")
    assert list(table.columns) == ["image_path", "part", "score", "p_value"]
    assert {Path(path).name for path in table.image_path} == {path.name for path in photos.iterdir()}
    assert list(table.score) == sorted(read(run)["calibration"]["scores"], reverse=True)
    # Each photo's rank among all of them, its own counted.
    np.testing.assert_allclose(table.p_value, [(table.score >= score).mean() for score in table.score], atol=1e-6)
    assert len(list((run / "images" / "train").iterdir())) == 12


def test_accepted_parts_are_trained_on_with_the_good_ones_and_a_defect_among_them_is_the_oddest(photos, tmp_path):
    halves = [tmp_path / "good", tmp_path / "accepted"]
    for index, path in enumerate(sorted(photos.iterdir())):
        target = halves[index % 2] / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    shutil.copy(photos.parent / "test" / "broken_large" / "001.png", tmp_path / "accepted" / "defect.png")
    config = ["--config", photos.parent / "small.yaml", "--results", tmp_path / "results", "--data.num_workers", "0"]
    assert run_verb("train", [*map(str, [*config, "--photos", *halves])]) == 0
    table = pd.read_csv(tmp_path / "results" / "good" / "seed_42" / "training_photos.csv")
    paths = [Path(path).relative_to(tmp_path).as_posix() for path in table.image_path]
    assert set(paths) == {path.relative_to(tmp_path).as_posix() for half in halves for path in half.iterdir()}
    assert paths[0] == "accepted/defect.png"


def test_a_retraining_says_what_changed_and_lets_no_known_defect_pass(photos, run, tmp_path, capsys):
    tested = photos.parent / "test"
    for name, chosen in (("good", photos.iterdir()), ("accepted", tested.glob("good/*")), ("defects", [])):
        (tmp_path / name).mkdir()
        for path in sorted(chosen):
            shutil.copy(path, tmp_path / name)
    defects = tmp_path / "defects"
    shutil.copy(tested / "broken_large" / "000.png", defects)
    usual = ["--config", photos.parent / "small.yaml", "--results", tmp_path / "results", "--keep-rejecting", defects]
    usual += ["--data.num_workers", "0"]

    def retrain(*folders, more=()):
        return run_verb("train", [*map(str, [*usual, *more, "--photos", tmp_path / "good", *folders])])

    def training(folder):
        return read_csv(folder / "training_photos.csv").set_index("image_path")["score"]

    place, accepted = tmp_path / "results" / "good" / "seed_42", tmp_path / "accepted"
    assert retrain() == 0
    first, scores = Run.read(place), training(place)
    assert first.changes is None and first.predictions["defect_type"].tolist() == ["known_defect"]
    assert retrain(accepted, more=["--trainer.callbacks.report", "true"]) == 0
    second = Run.read(place)
    told = second.changes
    assert told["image_threshold"] == [first.threshold, second.threshold]
    assert told["training_images"] == [12, 16] and told["photos"] == 13
    both = pd.concat([scores >= first.threshold, training(place) >= second.threshold], axis=1, join="inner")
    assert {photo["image_path"] for photo in told["verdicts"]} == set(both[both.iloc[:, 0] != both.iloc[:, 1]].index)
    said = " ".join(capsys.readouterr().out.split())
    assert f"threshold {first.threshold:.3f} -> {second.threshold:.3f}, 12 -> 16 training photos" in said
    assert "What changed" in (place / "report.html").read_text()

    # A part that looks good to the model is no defect that it would reject.
    passing = Path(training(place).index[-1])
    Image.open(passing).save(defects / "passing.bmp")
    # Compared with another run than the one in its place.
    assert retrain(accepted, more=["--previous", run]) == 1
    refused, sentence = place.with_name("seed_42.refused"), capsys.readouterr().err
    assert "1 of 2 known defects would pass: " in sentence and "passing.bmp" in sentence
    assert Run.read(place).metrics == second.metrics and (refused / "model.ckpt").is_file()
    assert (refused / "refused.txt").read_text() in sentence
    assert Run.read(refused).predictions["predicted_label"].tolist() == [False, True]
    assert Run.read(refused).changes["training_images"] == [12, 16]

    (defects / "passing.bmp").unlink()
    shutil.copy(passing, defects / "copy.png")
    for more, words in (
        ([], f"Known defects are among the good parts: {defects / 'copy.png'}"),
        (["--keep-rejecting", tmp_path / "nowhere"], "There are no photos in"),
        (["--previous", tmp_path, "--keep-rejecting", accepted], "no finished run"),
    ):
        assert retrain(more=more) == 2
        assert words in capsys.readouterr().err


def test_with_a_test_folder_it_is_what_mvtec_ads_layout_gives(photos, run_folder, tmp_path, run):
    assert train(photos, tmp_path, "--test", str(photos.parent / "test"), "--experiment", "tested") == 0
    metrics, expected = read(tmp_path / "tested" / "seed_42"), read(run_folder)
    names = [name for name in expected if name.startswith(("image_", "pixel_"))]
    assert {name: metrics[name] for name in names} == {name: expected[name] for name in names}
    assert metrics["confusion_matrix"] == expected["confusion_matrix"]
    assert metrics["calibration"]["scores"] == pytest.approx(read(run)["calibration"]["scores"], rel=1e-5)
    assert metrics["data"]["left_out"] == []


def test_photos_of_one_part_are_left_out_together(photos, tmp_path):
    folder = tmp_path / "parts"
    for path in photos.iterdir():
        for view in range(2):
            target = folder / path.stem / f"view{view}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(Image.open(path)) // (view + 1)).save(target)
    assert train(photos, tmp_path / "a", "--group", "parent-folder", folder=folder) == 0
    run = tmp_path / "a" / "parts" / "seed_42"
    table = pd.read_csv(run / "training_photos.csv")
    assert len(table) == 24
    assert {Path(part).name for part in table.part} == {path.stem for path in photos.iterdir()}
    assert len(list((run / "images" / "train").iterdir())) == 15


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--test", "PHOTOS"], "for training and for the test"),
        (["--group", r"\.(png)$"], "12 training images show 1"),
        (["--region", "WIDE"], "of the same aspect"),
        (["--config", "PATCHCORE"], "no threshold without them"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_left_behind(photos, tmp_path, error_line, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    patchcore = yaml.safe_load((photos.parent / "small.yaml").read_text())
    patchcore["model"] = {
        "class_path": "anomalib.models.Patchcore",
        "init_args": {"backbone": "resnet18", "pre_trained": False, "evaluator": False, "visualizer": False},
    }
    (photos.parent / "patchcore.yaml").write_text(yaml.safe_dump(patchcore))
    Image.new("L", (80, 60), 255).save(photos.parent / "wide.png")
    replaced = {"WIDE": str(photos.parent / "wide.png")}
    replaced |= {"PHOTOS": str(photos), "PATCHCORE": str(photos.parent / "patchcore.yaml")}
    assert train(photos, "results", *(replaced.get(argument, argument) for argument in arguments)) == 2
    line = error_line()
    assert words in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "config"), [([], "padim_resnet18"), (["--photos", "parts"], "padim_resnet18_grids")]
)
def test_photos_are_trained_on_with_the_config_that_finds_more_with_few(tmp_path, monkeypatch, arguments, config):
    chosen = []

    def stop(path, *_):
        chosen.append(path)
        raise UserError("far enough")

    monkeypatch.setattr("padim_bottle.experiment.train.train", stop)
    monkeypatch.chdir(tmp_path)
    assert run_verb("train", arguments) == 2
    assert [path.name for path in chosen] == [f"{config}.yaml"]


def test_test_and_group_belong_to_photos(capsys):
    assert run_verb("train", ["--test", "somewhere"]) == 2
    assert "belong to --photos" in capsys.readouterr().err
