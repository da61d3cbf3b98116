"""An area of the photos that counts: what lies outside has no Gaussians, no score and no metric."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from small_padim import fit, predict, small_padim, training_images

from padim_bottle.errors import UserError
from padim_bottle.evaluation.metrics import evaluate
from padim_bottle.evaluation.predictions import Predictions, Thresholds, predictions_table
from padim_bottle.model.area import check_aspect, read_area, resize_area, touched

ROWS, COLUMNS = slice(16, 48), slice(8, 40)


def area_picture(path, rows=ROWS, columns=COLUMNS, size=64):
    picture = np.zeros((size, size), np.uint8)
    picture[rows, columns] = 255
    cv2.imwrite(str(path), picture)
    return str(path)


def grey(value):
    return np.full((64, 64), value, np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"no picture", "no picture that can be read"),
        (np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "in colour"),
        (np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8), "not black and white"),
        (np.dstack([grey(255)] * 3 + [np.arange(64 * 64).reshape(64, 64) // 17]).astype(np.uint8), "transparent"),
        (grey(0), "all black"),
        (np.pad(np.full((1, 1), 255, np.uint8), ((0, 63), (0, 63))), "nothing of it is left at 8 x 8"),
    ],
)
def test_what_is_no_area_is_said_in_words(tmp_path, content, words):
    path = tmp_path / "region.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        cv2.imwrite(str(path), content)
    with pytest.raises(UserError, match=words):
        resize_area(read_area(path), (8, 8), path)


def test_soft_edges_are_cut_at_half_and_any_size_of_the_aspect_will_do(tmp_path):
    path = tmp_path / "region.png"
    hard = cv2.imread(area_picture(path), cv2.IMREAD_UNCHANGED)
    for picture in (hard, cv2.GaussianBlur(hard, (5, 5), 1), np.dstack([hard] * 3), hard.astype(np.uint16) * 257):
        cv2.imwrite(str(path), picture)
        found = read_area(path)
        assert (found != (hard > 0)).sum() <= 8
    large = resize_area(hard.repeat(3, axis=0).repeat(3, axis=1) > 0, (64, 64), path)
    np.testing.assert_array_equal(large, hard > 0)
    check_aspect(found, (1280, 1275), path)
    with pytest.raises(UserError, match="64 x 64 pixels, and photos have 1280 x 1024"):
        check_aspect(found, (1280, 1024), path)


@pytest.mark.parametrize("shape", [(16, 16), (5, 7)])
def test_a_position_counts_where_any_of_its_pixels_does(shape):
    area = np.zeros((64, 64), bool)
    area[ROWS, COLUMNS] = True
    literal = np.zeros(shape, bool)
    for row, column in np.argwhere(area):
        literal[int(row / 64 * shape[0]), int(column / 64 * shape[1])] = True
    np.testing.assert_array_equal(touched(area, shape), literal)


@pytest.fixture(scope="module")
def trained(bottles, tmp_path_factory):
    picture = area_picture(tmp_path_factory.mktemp("area") / "region.png")
    model = fit(small_padim(region=picture), bottles)
    return model, predict(model, bottles)


@pytest.fixture(scope="module")
def without_area(bottles):
    model = fit(small_padim(), bottles)
    return model, predict(model, bottles)


def test_outside_there_are_no_gaussians_and_maps_are_zero(trained, without_area):
    (model, recorded), (whole, recorded_whole) = trained, without_area
    # 8 x 8 of 16 x 16 positions.
    assert model.model.gaussian.mean.shape[0] == 64 and whole.model.gaussian.mean.shape[0] == 256
    outside = ~model.model.area.numpy()
    assert outside.mean() == 0.75
    assert not recorded["maps"][:, outside].any() and (recorded["maps"][:, ~outside] > 0).all()
    # Well inside, where nothing outside is smoothed in: as without an area.
    inner = np.s_[:, 28:36, 20:28]
    np.testing.assert_allclose(recorded["maps"][inner], recorded_whole["maps"][inner], rtol=0.02)
    # Thresholds are those of the pixels inside, literally.
    maps = model.leave_one_out_maps(range(12)).numpy()[:, ~outside]
    ordered = np.sort(maps.ravel())
    assert model.post_processor.pixel_threshold.item() == pytest.approx(
        ordered[int(np.ceil(0.9995 * len(ordered))) - 1]
    )
    means = model.post_processor.calibration_map_means.numpy()
    np.testing.assert_allclose(means, maps.sum(axis=1) / outside.size, rtol=1e-4)
    z = (recorded["maps"].numpy() - model.model.scored_mean.numpy()) / model.model.scored_std.numpy()
    np.testing.assert_allclose(recorded["scores"], z[:, ~outside].max(axis=1), rtol=1e-4)


def test_what_happens_outside_says_nothing(trained, bottles):
    """As far as the backbone does not see it from inside: the fit never did."""
    model = trained[0].model
    images = training_images(trained[0], bottles)[:2]
    features = {name: feature.clone() for name, feature in model.feature_extractor(images).items()}
    before = model.score(features, images)
    for feature in features.values():
        feature[..., feature.shape[-1] * 7 // 8 :] = 1e6
    after = model.score(features, images)
    torch.testing.assert_close(after.pred_score, before.pred_score)
    torch.testing.assert_close(after.anomaly_map, before.anomaly_map)


def test_an_area_goes_with_all_that_maps_are_made_of(bottles, tmp_path):
    picture = area_picture(tmp_path / "region.png")
    grids = {"grids": [["layer1"], ["layer1", "layer2", "layer3"]], "n_features": None, "share": [2, 1]}
    model = fit(small_padim(region=picture, image_score="distances", guided=3, damped=True, **grids), bottles)
    recorded = predict(model, bottles)
    assert [len(grid.gaussian.mean) for grid in model.model.grids] == [64, 6]
    outside = ~model.model.area.numpy()
    assert not recorded["maps"][:, outside].any() and recorded["maps"][:, ~outside].any()
    # Mean maps are compared for drift: those of new photos count the zeros outside, so those of the training do.
    maps = model.leave_one_out_maps(range(12))
    torch.testing.assert_close(
        model.post_processor.calibration_map_means.cpu(), maps.mean(dim=(1, 2)), rtol=1e-4, atol=0
    )
    with pytest.raises(UserError, match="tolerance: 0"):
        small_padim(region=picture, tolerance=1)


def test_an_area_of_all_is_none(bottles, tmp_path, without_area):
    everything = area_picture(tmp_path / "region.png", slice(None), slice(None))
    found = predict(fit(small_padim(region=everything), bottles), bottles)
    torch.testing.assert_close(found, without_area[1])


def test_metrics_are_those_of_the_pixels_inside():
    rng = np.random.default_rng(0)
    labels = np.arange(12) >= 5
    masks = np.zeros((12, 64, 64), bool)
    masks[5:, 20:30, 12:20] = masks[7:, 40:44, 30:36] = True
    maps = (rng.gamma(3, 1, masks.shape) + 2 * masks).astype(np.float32)
    area = np.zeros((64, 64), bool)
    area[ROWS, COLUMNS] = True
    types = np.where(labels, "hole", "good").tolist()
    thresholds = Thresholds(4.0, 6.0, "a test")

    def predictions(maps, masks, area=None):
        return Predictions([str(i) for i in range(12)], types, labels, 1.0 * np.arange(12), maps, masks, area=area)

    maps[:, ~area], masks[8:, 2:6] = 100.0, True  # what would be seen if it counted
    inside, cropped = (
        predictions(maps, masks, area),
        predictions(maps[:, ROWS, COLUMNS], masks[:, ROWS, COLUMNS]),
    )
    expected = evaluate(cropped, thresholds)
    assert expected["pixel_AUPRO"] > 0.4
    assert evaluate(inside, thresholds) == expected
    assert len(predictions_table(inside, thresholds)) == 12


@pytest.mark.slow
def test_a_run_and_its_export_know_the_area(bottles, run_folder, tmp_path):
    from small import small_config, write_config

    from padim_bottle.commands.command_line import run_verb
    from padim_bottle.data.images import read_image
    from padim_bottle.predict.predictor import load_predictor

    picture, folder = tmp_path / "region.png", bottles / "bottle"
    area_picture(picture, size=128, rows=slice(32, 96), columns=slice(16, 80))
    config = write_config(tmp_path / "small.yaml", small_config(report=False))
    words = ["--config", config, "--photos", folder / "train" / "good", "--test", folder / "test", "--region", picture]
    assert run_verb("train", [*map(str, words), "--results", str(tmp_path), "--experiment", "inside"]) == 0
    place = tmp_path / "inside" / "seed_42"
    metrics = json.loads((place / "metrics.json").read_text())
    assert metrics["model"]["region"] == "region.png"
    assert "Only the region counts, 25.0% of the photo, in pixel metrics too." in metrics["data"]["left_out"]
    # Without the picture: the model has it.
    picture.unlink()
    table = pd.read_csv(place / "predictions.csv")
    predictions = load_predictor(place, device="cpu").predict([read_image(path) for path in table["image_path"]])
    np.testing.assert_allclose([p.score for p in predictions], table["score"], rtol=1e-4, atol=1e-5)
    area = np.zeros((64, 64), bool)
    area[ROWS, COLUMNS] = True
    for prediction in predictions:
        assert prediction.anomaly_map[~area].max() == prediction.anomaly_map.min()
        assert prediction.anomalous == bool(prediction.regions) and not prediction.mask[~area].any()
    assert run_verb("export", ["--model", str(place), "--format", "openvino"]) == 0  # made of an ONNX model
    report = json.loads((place / "export" / "report.json").read_text())
    assert report["passed"]
    for figures in report["metrics"].values():
        assert figures["pixel_AUPRO"] == pytest.approx(metrics["pixel_AUPRO"], abs=1e-3)
    # The same model of the whole photo.
    assert metrics["checkpoint_bytes"] < (run_folder / "model.ckpt").stat().st_size
