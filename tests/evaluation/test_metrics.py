"""Metrics of a whole test set: against anomalib's own, at the boundary, and where they are undefined."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from padim_bottle.errors import UserError
from padim_bottle.evaluation.metrics import evaluate
from padim_bottle.evaluation.predictions import Predictions, Thresholds, predictions_table

NONE = Thresholds(None, None, "none")
SIZE = 24


def make_predictions(seed=0, good=6, defective=9, levels=None):
    """Two defect types, some of their pixels hard to see; `levels` rounds the maps so that scores tie."""
    rng = np.random.default_rng(seed)
    types = ["good"] * good + [("crack", "stain")[i % 2] for i in range(defective)]
    masks = np.zeros((len(types), SIZE, SIZE), dtype=bool)
    for mask, kind in zip(masks, types, strict=True):
        if kind != "good":
            for row, column in rng.integers(0, SIZE - 6, (2, 2)):
                mask[row : row + rng.integers(1, 7), column : column + rng.integers(1, 7)] = True
    maps = 20 + 4 * rng.standard_normal(masks.shape) + 5 * masks
    if levels:
        maps = np.round(maps / maps.max() * levels)
    maps = maps.astype(np.float32)
    return Predictions(
        image_paths=[f"test/{kind}/{i:03d}.png" for i, kind in enumerate(types)],
        defect_types=types,
        labels=np.array(types) != "good",
        scores=maps.max(axis=(1, 2)),
        anomaly_maps=maps,
        masks=masks,
    )


def select(predictions, chosen):
    """Keep the chosen images, in the chosen order."""
    return Predictions(
        image_paths=[predictions.image_paths[i] for i in chosen],
        defect_types=[predictions.defect_types[i] for i in chosen],
        labels=predictions.labels[chosen],
        scores=predictions.scores[chosen],
        anomaly_maps=predictions.anomaly_maps[chosen],
        masks=predictions.masks[chosen],
    )


def image_predictions(types, scores):
    return Predictions(
        [f"{i}.png" for i in range(len(types))],
        list(types),
        np.array([kind != "good" for kind in types], dtype=bool),
        np.array(scores, dtype=np.float64),
    )


@pytest.fixture(scope="module")
def anomalib_metrics():
    """Compute anomalib's metrics on min-max scaled scores, for its AUROC and AUPR distort raw ones."""
    import torch
    from anomalib.data import ImageBatch
    from anomalib.metrics import AUPR, AUPRO, AUROC, F1Max, F1Score
    from anomalib.post_processing import PostProcessor

    def scale(values):
        return torch.from_numpy((values - values.min()) / (values.max() - values.min()))

    def compute(predictions):
        def batch(scores, maps):
            return ImageBatch(
                image=torch.zeros(len(scores), 3, SIZE, SIZE),
                pred_score=scores,
                anomaly_map=maps,
                gt_label=torch.from_numpy(predictions.labels),
                gt_mask=torch.from_numpy(predictions.masks),
            )

        scaled = batch(scale(predictions.scores), scale(predictions.anomaly_maps))
        scaled.gt_mask = scaled.gt_mask.int()
        values = {}
        for level, fields, metrics in (
            ("image", ["pred_score", "gt_label"], (AUROC, AUPR, F1Max)),
            ("pixel", ["anomaly_map", "gt_mask"], (AUROC, AUPR, F1Max, AUPRO)),
        ):
            for metric in metrics:
                instance = metric(fields=fields)
                instance.update(scaled)
                values[f"{level}_{metric.__name__}"] = float(instance.compute())

        # the stock post-processor as a run uses it by default, its threshold fitted on the test set
        raw = batch(torch.from_numpy(predictions.scores), torch.from_numpy(predictions.anomaly_maps))
        processor = PostProcessor()
        processor.on_validation_batch_end(None, None, raw)
        processor.on_validation_epoch_end(None, None)
        values["thresholds"] = (float(processor.image_threshold), float(processor.pixel_threshold))
        processor.post_process_batch(raw)
        f1 = F1Score(fields=["pred_label", "gt_label"])
        f1.update(raw)
        values["image_F1Score_anomalib"] = float(f1.compute())
        return values

    return compute


@pytest.mark.parametrize("levels", [None, 30])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_anomalib(anomalib_metrics, seed, levels):
    predictions = make_predictions(seed, good=12, defective=20, levels=levels)
    ours, theirs = evaluate(predictions, NONE), anomalib_metrics(predictions)
    image_threshold, pixel_threshold = theirs.pop("thresholds")
    # anomalib computes in float32
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs, abs=2e-6)
    assert ours["thresholds"]["image_F1Max"] == image_threshold
    assert ours["thresholds"]["pixel_F1Max"] == pixel_threshold


def test_aupimo_is_near_anomalibs():
    """Of 100,000 good pixels, whose rates meet both bounds exactly; anomalib counts at thresholds a step apart."""
    import torch
    from anomalib.metrics.pimo.pimo import _AUPIMO

    rng = np.random.default_rng(0)
    types = np.array(["good"] * 10 + ["crack"] * 4 + ["stain"] * 3)
    masks = np.zeros((len(types), 100, 100), dtype=bool)
    masks[10:, 30:50, 40:60] = True
    maps = rng.standard_normal(masks.shape).astype(np.float32) + masks * np.linspace(0, 8, len(types))[:, None, None]
    masks[-1] = False  # a defective image without a marked pixel does not count
    predictions = Predictions(
        image_paths=[f"{i}.png" for i in range(len(types))],
        defect_types=types.tolist(),
        labels=types != "good",
        scores=maps.max(axis=(1, 2)),
        anomaly_maps=maps.astype(np.float32),
        masks=masks,
    )
    theirs = _AUPIMO(num_thresholds=20_000, return_average=False)
    theirs.update(torch.from_numpy(predictions.anomaly_maps)[:-1], torch.from_numpy(masks).int()[:-1])
    areas = theirs.compute()[1].aupimos.numpy()

    metrics = evaluate(predictions, NONE)
    close = partial(pytest.approx, abs=0.002)
    assert metrics["pixel_AUPIMO"] == close(areas[10:].mean())
    assert metrics["pixel_AUPIMO_median"] == close(np.median(areas[10:]))
    assert metrics["per_defect"]["crack"]["pixel_AUPIMO"] == close(areas[10:14].mean())
    assert metrics["per_defect"]["stain"]["pixel_AUPIMO"] == close(areas[14:16].mean())

    few = select(predictions, range(1, len(types)))  # nine good images have fewer than 100,000 pixels
    metrics = evaluate(few, NONE)
    assert (metrics["pixel_AUPIMO"], metrics["per_defect"]["crack"]["pixel_AUPIMO"]) == (None, None)
    assert metrics["pixel_AUPRO"] is not None


def test_a_score_equal_to_the_threshold_is_defective():
    predictions = image_predictions(["good", "hole", "hole"], [1.0, 2.0, 3.0])
    metrics = evaluate(predictions, Thresholds(np.float32(2.0), None, "given"))
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert metrics["image_F1Score"] == metrics["image_F1Max"] == 1.0
    assert metrics["per_defect"]["hole"]["recall"] == 1.0
    assert metrics["thresholds"]["image_F1Max"] == 2.0
    # anomalib's 'score > threshold' misses the image its threshold was read from
    assert metrics["image_F1Score_anomalib"] == pytest.approx(2 / 3)
    assert evaluate(image_predictions(["good", "hole"], [1, 1]), NONE)["image_F1Score_anomalib"] == 0
    # Of the thresholds that reach the largest F1, 2 and 5, the lowest.
    tied = evaluate(image_predictions(["hole", "good", "good", "hole"], [5, 4, 3, 2]), NONE)
    assert (tied["image_F1Max"], tied["thresholds"]["image_F1Max"]) == (pytest.approx(2 / 3), 2)
    table = predictions_table(predictions, Thresholds(2.0, None, "given"))
    assert table.predicted_label.tolist() == [False, True, True]


@pytest.mark.parametrize(("offset", "expected"), [(-1e-12, 1.0), (0.0, 1.0), (1e-12, 0.0)])
def test_the_boundary_is_exact_although_maps_are_float32(offset, expected):
    """A float64 threshold a hair above a float32 score must not be rounded onto it."""
    value = np.float32(0.1)
    maps, masks = np.full((1, 2, 2), value, dtype=np.float32), np.ones((1, 2, 2), dtype=bool)
    predictions = Predictions(["a.png"], ["hole"], np.array([True]), np.array([value]), maps, masks)
    threshold = float(value) + offset
    metrics = evaluate(predictions, Thresholds(threshold, threshold, "given"))
    assert (metrics["image_recall"], metrics["pixel_F1Score"]) == (expected, expected)


@given(st.permutations(range(15)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_images_does_not_matter(order):
    predictions = make_predictions(4, levels=12)
    thresholds = Thresholds(11.0, 8.0, "given")
    before, after = evaluate(predictions, thresholds), evaluate(select(predictions, list(order)), thresholds)
    assert json.loads(json.dumps(after), parse_float=lambda x: round(float(x), 12)) == json.loads(
        json.dumps(before), parse_float=lambda x: round(float(x), 12)
    )


def test_image_metrics_need_no_maps():
    predictions = make_predictions(6)
    full = evaluate(predictions, NONE)
    for missing in ({"masks": None}, {"anomaly_maps": None}, {"masks": None, "anomaly_maps": None}):
        metrics = evaluate(replace(predictions, **missing), Thresholds(None, 20.0, "given"))
        assert all(metrics[key] is None for key in metrics if key.startswith("pixel_"))
        assert metrics["image_AUROC"] == full["image_AUROC"] == roc_auc_score(predictions.labels, predictions.scores)
        assert metrics["per_defect"]["crack"]["pixel_AUPRO"] is None
        assert metrics["per_defect"]["crack"]["image_AUROC"] == full["per_defect"]["crack"]["image_AUROC"]


def test_defective_images_with_empty_masks_count_as_normal_pixels():
    predictions = make_predictions(7)
    emptied = replace(predictions, masks=np.zeros_like(predictions.masks))
    metrics = evaluate(emptied, Thresholds(None, 20.0, "given"))
    assert all(metrics[key] is None for key in metrics if key.startswith("pixel_"))
    assert metrics["image_AUROC"] is not None

    cracks_only = predictions.masks.copy()
    cracks_only[np.array(predictions.defect_types) == "stain"] = False
    partly = evaluate(replace(predictions, masks=cracks_only), NONE)
    assert partly["per_defect"]["stain"]["pixel_AUROC"] is None
    expected = roc_auc_score(cracks_only.ravel(), predictions.anomaly_maps.ravel())
    assert partly["pixel_AUROC"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused_by_name(bad):
    predictions = make_predictions(9)
    scores = predictions.scores.copy()
    scores[[3, 8]] = bad
    with pytest.raises(UserError, match=r"test/good/003\.png \(and 1 more\)"):
        replace(predictions, scores=scores)
    maps = predictions.anomaly_maps.copy()
    maps[7, 2, 5] = bad
    with pytest.raises(UserError, match=r"007\.png: its anomaly map"):
        replace(predictions, anomaly_maps=maps)


def test_contradictory_ground_truth_is_refused_by_name():
    predictions = make_predictions(9)
    labels, masks = predictions.labels.copy(), predictions.masks.copy()
    labels[2], masks[4, 0, 0] = True, True
    with pytest.raises(UserError, match=r"002\.png: its label and its defect type"):
        replace(predictions, labels=labels)
    with pytest.raises(UserError, match=r"004\.png: it is labelled good but its mask"):
        replace(predictions, masks=masks)


def test_misshapen_arrays_are_refused():
    predictions = make_predictions(9)
    for name, value in (
        ("scores", predictions.scores[:, None]),
        ("defect_types", predictions.defect_types[1:]),
        ("anomaly_maps", predictions.anomaly_maps[:, None]),
        ("masks", predictions.masks[:, 1:]),
        ("masks", predictions.masks.astype(np.uint8)),
    ):
        with pytest.raises(ValueError, match=name):
            replace(predictions, **{name: value})
    with pytest.raises(ValueError, match="pixel threshold"):
        Thresholds(1.0, float("nan"), "given")


def test_table_has_a_row_an_image_in_order():
    predictions = make_predictions(10)
    p_values = np.linspace(1, 0.01, 15)
    table = predictions_table(predictions, Thresholds(33.0, 25.0, "given"), p_values)
    assert list(table.columns) == [
        "image_path", "defect_type", "label", "score", "p_value", "predicted_label", "threshold", "map_max",
        "predicted_area",
    ]  # fmt: skip
    assert table.image_path.tolist() == predictions.image_paths
    assert table.label.tolist() == predictions.labels.tolist()
    assert table.p_value.tolist() == p_values.tolist()
    assert table.predicted_label.tolist() == (predictions.scores >= 33.0).tolist()
    assert 0 < table.predicted_label.sum() < 15
    assert table.threshold.tolist() == [33.0] * 15
    np.testing.assert_array_equal(table.map_max, predictions.scores)
    # None of what passes.
    area = (predictions.anomaly_maps >= 25.0).mean(axis=(1, 2)) * table.predicted_label
    np.testing.assert_allclose(table.predicted_area, area)


def test_table_without_thresholds_or_maps():
    table = predictions_table(image_predictions(["good", "hole"], [1, 2]), NONE)
    assert list(table.columns) == ["image_path", "defect_type", "label", "score", "predicted_label", "threshold"]
    assert table.predicted_label.isna().all()
    assert table.threshold.isna().all()


def test_aupimo_looks_at_good_images_only():
    """Noise finds nothing. With a constant added to the maps of defective images AUPIMO is 1, AUPRO and AP are not."""
    rng = np.random.default_rng(0)
    masks = np.zeros((40, 128, 128), dtype=bool)
    masks[20:, 40:60, 40:60] = True
    noise, labels = rng.random(masks.shape, dtype=np.float32), masks.any(axis=(1, 2))
    types = ["hole" if label else "good" for label in labels]
    found = []
    for constant in (0, 10):
        maps = noise + constant * labels[:, None, None].astype(np.float32)
        predictions = Predictions(list(map(str, range(40))), types, labels, maps.max(axis=(1, 2)), maps, masks)
        found.append(evaluate(predictions, Thresholds(None, None, "none")))
    assert [metrics["pixel_AUPIMO"] for metrics in found] == pytest.approx([0, 1], abs=1e-3)
    assert found[1]["pixel_AUPRO"] < 0.5
    assert found[1]["pixel_AUPR"] < 0.1
