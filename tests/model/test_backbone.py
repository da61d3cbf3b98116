import hashlib

import pytest

from padim_bottle.errors import UnavailableError, UserError
from padim_bottle.model import backbone


def test_the_paper_has_a_number_of_features_for_its_resnets_under_any_tag():
    assert backbone.default_n_features("resnet18") == 100
    assert backbone.default_n_features("resnet18.tv_in1k") == 100
    assert backbone.default_n_features("wide_resnet50_2.racm_in1k") == 550
    assert backbone.default_n_features("local-dir:some/where/resnet18.tv_in1k") == 100
    assert backbone.default_n_features("resnet34.tv_in1k") is None


def test_an_untagged_name_gets_timms_tag():
    assert backbone.full_name("resnet18") == "resnet18.a1_in1k"


@pytest.mark.parametrize(
    ("name", "words"),
    [("resnet18.nonsense", ["resnet18.nonsense", "resnet18.tv_in1k"]), ("resnet_18", ["no model 'resnet_18'"])],
)
def test_unknown_names_are_refused_with_what_there_is(name, words):
    with pytest.raises(UserError) as error:
        backbone.full_name(name)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("name", "layers", "n_features", "words"),
    [
        ("resnet18.tv_in1k", ["layer1", "layer9"], 100, ["no layer9", "layer3 (256 channels)"]),
        ("resnet18.tv_in1k", ["layer1", "layer1"], 100, ["each once"]),
        ("resnet18.tv_in1k", [], 100, ["layer1 (64 channels)"]),
        ("resnet18.tv_in1k", ["layer2", "layer1"], 100, ["from shallow to deep"]),
        ("resnet18.tv_in1k", ["layer1"], None, ["100 is impossible", "64 channels"]),
        ("resnet18.tv_in1k", ["layer1", "layer2"], 0, ["0 is impossible", "192 channels"]),
        ("resnet18.tv_in1k", ["layer1", "layer2", "layer3"], 449, ["449 is impossible", "448 channels"]),
        ("tf_efficientnet_lite0.in1k", ["blocks.1", "blocks.2"], None, ["choose 1 to 64", "blocks.4 (112 channels)"]),
    ],
)
def test_impossible_embeddings_are_refused_with_what_the_backbone_has(name, layers, n_features, words):
    with pytest.raises(UserError) as error:
        backbone.check_embedding(name, layers, n_features)
    assert all(word in str(error.value) for word in words)


def test_the_default_number_of_features_is_used():
    assert backbone.check_embedding("resnet18.tv_in1k", ["layer1", "layer2", "layer3"], None) == 100


def test_a_weights_folder_is_found_and_its_digest_recorded(random_weights):
    name, weights = backbone.locate_weights("resnet18.tv_in1k")
    folder = random_weights / "resnet18.tv_in1k"
    assert name == f"local-dir:{folder}"
    assert weights.source == "folder"
    assert weights.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_folder_named_weights_is_looked_at_too(random_weights, tmp_path, monkeypatch):
    monkeypatch.delenv("PADIM_WEIGHTS_DIR")
    monkeypatch.chdir(tmp_path)
    assert backbone.locate_weights("resnet18.tv_in1k")[0].startswith("local-dir:")


def test_no_weights_names_both_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PADIM_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnavailableError) as error:
        backbone.locate_weights("wide_resnet50_2.tv_in1k")
    for words in ("timm/wide_resnet50_2.tv_in1k", "connect to the internet", "weights/wide_resnet50_2.tv_in1k"):
        assert words in str(error.value)


def test_pickled_weights_are_not_read(tmp_path, monkeypatch):
    folder = tmp_path / "resnet18.tv_in1k"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    monkeypatch.setenv("PADIM_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(UserError, match="pickled weights are not read"):
        backbone.locate_weights("resnet18.tv_in1k")
