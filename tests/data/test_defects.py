"""Synthetic anomalies: where they say they are, as large as asked for, and the same every time."""

import numpy as np
import pytest
import torch

from padim_bottle.data.defects import KINDS, AnomalySettings, add_anomaly
from padim_bottle.data.synthetic import render_bottle

PHOTO = render_bottle(np.random.default_rng(0), 200)[0]
SETTINGS = AnomalySettings()


@pytest.mark.parametrize("kind", KINDS)
def test_an_anomaly_is_where_its_mask_says_and_can_be_seen(kind):
    before = PHOTO.copy()
    for number in range(12):
        picture, mask = add_anomaly(PHOTO, kind, SETTINGS, number)
        assert (picture.shape, picture.dtype, mask.shape, mask.dtype) == (PHOTO.shape, np.uint8, (200, 200), bool)
        np.testing.assert_array_equal(picture[~mask], PHOTO[~mask])
        assert np.abs(picture[mask].astype(int) - PHOTO[mask]).mean() >= 10
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) < 0.3 * 200
    np.testing.assert_array_equal(PHOTO, before)


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_number_decide_everything_and_nothing_else_does(kind):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = add_anomaly(PHOTO, kind, SETTINGS, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    for one, again in zip(first, add_anomaly(PHOTO, kind, SETTINGS, 3), strict=True):
        np.testing.assert_array_equal(one, again)
    for other in (add_anomaly(PHOTO, kind, SETTINGS, 4), add_anomaly(PHOTO, kind, AnomalySettings(seed=1), 3)):
        assert not np.array_equal(other[1], first[1])


def test_sizes_are_those_of_the_settings():
    small = AnomalySettings(size=[0.1, 0.1], scratch_width=[0.02, 0.02])
    for number in range(8):
        _, mask = add_anomaly(PHOTO, "missing", small, number)
        assert mask.any(axis=0).sum() <= 20
        assert 20 * 20 / 4 < mask.sum() < 20 * 20
        _, scratch = add_anomaly(PHOTO, "scratch", small, number)
        assert 4 * 14 < scratch.sum() < 6 * 40  # 4 pixels wide, as long as its box or a little more


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64, 300), (5, 4)])
def test_photos_without_structure_or_of_odd_shapes_do_no_harm(kind, shape):
    even = np.full((*shape, 3), 128, np.uint8)
    picture, mask = add_anomaly(even, kind, SETTINGS, 0)
    np.testing.assert_array_equal(picture[~mask], even[~mask])
    assert mask.shape == shape
