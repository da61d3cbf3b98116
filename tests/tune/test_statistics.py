"""What may be said of differences over a few overlapping splits."""

import numpy as np
import pandas as pd
import pytest

from padim_bottle.errors import UserError
from padim_bottle.evaluation.differences import paired_difference
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


def test_nothing_wins_by_metrics_that_no_setting_has():
    with pytest.raises(UserError, match="pixel_AUPIMO"):
        rank(make_fits(np.ones((2, 2, 1))), ["pixel_AUPIMO"])


def test_a_split_is_a_pair_of_the_means_over_seeds_and_splits_overlap():
    rng = np.random.default_rng(0)
    values = rng.normal(0.9, 0.05, (1, 5, 1)) + rng.normal([[[0.0]], [[-0.02]]], 0.01, (2, 5, 3))
    found = differences_from(0, make_fits(values), 0.5)
    assert found["metric"].tolist() == [metric for metric in METRICS if metric != "pixel_AUPIMO"]
    expected = paired_difference(values[1].mean(axis=1) - values[0].mean(axis=1), overlap=0.5)
    assert tuple(found.iloc[0][["difference", "low", "high"]]) == pytest.approx(expected[:3])
    assert set(found["finding"]) == {expected.finding}
