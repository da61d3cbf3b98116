"""Judging photos in batches: what goes wrong with one photo stays with it."""

import cv2
import numpy as np
from soak import CARD

from padim_bottle.errors import UserError
from padim_bottle.predict.judge import judge
from padim_bottle.predict.predictor import Predictor


def test_a_photo_whose_score_is_not_finite_has_no_verdict_and_is_named(tmp_path):
    def run(photos):
        scores = photos.mean(axis=(1, 2, 3))[:, None]
        maps = np.zeros((len(photos), 1, 8, 8), np.float32)
        return {"pred_score": np.where(scores > 0.9, np.nan, scores), "anomaly_map": maps}

    photos = [tmp_path / f"{brightness}.png" for brightness in (0, 255, 153)]
    for photo in photos:
        cv2.imwrite(str(photo), np.full((8, 8, 3), int(photo.stem), np.uint8))
    outcomes = dict(judge(Predictor("stub", CARD, run), photos, batch_size=8))
    assert list(outcomes) == photos
    assert isinstance(outcomes[photos[1]], UserError)
    assert str(outcomes[photos[1]]).startswith(f"{photos[1]}: ")
    assert not outcomes[photos[0]].anomalous
