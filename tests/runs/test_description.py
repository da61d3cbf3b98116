"""What a run's record says of its model, and which records are of the same settings."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from anomalib.data.utils import ValSplitMode
from anomalib.models import Padim as AnomalibPadim
from anomalib.models import Patchcore
from anomalib.post_processing import PostProcessor
from lightning import seed_everything

from padim_bottle import Padim
from padim_bottle.runs.identity import public_name, settings_digests
from padim_bottle.runs.record import run_seed, run_thresholds

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.mark.parametrize(
    ("named", "name"),
    [
        (Padim, "padim_bottle.Padim"),
        (AnomalibPadim, "anomalib.models.Padim"),
        (Patchcore, "anomalib.models.Patchcore"),
        (SimpleNamespace, "types.SimpleNamespace"),
    ],
)
def test_a_class_is_named_as_a_yaml_names_it(named, name):
    assert public_name(named) == name


def test_a_class_that_no_yaml_can_name_is_named_by_its_module():
    class Local:
        pass

    assert public_name(Local).startswith(f"{__name__}.test_a_class")


@pytest.mark.parametrize("experiment", ["padim_resnet18", "padim_resnet18_anomalib"])
def test_the_first_records_are_of_the_same_settings_as_todays(experiment):
    first = json.loads((REFERENCE / experiment / "seed_0" / "metrics.json").read_text())["model"]
    added = {} if "anomalib" in experiment else {"grids": None, "support": 1.0, "guided": None, "copies": "warn"}
    today = {**{name: value for name, value in first.items() if name not in added}, "seed": 7}
    one, other, third, fourth = settings_digests(
        [first, {**today, **added}, {**today, "n_features": 99}, {**today, "class": "anomalib.models.Patchcore"}]
    )
    assert one == other
    assert len({one, third, fourth}) == 3


class Model:
    def __init__(self, size=(8, 8), seed=None, fresh="plain"):
        pass


def test_a_new_argument_at_its_default_is_no_other_setting():
    """Nobody has to list it: the class says what its default is."""
    before = {"class": f"{__name__}.Model", "size": [8, 8], "seed": 1}
    default, other = {**before, "seed": 2, "fresh": "plain"}, {**before, "fresh": "another"}
    digests = settings_digests([before, default, {"class": before["class"]}, other, {**before, "size": [9, 8]}])
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests)) == 3


def test_a_record_cannot_have_a_module_imported():
    models = [{"class": "antigravity.Model", "a": 1}, {"class": "antigravity.Model", "a": 2}]
    assert len(set(settings_digests(models))) == 2
    assert "antigravity" not in sys.modules


def test_a_model_without_a_seed_of_its_own_has_that_of_the_generator(monkeypatch):
    model = SimpleNamespace()
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    with torch.random.fork_rng():
        seed_everything(31, verbose=False)
        assert run_seed(model) == 31
        assert run_seed(SimpleNamespace(seed=5)) == 5
        torch.manual_seed(32)
        assert run_seed(model) is None, "left behind by an earlier run"
        monkeypatch.delenv("PL_GLOBAL_SEED")
        assert run_seed(model) is None


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (ValSplitMode.SAME_AS_TEST, "on the test labels"),
        (ValSplitMode.FROM_TRAIN, "on validation images (from_train)"),
        (ValSplitMode.SYNTHETIC, "on validation images (synthetic)"),
    ],
)
def test_thresholds_say_which_images_they_were_tuned_on(split, words):
    model = SimpleNamespace(post_processor=PostProcessor())
    source = run_thresholds(model, SimpleNamespace(val_split_mode=split)).source
    assert source == f"anomalib: maximises F1 {words}"
