"""Judging in the app: as predict.py judges, at any false-alarm rate, without asking the network again."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from padim_bottle.app.judging import SHOWN_SIDE, Answer, Model, load_models
from padim_bottle.commands.command_line import run_verb
from padim_bottle.data.images import read_image
from padim_bottle.model.rule import Rule
from padim_bottle.predict.heatmaps import draw
from padim_bottle.predict.predictor import ImagePrediction

CALIBRATION = np.linspace(1, 2, 19)


def answer(score, calibration=CALIBRATION):
    rule = Rule(1.9, None, calibration)
    blank = np.zeros((4, 4), dtype=np.float32)
    prediction = ImagePrediction(score, score, rule.p_value(score), rule.anomalous(score), blank)
    return Answer("a model", rule, prediction, np.zeros((4, 4, 3), dtype=np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [None, 0.1, 0.3])
def test_a_verdict_is_that_of_predict(alpha, run_folder, capsys):
    paths = pd.read_csv(run_folder / "predictions.csv")["image_path"]
    chosen = [] if alpha is None else ["--alpha", str(alpha)]
    run_verb("predict", ["--model", str(run_folder), "--device", "cpu", "--json", *chosen, *paths])
    rows = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert len({row["verdict"] for row in rows}) == 2
    (model,) = load_models([run_folder])
    for path, row in zip(paths, rows, strict=True):
        answer = model.judge(read_image(path))
        verdict = answer.at(alpha or model.alpha)
        assert verdict.anomalous == (row["verdict"] == "anomalous")
        assert verdict.threshold == row["threshold"]
        assert answer.prediction.score == pytest.approx(row["score"], rel=1e-5)
        assert answer.prediction.p_value == row["p_value"]
        assert verdict.note is None


@pytest.mark.slow
def test_models_are_named_by_their_runs_and_never_by_their_whole_paths(run_folder, tmp_path):
    moved = tmp_path / "somewhere" / "else"
    moved.mkdir(parents=True)
    shutil.copy(run_folder / "model.ckpt", moved)
    metrics = json.loads((run_folder / "metrics.json").read_text())
    names = [model.name for model in load_models([run_folder, moved, moved / "model.ckpt"])]
    assert names == [f"{metrics['experiment']}, seed {metrics['seed']}", "somewhere/else", "else/model.ckpt"]


def test_the_heatmap_is_predicts_on_a_photo_no_larger_than_is_shown():
    prediction = answer(1.5).prediction
    card = {"calibration": None, "input": {"model_size": []}}
    predictor = SimpleNamespace(predict=lambda photos: [prediction], rule=answer(1.5).rule, card=card)
    photo = np.random.default_rng(0).integers(0, 256, (40, 2 * SHOWN_SIDE, 3), dtype=np.uint8)
    verdict = answer(1.5).at(0.3)
    large, small = (Model("a", predictor).judge(p).heatmap(verdict) for p in (photo, photo[:, :100]))
    assert large.shape == (20, SHOWN_SIDE, 3)
    assert np.array_equal(small, draw(photo[:, :100], prediction)[0])


@pytest.mark.parametrize("score", [0.5, 1.5, 1.96, 2.5])
def test_another_rate_is_judged_by_the_models_rule(score):
    for alpha in (0.05, 0.1, 0.3, 0.5):
        rule = Rule(1.9, None, CALIBRATION).at(alpha)
        verdict = answer(score).at(alpha)
        assert (verdict.anomalous, verdict.threshold) == (rule.anomalous(score), rule.threshold)
        assert verdict.anomalous == (answer(score).prediction.p_value <= alpha + 1e-9)


def test_a_rate_that_is_too_small_has_no_verdict_but_a_sentence():
    verdict = answer(9.0).at(0.04)
    assert verdict.anomalous is None and verdict.threshold is None
    assert verdict.note.startswith("alpha = 0.04 is less than 1 / (N + 1) = 0.05, the smallest p-value")


def test_a_model_without_calibration_keeps_its_verdict_and_says_so():
    for alpha in (0.001, 0.05, 0.4, None):
        verdict = answer(1.95, calibration=None).at(alpha)
        assert verdict.anomalous is True and verdict.threshold == 1.9
        assert verdict.note.startswith("This model was trained without calibration")
    assert answer(1.9, calibration=None).at(0.05).anomalous is False
    assert answer(1.95, calibration=None).p_value() is None


def test_a_p_value_says_what_it_counts():
    assert answer(9.0).p_value().startswith("0.05: 0 of 19 good photos score as high")
    assert answer(1.0).p_value().startswith("1: 19 of 19 good photos")
