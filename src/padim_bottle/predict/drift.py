"""Whether the photos still look like those of the calibration: a conformal test martingale (Vovk et al. 2021).

**What is compared.** An image score is the largest of many pixels and hardly moves when a lamp brightens by a tenth;
the mean of the anomaly map does. For the training images it is known with each left out of the fit.

**A martingale.** As long as photos come as they came, the mean of the n-th photo has a random rank among all means so
far: the N of the calibration and those of the photos before it. With ties broken at random, these ranks are
independent and uniform on (0, 1), for exchangeable means exactly and for any N. (Ranks among the N alone are not:
given the calibration, each is off by the same error, of order ``1 / sqrt(N)``, which any martingale ends up betting on.
Averaging over what the N leave unknown, by a Dirichlet posterior of the distribution of means, is Polya's urn: it
amounts to adding each photo to the N.) ``p_n`` is the share of means that are larger, so drift makes it small. A
capital of 1 is spread over bets ``1 + e (1 - 2 p)``, with e from 1/4 to 1, and over the photos at which the drift may
begin, ``1 / (n (n + 1))`` on the n-th. Under exchangeability it is expected to stay 1, so the chance that it ever
exceeds 100 is at most 1 % (Ville's inequality). Here that is near, and not exact: the means of the calibration are
leave-one-out, and those of new photos are not. Only larger means are bet on: leave-one-out means are a little larger
than those of new photos, and that alone is no drift.

Several photos of one part are not exchangeable: series without drift would raise the alarm far more often. So a model
whose training photos are grouped has no monitor.

**Measured** by tests/predict/test_drift.py: false alarms of simulated series with N = 60 and 209, and of 59 real
bottles that a model of the other 150 never saw; and how soon those bottles raise the alarm when they are made 10 %
brighter or darker, or blurred.

A defect among good photos doubles the capital at most. A line on which every fifth part is defective raises the alarm
as well, and should.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import Any

import numpy as np

ALARM = 100.0

BETS = np.array([0.25, 0.5, 0.75, 1.0])

WARNING = (
    "drift: at {path} the photos no longer look like those of the calibration (evidence {evidence:.0f}; 100 or more by "
    "chance in near 1 % of all series, or fewer). Check light, lens and camera, or train again with photos of today; "
    "judging goes on."
)


class DriftMonitor:
    """Follows the mean anomaly maps of photos in the order in which they were taken.

    Args:
        calibration: means of the training images' leave-one-out anomaly maps.
        seed: of the random ranks among equal means.

    Attributes:
        evidence: the capital: 1 at the start, and above ``ALARM`` ever with a chance of near 1 % or less without drift.
    """

    def __init__(self, calibration: Sequence[float], seed: int = 0) -> None:
        self.evidence = 1.0
        self._means = sorted(calibration)
        self._random = np.random.default_rng(seed)
        self._photos = 0
        self._capital = np.zeros(len(BETS))

    def add(self, mean: float) -> float:
        """Take the mean anomaly map of the next photo, and return the evidence of drift so far."""
        low, high = bisect_left(self._means, mean), bisect_right(self._means, mean)
        larger, equal = len(self._means) - high, high - low + 1
        p = (larger + self._random.random() * equal) / (len(self._means) + 1)
        insort(self._means, mean)
        self._photos += 1
        n = self._photos
        # What was kept back for a drift that begins here is bet from here on.
        capital = (self._capital + 1 / (n * (n + 1))) * (1 + BETS * (1 - 2 * p))
        self._capital = np.minimum(capital, 1e9)  # more would only overflow
        self.evidence = float(self._capital.mean() + 1 / (n + 1))
        return self.evidence


def monitor_of(card: dict[str, Any]) -> DriftMonitor | None:
    """Return the monitor of the model that a card describes; None where it has nothing to compare photos with."""
    return None if card["drift"] is None else DriftMonitor(card["drift"]["map_means"])
