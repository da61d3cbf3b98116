"""Anomalib's post-processor with thresholds that never saw a defect."""

import logging
from typing import Any

import numpy as np
import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor

from padim_bottle.model.calibration import Calibration
from padim_bottle.model.rule import Rule, what_few_miss, why_rough

logger = logging.getLogger(__name__)


class CalibratedPostProcessor(PostProcessor):
    """Thresholds and normalises by the leave-one-out scores of the training images.

    Differences from anomalib's class: thresholds come from ``calibrate`` and not from validation batches; the label
    rule is ``score >= threshold``; scores are normalised by ``x / (1 + |x|)`` with ``x = (score - threshold) / scale``
    mapped to (0, 1), which puts the threshold at 0.5 and a typical good image at 0.25 and never saturates (clamping,
    as anomalib does between the extremes of the test set, would tie all clear defects at 1).

    Args:
        alpha: wanted false-alarm rate of the image threshold, in (0, 1).
        confidence: with which the rate is to be below alpha, in (0, 1); ``None`` for a rate of about alpha.
        pixel_quantile: the pixel threshold is this quantile of all leave-one-out pixels.
        **kwargs: anomalib's arguments.
    """

    def __init__(
        self, alpha: float = 0.05, pixel_quantile: float = 0.9995, confidence: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.alpha = alpha
        self.confidence = confidence
        self.pixel_quantile = pixel_quantile
        self.register_buffer("calibration_scores", torch.empty(0))
        self.register_buffer("calibration_map_means", torch.empty(0))
        self.register_buffer("image_scale", torch.tensor(float("nan")))
        self.register_buffer("pixel_scale", torch.tensor(float("nan")))
        self.calibration_scores: torch.Tensor
        self.calibration_map_means: torch.Tensor
        self.image_scale: torch.Tensor
        self.pixel_scale: torch.Tensor
        # anomalib's own.
        self._image_threshold: torch.Tensor
        self._pixel_threshold: torch.Tensor

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "alpha", "confidence", "pixel_quantile")

    def calibrate(self, calibration: Calibration) -> None:
        """Take thresholds and scales from the leave-one-out scores and pixels of the training images."""
        device = self._image_threshold.device
        rule = Rule.calibrated(calibration.scores.cpu(), self.alpha, self.confidence)
        count = len(calibration.scores)
        counted = "training images" if count == len(calibration.image_scores) else "parts"
        for reason in (why_rough(count, self.alpha, self.confidence, counted), what_few_miss(count, counted)):
            if reason is not None:
                logger.warning(reason)
        self.calibration_scores = calibration.scores.to(device)
        self.calibration_map_means = calibration.map_means.to(device)
        self._image_threshold = torch.tensor(rule.threshold, device=device)
        self._pixel_threshold = calibration.pixel_threshold.to(device)
        self.image_scale = torch.tensor(rule.scale, device=device)
        # Identical training images have no spread: what exceeds the threshold is then far above it.
        self.pixel_scale = (calibration.pixel_threshold - calibration.pixel_median).clamp_min(1e-6).to(device)
        # anomalib's names for the range that was seen while fitting.
        self.image_min, self.image_max = (
            self.calibration_scores[0].clone(),
            self.calibration_scores[-1].clone(),
        )

    @property
    def rule(self) -> Rule | None:
        """The rule for image scores; ``None`` before the calibration."""
        if not len(self.calibration_scores):
            return None
        scores = self.calibration_scores.cpu().numpy().astype(np.float64)
        return Rule(self.image_threshold.item(), self.image_scale.item(), scores, self.confidence)

    def _normalize_score(self, score: torch.Tensor) -> torch.Tensor:
        return _soft_normalize(score, self.image_threshold, self.image_scale)

    def _normalize_map(self, anomaly_map: torch.Tensor) -> torch.Tensor:
        return _soft_normalize(anomaly_map, self.pixel_threshold, self.pixel_scale)

    def normalize_batch(self, batch: Any) -> None:
        """Normalise the scores and anomaly maps of a batch in place."""
        if batch.anomaly_map is not None:
            batch.anomaly_map = self._normalize_map(batch.anomaly_map)
        if batch.pred_score is not None:
            batch.pred_score = self._normalize_score(batch.pred_score)

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Post-process an ``InferenceBatch`` of raw predictions; this is the path of exported models."""
        score, anomaly_map = predictions.pred_score, predictions.anomaly_map
        if self.enable_normalization:
            score, anomaly_map = self._normalize_score(score), self._normalize_map(anomaly_map)
        label = mask = None
        if self.enable_thresholding:
            label = self._apply_threshold(score, self.normalized_image_threshold)
            mask = self._apply_threshold(anomaly_map, self.normalized_pixel_threshold)
        return type(predictions)(pred_score=score, pred_label=label, anomaly_map=anomaly_map, pred_mask=mask)

    @staticmethod
    def _apply_threshold(preds: torch.Tensor | None, threshold: torch.Tensor) -> torch.Tensor | None:
        # anomalib's strict > misses the image that lies on the threshold.
        return None if preds is None else preds >= threshold

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: object) -> None:
        for name in {"calibration_scores", "calibration_map_means"} & {key.removeprefix(prefix) for key in state_dict}:
            setattr(self, name, torch.empty_like(state_dict[prefix + name], device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _soft_normalize(score: torch.Tensor, threshold: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    x = (score - threshold) / scale
    return 0.5 + 0.5 * x / (1 + x.abs())
