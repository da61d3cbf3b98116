"""The figures against independent, slow and literal readings of their definitions, at the edges above all."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, precision_recall_curve, roc_auc_score

from padim_bottle.evaluation.metrics import evaluate
from padim_bottle.evaluation.predictions import Predictions, Thresholds
from padim_bottle.model.network import PadimModel


@st.composite
def some_test_sets(draw):
    """One to seven images of up to 4 x 4 pixels, few distinct scores: ties, one class and one image are common."""
    types = draw(st.lists(st.sampled_from(["good", "crack", "stain"]), min_size=1, max_size=7))
    shape = (len(types), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    offset = draw(st.sampled_from([0, -3, 1e4]))
    maps = draw(arrays.arrays(np.float32, shape, elements=st.integers(0, levels - 1).map(np.float32))) + offset
    masks = draw(arrays.arrays(bool, shape))
    labels = np.array([kind != "good" for kind in types])
    masks[~labels] = False
    scores = maps.max(axis=(1, 2)).astype(np.float64)
    return Predictions([f"{i}.png" for i in range(len(types))], types, labels, scores, maps.astype(np.float32), masks)


def areas(labels, scores):
    """AUROC, AUPR and F1Max by scikit-learn, or None where there is one class only."""
    if labels.all() or not labels.any():
        return None, None, None
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return roc_auc_score(labels, scores), average_precision_score(labels, scores), f1.max()


def assert_equal(ours, theirs):
    if theirs is None:
        assert ours is None
    else:
        assert ours == pytest.approx(theirs, abs=1e-9)


@given(some_test_sets(), st.integers(0, 6), st.sampled_from([-1, 0, 1e-9, 1]))
@settings(max_examples=80, deadline=None)
def test_every_metric_of_every_test_set_equals_scikit_learns(predictions, which, beside):
    """Also one class, one image, all scores equal, and thresholds on, beside and outside of the scores."""
    threshold = float(predictions.scores[which % len(predictions.scores)]) + beside
    metrics = evaluate(predictions, Thresholds(threshold, threshold, "given"))
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    labels, called = predictions.labels, predictions.scores >= threshold
    for level, truth, scores in (
        ("image", labels, predictions.scores),
        ("pixel", predictions.masks.ravel(), predictions.anomaly_maps.ravel()),
    ):
        for name, theirs in zip(("AUROC", "AUPR", "F1Max"), areas(truth, scores), strict=True):
            assert_equal(metrics[f"{level}_{name}"], theirs)
        if (best := metrics["thresholds"][f"{level}_F1Max"]) is not None:
            assert_equal(metrics[f"{level}_F1Max"], f1_score(truth, scores >= best))
        f1 = f1_score(truth, scores.astype(np.float64) >= threshold, zero_division=0) if truth.any() else None
        assert_equal(metrics[f"{level}_F1Score"], f1)

    matrix = confusion_matrix(labels, called, labels=[False, True])
    ours = metrics["confusion_matrix"]
    assert [ours[key] for key in ("true_negative", "false_positive", "false_negative", "true_positive")] == (
        matrix.ravel().tolist()
    )
    assert_equal(metrics["image_recall"], called[labels].mean() if labels.any() else None)
    assert_equal(metrics["image_precision"], labels[called].mean() if called.any() else None)
    assert_equal(metrics["image_false_alarm_rate"], None if labels.all() else called[~labels].mean())

    types = np.array(predictions.defect_types)
    assert list(metrics["per_defect"]) == sorted(set(types) - {"good"})
    for defect, part in metrics["per_defect"].items():
        chosen = (types == defect) | (types == "good")
        masks, maps = predictions.masks[chosen], predictions.anomaly_maps[chosen]
        assert_equal(part["image_AUROC"], areas(labels[chosen], predictions.scores[chosen])[0])
        assert_equal(part["pixel_AUROC"], areas(masks.ravel(), maps.ravel())[0])
        assert_equal(part["recall"], called[types == defect].mean())


def trained(images, order, batch_size):
    """Train and calibrate the network on images (N, 3, H, W) in this order."""
    model = PadimModel("resnet18", ["layer1", "layer2"], False, 20, position_calibration=True)
    model.calibrating = True
    model.train()
    for batch in images[order].split(batch_size):
        model(batch)
    calibration = model.fit_and_calibrate(0.999)
    return model.eval(), calibration


def test_order_and_batch_size_of_the_training_images_do_not_matter():
    images = torch.randn(15, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    new = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model, calibration = trained(images, torch.arange(15), 15)
    expected = model(new)
    for seed, batch_size in ((1, 1), (2, 4)):
        order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
        other_model, other = trained(images, order, batch_size)
        result = other_model(new)
        for name in ("scores", "pixel_threshold", "pixel_median", "scored_mean", "scored_std"):
            torch.testing.assert_close(getattr(other, name), getattr(calibration, name), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result.anomaly_map, expected.anomaly_map, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result.pred_score, expected.pred_score, rtol=1e-4, atol=0)
