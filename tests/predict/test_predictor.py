"""Loading models: what is read, what is refused, and that every format is the same model."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import anomalib.models
import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import InferenceBatch

from padim_bottle import Padim
from padim_bottle.errors import UserError
from padim_bottle.model.calibration import Calibration
from padim_bottle.predict.checkpoint import load_padim
from padim_bottle.predict.predictor import load_predictor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def photos_of(run: Path) -> list[np.ndarray]:
    from padim_bottle.data.images import read_image

    return [read_image(path) for path in pd.read_csv(run / "predictions.csv")["image_path"]]


def test_a_prediction_is_the_runs_own(run_folder):
    table = pd.read_csv(run_folder / "predictions.csv")
    predictions = load_predictor(run_folder, device="cpu").predict(photos_of(run_folder))
    np.testing.assert_allclose([p.score for p in predictions], table["score"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose([p.p_value for p in predictions], table["p_value"])
    assert [p.anomalous for p in predictions] == table["predicted_label"].tolist()
    assert 0 < sum(p.anomalous for p in predictions) < len(predictions)
    np.testing.assert_allclose([p.mask.mean() for p in predictions], table["predicted_area"], atol=1e-3)
    # The threshold lies at 0.5 of the normalised scores, which keep the order.
    assert [p.normalised_score >= 0.5 for p in predictions] == table["predicted_label"].tolist()
    assert np.array_equal(np.argsort([p.normalised_score for p in predictions]), np.argsort(table["score"]))


def test_photos_of_several_sizes_go_together(run_folder):
    photos = photos_of(run_folder)[:5]
    mixed = [photos[0], photos[1][:70, :80].copy(), photos[2], photos[3][:70, :80].copy(), photos[4][:, :80].copy()]
    predictor = load_predictor(run_folder, device="cpu")
    together = predictor.predict(mixed)
    alone = [predictor.predict([photo])[0] for photo in mixed]
    np.testing.assert_allclose([p.score for p in together], [p.score for p in alone], rtol=1e-5)
    assert predictor.predict([]) == []


def test_a_model_loads_by_any_of_its_names(run_folder, tmp_path):
    photo = photos_of(run_folder)[:1]
    expected = load_predictor(run_folder).predict(photo)[0].score
    shutil.copy(run_folder / "model.ckpt", tmp_path / "renamed.ckpt")
    assert load_predictor(tmp_path / "renamed.ckpt").predict(photo)[0].score == expected
    with pytest.raises(UserError, match=r"neither model\.ckpt nor"):
        load_predictor(tmp_path)
    with pytest.raises(UserError, match=r"There is no model .*nowhere"):
        load_predictor(tmp_path / "nowhere")


def test_a_checkpoint_of_anomalibs_padim_predicts(bottles, tmp_path):
    from anomalib.engine import Engine

    from padim_bottle import MVTecAD

    theirs = anomalib.models.Padim(
        backbone="resnet18", pre_trained=False, n_features=20, evaluator=False, visualizer=False,
        pre_processor=anomalib.models.Padim.configure_pre_processor((64, 64)),
    )  # fmt: skip
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, logger=False)
    engine.train(model=theirs, datamodule=MVTecAD(root=bottles, num_workers=0, verify=False))
    predictor = load_predictor(Path(engine.best_model_path), device="cpu")
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    prediction = predictor.predict([photo])[0]
    with torch.no_grad():
        # At the network's own size there is nothing to resize, so anomalib's way is the same.
        expected = theirs.eval().cpu()(torch.from_numpy(photo).permute(2, 0, 1)[None] / 255)
    assert prediction.normalised_score == pytest.approx(expected.pred_score.item(), abs=1e-4)
    np.testing.assert_allclose(prediction.anomaly_map, expected.anomaly_map[0, 0], atol=1e-4)
    assert prediction.p_value is None
    # The card tells its sizes, and no argument that it does not have.
    told = predictor.card["model"]
    assert told["image_size"] == [64, 64] and told["n_features"] == 20
    assert not {"calibration", "alpha", "grids", "position_calibration"} & told.keys()


def test_no_weights_and_no_network_are_needed(run_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("PADIM_WEIGHTS_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    checkpoint = torch.load(run_folder / "model.ckpt", weights_only=True)
    checkpoint["hyper_parameters"] |= {"pre_trained": True, "backbone": "local-dir:/not/here/resnet18.tv_in1k"}
    torch.save(checkpoint, tmp_path / "model.ckpt")
    assert load_padim(tmp_path / "model.ckpt").model.backbone == "resnet18.tv_in1k"


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def damaged(kind: str, source: Path, folder: Path) -> Path:
    """A file that is no model of ours, or no longer."""
    path, payload = folder / "model.ckpt", Payload(folder / "marker")
    content, checkpoint = bytearray(source.read_bytes()), torch.load(source, weights_only=True)
    state, settings = checkpoint["state_dict"], checkpoint["hyper_parameters"]
    if kind == "missing tensor":
        del state["model.scored_mean"], state["post_processor.image_scale"]
    elif kind == "wrong shape":
        state["model.gaussian.mean"] = torch.zeros(3, 3)
    elif kind == "other class":
        checkpoint["hyper_parameters"] = {"_class_path": "os.system", "_instantiator": "os.system"}
    elif kind == "other size":
        other = Padim(pre_trained=False, image_size=(128, 128), n_features=30).pre_processor
        checkpoint["anomalib_pre_processor_config"] = other.checkpoint_config()
    elif kind == "impossible settings":
        settings["layers"] = [{}]
    elif kind == "one byte of a tensor":
        with zipfile.ZipFile(source) as archive:
            largest = max(archive.infolist(), key=lambda info: info.file_size)
        content[largest.header_offset + largest.file_size // 2] ^= 0xFF
    objects = {
        "payload in a checkpoint": {**checkpoint, "callbacks": payload},
        "other network": {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        "other lightning model": {"state_dict": {"fc.weight": torch.zeros(2)}, "hyper_parameters": {"lr": 0.1}},
        "tensor": torch.zeros(3),
    }
    bytes_of = {
        "pickle": pickle.dumps(payload),
        "truncated": content[: len(content) // 2],
        "one byte of a tensor": content,
        "text": b"not a model\n",
        "empty": b"",
    }
    if kind in bytes_of:
        path.write_bytes(bytes_of[kind])
    else:
        torch.save(objects.get(kind, checkpoint), path)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pickle", "truncated, damaged or no checkpoint"),
        ("payload in a checkpoint", "more than tensors and plain data"),
        ("truncated", "truncated, damaged or no checkpoint"),
        ("one byte of a tensor", "truncated, damaged or no checkpoint"),
        ("text", "truncated, damaged or no checkpoint"),
        ("empty", "truncated, damaged or no checkpoint"),
        ("other network", "is no checkpoint of PaDiM"),
        ("tensor", "is no checkpoint of PaDiM"),
        ("other lightning model", "its Gaussians are missing"),
        ("missing tensor", "does not fit together"),
        ("wrong shape", "does not fit together"),
        ("other class", "does not fit together .*n_features is 100, its Gaussians have 30 features"),
        ("other size", "does not fit together .*image_size is .128, 128., its maps have .64, 64. pixels"),
        ("impossible settings", "Cannot load the model"),
    ],
)
def test_what_is_no_model_is_refused_in_one_sentence(run_folder, tmp_path, kind, words):
    path = damaged(kind, run_folder / "model.ckpt", tmp_path)
    with pytest.raises(UserError, match=words) as error:
        load_predictor(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert "TRUST_REMOTE_CODE" not in str(error.value)
    assert not (tmp_path / "marker").exists()


def test_another_false_alarm_rate_is_what_training_with_it_gives(run_folder):
    padim, trained = load_padim(run_folder / "model.ckpt"), load_predictor(run_folder, device="cpu").rule
    post_processor, scores = padim.post_processor, padim.post_processor.calibration_scores
    raw = torch.linspace(0.5, 3, 50)[:, None] * scores.median()
    own = post_processor.alpha
    for alpha, confidence in ((0.1, None), (0.3, None), (0.5, None), (0.3, 0.8), (0.5, 0.95), (None, 0.9)):
        post_processor.alpha, post_processor.confidence = alpha or own, confidence
        post_processor.calibrate(
            Calibration(
                scores=scores,
                image_scores=scores,
                pixel_threshold=torch.tensor(1.0),
                pixel_median=torch.tensor(0.5),
                pixel_level=torch.tensor(0.9),
                map_means=torch.ones(12),
                scored_mean=torch.ones(64, 64),
                scored_std=torch.ones(64, 64),
            )
        )
        expected = post_processor(InferenceBatch(pred_score=raw, anomaly_map=raw[..., None, None]))
        rule = load_predictor(run_folder, device="cpu", alpha=alpha, confidence=confidence).rule
        assert [rule.anomalous(s) for s in raw.flatten().tolist()] == expected.pred_label.flatten().tolist()
        normalised = [rule.normalised(s) for s in raw.flatten().tolist()]
        np.testing.assert_allclose(normalised, expected.pred_score.flatten(), atol=1e-6)
        if confidence is None:
            assert [rule.p_value(s) <= alpha for s in raw.flatten().tolist()] == expected.pred_label.flatten().tolist()
        else:
            assert rule.threshold > trained.at(alpha or own).threshold
        np.testing.assert_allclose([rule.score(n) for n in normalised], raw.flatten(), rtol=1e-5)


def test_the_card_tells_the_arguments_of_the_training(run_folder, tmp_path):
    checkpoint = torch.load(run_folder / "model.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["pre_trained"] = True
    torch.save(checkpoint, tmp_path / "model.ckpt")
    card = load_predictor(tmp_path / "model.ckpt", device="cpu").card
    expected = json.loads((run_folder / "metrics.json").read_text())["model"]
    assert json.loads(json.dumps(card["model"])) == {**expected, "pre_trained": True}


def test_a_false_alarm_rate_that_no_p_value_reaches_is_refused(run_folder):
    with pytest.raises(UserError, match=r"1 / \(N \+ 1\) = 0.077"):
        load_predictor(run_folder, alpha=0.05)
    with pytest.raises(UserError, match="at least 14 calibration scores, and this model has 12"):
        load_predictor(run_folder, confidence=0.95)


def test_metrics_that_are_no_json_object_are_passed_over(run_folder, tmp_path):
    shutil.copy(run_folder / "model.ckpt", tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps([1]))
    assert load_predictor(tmp_path).card["metrics"] == {}
