import math

import numpy as np
import pytest
import torch
from scipy import stats

from padim_bottle.errors import UserError
from padim_bottle.model import calibration as calibration_module
from padim_bottle.model.calibration import (
    PositionStatistics,
    calibrate,
    check_parts,
    kept_maps,
)
from padim_bottle.model.gaussian import COVARIANCE_EPSILON, PatchGaussians, by_image
from padim_bottle.model.leave_out import dtype_for, leave_part_out_distances, leave_part_out_distances_of
from padim_bottle.model.parts import Parts
from padim_bottle.model.post_processor import CalibratedPostProcessor
from padim_bottle.model.rule import Rule, threshold_rank


def each(count):
    return Parts.of_photos([""] * count, None)


def fit(embedding, shared=1, dtype=torch.float32):
    gaussians = PatchGaussians(shared=shared)
    gaussians.allocate(*embedding.shape[1:])
    return gaussians, gaussians.fit(embedding.clone(), dtype=dtype)


def leave_out(embedding, parts=None, shared=1):
    count, _, features = embedding.shape
    exact = torch.float64 if embedding.dtype == torch.float64 else dtype_for(count * shared, features)
    _, fitted = fit(embedding, shared, exact)
    return by_image(leave_part_out_distances(fitted.deltas, fitted.factors, parts or each(count)), shared)


def refit_without(embedding, i, count, shared=1):
    """The definition: fit without image i in float64, with the ridge of all N images, then measure image i."""
    rest = torch.cat([embedding[:i], embedding[i + 1 :]]).double()
    ridge = COVARIANCE_EPSILON * (count - 1) / (len(rest) - 1) * torch.eye(embedding.shape[-1], dtype=torch.float64)
    expected = []
    for position in range(embedding.shape[1]):
        cell = range(position // shared * shared, (position // shared + 1) * shared)
        covariance = torch.stack([torch.cov(rest[:, member].T) for member in cell]).mean(0) + ridge
        delta = embedding[i, position].double() - rest[:, position].mean(0)
        expected.append((delta @ torch.linalg.solve(covariance, delta)).sqrt())
    return torch.stack(expected)


# The last two numbers: fewer rows than features, more, and in between, where double precision is needed.
SHARES = [(60, 10, 1), (12, 10, 1), (8, 30, 1), (3, 5, 1), (60, 10, 4), (8, 20, 4), (5, 60, 4), (12, 10, 9)]


@pytest.mark.parametrize(("count", "features", "shared"), SHARES)
def test_leave_one_out_equals_refitting_without_the_image(count, features, shared):
    generator = torch.Generator().manual_seed(count)
    positions = 11 if shared == 1 else 3 * shared
    embedding = torch.randn(count, positions, features, generator=generator) * torch.logspace(-1, 0.5, features)
    embedding += torch.randn(positions, features, generator=generator)  # means of their own
    distances, exact = (leave_out(x, shared=shared).double() for x in (embedding, embedding.double()))
    for i in (0, 1, count // 2, count - 1):
        expected = refit_without(embedding, i, count, shared)
        torch.testing.assert_close(distances[i], expected, rtol=1e-4, atol=0)
        torch.testing.assert_close(exact[i], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("count", "features", "shared"), [(60, 10, 1), (30, 20, 1), (12, 30, 1), (30, 20, 4), (6, 50, 4)]
)
def test_a_part_left_out_equals_refitting_without_all_of_its_photos(count, features, shared):
    generator = torch.Generator().manual_seed(count)
    embedding = torch.randn(count, 8, features, generator=generator) * torch.logspace(-1, 0.5, features)
    embedding[1] = embedding[0] + 0.01 * torch.randn(8, features, generator=generator)
    names = [f"{index // 2 if index < 6 else index // 3}_{index}" for index in range(count)]
    if count == 6:
        names = ["0_0", "0_1", "1_2", "2_3", "3_4", "3_5"]
    parts = Parts.of_photos(names, r"^(\d+)_")
    distances, exact = (leave_out(x, parts, shared).double() for x in (embedding, embedding.double()))
    for i in (0, 1, 4, count - 1):
        rest = [j for j in range(count) if parts.names[j] != parts.names[i]]
        alone = torch.cat([embedding[i : i + 1], embedding[rest]])
        expected = refit_without(alone, 0, count, shared)
        torch.testing.assert_close(distances[i], expected, rtol=1e-4, atol=0)
        torch.testing.assert_close(exact[i], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("count", "features"), [(60, 10), (30, 20), (8, 30)])
@pytest.mark.parametrize("size", [1, 2])
def test_what_a_part_shows_elsewhere_left_out_equals_refitting_without_it(count, features, size):
    generator = torch.Generator().manual_seed(count)
    here, there = torch.randn(2, count, 1, features, generator=generator).double()
    _, (mean, deltas, factors) = fit(here, dtype=torch.float64)
    parts = Parts(tuple(str(index // size) for index in range(count)))
    measured = (there - mean).transpose(0, 1)
    found = leave_part_out_distances_of([measured], deltas, factors, parts)[0, 0].double()
    for i in (0, 1, count - 1):
        rest = [j for j in range(count) if j // size != i // size]
        expected = refit_without(torch.cat([there[i : i + 1], here[rest]]), 0, count)
        torch.testing.assert_close(found[i], expected[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("prior_freedom", [0, 10, 2.5])
@pytest.mark.parametrize("size", [1, 3])
def test_a_part_left_out_z_equals_standardising_by_the_maps_of_the_others(size, prior_freedom):
    maps = torch.rand(9, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    positions = PositionStatistics.of(maps.split(4), 9, prior_freedom)
    typical = maps.var(0).median()

    def moderated(others):
        freedom = len(others) - 1
        return ((freedom * others.var(0) + prior_freedom * typical) / (freedom + prior_freedom)).sqrt()

    torch.testing.assert_close(positions.mean, maps.mean(0))
    torch.testing.assert_close(positions.std, moderated(maps))
    z = positions.leave_part_out_z(maps.unflatten(0, (-1, size))).flatten(0, 1)
    for i in range(9):
        first = i // size * size
        rest = torch.cat([maps[:first], maps[first + size :]])
        torch.testing.assert_close(z[i], (maps[i] - rest.mean(0)) / moderated(rest))


def test_leave_one_out_distances_exceed_the_training_distances():
    embedding = torch.randn(30, 5, 20, generator=torch.Generator().manual_seed(0))
    gaussians, _ = fit(embedding)
    assert (leave_out(embedding) > gaussians.distance(embedding)).all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_images_are_refused(count):
    with pytest.raises(UserError, match=f"at least 3 training images, found {count}") as caught:
        check_parts(each(count))
    # Advice that leads to the next refusal is none.
    assert ("calibration to false" in str(caught.value)) == (count >= 2)


def test_identical_training_images_give_zero_not_nan(caplog):
    distances = leave_out(torch.ones(6, 4, 3))
    assert torch.equal(distances, torch.zeros(6, 4))
    maps = distances.unflatten(1, (2, 2))
    calibration = calibrate(lambda i: maps[i], each(6), pixel_quantile=0.9995, position_calibration=True)
    assert "The 6 training images do not differ" in caplog.text
    assert torch.equal(calibration.scores, torch.zeros(6))
    assert (calibration.scored_std > 0).all()
    post_processor = CalibratedPostProcessor(alpha=0.2)
    post_processor.calibrate(calibration)
    # One more identical image is good, anything that differs is not.
    scores = torch.tensor([0.0, 1e-3])
    assert (scores >= post_processor.image_threshold).tolist() == [False, True]
    assert torch.isfinite(post_processor._normalize_score(scores)).all()


def test_position_statistics_survive_a_large_common_offset():
    maps = 1e4 + torch.rand(50, 3, 3, generator=torch.Generator().manual_seed(0))  # float32, as anomaly maps are
    positions = PositionStatistics.of(maps.split(7), 50)
    torch.testing.assert_close(positions.mean, maps.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(positions.std, maps.double().std(0), rtol=1e-9, atol=0)


def test_where_good_images_do_not_differ_a_difference_counts_but_not_infinitely():
    maps = torch.randn(20, 4, 5, generator=torch.Generator().manual_seed(0)) * 50
    maps[:, 1, 2] = 3.0
    positions = PositionStatistics.of(maps.split(8), 20)
    floor = 1e-3 * maps.double().std(0).median()
    torch.testing.assert_close(positions.std[1, 2], floor)
    torch.testing.assert_close(positions.leave_part_out_z(maps[:, None])[:, 0, 1, 2], torch.zeros(20).double())
    # Far off, the variance of the others (their formula, fed with this image) is below the floor.
    odd = maps[:1].clone()
    odd[0, 1, 2] += 7.0
    torch.testing.assert_close(positions.leave_part_out_z(odd[:, None])[0, 0, 1, 2], 7.0 * (20 / 19) / floor)


@pytest.mark.parametrize("budget", [0, 1 << 28])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_pixel_threshold_is_the_quantile_of_all_pixels(batch_size, budget, caplog, monkeypatch):
    monkeypatch.setattr(calibration_module, "MAPS_BUDGET", budget)
    maps = torch.rand(10, 20, 20, generator=torch.Generator().manual_seed(0))
    calibration = calibrate(
        kept_maps(lambda i: maps[i], 10, batch_size),
        each(10),
        pixel_quantile=0.995,
        position_calibration=False,
        batch_size=batch_size,
    )
    expected = np.quantile(maps.numpy().ravel(), 0.995, method="inverted_cdf")
    assert calibration.pixel_threshold.item() == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(calibration.scores, maps.flatten(1).amax(1).sort().values)
    assert not caplog.text


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("position_calibration", [True, False])
def test_false_alarm_rate_on_new_images_is_what_alpha_promises(alpha, position_calibration):
    """Gaussian embeddings with more features than the position statistics can hide, 5 training sets of 150 images."""
    false_alarms = trials = 0
    bounds = np.zeros(2)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        count, new = 150, 400
        scale = torch.rand(36, 20, generator=generator) + 0.2
        train = torch.randn(count, 36, 20, generator=generator) * scale
        test = torch.randn(new, 36, 20, generator=generator) * scale
        gaussians, _ = fit(train)
        left_out = leave_out(train).unflatten(1, (6, 6))
        calibration = calibrate(
            lambda i, left_out=left_out: left_out[i], each(count), pixel_quantile=0.9995,
            position_calibration=position_calibration,
        )  # fmt: skip
        maps = gaussians.distance(test).unflatten(1, (6, 6))
        if position_calibration:
            maps = (maps - calibration.scored_mean) / calibration.scored_std
        scores = maps.flatten(1).amax(1)
        false_alarms += int((scores >= Rule.calibrated(calibration.scores, alpha).threshold).sum())
        trials += new
        # Given its training set a threshold's rate is Beta distributed, so the count is beta-binomial.
        rank = threshold_rank(count, alpha)
        bounds += (
            stats.betabinom(new, count + 1 - rank, rank).mean(),
            stats.betabinom(new, count + 1 - rank, rank).var(),
        )
    mean, deviation = bounds[0], math.sqrt(bounds[1])
    assert abs(false_alarms - mean) < 3 * deviation, f"{false_alarms} of {trials}, expected {mean} +- {deviation}"


@pytest.mark.parametrize(("photos", "said"), [(1, False), (2, True), (2, False), (3, True)])
def test_new_parts_raise_false_alarms_as_often_as_promised_if_parts_are_named(photos, said):
    """Parts photographed several times: the other photo vouches for a part unless it is left out with it."""
    alpha, parts, new = 0.05, 70, 400
    alarms = alarms_of_single_photos = 0
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        scale = torch.rand(16, 20, generator=generator) + 0.2

        def photograph(count, generator=generator, scale=scale):
            part = torch.randn(count, 1, 16, 20, generator=generator)
            return (part + 0.1 * torch.randn(count, photos, 16, 20, generator=generator)) * scale

        train = photograph(parts).flatten(0, 1)
        names = [str(index // photos if said else index) for index in range(len(train))]
        groups = Parts(tuple(names))
        left_out = leave_out(train, groups).unflatten(1, (4, 4))
        calibration = calibrate(
            lambda i, left_out=left_out: left_out[i], groups, pixel_quantile=0.9995, position_calibration=True
        )
        gaussians, _ = fit(train)
        maps = gaussians.distance(photograph(new).flatten(0, 1)).unflatten(1, (4, 4))
        scores = ((maps - calibration.scored_mean) / calibration.scored_std).flatten(1).amax(1)
        called = scores >= Rule.calibrated(calibration.scores, alpha).threshold
        alarms += int(called.unflatten(0, (new, photos)).any(1).sum())
        alarms_of_single_photos += called.float().mean().item() / 5
    count = parts if said else parts * photos
    rank = threshold_rank(count, alpha)
    expected = stats.betabinom(new, count + 1 - rank, rank)
    low, high = (5 * expected.mean() + sign * 3 * math.sqrt(5 * expected.var()) for sign in (-1, 1))
    if photos == 1 or said:
        assert low < alarms < high
        assert alarms_of_single_photos <= high / (5 * new)
    else:
        assert alarms > 0.3 * 5 * new  # what happens unnoticed: see copies
