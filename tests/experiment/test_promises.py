"""What the calibration promises, on real bottles: false alarms on new ones, and defects among the training photos."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms.v2.functional import normalize, pil_to_tensor, resize

from padim_bottle import Padim
from padim_bottle.model.rule import Rule

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(400)]

SIZE = (256, 256)
DEFECTS = ("broken_large", "broken_small", "contamination")


class Bottles:
    """Features of the real bottles, of every so many good ones, from which a model is fitted to any of them."""

    def __init__(self, root, model, every=1):
        train = sorted((root / "bottle" / "train" / "good").glob("*.png"))[::every]
        # Every fifth of each type.
        defective = [path for name in DEFECTS for path in sorted((root / "bottle" / "test" / name).glob("*.png"))[::5]]
        self.good, self.defective = torch.arange(len(train)), torch.arange(len(train), len(train) + len(defective))
        features = [self._features(model, paths) for paths in np.array_split([*train, *defective], 28)]
        self.features = {layer: torch.cat([part[layer] for part in features]) for layer in features[0]}

    @staticmethod
    @torch.no_grad()
    def _features(model, paths):
        photos = [resize(pil_to_tensor(Image.open(path).convert("RGB")) / 255, SIZE, antialias=True) for path in paths]
        images = normalize(torch.stack(photos), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        return model.model.feature_extractor(images.contiguous(memory_format=torch.channels_last))

    def of(self, indices):
        return {layer: feature[indices] for layer, feature in self.features.items()}

    def fit(self, model, indices):
        network = model.model
        network.reset()
        network.image_size = SIZE
        for batch in indices.split(8):
            for grid in network.grids:
                grid.collect(self.of(batch), keep=True)
        return network.fit_and_calibrate(0.9995)

    def scores(self, model, indices):
        network = model.model
        maps = [network.to_map([g.distance(self.of(b)) for g in network.grids], SIZE, None) for b in indices.split(8)]
        return torch.cat([network.image_score(part) for part in maps]).flatten()


@pytest.fixture(scope="module")
def real_bottles(mvtec_root, real_weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PADIM_WEIGHTS_DIR", str(real_weights))
        return Bottles(mvtec_root, Padim())


@pytest.fixture
def padim(real_weights, monkeypatch):
    monkeypatch.setenv("PADIM_WEIGHTS_DIR", str(real_weights))
    return lambda **options: Padim(evaluator=False, visualizer=False, **options)


@pytest.mark.parametrize("grids", [None, [["layer1"], ["layer1", "layer2", "layer3"]]], ids=["paper", "grids"])
def test_new_bottles_raise_false_alarms_as_often_as_promised(real_bottles, padim, grids):
    """59 bottles are new to a model of the 150 others; benchmarks/false_alarms.py makes each of them new once."""
    bottles, alpha = real_bottles, 0.05
    order = bottles.good[torch.randperm(len(bottles.good), generator=torch.Generator().manual_seed(0))]
    model = padim(seed=0, grids=grids)
    calibration = bottles.fit(model, order[59:])
    alarms = int((bottles.scores(model, order[:59]) >= Rule.calibrated(calibration.scores, alpha).threshold).sum())
    low, high = stats.binom(59, alpha).interval(0.99)
    assert low <= alarms <= high


def test_defects_among_the_training_photos_are_among_the_oddest(real_bottles, padim):
    """200 good bottles and 10 defective ones: at least 8 of the 10 are among the 15 with the highest scores."""
    bottles = real_bottles
    for draw in range(2):
        generator = torch.Generator().manual_seed(draw)
        chosen = [
            group[torch.randperm(len(group), generator=generator)[:count]]
            for group, count in ((bottles.good, 200), (bottles.defective, 10))
        ]
        scores = bottles.fit(padim(seed=draw), torch.cat(chosen)).image_scores
        assert (scores.topk(15).indices >= 200).sum() >= 8


@pytest.mark.parametrize("grids", [None, [["layer1"], ["layer1", "layer2", "layer3"]]], ids=["paper", "grids"])
def test_bfloat16_moves_scores_by_a_hundredth(real_bottles, mvtec_root, padim, grids):
    """A thousandth cannot be kept: bfloat16 has 8 binary digits. Each is fitted to what its own backbone gives."""
    model = padim(grids=grids)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = Bottles(mvtec_root, model, every=4)
    scores = []
    for bottles, every in ((real_bottles, 4), (lowered, 1)):
        good = bottles.good[::every]
        bottles.fit(model, good[:40])
        scores.append(bottles.scores(model, torch.cat([good[40:], bottles.defective])))
    assert len(scores[0]) == 13 + 14
    change = (scores[1] / scores[0] - 1).abs()
    assert change.max() < 0.03
    assert change.median() < 0.01
