"""Where an alarm is: one rule for verdict and outline, and regions as scikit-image finds them."""

import numpy as np
import pytest
from skimage.measure import label, regionprops

from padim_bottle.evaluation.predictions import Predictions, Thresholds, called_maps
from padim_bottle.evaluation.regions import HIGHEST, called_pixels, find_regions


@pytest.fixture(scope="module")
def anomaly_map():
    """Touching corners, single pixels, ties."""
    return np.random.default_rng(0).integers(0, 64, (48, 64)).astype(np.float32) / 64


@pytest.mark.parametrize("threshold", [0.5, 0.9, 63 / 64, None])
def test_a_passed_photo_has_no_region_and_every_alarm_has_one(anomaly_map, threshold):
    assert not called_pixels(anomaly_map, False, threshold).any()
    alarm = called_pixels(anomaly_map, True, threshold)
    assert alarm.any() and find_regions(anomaly_map, alarm)
    if threshold is not None:
        np.testing.assert_array_equal(alarm, anomaly_map >= threshold)
        np.testing.assert_array_equal(called_pixels(anomaly_map, None, threshold), alarm)
    else:
        assert not called_pixels(anomaly_map, None, threshold).any()


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (100, 100)])
def test_an_alarm_below_the_pixel_threshold_points_at_the_highest_pixels(shape):
    raw = np.random.default_rng(1).permutation(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)
    called = called_pixels(raw, True, 1e6)
    assert called.sum() == max(1, round((1 - HIGHEST) * raw.size))
    assert raw[called].min() > raw[~called].max(initial=-1)
    # Also where the map was normalised: that keeps the order.
    np.testing.assert_array_equal(called_pixels(raw.astype(float) / (1 + raw), True, 1.0), called)


@pytest.mark.parametrize("factor", [1, 3])
def test_regions_are_those_of_scikit_image_in_pixels_of_the_photo(anomaly_map, factor):
    called = anomaly_map >= 0.9
    expected = regionprops(
        label(called, connectivity=2).repeat(factor, axis=0).repeat(factor, axis=1),
        anomaly_map.repeat(factor, axis=0).repeat(factor, axis=1),
    )
    assert len(expected) > 20
    found = find_regions(anomaly_map, called, tuple(factor * side for side in called.shape))
    assert [region.largest for region in found] == sorted((r.intensity_max for r in expected), reverse=True)

    ours = np.array(sorted((*region.box, region.area, region.mean) for region in found))
    theirs = [(left, top, right - left, bottom - top) for top, left, bottom, right in (r.bbox for r in expected)]
    theirs = [(*box, r.area, r.intensity_mean) for box, r in zip(theirs, expected, strict=True)]
    np.testing.assert_allclose(ours, sorted(theirs), rtol=1e-6)


@pytest.mark.parametrize("size", [(31, 47), (100, 90), (900, 1200), (1, 1)])
def test_a_box_holds_its_region_and_stays_in_a_photo_of_any_size(anomaly_map, size):
    called = np.zeros(anomaly_map.shape, dtype=bool)
    called[20, 63] = called[47, 0:3] = True
    regions = find_regions(anomaly_map, called, size)
    rows, columns = size[0] / 48, size[1] / 64
    for region in regions:
        left, top, width, height = region.box
        row, column = (20, 63) if region.largest == anomaly_map[20, 63] else (47, 0)
        assert top <= row * rows and top + height >= (row + 1) * rows
        assert left <= column * columns and left + width >= (column + 1) * columns
        assert min(left, top) >= 0 and left + width <= size[1] and top + height <= size[0]
        assert min(width, height, region.area) >= 1
    assert len(regions) == 2


def test_the_maps_of_a_run_are_called_by_its_verdicts(anomaly_map):
    scores = np.array([1.0, 2.0, 3.0])
    predictions = Predictions(["a", "b", "c"], ["good"] * 3, np.zeros(3, bool), scores, np.stack([anomaly_map] * 3))
    called = called_maps(predictions, Thresholds(2.0, 0.9, "a test"))
    assert called.any(axis=(1, 2)).tolist() == [False, True, True]
    assert called_maps(predictions, Thresholds(None, 0.9, "a test")).any(axis=(1, 2)).all()
    assert not called_maps(predictions, Thresholds(None, None, "a test")).any()
