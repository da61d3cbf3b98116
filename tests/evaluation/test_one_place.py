"""A metric is named once, and curves are traced once."""

import json

import numpy as np
import pandas as pd
import pytest
from recorded_runs import write_run

from padim_bottle.compare.outputs import write_comparison
from padim_bottle.evaluation import predictions as module
from padim_bottle.evaluation.metrics import METRICS, Metric, evaluate
from padim_bottle.evaluation.predictions import Predictions, Thresholds
from padim_bottle.runs.figure_data import save_data


def balanced_accuracy(evidence):
    counts = evidence.image_counts
    if counts is None or not counts["true_positive"] + counts["false_negative"]:
        return None
    found = counts["true_positive"] / (counts["true_positive"] + counts["false_negative"])
    return (found + counts["true_negative"] / (counts["true_negative"] + counts["false_positive"])) / 2


def test_a_metric_that_is_named_once_stands_in_records_and_summaries_a_defect_type_too(tmp_path):
    """On the page and on the screen: examples/own_metric.py."""
    added = Metric(
        "image_balanced", "balanced accuracy", balanced_accuracy, "image", "own", headline=True, defect_key="balanced"
    )
    METRICS.append(added)
    try:
        folders = [write_run(tmp_path / "a" / f"seed_{seed}", seed=seed, training=60) for seed in (0, 1)]
        recorded = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
        table = pd.read_csv(folders[0] / "predictions.csv")
        called, label = table["predicted_label"], table["label"]
        value = (called[label].mean() + (~called[~label]).mean()) / 2
        assert recorded[0]["image_balanced"] == pytest.approx(value)
        large = table[table["defect_type"].isin(["good", "broken_large"])]
        value = (large["predicted_label"][large["label"]].mean() + (~called[~label]).mean()) / 2
        assert recorded[0]["per_defect"]["broken_large"]["balanced"] == pytest.approx(value)

        summary = write_comparison([tmp_path / "a"])
        rows = pd.read_csv(summary.with_name("summary.csv")).query("row == 'run'")
        assert rows["image_balanced"].tolist() == pytest.approx([metrics["image_balanced"] for metrics in recorded])
        assert rows["broken_large_balanced"].notna().all()
        mean = np.mean([metrics["image_balanced"] for metrics in recorded])
        (line,) = [x for x in summary.read_text().splitlines() if x.startswith("| balanced accuracy |")]
        assert f"{mean:.4f} ±" in line
    finally:
        METRICS.remove(added)


def test_curves_are_traced_once_for_metrics_and_figures(tmp_path, monkeypatch):
    traced, weighed = [], []
    trace, weights = module.trace_curve, module.region_weights
    monkeypatch.setattr(module, "trace_curve", lambda *given: traced.append(1) or trace(*given))
    monkeypatch.setattr(module, "region_weights", lambda masks: weighed.append(1) or weights(masks))
    rng = np.random.default_rng(0)
    types = ["good", "good", "a", "b", "b"]
    masks = np.zeros((5, 20, 20), dtype=bool)
    masks[2:, 5:9, 5:9] = True
    maps = rng.random(masks.shape, dtype=np.float32) + masks
    labels = np.array(types) != "good"
    predictions = Predictions([f"{i}.png" for i in range(5)], types, labels, maps.max(axis=(1, 2)), maps, masks)
    metrics = evaluate(predictions, Thresholds(1.2, 1.2, "a test"))
    save_data(tmp_path / "data.npz", predictions, Thresholds(1.2, 1.2, "a test"), np.empty(0), np.empty(0))
    # Images and pixels: all defects, and each of two types. Regions of good images and of each type.
    assert (len(traced), len(weighed)) == (6, 3)
    with np.load(tmp_path / "data.npz", allow_pickle=False) as data:
        assert list(data["pro_names"]) == ["", "a", "b"]
        for i, name in enumerate(data["pro_names"]):
            of = np.isin(types, ["good", name]) if name else np.ones(5, dtype=bool)
            maps_of, masks_of = maps[of], masks[of]
            alone = trace([np.sort(maps_of[~masks_of])], maps_of[masks_of], weights(masks_of))
            points = np.stack([alone.false_positives / alone.negatives, alone.overlap], axis=1)
            kept = data[f"pro_{i}"].T[1:]
            assert len(kept) == len(points)
            np.testing.assert_allclose(kept, points[::-1], atol=1e-6)
            figures = metrics if name == "" else metrics["per_defect"][name]
            assert figures["pixel_AUPRO"] == pytest.approx(alone.aupro(), abs=1e-12)
