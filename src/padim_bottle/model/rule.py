"""From an image score to its p-value and its verdict. Numbers alone: nothing here needs torch.

The scores of N good parts, each left out of the model that scores it, behave nearly like the score of a new good part
(see ``calibration``). So the share of them that is at least as high as a new score is a p-value, and their
``ceil((N + 1)(1 - alpha))``-th smallest is a threshold for a false-alarm rate of about alpha. The rate of one model
lies around that; a higher order statistic keeps it below alpha with a given confidence (a tolerance bound).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincinv

from padim_bottle.errors import UserError

FEW_PARTS = 40
"""With fewer, a model may miss more defects, and most second photos of a part among its training images."""

# (N + 1)(1 - alpha) is a whole number for many alphas: rounding must not carry it past that number.
_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class Rule:
    """How a model judges image scores. With a calibration it is exact for any false-alarm rate, also after training.

    Attributes:
        threshold: of raw scores.
        scale: distances to the threshold are divided by it when scores are normalised; ``None`` where they are not.
        calibration: (N,) ascending leave-one-out scores of good parts; ``None`` for a model without calibration.
        confidence: with which the false-alarm rate is below alpha; ``None`` for a rate of about alpha.
    """

    threshold: float
    scale: float | None
    calibration: NDArray[np.float64] | None
    confidence: float | None = None

    @classmethod
    def calibrated(cls, scores: ArrayLike, alpha: float, confidence: float | None = None) -> "Rule":
        """Return the rule ``p_value <= alpha`` for leave-one-out scores of N good parts.

        Its threshold is the float32 after the ``threshold_rank``-th smallest score. With fewer than
        ``fewest_scores(alpha)`` scores that rank does not exist: then it is the one after the largest score, which
        has a false-alarm rate of ``1 / (N + 1)``.

        Args:
            scores: (N,) in any order.
            alpha: wanted false-alarm rate, in (0, 1).
            confidence: with which the rate is to be below alpha, in (0, 1); ``None`` for a rate of about alpha.

        Raises:
            UserError: there is no score, or one is not finite.
        """
        ordered = np.sort(np.asarray(scores, dtype=np.float64))
        if not len(ordered) or not np.isfinite(ordered).all():
            raise UserError(
                f"{np.isfinite(ordered).sum()} of {len(ordered)} leave-one-out scores of the training photos are "
                "finite numbers: no threshold can be taken from them. Check the photos and the weights."
            )
        highest_good = ordered[min(threshold_rank(len(ordered), alpha, confidence), len(ordered)) - 1]
        threshold = np.nextafter(np.float32(highest_good), np.float32(np.inf))
        # The lower median. Equal scores have no spread: what exceeds the threshold is then far above it.
        scale = max(float(threshold - np.float32(ordered[(len(ordered) - 1) // 2])), 1e-6)
        return cls(float(threshold), scale, ordered, confidence)

    @classmethod
    def of_card(cls, card: dict[str, Any]) -> "Rule":
        """Return the rule that a model's card describes."""
        told = card["calibration"]
        calibration = told and np.sort(np.array(told["scores"], dtype=np.float64))
        thresholds = card["thresholds"]
        return cls(thresholds["image"], thresholds["image_scale"], calibration, told and told.get("confidence"))

    def at(self, alpha: float, confidence: float | None = None) -> "Rule":
        """Return the rule for another false-alarm rate, as a model trained with this alpha has it.

        Args:
            alpha: the rate.
            confidence: with which the rate is to be below alpha; ``None`` for the one chosen in training, if any.

        Raises:
            UserError: alpha is no rate, or the model was not calibrated, or on too few images for this alpha.
        """
        if self.calibration is None:
            raise UserError("This model was trained without calibration: its false-alarm rate cannot be chosen.")
        if not 0 < alpha < 1:
            raise UserError("alpha, the false-alarm rate, is a number between 0 and 1.")
        count, confidence = len(self.calibration), confidence or self.confidence
        if threshold_rank(count, alpha, confidence) > count:
            if confidence is not None:
                raise UserError(
                    f"A false-alarm rate below alpha = {alpha:g} with confidence {confidence:g} takes at least "
                    f"{fewest_scores(alpha, confidence)} calibration scores, and this model has {count}: choose a "
                    "larger alpha, or train with more good photos."
                )
            raise UserError(
                f"alpha = {alpha:g} is less than 1 / (N + 1) = {1 / (count + 1):.2g}, the smallest p-value that this "
                f"model's N = {count} calibration scores can give: choose more, or train with more good photos."
            )
        chosen = Rule.calibrated(self.calibration, alpha, confidence)
        return chosen if self.scale is not None else replace(chosen, scale=None)

    def anomalous(self, score: float) -> bool:
        """Return the verdict: at the threshold it is anomalous, in anomalib's own (uncalibrated) models only above.

        Raises:
            UserError: the score is not finite.
        """
        if not math.isfinite(score):
            raise UserError(f"The model's score is {score}, not a finite number: that is no verdict.")
        return score > self.threshold if self.calibration is None else score >= self.threshold

    def p_value(self, score: float) -> float | None:
        """Return the p-value of one score, see ``p_values``; ``None`` for a model without calibration."""
        return None if self.calibration is None else float(self.p_values(score))

    def p_values(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return ``(1 + #{calibration scores >= score}) / (N + 1)`` for scores of any shape."""
        as_high, count = self._as_high(scores)
        return (1 + as_high) / (count + 1)

    def p_values_of_calibration(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return ``#{calibration scores >= score} / N`` for scores that are among those N, or of the same parts."""
        as_high, count = self._as_high(scores)
        return as_high / count

    def normalised(self, score: float) -> float:
        """Return the score in [0, 1], the threshold at 0.5, as a calibrated model's post-processor does."""
        if self.scale is None:
            return score
        x = (score - self.threshold) / self.scale
        return 0.5 + 0.5 * x / (1 + abs(x))

    def score(self, normalised: float) -> float:
        """Return the raw score of a normalised one, exact to rounding.

        Where the score lies x scales beyond the threshold, single precision leaves about ``1e-7 (1 + x)^2`` scales. A
        model without calibration clips normalised scores to [0, 1]: a raw score beyond comes back as the end.
        """
        if self.scale is None:
            return normalised
        if self.calibration is None:
            return self.threshold + (normalised - 0.5) * self.scale
        return float(raw_scores(normalised, self.threshold, self.scale))

    def _as_high(self, scores: ArrayLike) -> tuple[NDArray[np.int64], int]:
        scores = np.asarray(scores, dtype=np.float64)
        if self.calibration is None:
            raise UserError("This model was trained without calibration: it gives no p-values.")
        if not np.isfinite(scores).all():
            raise UserError("The model's score is not a finite number: it has no p-value.")
        count = len(self.calibration)
        return count - np.searchsorted(self.calibration, scores), count


def threshold_rank(count: int, alpha: float, confidence: float | None = None) -> int:
    """Return the rank of a threshold among N scores; N + 1 where there are too few.

    It is ``ceil((N + 1)(1 - alpha))``; with a confidence the lowest at which the false-alarm rate, see
    ``false_alarm_range``, is at most alpha with that probability: a tolerance bound (Wilks 1941).
    """
    if confidence is None:
        return math.ceil((count + 1) * (1 - alpha) - _SLACK)
    ranks = np.arange(1, count + 1)
    sure = betainc(count + 1 - ranks, ranks, alpha) >= confidence - _SLACK
    return int(ranks[sure][0]) if sure.any() else count + 1


def fewest_scores(alpha: float, confidence: float | None = None) -> int:
    """Return how many scores a threshold for this false-alarm rate needs."""
    if confidence is None:
        return math.ceil(1 / alpha - _SLACK) - 1
    return math.ceil(math.log1p(-confidence) / math.log1p(-alpha) - _SLACK)


def why_rough(
    count: int, alpha: float, confidence: float | None = None, counted: str = "training images"
) -> str | None:
    """Return why the threshold of N training images, or parts, for this alpha is rough; ``None`` where it is not."""
    if confidence is not None:
        if count >= fewest_scores(alpha, confidence):
            return None
        return (
            f"alpha = {alpha:g} with confidence = {confidence:g} needs at least {fewest_scores(alpha, confidence)} "
            f"{counted}, there are {count}: the threshold is their largest score, and the confidence "
            f"{1 - (1 - alpha) ** count:.2g}."
        )
    if count < fewest_scores(alpha):
        return (
            f"alpha = {alpha:g} needs at least {fewest_scores(alpha)} {counted}, there are {count}: the "
            f"threshold is their largest score, a false-alarm rate of {1 / (count + 1):.3g}."
        )
    if count * alpha < 5:
        return (
            f"alpha = {alpha:g} of {count} {counted} rests on the {count - threshold_rank(count, alpha) + 1} "
            "largest scores: expect a rough threshold (more good images or a larger alpha make it steadier)."
        )
    return None


def what_few_miss(count: int, counted: str = "training images") -> str | None:
    """Return what a model of so few training images, or parts, may miss; ``None`` where they are enough."""
    if count >= FEW_PARTS:
        return None
    return (
        f"{count} {counted} are few: defects may pass that a model of {FEW_PARTS} or more would find "
        "(docs/threshold.md has a table), and a second photo of a part mostly goes unnoticed: if there are any, name "
        "the parts with group."
    )


def false_alarm_range(count: int, alpha: float, confidence: float | None = None) -> tuple[float, float]:
    """Return between what limits the false-alarm rate of 95 of 100 calibrated models lies: it depends on their images.

    With r the threshold's rank among N scores, a split-conformal threshold's rate has a Beta(N + 1 - r, r)
    distribution over training sets (Vovk 2012; Angelopoulos and Bates 2023, section 3.2); the leave-one-out threshold
    is near it in simulation.

    Args:
        count: N, the number of parts.
        alpha: wanted false-alarm rate.
        confidence: as of ``Rule.calibrated``.
    """
    rank = min(threshold_rank(count, alpha, confidence), count)
    low, high = betaincinv(count + 1 - rank, rank, [0.025, 0.975])
    return float(low), float(high)


def raw_scores(normalised: ArrayLike, threshold: float, scale: float) -> NDArray[np.float64]:
    """Return the raw scores or pixels that a calibrated model's post-processor normalised."""
    # A single-precision 1 is any very large score.
    y = np.clip(2.0 * np.asarray(normalised, dtype=np.float64) - 1, 2.0**-24 - 1, 1 - 2.0**-24)
    return threshold + y / (1 - np.abs(y)) * scale


def discoveries(p_values: Sequence[float] | NDArray[np.float64], rate: float) -> NDArray[np.bool_]:
    """Return which photos of a batch are anomalous at a false discovery rate (Benjamini and Hochberg 1995).

    Split-conformal p-values of one calibration set are dependent in the way the procedure allows (PRDS; Bates et al.
    2023, theorem 2). For leave-one-out p-values no theorem says so: there it is an observation.

    Args:
        p_values: (M,) of the whole batch.
        rate: share of good photos to be expected among those called anomalous, in (0, 1).
    """
    from scipy.stats import false_discovery_control  # takes longer to import than all else here

    # The slack keeps fractions that are equal from being told apart by rounding.
    return false_discovery_control(p_values) <= rate * (1 + _SLACK)
