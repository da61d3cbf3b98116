"""What is compared in benchmarks/predict.py does the same work."""

import numpy as np
import pytest
import torch
from PIL import Image
from predict import ANOMALIB_TORCH, TORCH, check, export_copies, load, time_stages
from torch.nn.modules.module import _global_forward_hooks

from padim_bottle.deploy.checkpoint import load_padim
from padim_bottle.errors import UserError


@pytest.fixture(scope="module")
def photos():
    return list(np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8))


def test_the_baseline_is_anomalibs_class_with_the_same_gaussians(run_folder, photos):
    padim = load_padim(run_folder / "model.ckpt")
    predict = load(ANOMALIB_TORCH, run_folder)
    for photo in photos:
        _, _, (anomaly_map,), _ = predict(photo)
        with torch.no_grad():
            raw = padim.model(padim.pre_processor.transform(torch.from_numpy(photo).permute(2, 0, 1)[None] / 255))
        # Normalised by its made-up threshold of 10.
        np.testing.assert_allclose(anomaly_map, (raw.anomaly_map[0] / 20).clamp(0, 1), atol=1e-3)


@pytest.mark.slow
def test_all_of_our_runtimes_give_the_same_map(run_folder, photos, tmp_path):
    export_copies(run_folder, tmp_path)
    for photo in photos:
        expected, onnx, openvino = (
            load(name, place)(photo)[0].anomaly_map
            for name, place in ((TORCH, run_folder), ("", tmp_path / "onnx"), ("", tmp_path / "openvino"))
        )
        np.testing.assert_allclose(onnx, expected, atol=1e-3)
        np.testing.assert_allclose(openvino, expected, atol=1e-3)


@pytest.mark.parametrize("contender", [ANOMALIB_TORCH, TORCH])
def test_the_stages_are_all_watched(run_folder, photos, tmp_path, contender):
    Image.fromarray(photos[0]).save(tmp_path / "photo.png")
    stages = time_stages(contender, run_folder, [tmp_path / "photo.png"], passes=3)
    assert not _global_forward_hooks
    assert len(stages) == 5
    assert min(stages.values()) > 0


def test_what_is_missing_is_said(run_folder, tmp_path):
    with pytest.raises(UserError, match=r"no .*model\.ckpt"):
        check(tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"no \.png below"):
        check(run_folder, tmp_path)
