"""The rule that judges image scores, against its definition, and batches against simulated good and bad photos."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from padim_bottle.errors import UserError
from padim_bottle.model.rule import (
    Rule,
    discoveries,
    false_alarm_range,
    fewest_scores,
    raw_scores,
    threshold_rank,
    what_few_miss,
    why_rough,
)


def test_judging_needs_no_torch():
    check = "import sys, padim_bottle.model.rule; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


@pytest.mark.parametrize(
    ("count", "alpha"),
    [(19, 0.05), (20, 0.05), (99, 0.01), (100, 0.01), (100, 0.05), (209, 0.01), (209, 0.05), (209, 0.1), (20, 0.5)],
)
def test_threshold_and_p_value_say_the_same(count, alpha):
    scores = np.random.default_rng(count).random(count).astype(np.float32)
    rule = Rule.calibrated(scores, alpha)
    ordered = np.sort(scores)
    candidates = np.concatenate([ordered, (ordered[1:] + ordered[:-1]) / 2, [-1.0, 2.0]])
    # In exact arithmetic p <= alpha; the slack is for alpha (N + 1) being whole but not so in floating point.
    called = [rule.anomalous(score) for score in candidates.tolist()]
    assert called == (rule.p_values(candidates) <= alpha + 1e-9).tolist()
    # And the threshold is the one that the definition names.
    rank = next(k for k in range(count + 1) if k >= (count + 1) * (1 - alpha) - 1e-9)
    assert threshold_rank(count, alpha) == rank
    assert rule.threshold == np.nextafter(ordered[rank - 1], np.float32(np.inf))


def test_p_value_counts_scores_at_least_as_high():
    rule = Rule.calibrated([3.0, 2.0, 1.0, 2.0], 0.5)
    asked = [0.5, 1.0, 2.0, 2.5, 3.0, 4.0]
    np.testing.assert_allclose(rule.p_values(asked), np.array([5, 5, 4, 2, 2, 1]) / 5)
    assert [rule.p_value(score) for score in asked] == rule.p_values(asked).tolist()
    np.testing.assert_allclose(rule.p_values_of_calibration([1.0, 2.0, 3.0]), [1, 0.75, 0.25])


def test_too_few_scores_for_alpha_warn_and_use_the_largest():
    assert 9 < Rule.calibrated(np.arange(10.0), 0.05).threshold < 9.001
    assert fewest_scores(0.05) == 19
    assert "needs at least 19 training images, there are 10" in why_rough(10, 0.05)
    assert "rate of 0.0909" in why_rough(10, 0.05)
    # 19 is enough: the largest score of 19 is exceeded by one new image in 20.
    assert "needs at least" not in why_rough(19, 0.05)
    assert "rests on the 2 largest scores" in why_rough(50, 0.05)
    assert why_rough(100, 0.05) is None


def test_few_parts_say_what_they_miss():
    assert what_few_miss(40) is None
    assert what_few_miss(39, "parts").startswith("39 parts are few: defects may pass that a model of 40 or more")


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("calibration", [None, np.arange(1.0, 20.0)])
def test_a_score_that_is_not_finite_is_no_verdict(score, calibration):
    rule = Rule(10.0, 1.0, calibration)
    with pytest.raises(UserError, match="not a finite number"):
        rule.anomalous(score)
    if calibration is not None:
        with pytest.raises(UserError, match="not a finite number"):
            rule.p_value(score)
        with pytest.raises(UserError, match="1 of 3 leave-one-out scores"):
            Rule.calibrated([1.0, score, math.nan], 0.5)


@pytest.mark.parametrize("alpha", [math.nan, 0.0, 1.0, 0.049])
def test_a_rate_that_is_none_or_that_no_p_value_reaches_is_refused(alpha):
    rule = Rule.calibrated(np.arange(19.0), 0.5)
    assert rule.at(0.05).threshold > 18
    with pytest.raises(UserError, match="alpha"):
        rule.at(alpha)


def test_scores_come_back_from_normalised_ones():
    rule = Rule.calibrated(np.arange(1.0, 100.0), 0.05)
    scores = [0.0, 50.0, rule.threshold, 120.0, 1e4]
    normalised = [rule.normalised(score) for score in scores]
    assert normalised[2] == 0.5
    assert normalised[1] == pytest.approx(0.25)  # the typical good image
    assert sorted(normalised) == normalised and normalised[0] > 0 and normalised[-1] < 1
    np.testing.assert_allclose([rule.score(value) for value in normalised], scores, atol=1e-9)
    np.testing.assert_allclose(raw_scores(normalised, rule.threshold, rule.scale), scores, atol=1e-9)


@pytest.mark.parametrize(
    ("count", "alpha", "low", "high"),
    [(209, 0.05, 0.023, 0.080), (209, 0.01, 0.001, 0.026), (60, 0.05, 0.010, 0.115), (1000, 0.01, 0.005, 0.017)],
)
def test_the_rate_of_one_calibrated_model_lies_in_the_range_that_is_said(count, alpha, low, high):
    assert false_alarm_range(count, alpha) == pytest.approx((low, high), abs=6e-4)
    # The rate of a threshold at the r-th smallest of N uniform scores is the share above it.
    rank = math.ceil((count + 1) * (1 - alpha) - 1e-9)
    rates = 1 - np.sort(np.random.default_rng(0).random((4000, count)), axis=1)[:, rank - 1]
    assert np.mean((rates >= low) & (rates <= high)) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("count", "alpha"), [(59, 0.05), (209, 0.05), (1000, 0.05), (299, 0.01), (40, 0.1)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_with_a_confidence_that_share_of_models_keeps_below_alpha_and_hardly_more(count, alpha, confidence):
    """Of uniform scores r of N lie below 1 - alpha with a binomial's probability."""
    rank = threshold_rank(count, alpha, confidence)
    # The rank is a whole number: the exact share is the smallest that is possible and at least the confidence.
    exact, less = (stats.binom.cdf(r - 1, count, 1 - alpha) for r in (rank, rank - 1))
    assert less < confidence <= exact
    scores = np.random.default_rng(1).random(count, dtype=np.float32)
    assert Rule.calibrated(scores, alpha, confidence).threshold == np.nextafter(
        np.sort(scores)[rank - 1], np.float32(2)
    )


def test_a_confidence_is_a_higher_rank_and_needs_more_scores():
    shares = [1 - threshold_rank(count, 0.05, 0.95) / (count + 1) for count in (59, 209, 1000)]
    assert shares == pytest.approx([0.017, 0.029, 0.039], abs=5e-4)
    assert [fewest_scores(alpha, 0.95) for alpha in (0.05, 0.01)] == [59, 299]
    for alpha, fewest in ((0.05, 59), (0.01, 299)):
        assert why_rough(fewest, alpha, 0.95) is None
        assert f"needs at least {fewest} training images" in why_rough(fewest - 1, alpha, 0.95)
        with pytest.raises(UserError, match=f"at least {fewest} calibration scores"):
            Rule.calibrated(np.arange(fewest - 1.0), 0.5).at(alpha, 0.95)
    few = Rule.calibrated(np.arange(10.0), 0.05, 0.95)
    assert 9 < few.threshold < 9.001
    assert "confidence 0.4" in why_rough(10, 0.05, 0.95)


def test_another_rate_keeps_the_confidence_of_the_training():
    scores = np.arange(1000.0)
    trained = Rule.calibrated(scores, 0.05, 0.95)
    assert trained.threshold > Rule.calibrated(scores, 0.05).threshold
    assert trained.at(0.1).threshold == Rule.calibrated(scores, 0.1, 0.95).threshold
    assert trained.at(0.1, 0.8).threshold == Rule.calibrated(scores, 0.1, 0.8).threshold
    low, high = false_alarm_range(1000, 0.05, 0.95)
    assert low < 0.039 < high
    assert high < false_alarm_range(1000, 0.05)[1]


@pytest.mark.parametrize("count", [60, 209])
def test_the_false_discovery_rate_holds_for_leave_one_out_p_values(count):
    """One patch position: the score is the distance to a Gaussian that was fitted to the calibration images."""
    generator = np.random.default_rng(0)
    rates, power = [], []
    for _ in range(150):
        train = generator.normal(size=(count, 8))

        def distance(x, good):
            delta = x - good.mean(axis=0)
            return np.sqrt(np.einsum("...i,ij,...j", delta, np.linalg.inv(np.cov(good.T)), delta))

        scores = np.array([distance(train[i], np.delete(train, i, axis=0)) for i in range(count)])
        rule = Rule(0.0, None, np.sort(scores))
        good, bad = generator.normal(size=(30, 8)), generator.normal(size=(20, 8)) + 3
        p_values = np.array([rule.p_value(s) for s in distance(np.concatenate([good, bad]), train)])
        found = discoveries(p_values, 0.1)
        rates.append(found[:30].sum() / max(found.sum(), 1))
        power.append(found[30:].mean())
    # The procedure keeps rate times the share of good photos: 6 %.
    assert np.mean(rates) + 3 * np.std(rates) / np.sqrt(len(rates)) < 0.1
    assert np.mean(power) > 0.8
