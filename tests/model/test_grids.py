"""Maps from several grids: against anomalib's Gaussians, against refitting, and against literal formulas."""

import logging
import math

import cv2
import numpy as np
import pytest
import torch
from anomalib.models.components import MultiVariateGaussian
from small_padim import SIZE, run, small_padim, training_images
from torch.nn import functional as F  # noqa: N812

from padim_bottle import Padim
from padim_bottle.errors import UserError
from padim_bottle.model import gaussian
from padim_bottle.model.anomaly_map import fuse, guide
from padim_bottle.model.embedding import mean_pool

GRIDS = [["layer1"], ["layer1", "layer2", "layer3"]]


def two_grids(**options):
    return small_padim(**{"grids": GRIDS, "n_features": None, **options})


@pytest.fixture(scope="module")
def trained(bottles, tmp_path_factory):
    model = two_grids()
    recorded, engine = run(model, bottles, tmp_path_factory.mktemp("grids"))
    return model, recorded, engine


def test_each_grids_gaussians_equal_anomalibs(trained, bottles):
    model = trained[0]
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


def test_leave_one_out_maps_equal_refitting(trained, bottles, monkeypatch):
    model = trained[0]
    images = training_images(model, bottles)
    maps = model.leave_one_out_maps([0, 5, 11])
    # The ridge is a fixed scatter: that of all 12 images.
    monkeypatch.setattr(gaussian, "COVARIANCE_EPSILON", gaussian.COVARIANCE_EPSILON * 11 / 10)
    for row, i in enumerate((0, 5, 11)):
        refitted = two_grids().model
        refitted.train()
        refitted(torch.cat([images[:i], images[i + 1 :]]))
        refitted.fit()
        for grid, fitted in zip(refitted.grids, model.model.grids, strict=True):
            grid.typical.copy_(fitted.typical)  # of all images, by definition
        torch.testing.assert_close(
            maps[row], refitted.eval()(images[i : i + 1]).anomaly_map[0, 0], rtol=1e-3, atol=1e-4
        )


def test_the_map_is_the_formula_of_the_distances(trained, bottles):
    model = trained[0].model.eval()
    images = training_images(trained[0], bottles)[:2]
    with torch.no_grad():
        features = model.feature_extractor(images)
        fine, coarse = (grid.distance(features).square() / grid.typical for grid in model.grids)
        coarse = F.interpolate(coarse[:, None], size=fine.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        evidence = torch.log(1 + coarse) + torch.log(1 + torch.minimum(fine, coarse))
        torch.testing.assert_close(
            model(images).anomaly_map, model.anomaly_map_generator(evidence[:, None], SIZE), rtol=1e-4, atol=1e-5
        )


def test_typical_values_are_the_means_of_the_lifted_squared_leave_one_out_distances(trained):
    fine, coarse = trained[0].model._left_out
    lifted = F.interpolate(coarse.square()[:, None], size=fine.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(trained[0].model.grids[0].typical, fine.square().mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(trained[0].model.grids[1].typical, lifted.mean(), rtol=1e-5, atol=0)


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


def test_leave_one_out_maps_are_guided_by_their_own_photos(bottles, tmp_path):
    plain, guided = two_grids(), two_grids(guided=3)
    run(plain, bottles, tmp_path / "plain")
    run(guided, bottles, tmp_path / "guided")
    images = training_images(plain, bottles)[[2, 7]]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    photos = (images * std + mean).mean(1, keepdim=True)
    expected = guide(plain.leave_one_out_maps([2, 7])[:, None], photos, 3)[:, 0]
    torch.testing.assert_close(guided.leave_one_out_maps([2, 7]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"n_features": 50, "guided": 2},
        {"support": math.inf},
        {"grids": [["layer2", "layer3"]], "n_features": 30},
        {"grids": [["layer1"], ["layer2"], ["layer1", "layer3"]], "image_size": (48, 80)},
    ],
)
def test_every_option_trains_and_restores(bottles, tmp_path, options):
    model = two_grids(seed=1, checkpoint_precision="float16", **options)
    size = options.get("image_size", SIZE)
    recorded, engine = run(model, bottles, tmp_path)
    assert np.isfinite(recorded["scores"].numpy()).all()
    restored = Padim.load_from_checkpoint(engine.best_model_path)
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(restored.eval()(images).pred_score, model.eval().cpu()(images).pred_score)


def test_where_all_channels_are_kept_nothing_is_random(trained):
    assert not trained[0].model.is_random
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
    ],
)
def test_impossible_grids_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        two_grids(**options)


@pytest.mark.parametrize("grids", [None, GRIDS])
def test_training_again_starts_afresh(bottles, tmp_path, grids):
    options = {"grids": grids, "n_features": 40 if grids is None else None}
    once = small_padim(**options)
    first, engine = run(once, bottles, tmp_path / "once")
    loaded = Padim.load_from_checkpoint(engine.best_model_path)
    for name, model in (("twice", once), ("loaded", loaded)):
        again, _ = run(model, bottles, tmp_path / name)
        assert torch.equal(again["scores"], first["scores"])
        assert torch.equal(again["maps"], first["maps"])


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
        run(model, root, tmp_path / "warn")
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
        run(joined, root, tmp_path / "group")
    assert "parts, there are 8" in caplog.text or "of 8 parts" in caplog.text
    assert len(joined.post_processor.calibration_scores) == 8
    assert joined.training_scores.scores[0] > 1.5 * told.scores[0]
    with pytest.raises(UserError, match="Take them out, or name the parts"):
        run(small_padim(copies="error"), root, tmp_path / "error")
