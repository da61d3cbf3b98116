"""Memory: bounded on large test sets, and not growing while a model is used."""

import gc
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from padim_bottle.evaluation.metrics import evaluate
from padim_bottle.evaluation.predictions import Predictions, Thresholds
from padim_bottle.model.network import PadimModel
from padim_bottle.model.padim import Padim

ROOT = Path(__file__).parents[2]


def resident():
    """Return this process's resident memory in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_evaluation_needs_few_bytes_a_pixel():
    """Beside its inputs, for images of one defect type: what the module's documentation says."""
    rng = np.random.default_rng(0)
    shape = (200, 96, 96)
    masks = np.zeros(shape, bool)
    masks[100:, 20:40, 20:40] = True
    maps = rng.standard_normal(shape, np.float32) + masks
    types = ["good"] * 100 + ["dent"] * 100
    predictions = Predictions(
        [f"{i}.png" for i in range(200)], types, np.array(types) != "good", maps.max(axis=(1, 2)), maps, masks
    )
    thresholds = Thresholds(4.0, 4.0, "given")
    gc.collect()
    tracemalloc.start()
    evaluate(predictions, thresholds)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 13 * maps.size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_predictions_leak_nothing():
    """The calibrated Lightning module as ``predict`` calls it, images of changing number, CPU."""
    model = Padim("resnet18", ["layer1", "layer2"], pre_trained=False, n_features=20, image_size=(64, 64))
    network: PadimModel = model.model
    generator = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(3):
        network(torch.randn(4, 3, 64, 64, generator=generator))
    model.fit()
    model.eval()

    def predict(number):
        with torch.inference_mode():
            return float(model(torch.rand(1 + number % 4, 3, 80, 90, generator=generator)).pred_score.sum())

    for number in range(20):  # allocators and caches fill first
        predict(number)
    gc.collect()
    objects, memory = len(gc.get_objects()), resident()
    tracemalloc.start()
    traced, _ = tracemalloc.get_traced_memory()
    for number in range(60):
        assert np.isfinite(predict(number))
    gc.collect()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # An image is 86 KB, a batch's features some 400 KB: 60 kept ones would be 5 to 24 MB.
    assert grown - traced < 500_000
    assert len(gc.get_objects()) - objects < 60
    assert resident() - memory < 15e6
