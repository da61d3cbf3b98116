"""What is compared in benchmarks/predict.py does the same work."""

import numpy as np
import pytest
import torch
from PIL import Image
from predict import ANOMALIB_TORCH, EXPORTS, check, export_copies, load, time_stages
from torch.nn.modules.module import _global_forward_hooks

from padim_bottle.errors import UserError
from padim_bottle.predict.checkpoint import load_padim

pytestmark = pytest.mark.slow


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


def test_all_of_our_runtimes_give_the_same_map(run_folder, exports, photos, tmp_path, monkeypatch):
    expected = [load("torch", run_folder)(photo)[0].anomaly_map for photo in photos]
    for runtime in ("ONNX Runtime", "OpenVINO"):
        predict = load(runtime, exports / EXPORTS[runtime])
        for photo, anomaly_map in zip(photos, expected, strict=True):
            np.testing.assert_allclose(predict(photo)[0].anomaly_map, anomaly_map, atol=1e-3)
    made = []
    monkeypatch.setattr("padim_bottle.export.formats.export", lambda *given: made.append(given[1:4]))
    export_copies(run_folder, tmp_path)
    assert made[0] == (["onnx"], tmp_path)
    assert [given[2] for given in made[1:]] == ["float32", "bfloat16", "int8"]


@pytest.mark.parametrize("contender", [ANOMALIB_TORCH, "ours, torch"])
def test_the_stages_are_all_watched(run_folder, photos, tmp_path, contender):
    Image.fromarray(photos[0]).save(tmp_path / "photo.png")
    stages = time_stages(contender, run_folder, [tmp_path / "photo.png"], passes=3)
    assert not _global_forward_hooks
    assert len(stages) == 5
    assert min(stages.values()) > 0


def test_what_is_missing_is_said(run_folder, tmp_path):
    with pytest.raises(UserError, match=r"no .*model\.ckpt"):
        check([run_folder, tmp_path], tmp_path)
    with pytest.raises(UserError, match=r"no \.png below"):
        check([run_folder], tmp_path)
