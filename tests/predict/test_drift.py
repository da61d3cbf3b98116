"""The watch for drift: its false alarms, against simulations, and what it notices, on real bottles."""

from functools import cache

import cv2
import numpy as np
import pandas as pd
import pytest

from padim_bottle.commands.command_line import run_verb
from padim_bottle.predict.card import describe_padim
from padim_bottle.predict.checkpoint import load_padim
from padim_bottle.predict.drift import ALARM, BETS, DriftMonitor, monitor_of
from padim_bottle.predict.predictor import load_predictor


def mean_maps(generator, count, new, positions=20, features=10):
    """Mean distances as PaDiM has them: leave-one-out ones of ``count`` photos, and those of ``new`` further photos."""
    brightness = 1 + 0.1 * generator.normal(size=(count + new, 1, 1))
    x = generator.normal(size=(count + new, positions, features)) * brightness
    train = x[:count].transpose(1, 0, 2)
    delta = x.transpose(1, 0, 2) - train.mean(axis=1, keepdims=True)

    def distances(freedom):
        covariance = delta[:, :count].transpose(0, 2, 1) @ delta[:, :count] / freedom
        return np.einsum("pni,pni->np", delta @ np.linalg.inv(covariance), delta)

    q = distances(count - 2)[:count]
    left_out = count / (count - 1) * np.sqrt(q / (1 - count / ((count - 1) * (count - 2)) * q))
    return left_out.mean(axis=1), np.sqrt(distances(count - 1)[count:]).mean(axis=1)


def first_alarm(monitor, means):
    return next((i for i, mean in enumerate(means, start=1) if monitor.add(mean) >= ALARM), None)


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, 209])
def test_there_is_hardly_ever_a_false_alarm(count):
    generator = np.random.default_rng(0)
    alarms = 0
    for seed in range(150):
        calibration, means = mean_maps(generator, count, 1000)
        alarms += first_alarm(DriftMonitor(calibration, seed), means) is not None
    # 1.5 are allowed on average: more than 5 have a chance of 0.4 %.
    assert alarms <= 5


def test_exchangeable_means_give_a_fair_game():
    """At its first photo: the expectation of the evidence over all ranks is 1."""
    evidence = [DriftMonitor(np.arange(100) + 0.5, seed).add(x) for seed in range(20) for x in range(101)]
    assert np.mean(evidence) == pytest.approx(1, abs=3 * np.std(evidence) / np.sqrt(len(evidence)))
    # Half of the capital is bet on the first photo, up to doubled.
    assert 1 - 0.5 * BETS.mean() <= min(evidence) < max(evidence) <= 1 + 0.5 * BETS.mean()


def test_equal_photos_are_no_drift():
    assert first_alarm(DriftMonitor([1.0] * 60), [1.0] * 1000) is None


def test_a_late_drift_is_noticed_and_evidence_stays_finite():
    generator = np.random.default_rng(0)
    calibration, means = mean_maps(generator, 209, 2000)
    monitor = DriftMonitor(calibration)
    assert first_alarm(monitor, means) is None
    assert first_alarm(monitor, means[:100] + 2 * means.std()) < 60
    assert all(np.isfinite(monitor.add(mean)) for mean in [9.0] * 2000 + [0.0] * 10)


@pytest.mark.slow
def test_grouped_photos_are_not_watched(run_folder):
    """Photos of one part come in series: they are not exchangeable."""
    padim = load_padim(run_folder / "model.ckpt")
    assert monitor_of(describe_padim(padim)) is not None
    padim.group = "parent-folder"
    assert monitor_of(describe_padim(padim)) is None


@pytest.mark.slow
def test_the_command_says_that_photos_have_changed(run_folder, tmp_path, capsys):
    table = pd.read_csv(run_folder / "predictions.csv")
    good = table.loc[~table["label"], "image_path"]
    monitor = monitor_of(load_predictor(run_folder, device="cpu").card)
    assert len(monitor._means) == 12
    for i in range(40):
        photo = cv2.imread(good.iloc[i % len(good)])
        cv2.imwrite(str(tmp_path / f"{i:02}.png"), np.clip(photo * 0.5 + i % 7, 0, 255).astype(np.uint8))
    arguments = ["--model", str(run_folder), "--device", "cpu", "--csv", str(tmp_path / "v.csv")]
    run_verb("predict", [*arguments, str(tmp_path)])
    assert capsys.readouterr().err.count("drift: at ") == 1
    rows = pd.read_csv(tmp_path / "v.csv")
    assert (rows["drift"] >= ALARM).any()
    assert rows["verdict"].notna().all()
    np.testing.assert_allclose(rows["drift"], [monitor.add(mean) for mean in rows["map_mean"]])
    run_verb("predict", [*arguments, *good])
    assert "drift" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.timeout(600)
def test_real_bottles_in_other_light_or_out_of_focus(mvtec_root, real_weights, monkeypatch):
    """59 bottles that a model of the other 150 never saw, as they are and disturbed, at half the usual size."""
    import torch

    from padim_bottle import Padim
    from padim_bottle.data.images import read_image

    monkeypatch.setenv("PADIM_WEIGHTS_DIR", str(real_weights))
    files = sorted((mvtec_root / "bottle" / "train" / "good").iterdir())
    order = np.random.default_rng(0).permutation(len(files))
    padim = Padim(image_size=(128, 128))

    read = cache(read_image)

    def maps(file, disturb=lambda photo: photo):
        photo = np.clip(disturb(read(file).astype(np.float32)).round(), 0, 255)
        pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
        return padim.model(padim.pre_processor.transform(pixels))

    padim.train()
    padim.model.feature_extractor.eval()
    with torch.no_grad():
        for i in order[:150]:
            maps(files[i])
        padim.fit()
        padim.eval()

        def means(disturb=lambda photo: photo):
            return (maps(files[i], disturb).anomaly_map.mean().item() for i in order[150:])

        calibration = padim.post_processor.calibration_map_means.tolist()
        undisturbed = list(means())
        for disturb in (
            lambda photo: photo * 1.1,
            lambda photo: photo * 0.9,
            lambda photo: cv2.GaussianBlur(photo, (0, 0), 6),
        ):
            assert first_alarm(DriftMonitor(calibration), means(disturb)) <= 50
    draws = np.random.default_rng(1)
    alarms = sum(
        first_alarm(DriftMonitor(calibration, seed), draws.permutation(undisturbed)) is not None for seed in range(1000)
    )
    assert alarms <= 10
