"""Exports of a lower precision: what computes in it, and that all that follows is fitted to it."""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from small import train_small

from padim_bottle.commands.command_line import run_verb
from padim_bottle.data.images import read_image
from padim_bottle.export import formats
from padim_bottle.export.proof import find_training_photos
from padim_bottle.predict.checkpoint import load_padim
from padim_bottle.predict.predictor import load_predictor

ov = pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[export]"')
from padim_bottle.export import precision  # noqa: E402 - these import OpenVINO
from padim_bottle.export.openvino_model import compile_features, read_onnx  # noqa: E402
from padim_bottle.export.precision import lower, read_pixels, refit, settings_for  # noqa: E402

pytestmark = pytest.mark.slow

BFLOAT16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
# With all that configs/padim_resnet18_grids.yaml has but the third layer, at sides that are no whole number of cells.
GRIDS = {
    "grids": [["layer1"], ["layer1", "layer2"]], "n_features": None, "share": [3, 1], "coarsest_side": 3,
    "tolerance": 1,
    "sigma": 2.0, "guided": 3, "image_score": "distances", "damped": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_small(tmp_path_factory.mktemp("run"), report=False, **GRIDS)


@pytest.fixture(scope="module", params=["bfloat16", "int8"])
def lowered(request, tmp_path_factory, traced_once):
    """The precision, the run that was exported, the exit code, the export's folder, and what was refitted."""
    if request.param == "int8":
        pytest.importorskip("nncf", reason='needs NNCF: pip install -e ".[int8]"')
    # Of two grids for the one, and of PaDiM's for the other, which is traced sooner.
    run = request.getfixturevalue("run" if request.param == "int8" else "run_folder")
    output = tmp_path_factory.mktemp("lowered")
    # What the export refits, and the lowered model that it refits it to.
    refitted, original = [], precision.refit
    with pytest.MonkeyPatch.context() as patch, traced_once():
        patch.setattr(precision, "refit", lambda *given: (original(*given), refitted.append(given)))
        code = run_verb("export", ["--model", str(run), "--precision", request.param, "--output", str(output)])
    (given,) = refitted
    return request.param, run, code, output / f"openvino_{request.param}", given


@pytest.fixture(scope="module")
def single(run, tmp_path_factory, traced_once):
    """The run as an OpenVINO model in single precision, and which part of that is the backbone."""
    with traced_once():
        model, backbone = read_onnx(formats.trace(load_padim(run / "model.ckpt"), tmp_path_factory.mktemp("single")))
    return lower(model, backbone, "float32", ()), backbone


def operations(model, hint):
    """Count the operations of a compiled model by kind and precision."""
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    infos = [operation.rt_info for operation in compiled.get_runtime_model().get_ops()]
    return Counter((info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos)


@pytest.mark.skipif(not BFLOAT16, reason="needs a processor with bfloat16")
@pytest.mark.parametrize("model", ["one grid", "two grids"])
def test_an_export_stays_in_single_precision_whatever_it_is_compiled_with(exports, single, model):
    model = exports / "openvino" / "model.xml" if model == "one grid" else single[0]
    assert not [found for found in operations(model, "bf16") if found[1] == "bf16"]


def test_only_the_backbone_is_lowered(lowered):
    name, _, _, folder, _ = lowered
    found = operations(folder / "model.xml", "bf16" if name == "bfloat16" else "f32")
    low = {"int8": ("i8", "u8"), "bfloat16": ("bf16",)}[name]
    if name == "bfloat16" and not BFLOAT16:
        pytest.skip("needs a processor with bfloat16")
    kinds = {kind for kind, type_ in found if type_ in low}
    assert "Convolution" in kinds
    assert not kinds & {"MatMul", "FullyConnected", "Interpolate", "Softmax", "Eltwise", "Subgraph", "Reduce"} - (
        # Of the backbone: the sum of a block's two branches.
        {"Eltwise", "Subgraph"} if name == "int8" else set()
    )
    # Gaussians, maps and thresholds.
    assert any(type_ == "f32" for kind, type_ in found if kind in ("MatMul", "FullyConnected"))


def test_it_is_proven_and_loses_next_to_nothing(lowered):
    name, run, code, folder, _ = lowered
    report = json.loads((folder.parent / f"report_{name}.json").read_text())
    (found,) = report["differences"].values()
    assert code == (0 if report["passed"] else 1)
    assert report["precision"] == name
    # It is another model, and nearly the same.
    assert 1e-6 < found["normalised_score"] < 0.2
    own, other = report["metrics"]["checkpoint"], report["metrics"][folder.name]
    assert abs(own["pixel_AUROC"] - other["pixel_AUROC"]) < 0.01
    card = json.loads((folder / "model.json").read_text())
    assert card["precision"] == name
    before = json.loads((run / "metrics.json").read_text())["calibration"]["scores"]
    assert card["calibration"]["scores"] != before
    assert np.corrcoef(card["calibration"]["scores"], before)[0, 1] > 0.99


def test_gaussians_and_thresholds_are_those_of_the_lowered_features(lowered):
    """The exported model against torch's, which is given the features that the exported backbone computes."""
    name, run, _, folder, (padim, model, backbone, *_) = lowered
    predictor = load_predictor(folder, device="cpu")
    predictor.size = None
    features_of = compile_features(model, backbone, settings_for(name))
    for path in pd.read_csv(run / "predictions.csv")["image_path"]:
        features = dict(zip(padim.model.layers, map(torch.from_numpy, features_of(read_pixels(path, 16))), strict=True))
        image = padim.pre_processor.transform(torch.from_numpy(read_pixels(path, 16)))
        with torch.inference_mode():
            expected = padim.post_processor(padim.model.score(features, image))
        (actual,) = predictor.predict([read_image(path)])
        assert actual.normalised_score == pytest.approx(expected.pred_score.item(), abs=1e-3)
        assert actual.anomalous == bool(expected.pred_label)
        np.testing.assert_allclose(actual.anomaly_map, expected.anomaly_map[0, 0], atol=2e-3)


def test_refitted_to_the_same_features_it_is_the_checkpoint(run, single):
    padim, trained = load_padim(run / "model.ckpt"), load_padim(run / "model.ckpt")
    refit(padim, *single, "float32", find_training_photos(run))
    torch.testing.assert_close(
        padim.post_processor.calibration_scores, trained.post_processor.calibration_scores, rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(
        padim.post_processor.pixel_threshold, trained.post_processor.pixel_threshold, rtol=1e-3, atol=1e-3
    )


def test_other_formats_and_missing_packages_are_refused_in_a_sentence(run, tmp_path, monkeypatch, capsys):
    arguments = ["--model", str(run), "--precision", "int8", "--output", str(tmp_path / "out")]
    assert run_verb("export", [*arguments, "--format", "onnx", "openvino"]) == 2
    assert "only OpenVINO has it" in capsys.readouterr().err
    monkeypatch.setattr("padim_bottle.export.formats.find_spec", lambda name: None if name == "nncf" else name)
    assert run_verb("export", arguments) == 2
    assert 'pip install -e ".[int8]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_training_photos_that_are_gone_are_asked_for(run, tmp_path, capsys):
    (tmp_path / "model.ckpt").write_bytes((run / "model.ckpt").read_bytes())
    assert (
        run_verb("export", ["--model", str(tmp_path), "--precision", "bfloat16", "--images", str(run / "images")]) == 2
    )
    assert "needed to fit a model of another precision" in capsys.readouterr().err


def test_channels_that_tracing_left_last_are_turned():
    """As it does where a transformer turns them to be first, and the embedding to be last again."""
    first = np.random.default_rng(0).random((1, 8, 5, 4), dtype=np.float32)
    for given in (first, first.transpose(0, 2, 3, 1)):
        assert torch.equal(precision._channels_first(given, 8), torch.from_numpy(first))
