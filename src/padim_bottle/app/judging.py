"""What models say about a photo, at any false-alarm rate."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from padim_bottle.app.uploads import Picture, shrink
from padim_bottle.errors import UserError
from padim_bottle.evaluation.regions import Region
from padim_bottle.model.rule import Rule
from padim_bottle.predict.heatmaps import draw
from padim_bottle.predict.predictor import ImagePrediction, Predictor, load_predictor

SHOWN_SIDE = 768
"""Pixels of the larger side of what the page shows."""


@dataclass(frozen=True)
class Verdict:
    """What a model decides about a photo at one false-alarm rate.

    Attributes:
        anomalous: the verdict; None where the model can give none at this rate.
        threshold: that it was decided by, of scores; None with no verdict.
        note: why there is no verdict, or why it does not depend on the rate.
    """

    anomalous: bool | None
    threshold: float | None
    note: str | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says about a photo.

    Attributes:
        model: name of the model.
        rule: of the model, as trained.
        prediction: of the model, as trained.
        photo: RGB, uint8 (h, w, 3), no larger than the page shows.
    """

    model: str
    rule: Rule
    prediction: ImagePrediction
    photo: Picture

    def at(self, alpha: float | None) -> Verdict:
        """Return the verdict at a false-alarm rate, None while there is none; the network is not asked again."""
        score = self.prediction.score
        try:
            rule = self.rule.at(math.nan if alpha is None else alpha)
        except UserError as error:
            if self.rule.calibration is not None:
                return Verdict(None, None, str(error))
            return Verdict(self.rule.anomalous(score), self.rule.threshold, str(error))
        return Verdict(rule.anomalous(score), rule.threshold)

    def heatmap(self, verdict: Verdict) -> Picture:
        """Return the heatmap over the photo, (h, w, 3), with the regions of an alarm outlined."""
        return draw(self.photo, self._judged(verdict))[0]

    def regions(self, verdict: Verdict) -> list[Region]:
        """Return the regions of an alarm, in pixels of the photo that was judged."""
        return self._judged(verdict).regions

    def _judged(self, verdict: Verdict) -> ImagePrediction:
        return replace(self.prediction, anomalous=bool(verdict.anomalous))

    def p_value(self) -> str | None:
        """Return the p-value and what it counts; None for a model without calibration."""
        if self.rule.calibration is None or self.prediction.p_value is None:
            return None
        total = len(self.rule.calibration)
        higher = round(self.prediction.p_value * (total + 1)) - 1
        return f"{self.prediction.p_value:.2g}: {higher} of {total} good photos score as high, each unseen by its model"


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model, and what the page calls it."""

    name: str
    predictor: Predictor

    @property
    def alpha(self) -> float | None:
        """The false-alarm rate chosen in training; None for a model without calibration."""
        calibration = self.predictor.card["calibration"]
        return calibration and calibration["alpha"]

    def read(self, path: Path) -> Picture:
        """Read a photo, RGB, uint8 (h, w, 3), as those of the training were read."""
        return self.predictor.read(path)

    def judge(self, photo: Picture) -> Answer:
        """Judge a photo, RGB, uint8 (h, w, 3)."""
        (prediction,) = self.predictor.predict([photo])
        return Answer(self.name, self.predictor.rule, prediction, shrink(photo, SHOWN_SIDE))


def load_models(paths: Iterable[Path]) -> list[Model]:
    """Load models, of a run's folder, a checkpoint or an export each.

    Raises:
        UserError: as ``load_predictor``.
    """
    predictors = {path: load_predictor(path) for path in paths}
    return [Model(_name(path, predictor), predictor) for path, predictor in predictors.items()]


def _name(path: Path, predictor: Predictor) -> str:
    card: dict[str, Any] = predictor.card
    # Not the whole path: it is private, and too wide for a phone.
    run = f"{card['experiment']}, seed {card['seed']}" if card["experiment"] else "/".join(path.resolve().parts[-2:])
    return run if predictor.name == "torch" else f"{run}, {predictor.name}"
