"""Exported models: the same predictions, proven, and what happens to those that are not the same."""

import json
import math
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small import train_small
from soak import CARD, write_photo
from torchvision.transforms.v2 import Resize

from padim_bottle.commands.command_line import run_verb
from padim_bottle.data.images import read_image
from padim_bottle.errors import UserError
from padim_bottle.export.formats import PACKAGES, export
from padim_bottle.export.proof import SCORE_TOLERANCE, ProofPhotos, differences, prove, proven
from padim_bottle.predict.card import MODEL_FILES
from padim_bottle.predict.end_to_end import AntialiasedResize
from padim_bottle.predict.photo_resize import resize_photo
from padim_bottle.predict.predictor import ImagePrediction, Predictor, load_predictor

MISSING = {name: [package for package in packages if not find_spec(package)] for name, packages in PACKAGES.items()}
AVAILABLE = [name for name, missing in MISSING.items() if not missing]


def needs(name):
    return pytest.param(name, marks=pytest.mark.skipif(bool(MISSING[name]), reason=f"needs {', '.join(MISSING[name])}"))


ALL = [needs(name) for name in PACKAGES]


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_the_export_is_proven_on_the_runs_test_images(exports, run_folder):
    report = json.loads((exports / "report.json").read_text())
    assert report["passed"]
    assert report["photos"] == len(pd.read_csv(run_folder / "predictions.csv"))
    own = json.loads((run_folder / "metrics.json").read_text())
    for name in AVAILABLE:
        found = report["differences"][name]
        assert found["verdicts"] == 0
        assert found["normalised_score"] <= 1e-4
        assert found["p_value"] == 0
        for metric, value in report["metrics"][name].items():
            assert value == pytest.approx(own[metric], abs=1e-4), (name, metric)
    assert not [path for path in exports.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ALL)
def test_an_exported_model_takes_photos_of_any_number_and_size(exports, run_folder, name):
    predictor = load_predictor(exports / name, device="cpu", threads=1)
    reference = load_predictor(run_folder, device="cpu")
    assert predictor.name == name
    real = read_image(pd.read_csv(run_folder / "predictions.csv")["image_path"].iloc[-1])
    for photos in ([real], [photo(64, 64)], [photo(200, 150, seed) for seed in range(3)], [real, photo(41, 57), real]):
        for actual, expected in zip(predictor.predict(photos), reference.predict(photos), strict=True):
            assert actual.score == pytest.approx(expected.score, rel=1e-4)
            assert actual.normalised_score == pytest.approx(expected.normalised_score, abs=1e-5)
            assert actual.p_value == pytest.approx(expected.p_value)
            assert actual.anomalous == expected.anomalous
            np.testing.assert_allclose(actual.anomaly_map, expected.anomaly_map, atol=1e-4)
            assert (actual.mask != expected.mask).mean() < 1e-3
            assert bool(actual.regions) == bool(expected.regions) == expected.anomalous


@pytest.mark.skipif(bool(MISSING["onnx"]), reason="needs ONNX Runtime")
def test_the_card_tells_a_stranger_all_that_the_onnx_model_needs(exports, run_folder):
    import onnxruntime

    card = json.loads((exports / "onnx" / "model.json").read_text())
    table = pd.read_csv(run_folder / "predictions.csv")
    session = onnxruntime.InferenceSession(exports / "onnx" / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    assert names == list(card["outputs"])
    assert card["input"]["colour_order"] == "RGB"
    assert card["input"]["value_range"] == [0.0, 1.0]
    photos = np.stack([read_image(path) for path in table["image_path"]])
    pixels = (photos.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    outputs = dict(zip(names, session.run(None, {card["input"]["name"]: pixels}), strict=True))
    assert outputs["pred_label"][:, 0].tolist() == table["predicted_label"].tolist()
    assert outputs["anomaly_map"].shape == (len(table), 1, *card["input"]["model_size"])
    # As the card puts it in words.
    y = 2 * outputs["pred_score"][:, 0].astype(float) - 1
    scores = card["thresholds"]["image"] + card["thresholds"]["image_scale"] * y / (1 - abs(y))
    np.testing.assert_allclose(scores, table["score"], rtol=1e-4)
    calibration = np.array(card["calibration"]["scores"])
    p_values = [(1 + (calibration >= score).sum()) / (1 + len(calibration)) for score in scores]
    np.testing.assert_allclose(p_values, table["p_value"], rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_anomalibs_inferencer_reads_an_export(exports, run_folder, name, tmp_path, monkeypatch):
    inferencers = pytest.importorskip("anomalib.deploy")
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)  # for its cache
    folder = exports / name
    # The OpenVINO model says itself what is to be computed in single precision; ONNX has no words for it.
    settings = {"INFERENCE_PRECISION_HINT": "f32"} if name == "onnx" else None
    inferencer = inferencers.OpenVINOInferencer(folder / MODEL_FILES[name], config=settings)
    table = pd.read_csv(run_folder / "predictions.csv")
    predictions = [inferencer.predict(path) for path in table["image_path"]]
    assert [bool(p.pred_label) for p in predictions] == table["predicted_label"].tolist()
    ours = load_predictor(run_folder, device="cpu").predict([read_image(path) for path in table["image_path"]])
    for actual, expected in zip(predictions, ours, strict=True):
        assert actual.pred_score.item() == pytest.approx(expected.normalised_score, abs=1e-5)
        np.testing.assert_allclose(np.squeeze(actual.anomaly_map), expected.anomaly_map, atol=1e-4)
        assert (np.squeeze(actual.pred_mask) != (expected.anomaly_map >= 0.5)).mean() < 1e-3


@pytest.mark.parametrize("name", ALL)
def test_an_export_says_where_it_comes_from_is_small_and_holds_no_pickle_and_no_path(exports, run_folder, name):
    card = json.loads((exports / name / "model.json").read_text())
    metrics = json.loads((run_folder / "metrics.json").read_text())
    for key in ("data", "weights", "seed", "experiment", "calibration"):
        assert card[key] == metrics[key], key
    assert card["thresholds"]["image"] == metrics["thresholds"]["image"]
    assert card["metrics"]["image_AUROC"] == metrics["image_AUROC"]
    assert card["versions"]["training"] == metrics["versions"]
    files = {file.name: file.read_bytes() for file in (exports / name).iterdir()}
    assert set(files) == {"model.json", MODEL_FILES[name], *(["model.bin"] if name == "openvino" else [])}
    for file, content in files.items():
        assert str(Path(__file__).parents[2]).encode() not in content, file
    # The factors in single precision would take 400 kB more.
    assert sum(map(len, files.values())) < (run_folder / "model.ckpt").stat().st_size + 500_000


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("damage", ["byte", "truncated", "missing", "foreign card", "other version", "way out"])
def test_a_changed_export_is_refused(exports, tmp_path, name, damage):
    folder = tmp_path / "model"
    shutil.copytree(exports / name, folder)
    file, card = folder / MODEL_FILES[name], folder / "model.json"
    if damage == "byte":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "missing":
        file.unlink()
    elif damage == "foreign card":
        card.write_text('{"name": "something else"}')
    else:
        changes = {"card_version": 99} if damage == "other version" else {"files": {"../secret": "0", file.name: "0"}}
        card.write_text(json.dumps({**json.loads(card.read_text()), **changes}))
    words = {"byte": "refused", "truncated": "refused", "missing": "is missing"}.get(damage, "no model card")
    with pytest.raises(UserError, match=words) as error:
        load_predictor(folder)
    assert "\n" not in str(error.value)


def test_a_run_and_its_exports_cannot_be_confused(exports):
    with pytest.raises(UserError, match="several exported models"):
        load_predictor(exports)


@pytest.fixture
def made(exports, monkeypatch):
    """What an export would make is there already."""
    monkeypatch.setattr("padim_bottle.export.formats.export", lambda *_: {"onnx": exports / "onnx"})


@pytest.mark.skipif(bool(MISSING["onnx"]), reason="needs ONNX Runtime")
def test_an_export_that_judges_differently_fails_its_proof(run_folder, tmp_path, made, monkeypatch, capsys):
    """As one that anomalib's own exporter writes, which resizes without antialiasing: here the checkpoint does."""

    def resize(pixels, *size):
        return Resize(size, antialias=False)(torch.from_numpy(pixels).permute(2, 0, 1) / 255).numpy()

    monkeypatch.setattr("padim_bottle.predict.predictor.resize_photo", resize)
    assert run_verb("export", ["--model", str(run_folder), "--format", "onnx", "--output", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["passed"]
    assert report["differences"]["onnx"]["normalised_score"] > SCORE_TOLERANCE
    assert "NOT the same model: onnx" in capsys.readouterr().out


def test_one_verdict_or_a_thousandth_of_a_score_is_too_much():
    def prediction(normalised, anomalous=True):
        return ImagePrediction(1.0, normalised, 0.5, anomalous, np.zeros((2, 2), np.float32))

    same = [prediction(0.3), prediction(0.9)]
    assert proven(differences(same, same))
    assert proven(differences(same, [prediction(0.3), prediction(0.9009)]))
    assert not proven(differences(same, [prediction(0.3), prediction(0.8989)]))
    assert not proven(differences(same, [prediction(0.3, anomalous=False), prediction(0.9)]))
    # In any order, which Python's own maximum depends on.
    for other in ([prediction(math.nan), prediction(0.9)], [prediction(0.3), prediction(math.nan)]):
        assert not proven(differences(same, other))
    blind = replace(prediction(0.3), anomaly_map=np.full((2, 2), np.nan, np.float32))
    assert not proven(differences(same, [blind, prediction(0.9)]))
    other = ImagePrediction(1.5, 0.3, 0.25, True, np.array([[0, 0.5], [0, 0]], np.float32))
    assert differences(same, [other, same[1]]) == {
        "verdicts": 0, "normalised_score": 0.0, "score": 0.5, "p_value": 0.25, "anomaly_map": 0.5, "mask_pixels": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("steepness", "offset", "passed"),
    [(1, 0, True), (1, 3e-6, True), (1, 0.01, False), (1e4, 1e-6, True), (1e4, 1e-3, False)],
)
def test_a_copy_may_differ_as_far_as_the_checkpoint_does_by_rounding(tmp_path, monkeypatch, steepness, offset, passed):
    """Scores explode where a background never varies: of a synthetic run without test images, say."""

    def model(offset):
        def run(photos):
            scores = 0.5 + steepness * (photos[:, 0, 0, 0] - 128 / 255 + offset)[:, None]
            maps = np.zeros((len(photos), 1, 8, 8), np.float32)
            normalised = 0.5 + 0.5 * (scores - 1) / (1 + np.abs(scores - 1))
            return {"raw_score": scores, "pred_score": normalised, "anomaly_map": maps}

        return Predictor("stub", {**CARD, "thresholds": {**CARD["thresholds"], "image": 1.0}}, run)

    photos = [write_photo(tmp_path / f"{i}.png", 128) for i in range(5)]
    (tmp_path / "model.ckpt").touch()
    monkeypatch.setattr(
        "padim_bottle.export.proof.load_predictor", lambda path: model(offset if path == tmp_path else 0)
    )
    report = prove(tmp_path / "model.ckpt", {"onnx": tmp_path}, ProofPhotos(photos, None))
    assert report["passed"] == passed
    assert (report["tolerance"]["normalised_score"] > SCORE_TOLERANCE) == (steepness > 1)


@pytest.mark.skipif(bool(MISSING["onnx"]), reason="needs ONNX Runtime")
def test_any_folder_of_photos_can_be_the_proof(run_folder, tmp_path, bottles, made):
    arguments = ["--model", str(run_folder / "model.ckpt"), "--format", "onnx", "--output", str(tmp_path / "out")]
    assert run_verb("export", [*arguments, "--images", str(bottles / "bottle" / "test" / "good")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["photos"] == 4
    assert report["metrics"] == {}
    assert run_verb("export", [*arguments, "--images", str(tmp_path / "nowhere")]) == 2


@pytest.mark.skipif(bool(MISSING["onnx"]), reason="needs ONNX Runtime")
def test_an_export_that_fails_leaves_the_earlier_one(exports, run_folder, tmp_path, monkeypatch):
    def fail(_, folder):
        (folder / "half").touch()
        raise OSError("disk full")

    shutil.copytree(exports / "onnx", tmp_path / "onnx")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "onnx").iterdir()}
    monkeypatch.setattr("padim_bottle.export.formats.trace", fail)
    with pytest.raises(UserError, match="disk full"):
        export(run_folder / "model.ckpt", ["onnx"], tmp_path)
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "onnx").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING["onnx"]), reason="needs ONNX Runtime")
def test_a_model_without_calibration_has_no_p_value(tmp_path):
    run = train_small(tmp_path, report=False, calibration=False)
    export(run / "model.ckpt", ["onnx"], tmp_path)
    table = pd.read_csv(run / "predictions.csv")
    predictions = load_predictor(tmp_path / "onnx").predict([read_image(path) for path in table["image_path"]])
    assert predictions[0].p_value is None
    # anomalib's threshold is the score of one of the images, which rounding puts on either side.
    clear = (table["score"] - table["threshold"]).abs() > 1e-4 * table["threshold"]
    verdicts = np.array([p.anomalous for p in predictions])
    assert (verdicts[clear] == (table["score"] > table["threshold"])[clear]).all()
    # It clips normalised scores: beyond the ends the score is not known.
    inside = np.array([0 < p.normalised_score < 1 for p in predictions])
    assert inside.any()
    np.testing.assert_allclose(np.array([p.score for p in predictions])[inside], table["score"][inside], rtol=1e-4)
    with pytest.raises(UserError, match="without calibration"):
        load_predictor(run, alpha=0.1)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: "data: {class_path: os.system}",
        lambda config: "# started from Python",
        lambda config: config.replace("SyntheticBottles", "MVTecAD"),
    ],
)
def test_test_images_that_cannot_be_found_are_asked_for(run_folder, tmp_path, capsys, change):
    shutil.copy(run_folder / "model.ckpt", tmp_path)
    (tmp_path / "config.yaml").write_text(change((run_folder / "config.yaml").read_text()))
    assert run_verb("export", ["--model", str(tmp_path), "--format", "onnx"]) == 2
    message = capsys.readouterr().err
    assert "cannot be found" in message and "--images" in message


def test_packages_that_are_missing_are_named_before_anything_is_done(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("padim_bottle.export.formats.find_spec", lambda name: None if name == "onnxscript" else name)
    assert run_verb("export", ["--model", str(run_folder), "--output", str(tmp_path / "out")]) == 2
    assert "error: Export needs onnxscript: pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wrong_command_line_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_verb("export", ["--model", "x", "--format", "onnx", "caffe"])
    assert "invalid choice: 'caffe'" in capsys.readouterr().err
    assert run_verb("export", ["--model", str(tmp_path)]) == 2
    assert "no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("target", [(64, 64), (256, 96), (50, 47)])
@pytest.mark.parametrize("source", [(64, 64), (900, 900), (301, 1200), (20, 33), (3, 2)])
def test_resizing_is_torchvisions_in_the_model_and_of_a_photo(source, target):
    pixels = photo(*source)
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    expected = Resize(target, antialias=True)(image)
    torch.testing.assert_close(AntialiasedResize(target)(torch.stack([image, image]))[1], expected, rtol=0, atol=3e-6)
    np.testing.assert_allclose(resize_photo(pixels, *target), expected.numpy(), rtol=0, atol=3e-6)
