"""AUPRO and AUPIMO against slow, literal readings of their definitions; test_numbers.py holds the other curves."""

from itertools import pairwise

import numpy as np
import pytest
from skimage.measure import label as label_regions

from padim_bottle.evaluation.curves import aupimo, aupimo_interval, region_weights, trace_curve


def trace_maps(maps, masks):
    return trace_curve([np.sort(maps[~masks])], maps[masks], region_weights(masks))


def aupro_by_definition(maps, masks, fpr_limit):
    """Threshold by threshold and region by region, as Bergmann et al. describe it."""
    regions = []
    for image, mask in enumerate(masks):
        labelled = label_regions(mask, connectivity=2)
        regions += [(image, labelled == number) for number in range(1, labelled.max() + 1)]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        predicted = maps >= threshold
        overlaps = [predicted[image][region].mean() for image, region in regions]
        points.append((predicted[~masks].mean(), float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= fpr_limit:
            break
        if x1 > fpr_limit:
            x1, y1 = fpr_limit, y0 + (y1 - y0) * (fpr_limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / fpr_limit


def random_maps(rng, levels, size=(4, 12, 10)):
    """Maps with at most `levels` distinct values and blobs of defects, the first image without any."""
    masks = rng.random(size) < 0.15
    masks[0] = False
    return (rng.integers(0, levels, size) + 2 * masks).astype(np.float32) - 7, masks


@pytest.mark.parametrize("levels", [1, 2, 5, 40, 10**6])
@pytest.mark.parametrize("fpr_limit", [0.05, 0.3, 1.0])
def test_aupro_equals_its_definition(levels, fpr_limit):
    maps, masks = random_maps(np.random.default_rng(levels), levels)
    expected = aupro_by_definition(maps, masks, fpr_limit)
    assert trace_maps(maps, masks).aupro(fpr_limit) == pytest.approx(expected, abs=1e-9)


def test_aupro_of_perfect_and_constant_maps():
    _, masks = random_maps(np.random.default_rng(0), 2)
    assert trace_maps(masks.astype(np.float32), masks).aupro() == pytest.approx(1.0)
    # one point (1, 1): the curve is the diagonal, whose area up to 0.3 is 0.045, over 0.3
    constant = trace_maps(np.full(masks.shape, 3.0, np.float32), masks)
    assert constant.aupro() == pytest.approx(0.15)
    assert constant.auroc == 0.5


@pytest.mark.parametrize("limit", [3 / 11, 0.3, 4 / 11, 5 / 11])
def test_aupro_where_the_limit_falls_on_a_vertical_step(limit):
    maps = np.array([[[9, 9, 9, 5, 5, 1, 1, 1, 1, 1, 1, 8, 7]]], dtype=np.float32)
    masks = np.zeros(maps.shape, dtype=bool)
    masks[..., [3, 11]] = True  # overlap rises from 0 to 0.5 at FPR 3/11, and on at the tie of 5
    expected = aupro_by_definition(maps, masks, limit)
    assert trace_maps(maps, masks).aupro(limit) == pytest.approx(expected, abs=1e-12)
    assert (expected == 0.0) == (limit == 3 / 11)


def test_regions_touch_at_corners_but_not_across_images():
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0, [0, 1], [0, 1]] = True  # one region of two pixels that meet at a corner
    masks[0, 3, 3] = True
    masks[1, 3, 3] = True  # same place in the next image: another region
    np.testing.assert_array_equal(region_weights(masks), [0.5, 0.5, 1.0, 1.0])
    assert region_weights(masks[:0]).shape == (0,)


def test_aupro_needs_regions():
    with pytest.raises(ValueError, match="overlap_weights"):
        trace_curve([np.arange(2.0)], np.arange(2.0)).aupro()


def aupimo_by_definition(good, maps, masks, bounds):
    """Threshold by threshold and image by image, as Bertoldo et al. describe it, over log10 of the rate."""
    # Just above and exactly at every score of a good pixel; between them the rate stands still.
    scores = np.unique(good)[::-1].astype(np.float64)
    thresholds = np.stack([np.nextafter(scores, np.inf), scores], axis=1).ravel()
    areas = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        points = []
        for threshold in thresholds:
            rate = np.mean([(image >= threshold).mean() for image in good])
            points.append((np.clip(rate, *bounds), (anomaly_map[mask] >= threshold).mean()))
        area = sum((np.log10(x1) - np.log10(x0)) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))
        areas.append(area / np.log10(bounds[1] / bounds[0]))
    return areas


@pytest.mark.parametrize("bounds", [(0.01, 0.1), (0.0625, 0.5), (0.03, 1.0)])
@pytest.mark.parametrize("tied", [False, True])
def test_aupimo_is_its_definition(bounds, tied):
    rng = np.random.default_rng(3)
    good, maps = rng.standard_normal((2, 5, 8, 10)).astype(np.float32)
    masks = rng.random(maps.shape) < 0.2
    maps[1:] += masks[1:] * np.linspace(0.5, 3, 4)[:, None, None].astype(np.float32)
    if tied:
        good, maps = np.round(good, 1), np.round(maps, 1)
    areas = aupimo(good, maps, masks, bounds)
    np.testing.assert_allclose(areas, aupimo_by_definition(good, maps, masks, bounds), atol=1e-12)
    assert areas.min() < areas.max()


def test_the_interval_of_aupimo_is_of_other_good_images():
    rng = np.random.default_rng(4)
    good, maps = rng.standard_normal((2, 6, 8, 10)).astype(np.float32)
    good[0] += 1  # one image decides
    masks = rng.random(maps.shape) < 0.2
    maps[masks] += 1.5
    bounds = (0.01, 0.3)
    found = aupimo_interval(good, maps, masks, bounds, confidence=0.8, resamples=50, seed=7)
    drawn = np.random.default_rng(7).integers(6, size=(50, 6))
    means = [aupimo(good[chosen], maps, masks, bounds).mean() for chosen in drawn]
    assert found == pytest.approx(np.quantile(means, [0.1, 0.9]))
    assert found[0] + 0.05 < aupimo(good, maps, masks, bounds).mean() < found[1] - 0.05
    assert aupimo_interval(good[:1], maps, masks, bounds) is None


def test_aupimo_of_a_perfect_and_of_a_blind_map():
    good = np.arange(100.0).reshape(1, 10, 10)
    masks = np.ones((2, 1, 4), dtype=bool)
    maps = np.array([[[200.0] * 4], [[-1.0] * 4]])
    assert aupimo(good, maps, masks, (0.01, 0.1)) == pytest.approx([1, 0])
    # 100 good pixels cannot tell a rate below .01
    assert aupimo(good, maps, masks, (0.009, 0.1)) is None
