"""From an image score to its p-value and its verdict, by the numbers in a model's card."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_bottle.errors import UserError


@dataclass(frozen=True, eq=False)
class ImageRule:
    """How a model judges image scores. With a calibration it is exact for any false-alarm rate, also after training.

    Attributes:
        threshold: of raw scores.
        scale: distances to the threshold are divided by it when scores are normalised; None where they are not.
        calibration: (N,) ascending leave-one-out scores of the training images; None for a model without calibration.
    """

    threshold: float
    scale: float | None
    calibration: NDArray[np.float64] | None

    @classmethod
    def of(cls, card: dict[str, Any]) -> "ImageRule":
        """Return the rule that a card describes."""
        calibration = card["calibration"] and np.sort(np.array(card["calibration"]["scores"], dtype=np.float64))
        return cls(card["thresholds"]["image"], card["thresholds"]["image_scale"], calibration)

    def at(self, alpha: float) -> "ImageRule":
        """Return the rule for another false-alarm rate, as a model trained with this alpha has it.

        Raises:
            UserError: alpha is no rate, or the model was not calibrated, or on too few images for this alpha.
        """
        if self.calibration is None:
            raise UserError("This model was trained without calibration: its false-alarm rate cannot be chosen.")
        if not 0 < alpha < 1:
            raise UserError("alpha, the false-alarm rate, is a number between 0 and 1.")
        smallest = 1 / (len(self.calibration) + 1)
        if alpha < smallest:
            raise UserError(
                f"alpha = {alpha:g} is less than 1 / (N + 1) = {smallest:.2g}, the smallest p-value that this model's "
                f"N = {len(self.calibration)} calibration scores can give: choose more, or train with more good photos."
            )
        import torch

        from padim_bottle.model.calibration import conformal_threshold
        from padim_bottle.model.post_processor import image_scale

        scores = torch.from_numpy(self.calibration).float()
        threshold = conformal_threshold(scores, alpha, warn=False)
        scale = None if self.scale is None else image_scale(threshold, scores).item()
        return replace(self, threshold=threshold.item(), scale=scale)

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
        return float(raw_scores(np.array(normalised), self.threshold, self.scale))

    def p_value(self, score: float) -> float | None:
        """Return ``(1 + #{calibration scores >= score}) / (N + 1)``; None for a model without calibration."""
        if self.calibration is None:
            return None
        count = len(self.calibration)
        return (1 + count - int(np.searchsorted(self.calibration, score))) / (count + 1)

    def anomalous(self, score: float) -> bool:
        """Return the verdict: at the threshold it is anomalous, in anomalib's own (uncalibrated) models only above."""
        return score > self.threshold if self.calibration is None else score >= self.threshold


def raw_scores(normalised: NDArray[Any], threshold: float, scale: float) -> NDArray[np.float64]:
    """Return the raw scores or pixels that a calibrated model's post-processor normalised."""
    # A single-precision 1 is any very large score.
    y = np.clip(2.0 * normalised.astype(np.float64) - 1, 2.0**-24 - 1, 1 - 2.0**-24)
    return threshold + y / (1 - np.abs(y)) * scale


def discoveries(p_values: NDArray[np.float64], rate: float) -> NDArray[np.bool_]:
    """Return which photos of a batch are anomalous at a false discovery rate (Benjamini and Hochberg 1995).

    Split-conformal p-values of one calibration set are dependent in the way the procedure allows (PRDS; Bates et al.
    2023, theorem 2). For leave-one-out p-values no theorem says so: there it is an observation.

    Args:
        p_values: (M,) of the whole batch.
        rate: share of good photos to be expected among those called anomalous, in (0, 1).
    """
    from scipy.stats import false_discovery_control

    # The slack keeps fractions that are equal from being told apart by rounding.
    return false_discovery_control(p_values) <= rate * (1 + 1e-9)
