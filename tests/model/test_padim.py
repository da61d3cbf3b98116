"""Our Padim against anomalib's, on the tiny synthetic bottles."""

from dataclasses import replace

import anomalib.models
import pytest
import torch
from anomalib.engine import Engine
from anomalib.post_processing import PostProcessor
from predict import timm_state_dict
from sklearn.metrics import roc_auc_score
from small_padim import SIZE, Recorder, fit, predict, run, saved, small_padim, training_images

from padim_bottle import MVTecAD, Padim
from padim_bottle.errors import UserError
from padim_bottle.model import gaussian


@pytest.fixture(scope="module")
def anomalibs(bottles, tmp_path_factory):
    """Anomalib's Padim, trained on the channels and the network that ours has for seed 3."""
    ours = small_padim(seed=3)
    model = anomalib.models.Padim(
        backbone="resnet18", pre_trained=False, n_features=40, evaluator=False, visualizer=False,
        pre_processor=anomalib.models.Padim.configure_pre_processor(SIZE),
    )  # fmt: skip
    model.model.feature_extractor.load_state_dict(timm_state_dict(ours.model.feature_extractor), strict=False)
    model.model.idx = ours.model.idx[torch.randperm(40)]  # any order of the same channels
    recorded, engine = run(model, bottles, tmp_path_factory.mktemp("anomalib"))
    return model, recorded, engine


@pytest.fixture(scope="module")
def plain(bottles, tmp_path_factory):
    """Ours as the paper has it: no calibration."""
    model = small_padim(seed=3, calibration=False)
    recorded, engine = run(model, bottles, tmp_path_factory.mktemp("plain"))
    return model, recorded, engine


@pytest.fixture(scope="module")
def calibrated(bottles, tmp_path_factory):
    model = small_padim(seed=3, checkpoint_precision="float16")
    recorded, engine = run(model, bottles, tmp_path_factory.mktemp("calibrated"))
    return model, recorded, engine


def test_statistics_equal_anomalibs(anomalibs, plain):
    theirs, ours = anomalibs[0].model, plain[0].model
    order = theirs.idx.argsort()
    assert torch.equal(theirs.idx[order], ours.idx)
    torch.testing.assert_close(ours.gaussian.mean, theirs.gaussian.mean[order].T, rtol=1e-5, atol=1e-6)
    expected = theirs.gaussian.inv_covariance[:, order][:, :, order]
    largest = expected.abs().amax(dim=(1, 2), keepdim=True)
    assert ((ours.gaussian.inv_covariance - expected).abs() / largest).max() < 1e-5


def test_anomaly_maps_and_metrics_equal_anomalibs(anomalibs, plain):
    theirs, ours = anomalibs[1], plain[1]
    torch.testing.assert_close(ours["maps"], theirs["maps"], rtol=0, atol=1e-3)
    torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-3)
    for recorded in (theirs, ours):
        recorded["image_AUROC"] = roc_auc_score(recorded["labels"], recorded["scores"])
        recorded["pixel_AUROC"] = roc_auc_score(recorded["masks"].flatten(), recorded["maps"].flatten())
    for metric in ("image_AUROC", "pixel_AUROC"):
        assert ours[metric] == pytest.approx(theirs[metric], abs=1e-4)


def test_position_calibration_leaves_the_anomaly_map_alone(plain, calibrated):
    torch.testing.assert_close(calibrated[1]["maps"], plain[1]["maps"], rtol=2e-3, atol=1e-3)
    model = calibrated[0].model
    z = (calibrated[1]["maps"] - model.scored_mean) / model.scored_std
    torch.testing.assert_close(calibrated[1]["scores"], z.flatten(1).amax(1))


def test_calibration_scores_equal_refitting_without_each_image(bottles, calibrated, monkeypatch):
    """End to end: train on all images but one, measure that one, standardise it by the other leave-one-out maps."""
    model = calibrated[0]
    images = training_images(model, bottles)
    # The ridge is a fixed scatter: that of all 12 images.
    monkeypatch.setattr(gaussian, "COVARIANCE_EPSILON", gaussian.COVARIANCE_EPSILON * 11 / 10)
    maps, refitted = [], small_padim(seed=3, calibration=False).model
    for i in range(12):
        refitted.reset()
        refitted.train()
        refitted(torch.cat([images[:i], images[i + 1 :]]))
        refitted.fit()
        maps.append(refitted.eval()(images[i : i + 1]).anomaly_map[0, 0])
    maps = torch.stack(maps)
    scores, typical = [], maps.var(0).median()
    for i in range(12):
        rest = torch.cat([maps[:i], maps[i + 1 :]])
        moderated = (10 * rest.var(0) + calibrated[0].model.prior_freedom * typical) / (
            10 + calibrated[0].model.prior_freedom
        )
        scores.append(((maps[i] - rest.mean(0)) / moderated.sqrt()).max())
    torch.testing.assert_close(
        torch.stack(scores).sort().values, model.post_processor.calibration_scores, rtol=1e-3, atol=1e-3
    )


def test_the_calibrated_model_infers_the_test_images_once_and_needs_no_validation(plain, calibrated):
    assert calibrated[2].trainer.limit_val_batches == 0
    assert plain[2].trainer.limit_val_batches == 1.0


def test_normalised_scores_put_the_threshold_at_one_half_and_keep_the_order(calibrated):
    model, recorded, _ = calibrated
    threshold = model.post_processor.image_threshold
    scores = torch.cat([recorded["scores"], threshold[None], threshold[None] * 50])
    normalised = model.post_processor._normalize_score(scores)
    assert normalised[-2] == 0.5
    assert torch.equal(normalised >= 0.5, scores >= threshold)
    assert torch.equal(normalised.argsort(), scores.argsort())
    assert normalised.min() > 0
    assert normalised.max() < 1


def test_forward_applies_preprocessing_calibration_and_thresholds(calibrated, bottles):
    model, recorded, _ = calibrated
    datamodule = MVTecAD(root=bottles, num_workers=0, verify=False)
    datamodule.setup()
    images = torch.stack([datamodule.test_data[i].image for i in range(len(datamodule.test_data))])
    with torch.no_grad():
        predictions = model.eval()(images)
    expected = recorded["scores"] >= model.post_processor.image_threshold
    assert torch.equal(predictions.pred_label.flatten(), expected)
    assert torch.equal(predictions.pred_mask[:, 0], recorded["maps"] >= model.post_processor.pixel_threshold)


def test_one_seed_one_choice_of_channels_and_the_callers_random_state_is_left_alone():
    torch.manual_seed(1)
    first = small_padim(seed=5)
    found = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), found)
    second = small_padim(seed=5)
    assert torch.equal(first.model.idx, second.model.idx)
    assert not torch.equal(first.model.idx, small_padim(seed=6).model.idx)
    weights = first.model.feature_extractor.state_dict()
    for name, value in second.model.feature_extractor.state_dict().items():
        assert torch.equal(value, weights[name])


def test_channels_are_spread_over_all_of_the_layers():
    chosen = torch.cat([small_padim(seed=seed, n_features=100).model.idx for seed in range(4)])
    assert chosen.min() < 64
    assert chosen.max() >= 448 - 64


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_checkpoint_restores_every_prediction_exactly(bottles, tmp_path, calibrated, precision):
    if precision == "float16":
        model, path = calibrated[0], calibrated[2].best_model_path
    else:
        model = fit(small_padim(seed=1), bottles)
        model.weights = replace(model.weights, source="folder", sha256="ab" * 32)
        path = saved(model, tmp_path / "model.ckpt")
    restored = Padim.load_from_checkpoint(path)
    assert restored.hparams.n_features == 40
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = model.eval().cpu()(images), restored.eval()(images)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(restored.post_processor.calibration_scores, model.post_processor.calibration_scores)
    assert restored.weights == model.weights


def test_a_checkpoint_of_anomalibs_padim_loads(anomalibs):
    theirs, _, engine = anomalibs
    ours = Padim.load_from_checkpoint(engine.best_model_path)
    assert type(ours.post_processor) is PostProcessor
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = theirs.eval().cpu()(images), ours.eval()(images)
    torch.testing.assert_close(actual.anomaly_map, expected.anomaly_map, rtol=0, atol=1e-4)
    torch.testing.assert_close(actual.pred_score, expected.pred_score, rtol=0, atol=1e-4)
    assert torch.equal(actual.pred_label, expected.pred_label)


def test_a_checkpoint_with_arguments_that_went_loads_where_they_were_at_their_defaults(bottles, calibrated, tmp_path):
    checkpoint = torch.load(calibrated[2].best_model_path, weights_only=False)
    checkpoint["hyper_parameters"] |= {"reduction": "random", "neighborhood": 1}
    for embedding in ("likeness", "grids.0.embedding"):
        checkpoint["state_dict"][f"model.{embedding}.projection"] = torch.empty(0)
    torch.save(checkpoint, tmp_path / "old.ckpt")
    found = predict(Padim.load_from_checkpoint(tmp_path / "old.ckpt"), bottles)["scores"]
    torch.testing.assert_close(found, calibrated[1]["scores"])
    checkpoint["hyper_parameters"] |= {"neighborhood": 3}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(UserError, match="neighborhood: this model was trained with 3"):
        Padim.load_from_checkpoint(tmp_path / "old.ckpt")


def test_bfloat16_runs_the_backbone_only(bottles, tmp_path, plain):
    model = small_padim(seed=3, calibration=False)
    datamodule = MVTecAD(root=bottles, num_workers=0, verify=False)
    recorder = Recorder()
    engine = Engine(
        callbacks=[recorder], default_root_dir=tmp_path, accelerator="cpu", precision="bf16-mixed",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    engine.train(model=model, datamodule=datamodule)
    assert model.model.gaussian.mean.dtype == torch.float32
    assert recorder.collected()["maps"].dtype == torch.float32
    recorded = recorder.collected()
    torch.testing.assert_close(recorded["maps"].float(), plain[1]["maps"], rtol=0.05, atol=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_refused_by_name(dtype):
    with pytest.raises(UserError, match=r"trainer\.precision"):
        small_padim().to(dtype).on_train_start()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 0.0}, "alpha: 0.0 is not between 0 and 1"),
        ({"confidence": 1.0}, "confidence: 1.0 is not between 0 and 1"),
        ({"pixel_quantile": 1.0}, "pixel_quantile"),
        ({"seed": -1}, "seed: -1 is negative"),
        ({"backbone": "resnet_eighteen"}, "no model 'resnet_eighteen'"),
        ({"layers": ["layer7"]}, "no layer7"),
    ],
)
def test_impossible_values_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        small_padim(**options)


@pytest.mark.parametrize(("images", "words"), [(1, "at least 2 training images"), (2, "at least 3 training images")])
def test_too_few_training_images_are_refused(images, words):
    model = small_padim(calibration=images != 1)
    model.model.train()
    model.model(torch.rand(images, 3, *SIZE))
    with pytest.raises(UserError, match=words):
        model.fit()


def test_tiling_is_refused_rather_than_ignored():
    model = small_padim().model
    model.tiler = object()
    with pytest.raises(UserError, match="Tiling"):
        model(torch.rand(1, 3, *SIZE))
