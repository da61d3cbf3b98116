"""What may be said of paired differences: scipy's interval, and Nadeau and Bengio's for splits that share photos."""

import numpy as np
import pytest
from scipy import stats

from padim_bottle.evaluation.differences import paired_difference

NOISE = np.array([0.001, -0.001, 0.002, -0.002])


def test_without_overlap_it_is_scipys_paired_interval():
    one, other = np.random.default_rng(0).normal([[0.98], [0.975]], 0.004, (2, 8))
    found = paired_difference(one - other)
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.difference == pytest.approx((one - other).mean(), rel=1e-12)


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_overlap_widens_it_as_nadeau_and_bengio_do(overlap):
    differences = np.random.default_rng(1).normal(-0.02, 0.01, 5)
    plain = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    found = paired_difference(differences, overlap)
    assert found.high - found.low == pytest.approx((1 + 5 * overlap) ** 0.5 * (plain.high - plain.low))
    assert found.low + found.high == pytest.approx(2 * differences.mean())


@pytest.mark.parametrize(
    ("differences", "finding"),
    [
        (0.1 + NOISE, "higher"),
        (-0.1 + NOISE, "lower"),
        (NOISE, "cannot tell"),
        (np.zeros(4), "equal"),
        (np.array([0.98, 0.97, 0.96]) - np.array([0.88, 0.87, 0.86]), "no spread"),  # 0.1 but for the last digits
        (np.array([0.3, 0.6]) - np.array([0.1 + 0.2, 0.1 + 0.5]), "equal"),
    ],
)
def test_findings(differences, finding):
    assert paired_difference(differences, 0.5).finding == finding


def test_a_pair_of_equal_models_is_told_apart_in_one_of_twenty_cases():
    rng = np.random.default_rng(2)
    told = [paired_difference(rng.standard_normal(6)).finding != "cannot tell" for _ in range(2000)]
    assert 0.035 < np.mean(told) < 0.065
