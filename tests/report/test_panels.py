from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from padim_bottle.heat import COLOURMAP, HeatmapScale, write_png
from padim_bottle.report.panels import PREDICTION, TRUTH, draw_panels, lay_out, read_strip, write_strip

SIDE = 256
SCALE = HeatmapScale.from_threshold(20.0, 10.0)
NOWHERE = np.zeros((SIDE, SIDE), dtype=bool)


def square(top: int, left: int, side: int = 60) -> np.ndarray:
    mask = NOWHERE.copy()
    mask[top : top + side, left : left + side] = True
    return mask


def draw(**changes) -> np.ndarray:
    arguments = {
        "image": np.full((SIDE, SIDE, 3), 60, dtype=np.uint8),
        "anomaly_map": np.full((SIDE, SIDE), 10.0, dtype=np.float32),
        "mask": NOWHERE,
        "predicted_mask": NOWHERE,
        "scale": SCALE,
    }
    caption = changes.pop("caption", "good: score 12.00, threshold 20.00")
    arguments |= changes
    return lay_out(draw_panels(**arguments), arguments["scale"], caption)


def changed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Bounding box (top, bottom, left, right) of the pixels that differ."""
    rows, columns = np.nonzero((first != second).any(axis=-1))
    assert rows.size, "the pictures are equal"
    return np.array([rows.min(), rows.max(), columns.min(), columns.max()])


def pixels_like(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture.astype(int) - colour).max(axis=-1) < 25).sum())


def test_threshold_stands_at_the_same_colour_in_every_run():
    for threshold, typical in [(20.0, 10.0), (0.3, -0.1), (-5.0, -9.0)]:
        scale = HeatmapScale.from_threshold(threshold, typical)
        assert scale.low == pytest.approx(typical)
        assert (threshold - scale.low) / (scale.high - scale.low) == pytest.approx(0.4)
        assert scale.threshold == threshold


@pytest.mark.parametrize(("threshold", "typical"), [(7.0, 7.0), (0.0, 0.0), (1.0, 5.0)])
def test_a_threshold_that_is_not_above_the_typical_score_still_gives_a_scale(threshold, typical):
    scale = HeatmapScale.from_threshold(threshold, typical)
    assert scale.low < threshold < scale.high


@pytest.mark.parametrize("limits", [(2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_senseless_limits_are_refused(limits):
    with pytest.raises(ValueError, match="low <= high"):
        HeatmapScale(*limits)


def test_colours_run_from_the_darkest_to_the_brightest_and_clip():
    scale = HeatmapScale(-1.0, 3.0)
    colours = scale.colours(np.array([[-100, -1, 1, 3, 1e9, np.inf]], dtype=np.float32))
    assert colours.shape == (1, 6, 3) and colours.dtype == np.uint8
    for column, entry in enumerate([0, 0, 128, 255, 255, 255]):
        np.testing.assert_array_equal(colours[0, column], COLOURMAP[entry])


def test_the_colourmap_gets_brighter_at_every_step():
    luminance = COLOURMAP @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > -0.5).all()  # whole numbers of RGB allow no better
    assert luminance[0] < 5 and luminance[-1] > 240


def test_a_scale_without_extent_draws_everything_dark():
    np.testing.assert_array_equal(HeatmapScale(4.0, 4.0).colours(np.array([3.0, 4.0, 5.0])), COLOURMAP[[0, 0, 0]])


def test_a_good_bottle_looks_calm():
    good = np.full((SIDE, SIDE), 11.0, dtype=np.float32)
    defective = good + 20 * square(100, 100)
    calm, alarm = draw(anomaly_map=good), draw(anomaly_map=defective)
    top, bottom, left, right = changed(calm, alarm)
    panel = np.s_[top : bottom + 1, left : right + 1]
    assert calm[panel].max() < 60
    assert alarm[panel].mean() > calm[panel].mean() + 60


def test_each_input_changes_its_own_panel():
    base = draw()
    truth = draw(mask=square(100, 50))
    heat = draw(anomaly_map=np.where(square(100, 50), 30, 10).astype(np.float32))
    decision = draw(predicted_mask=square(100, 50))
    caption = draw(caption="anomalous: score 31.00, threshold 20.00")
    width, height = base.shape[1], base.shape[0]

    top, bottom, left, right = changed(base, heat)
    assert width / 2 < left < right < 3 * width / 4
    assert bottom - top == right - left == 59

    _, _, left, right = changed(base, decision)
    assert left > 3 * width / 4

    top, _, _, _ = changed(base, caption)
    assert top > SIDE

    _, bottom, left, right = changed(base, truth)
    assert width / 4 < left < width / 2  # its own panel, and once more for comparison ...
    assert right > 3 * width / 4  # ... beside the prediction
    assert bottom < height - 40


def test_outlines_differ_in_colour_and_line_style():
    truth, prediction = draw(mask=square(100, 100)), draw(predicted_mask=square(100, 100))
    row = changed(draw(), prediction)[0] + 2  # along the upper side of the square
    half = truth.shape[1] // 2

    def dashes(picture, colour, columns):
        is_colour = (np.abs(picture[row, columns].astype(int) - colour) < 25).all(axis=-1)
        return np.count_nonzero(np.diff(is_colour.astype(int)) == 1)

    left, right = slice(0, half), slice(half, None)
    assert dashes(prediction, PREDICTION, right) == 1
    assert dashes(truth, TRUTH, left) == dashes(truth, TRUTH, right) > 3
    assert dashes(prediction, PREDICTION, left) == dashes(prediction, TRUTH, right) == 0
    assert dashes(truth, PREDICTION, left) == 0


def test_a_mask_that_is_not_known_is_told_from_one_without_defect():
    unknown, clean = draw(mask=None), draw(mask=NOWHERE)
    _, _, left, right = changed(unknown, clean)
    quarter = unknown.shape[1] / 4
    assert quarter * 0.9 < left < right < 2 * quarter
    assert right - left == SIDE - 1  # the whole panel is left empty


def test_the_image_is_resized_to_the_map():
    coarse = np.zeros((90, 90, 3), dtype=np.uint8)
    coarse[:, 45:] = 200
    fine = coarse.repeat(10, axis=0).repeat(10, axis=1)
    from_coarse, from_fine = draw(image=coarse), draw(image=fine)
    assert from_coarse.shape == from_fine.shape == draw().shape
    difference = np.abs(from_coarse.astype(int) - from_fine).max(axis=(0, 2))
    assert (difference > 20).sum() <= 4 * 6  # only at the edge, in each of four panels


def test_small_maps_are_enlarged_and_rectangular_ones_keep_their_shape():
    small = np.zeros((32, 48), dtype=bool)
    small[8:16, 8:16] = True
    picture = draw(
        image=np.full((32, 48, 3), 60, dtype=np.uint8),
        anomaly_map=np.where(small, 30, 10).astype(np.float32),
        mask=small,
        predicted_mask=small,
    )
    assert picture.shape[0] > 7 * 32 and picture.shape[1] > 4 * 7 * 48
    assert pixels_like(picture, TRUTH) > 200


@pytest.mark.parametrize(("height", "width"), [(256, 256), (32, 48), (100, 60), (300, 900)])
def test_a_strip_shows_the_panels_side_by_side(height, width, tmp_path):
    zoom = -(-224 // min(height, width))
    image = np.tile(np.linspace(0, 255, width * zoom).astype(np.uint8)[:, None], (height * zoom, 1, 3))
    nowhere = np.zeros((height, width), dtype=bool)
    panels = draw_panels(image, np.zeros((height, width), np.float32), nowhere, nowhere, SCALE)
    for panel in (panels.photograph, panels.truth, panels.decision):
        np.testing.assert_array_equal(panel, image)
    write_strip(tmp_path / "strip.jpg", panels)
    photograph, heat, decision = np.hsplit(np.asarray(read_strip(tmp_path / "strip.jpg")).astype(int), 3)
    assert len(photograph) == min(256, height * zoom)
    np.testing.assert_allclose(photograph[5], np.linspace(0, 255, photograph.shape[1])[:, None].repeat(3, 1), atol=9)
    assert np.abs(photograph - decision).max() < 12
    # All low scores: a mixture of the grey photograph and the darkest colour.
    assert 0.25 * 255 < heat.max() < 0.4 * 255
    assert (tmp_path / "strip.jpg").stat().st_size < 40_000


@pytest.mark.parametrize("value", [-3.0, 10.0, 1e6])
def test_constant_maps_are_drawn_without_complaint(value):
    with np.errstate(all="raise"):
        picture = draw(anomaly_map=np.full((SIDE, SIDE), value, dtype=np.float32), scale=HeatmapScale(value, value))
    # With the darkest colour everywhere, the value itself does not show, apart from the bar's numbers.
    reference = draw(scale=HeatmapScale(10.0, 10.0))
    heat_panel = np.s_[30:270, 540:780]
    np.testing.assert_array_equal(picture[heat_panel], reference[heat_panel])


def test_a_map_with_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        draw(anomaly_map=np.full((SIDE, SIDE), np.nan, dtype=np.float32))


def test_inputs_are_left_alone():
    image = np.full((SIDE, SIDE, 3), 60, dtype=np.uint8)
    scores = np.linspace(0, 40, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    mask, predicted = square(90, 90), square(100, 100)
    copies = [array.copy() for array in (image, scores, mask, predicted)]
    draw(image=image, anomaly_map=scores, mask=mask, predicted_mask=predicted)
    for array, copy in zip((image, scores, mask, predicted), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_threads_draw_the_same_pictures():
    masks = [square(10 * i, 5 * i) for i in range(16)]
    alone = [draw(mask=mask, caption=f"score {i}") for i, mask in enumerate(masks)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: draw(mask=masks[i], caption=f"score {i}"), range(16)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_png_keeps_every_pixel_and_makes_its_folder(tmp_path, shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "images/broken_large/003.png"
    write_png(path, picture)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    assert [file.name for file in path.parent.iterdir()] == ["003.png"]


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 4), dtype=np.uint8)])
def test_what_is_no_picture_is_not_written(tmp_path, array):
    with pytest.raises(ValueError, match="uint8"):
        write_png(tmp_path / "x.png", array)
    assert list(tmp_path.iterdir()) == []
