"""Verdicts of a batch, against simulated good and anomalous photos."""

import numpy as np
import pytest

from padim_bottle.predict.verdict import ImageRule, discoveries


@pytest.mark.parametrize("count", [60, 209])
def test_the_false_discovery_rate_holds_for_leave_one_out_p_values(count):
    """One patch position: the score is the distance to a Gaussian that was fitted to the calibration images."""
    generator = np.random.default_rng(0)
    rates, power = [], []
    for _ in range(400):
        train = generator.normal(size=(count, 8))

        def distance(x, good):
            delta = x - good.mean(axis=0)
            return np.sqrt(np.einsum("...i,ij,...j", delta, np.linalg.inv(np.cov(good.T)), delta))

        scores = np.array([distance(train[i], np.delete(train, i, axis=0)) for i in range(count)])
        rule = ImageRule(0.0, None, np.sort(scores))
        good, bad = generator.normal(size=(30, 8)), generator.normal(size=(20, 8)) + 3
        p_values = np.array([rule.p_value(s) for s in distance(np.concatenate([good, bad]), train)])
        found = discoveries(p_values, 0.1)
        rates.append(found[:30].sum() / max(found.sum(), 1))
        power.append(found[30:].mean())
    # The procedure keeps rate times the share of good photos: 6 %.
    assert np.mean(rates) + 3 * np.std(rates) / np.sqrt(len(rates)) < 0.1
    assert np.mean(power) > 0.8
