"""What may be said of differences over a few overlapping splits."""

import numpy as np
import pandas as pd
import pytest
import scipy

from padim_bottle.tune.ranking import differences_from, rank
from padim_bottle.tune.settings import METRICS


def make_fits(values):
    """Fits of settings 0, 1, ...: values (settings, splits, seeds) of every metric but AUPIMO."""
    rows = [
        {"setting": setting, "split": split, "seed": seed, **dict.fromkeys(METRICS, value), "pixel_AUPIMO": None}
        for (setting, split, seed), value in np.ndenumerate(values)
    ]
    return pd.DataFrame(rows).astype({"pixel_AUPIMO": float})


def test_ranks_by_the_mean_of_the_metrics_that_all_have():
    values = np.array([[[0.1, 0.3]], [[0.8, 0.6]], [[0.5, 0.5]]])
    table = rank(make_fits(values), ["image_AUROC", "pixel_AUPIMO"])
    assert table.index.tolist() == [1, 2, 0]
    assert table["choice"].tolist() == pytest.approx([0.7, 0.5, 0.2])
    assert table["image_AUROC_std"].tolist() == pytest.approx([0.1 * 2**0.5, 0, 0.1 * 2**0.5])


def test_intervals_are_nadeau_and_bengios():
    rng = np.random.default_rng(0)
    values = rng.normal(0.9, 0.05, (1, 5, 1)) + rng.normal([[[0.0]], [[-0.02]]], 0.01, (2, 5, 3))
    found = differences_from(0, make_fits(values), 0.5)
    assert found["metric"].tolist() == ["image_AUROC", "pixel_AUROC", "pixel_AUPRO"]
    differences = values[1].mean(axis=1) - values[0].mean(axis=1)
    # Without the correction it is scipy's paired interval.
    plain = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    widen = ((1 / 5 + 0.5) / (1 / 5)) ** 0.5
    row = found.iloc[0]
    assert row["difference"] == pytest.approx(differences.mean())
    assert (row["high"] - row["low"]) == pytest.approx(widen * (plain.high - plain.low))
    assert row["low"] + row["high"] == pytest.approx(2 * differences.mean())


@pytest.mark.parametrize(
    ("shift", "finding"), [(0.0, "equal"), (-0.1, "lower"), (0.1, "higher"), (None, "cannot tell")]
)
def test_findings(shift, finding):
    first = np.linspace(0.5, 0.7, 4)[:, None]
    noise = np.array([0.001, -0.001, 0.002, -0.002])[:, None]
    second = first + (noise if shift is None else shift + bool(shift) * noise)
    found = differences_from(0, make_fits(np.stack([first, second])), 0.5)
    assert set(found["finding"]) == {finding}
