"""Whether two things that were measured in pairs differ by more than their spread."""

from typing import NamedTuple

import numpy as np
import scipy  # its submodules are loaded when they are first used
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of every interval that a comparison or a tuning shows."""


class PairedDifference(NamedTuple):
    """A mean of differences, the interval around it, and what may be said of it.

    Attributes:
        difference: their mean.
        low, high: Student's t interval of that mean.
        finding: ``higher`` or ``lower`` where the interval excludes 0, else ``cannot tell``; ``equal`` where all
            differences are 0, and ``no spread`` where they are all the same, which leaves nothing to judge them by.
    """

    difference: float
    low: float
    high: float
    finding: str


def paired_difference(differences: NDArray[np.float64], overlap: float = 0.0) -> PairedDifference:
    """Return the mean of paired differences with its interval of ``CONFIDENCE``.

    Fits to random splits of the same photos are not independent. Nadeau and Bengio ("Inference for the generalization
    error", Machine Learning 52, 2003) correct for that: the variance of the mean is taken as (1 / n + overlap) times
    that of the differences.

    Args:
        differences: (n,) one a pair, 2 or more.
        overlap: photos held out over photos fitted; 0 for pairs that are independent.
    """
    mean = float(differences.mean())
    # Rounding must not make a difference out of none.
    rounded = np.round(differences, 12)
    if not np.ptp(rounded):
        return PairedDifference(mean, mean, mean, "no spread" if rounded.any() else "equal")
    count = len(differences)
    error = np.sqrt((1 / count + overlap) * differences.var(ddof=1))
    low, high = map(float, scipy.stats.t.interval(CONFIDENCE, count - 1, loc=mean, scale=error))
    return PairedDifference(mean, low, high, "higher" if low > 0 else "lower" if high < 0 else "cannot tell")
