"""Maps from several grids: against anomalib's Gaussians, against refitting, and against literal formulas."""

import logging
import math

import cv2
import numpy as np
import pytest
import torch
from anomalib.models.components import MultiVariateGaussian
from sklearn.metrics import roc_auc_score
from small_padim import SIZE, fit, predict, run, saved, small_padim, training_images
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.functional import normalize

from padim_bottle import Padim
from padim_bottle.data.synthetic import DEFECTS, render_bottle
from padim_bottle.errors import UserError
from padim_bottle.model import gaussian
from padim_bottle.model.anomaly_map import fuse, guide
from padim_bottle.model.embedding import PatchEmbedding, mean_pool
from padim_bottle.model.grid import PatchGrid
from padim_bottle.model.network import PadimModel
from padim_bottle.model.rule import Rule

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
GRIDS = [["layer1"], ["layer1", "layer2", "layer3"]]


def two_grids(**options):
    return small_padim(**{"grids": GRIDS, "n_features": None, **options})


@pytest.fixture(scope="module")
def trained(bottles):
    return fit(two_grids(), bottles)


def test_each_grids_gaussians_equal_anomalibs(trained, bottles):
    model = trained
    images = training_images(model, bottles)
    with torch.no_grad():
        features = model.model.feature_extractor(images)
    pooled = [F.adaptive_avg_pool2d(features[layer], 4) for layer in GRIDS[1]]
    for grid, embedding in zip(model.model.grids, (features["layer1"], torch.cat(pooled, 1)), strict=True):
        theirs = MultiVariateGaussian()
        theirs.fit(embedding)
        torch.testing.assert_close(grid.gaussian.mean, theirs.mean.T, rtol=1e-5, atol=1e-6)
        expected = theirs.inv_covariance
        largest = expected.abs().amax(dim=(1, 2), keepdim=True)
        assert ((grid.gaussian.inv_covariance - expected).abs() / largest).max() < 1e-5


@pytest.mark.parametrize(
    "options", [{}, {"share": 2}, {"share": [3, 1], "tolerance": 1}, {"share": [2, 1], "region": True}], ids=str
)
def test_leave_one_out_maps_equal_refitting(bottles, tmp_path, monkeypatch, options):
    if "region" in options:
        options = {**options, "region": str(tmp_path / "region.png")}
        cv2.imwrite(options["region"], np.pad(np.full((30, 50), 255, np.uint8), ((10, 16), (5, 17))))
    size = (56, 72) if options else (64, 64)  # 14 x 18 positions: no whole number of cells of 3 x 3
    options = {**options, "image_size": size, "image_score": "distances", "position_calibration": False}
    model = fit(two_grids(**options), bottles)
    images = training_images(model, bottles)
    maps, scores = model.leave_one_out_maps([0, 5, 11]), model.training_scores.scores
    # The ridge is a fixed scatter: that of all 12 images.
    monkeypatch.setattr(gaussian, "COVARIANCE_EPSILON", gaussian.COVARIANCE_EPSILON * 11 / 10)
    refitted = two_grids(**options).model
    refitted.look_at(model.model.area.numpy() if "region" in options else None)
    for row, i in enumerate((0, 5, 11)):
        refitted.reset()
        refitted.train()
        refitted(torch.cat([images[:i], images[i + 1 :]]))
        refitted.fit()
        for grid, fitted in zip(refitted.grids, model.model.grids, strict=True):
            grid.typical.copy_(fitted.typical)  # of all images, by definition
        found = refitted.eval()(images[i : i + 1])
        torch.testing.assert_close(maps[row], found.anomaly_map[0, 0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(scores[i], found.pred_score[0, 0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(4, 4), (5, 3)])
def test_a_cells_positions_share_their_mean_covariance_and_have_means_of_their_own(shape):
    """Literally, at every position: cells at the border have fewer positions."""
    features = {"layer": torch.randn(30, 6, *shape, generator=torch.Generator().manual_seed(0)).double()}
    features["layer"][:, :, 1] *= 3
    grid = PatchGrid(PatchEmbedding({"layer": 6}, 6), share=2)
    grid.collect(features)
    grid.fit(None)
    found = grid.distance(features)
    x = features["layer"].permute(0, 2, 3, 1)
    for row, column in np.ndindex(*shape):
        cell = x[:, row // 2 * 2 :, column // 2 * 2 :][:, :2, :2].flatten(1, 2)
        covariance = torch.stack([torch.cov(cell[:, k].T) for k in range(cell.shape[1])]).mean(0)
        covariance += gaussian.COVARIANCE_EPSILON * torch.eye(6)
        delta = x[:, row, column] - x[:, row, column].mean(0)
        expected = (delta * torch.linalg.solve(covariance, delta.T).T).sum(1).sqrt()
        torch.testing.assert_close(found[:, row, column].double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("tolerance", [1, 2])
def test_tolerance_is_the_smallest_distance_to_the_gaussians_around(tolerance):
    features = {"layer": torch.randn(30, 5, 4, 3, generator=torch.Generator().manual_seed(0))}
    near, strict = (PatchGrid(PatchEmbedding({"layer": 5}, 5), tolerance=t) for t in (tolerance, 0))
    for grid in (near, strict):
        grid.collect(features)
        grid.fit(None)
    found = near.distance(features)
    for row, column in np.ndindex(4, 3):
        x = features["layer"][:, :, row, column]
        everywhere = x[:, :, None, None].expand(-1, -1, 4, 3)  # what is here, shown to all Gaussians
        distances = strict.distance({"layer": everywhere})
        top, left = max(0, row - tolerance), max(0, column - tolerance)
        around = distances[:, top : row + tolerance + 1, left : column + tolerance + 1]
        torch.testing.assert_close(found[:, row, column], around.flatten(1).amin(1), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_tolerance_is_for_parts_that_lie_a_little_elsewhere_in_each_photo(real_weights):
    """Drawn bottles, turned at random as they are drawn, and shifted by up to a position of the coarse grid."""

    def photos(seed, count, kinds=(None,)):
        rng = np.random.default_rng(seed)
        pictures = [render_bottle(rng, 128, kinds[number % len(kinds)])[0] for number in range(count)]
        shifted = [np.roll(picture, rng.integers(-16, 17, 2), (0, 1)) for picture in pictures]
        return normalize(torch.from_numpy(np.stack(shifted)).permute(0, 3, 1, 2) / 255, MEAN, STD)

    good, new, defective = photos(0, 20), photos(1, 30), photos(2, 60, list(DEFECTS))
    found = {}
    for tolerance in (0, 1):
        model = PadimModel(
            f"local-dir:{real_weights / 'resnet18.tv_in1k'}", ["layer1", "layer2", "layer3"], True, None,
            grids=GRIDS, share=[2, 1], tolerance=tolerance, image_score="distances",
        )  # fmt: skip
        model.calibrating = True
        model.train()(good)
        threshold = Rule.calibrated(model.fit_and_calibrate(0.999).scores, 0.1).threshold
        scores = [model.eval()(images).pred_score.flatten() for images in (new, defective)]
        found[tolerance] = roc_auc_score([0] * 30 + [1] * 60, torch.cat(scores)), threshold
    assert found[1][0] > found[0][0] + 0.01
    assert found[1][1] < found[0][1]


def test_the_coarsest_grid_has_so_many_positions_whatever_the_images_size(bottles):
    model = fit(two_grids(coarsest_side=3, image_size=(64, 96)), bottles)
    features = model.model.feature_extractor(training_images(model, bottles))
    pooled = torch.cat([F.adaptive_avg_pool2d(features[layer], (2, 3)) for layer in GRIDS[1]], 1)
    torch.testing.assert_close(model.model.grids[1].gaussian.mean, pooled.mean(0).flatten(1).T, rtol=1e-4, atol=1e-5)
    assert model.model.grids[0].gaussian.mean.shape == (16 * 24, 64)


def test_a_photo_that_looks_good_damps_its_map(bottles, tmp_path):
    options = {"image_score": "distances", "share": [2, 1]}
    plain, damped = (fit(two_grids(**options, damped=damped), bottles) for damped in (False, True))
    flat, found = (predict(model, bottles) for model in (plain, damped))
    assert torch.equal(found["scores"], flat["scores"])
    # The thresholds do not know it.
    assert torch.equal(damped.post_processor.pixel_threshold, plain.post_processor.pixel_threshold)
    scores = plain.training_scores.scores
    maps = plain.leave_one_out_maps(range(12))
    level = np.sort(np.quantile(maps.flatten(1), 0.99, axis=1, method="inverted_cdf"))[5]  # the lower median of 12
    half = torch.nextafter(scores.max(), torch.tensor(torch.inf))  # of 12 photos, for 5 %

    def expected(s, u):
        w = torch.sigmoid((u - half) / scores.std())[:, None, None]
        return s.clamp(max=level) + w * (s - level).clamp(min=0)

    torch.testing.assert_close(found["maps"], expected(flat["maps"], flat["scores"]), rtol=1e-4, atol=1e-5)
    left_out = damped.leave_one_out_maps(range(12))
    torch.testing.assert_close(left_out, expected(maps, scores), rtol=1e-4, atol=1e-5)
    # Drift is told by the maps that new photos have.
    torch.testing.assert_close(damped.post_processor.calibration_map_means, left_out.mean((1, 2)), rtol=1e-4, atol=0)
    restored = Padim.load_from_checkpoint(saved(damped, tmp_path / "model.ckpt"))
    assert torch.equal(predict(restored, bottles)["maps"], found["maps"])


def test_the_map_is_the_formula_of_the_distances(trained, bottles):
    model = trained.model
    images = training_images(trained, bottles)[:2]
    with torch.no_grad():
        features = model.feature_extractor(images)
        fine, coarse = (grid.distance(features).square() / grid.typical for grid in model.grids)
        coarse = F.interpolate(coarse[:, None], size=fine.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        evidence = torch.log(1 + coarse) + torch.log(1 + torch.minimum(fine, coarse))
        torch.testing.assert_close(
            model(images).anomaly_map, model.anomaly_map_generator(evidence[:, None], SIZE), rtol=1e-4, atol=1e-5
        )


def test_typical_values_are_the_means_of_the_lifted_squared_leave_one_out_distances(trained):
    fine, coarse = trained.model._left_out
    lifted = F.interpolate(coarse.square()[:, None], size=fine.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(trained.model.grids[0].typical, fine.square().mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(trained.model.grids[1].typical, lifted.mean(), rtol=1e-5, atol=0)


def test_support_zero_is_the_coarse_grid_alone_and_infinity_both_in_full():
    fine, coarse = torch.rand(1, 8, 8) * 3, torch.rand(1, 8, 8) * 3
    typical = [torch.tensor(2.0), torch.tensor(0.5)]
    torch.testing.assert_close(fuse([fine, coarse], typical, 0.0), torch.log1p(2 * coarse**2))
    both = torch.log1p(fine**2 / 2) + torch.log1p(2 * coarse**2)
    torch.testing.assert_close(fuse([fine, coarse], typical, math.inf), both)
    assert (fuse([fine, coarse], typical, 0.5) <= fuse([fine, coarse], typical, 1.0)).all()


@pytest.mark.parametrize(("size", "grid"), [((16, 16), (4, 4)), ((15, 23), (4, 6)), ((7, 7), (7, 7))])
def test_pooling_averages_over_the_cells_of_the_coarser_grid(size, grid):
    feature = torch.rand(2, 3, *size)
    torch.testing.assert_close(mean_pool(feature, grid), F.adaptive_avg_pool2d(feature, grid))


def test_the_guided_filter_is_he_et_als(tmp_path):
    """Their linear model a I + b in every window, averaged over the windows of a pixel; OpenCV makes the means."""
    generator = torch.Generator().manual_seed(0)
    photo, anomaly_map = torch.rand(2, 1, 1, 40, 50, generator=generator)
    image, p = photo[0, 0].double().numpy(), anomaly_map[0, 0].double().numpy()

    def mean(x):
        return cv2.blur(x, (7, 7), borderType=cv2.BORDER_REFLECT_101)

    a = (mean(image * p) - mean(image) * mean(p)) / (mean(image**2) - mean(image) ** 2 + 1e-3)
    b = mean(p) - a * mean(image)
    expected = mean(a) * image + mean(b)
    np.testing.assert_allclose(guide(anomaly_map, photo, 3)[0, 0], expected, rtol=1e-3, atol=1e-4)


def test_leave_one_out_maps_are_guided_by_their_own_photos(trained, bottles):
    plain, guided = trained, fit(two_grids(guided=3), bottles)
    images = training_images(plain, bottles)[[2, 7]]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    photos = (images * std + mean).mean(1, keepdim=True)
    expected = guide(plain.leave_one_out_maps([2, 7])[:, None], photos, 3)[:, 0]
    torch.testing.assert_close(guided.leave_one_out_maps([2, 7]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"n_features": 50, "guided": 2},
        {"support": math.inf},
        {"grids": [["layer2", "layer3"]], "n_features": 30},
        {
            "grids": [["layer1"], ["layer2"], ["layer1", "layer3"]],
            "image_size": (48, 80),
            "share": [3, 2, 1],
            "tolerance": 1,
        },
        {"grids": None, "n_features": 30, "share": 2, "image_score": "distances", "damped": True},
    ],
)
def test_every_option_trains_and_restores(bottles, tmp_path, options):
    model = fit(two_grids(seed=1, checkpoint_precision="float16", **options), bottles)
    found = predict(model, bottles)
    assert found["scores"].isfinite().all()
    restored = predict(Padim.load_from_checkpoint(saved(model, tmp_path / "model.ckpt")), bottles)
    assert torch.equal(restored["scores"], found["scores"]) and torch.equal(restored["maps"], found["maps"])


def test_where_all_channels_are_kept_nothing_is_random(trained):
    assert not trained.model.is_random
    assert two_grids(n_features=100).model.is_random
    assert small_padim().model.is_random
    assert not small_padim(n_features=448).model.is_random


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grids": []}, "at least one list"),
        ({"grids": [["layer1"], ["layer9"]]}, "no layer9"),
        ({"grids": [["layer3"], ["layer1"]]}, "from fine to coarse"),
        ({"calibration": False}, "calibration: true"),
        ({"support": -1.0}, "support: -1.0"),
        ({"sigma": 0}, "sigma: 0 is not more than 0"),
        ({"sigma": 16.0}, "sigma: 16.0 is not more than 0 and less than a quarter"),
        ({"guided": 0}, "guided: 0 is no radius"),
        ({"guided": 40}, "guided: 40 is no radius"),
        ({"n_features": 0}, "less than 1"),
        ({"share": 0}, "share: 0 is not a number of 1 or more"),
        ({"share": [2]}, "or one for each of the grids"),
        ({"coarsest_side": 0}, "coarsest_side: 0"),
        ({"tolerance": -1}, "tolerance: -1 is not 0 or more"),
        ({"tolerance": 1, "share": 2}, "last grid's share is not 1"),
        ({"calibration": False, "grids": None, "damped": True}, "damped: it needs calibration: true"),
    ],
)
def test_impossible_grids_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        two_grids(**options)


@pytest.mark.parametrize("grids", [None, GRIDS])
def test_training_again_starts_afresh(bottles, tmp_path, grids):
    once = fit(small_padim(grids=grids, n_features=40 if grids is None else None), bottles)
    first = predict(once, bottles)
    loaded = Padim.load_from_checkpoint(saved(once, tmp_path / "model.ckpt"))
    images = training_images(once, bottles)[:2]
    for model in (once, loaded):
        model.collect(model.model.features(images), images, ["", ""])  # of a training that was interrupted
        again = predict(fit(model, bottles), bottles)
        assert torch.equal(again["scores"], first["scores"])
        assert torch.equal(again["maps"], first["maps"])
    if grids is None:  # a trainer does the same
        again, _ = run(loaded, bottles, tmp_path)
        torch.testing.assert_close(again["scores"], first["scores"], rtol=1e-4, atol=1e-4)


def test_parts_and_copies_are_left_out_together(bottles, tmp_path, caplog):
    """Photos 007 and 008 of the training set show what 000 and 001 show: an exact copy, and one that is named."""
    root = tmp_path / "bottles"
    good = root / "bottle" / "train" / "good"
    good.mkdir(parents=True)
    for photo in sorted((bottles / "bottle" / "train" / "good").glob("*.png"))[:8]:
        (good / f"part{photo.stem}_a.png").write_bytes(photo.read_bytes())
    (good / "part900_b.png").write_bytes((good / "part000_a.png").read_bytes())
    for name in ("test", "ground_truth"):
        (root / "bottle" / name).symlink_to(bottles / "bottle" / name)
    model = small_padim(group=r"part(\d+)_")
    with caplog.at_level(logging.WARNING):
        fit(model, root)
    assert "1 of 9 training photos are copies" in caplog.text
    assert len(model.post_processor.calibration_scores) == 9
    told = model.training_scores
    assert [kind for _, _, kind in told.copies] == ["exact"]
    assert told.copies[0][1].endswith("part900_b.png")
    np.testing.assert_allclose(
        told.p_values.numpy(), [(told.scores >= score).sum().item() / 9 for score in told.scores], rtol=1e-6
    )
    joined = small_padim(group=r"part(\d+)_", copies="group")
    with caplog.at_level(logging.WARNING):
        fit(joined, root)
    assert "parts, there are 8" in caplog.text or "of 8 parts" in caplog.text
    assert len(joined.post_processor.calibration_scores) == 8
    assert joined.training_scores.scores[0] > 1.5 * told.scores[0]
    with pytest.raises(UserError, match="Take them out, or name the parts"):
        fit(small_padim(copies="error"), root)
    blind = small_padim(copies="ignore")
    fit(blind, root)
    assert not blind.training_scores.copies
