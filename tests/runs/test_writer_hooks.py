"""ResultsWriter by its hooks, with made-up outputs: nothing is trained here."""

import json
import logging
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from small import file_size_limit

from padim_bottle import Report, ResultsWriter
from padim_bottle.data.samples import DataDescription
from padim_bottle.errors import UserError, explain_failure
from padim_bottle.evaluation.metrics import evaluate
from padim_bottle.model.backbone import Weights
from padim_bottle.runs import environment
from padim_bottle.runs.listener import RunListener
from padim_bottle.runs.run import Run

SIDE = 32
TYPES = {"good": 4, "crack": 3, "stain": 2}


class Post:
    """A calibrated model's post-processor, as far as a record asks."""

    enable_thresholding, alpha, confidence, pixel_quantile = True, 0.2, None, 0.9995
    calibration_scores = torch.arange(10.0)
    image_threshold, pixel_threshold = torch.tensor(8.5), torch.tensor(7.0)
    rule = SimpleNamespace(p_values=lambda scores: np.array([(1 + (np.arange(10) >= s).sum()) / 11 for s in scores]))


class Model(torch.nn.Module):
    def __init__(self, seed=3):
        super().__init__()
        self.seed, self.hparams = seed, {"seed": seed}
        self.weights = Weights("resnet18.tv_in1k", "random", None)
        self.post_processor = Post()
        self.model = SimpleNamespace(position_calibration=True, scores_map=True)
        self.device = torch.device("cpu")


class Listener(RunListener):
    """Notes what it is told."""

    def __init__(self, fails=()):
        self.told, self.fails = [], fails

    def __getattribute__(self, name):
        if not name.startswith("on_run_"):
            return super().__getattribute__(name)
        return lambda *given: self._take(name, given)

    def _take(self, name, given):
        self.told.append((name, given))
        if name in self.fails:
            raise RuntimeError(f"{name} fails")
        if name == "on_run_written":
            (given[0] / "page.html").write_text("a page")


class Rehearsal:
    """A trainer with a writer, and a test set of made-up maps."""

    def __init__(self, root, monkeypatch, types=TYPES, unmasked=(), listener=None):
        rng = np.random.default_rng(0)
        self.types = [kind for kind, count in types.items() for _ in range(count)]
        self.paths = [f"/data/test/{kind}/{i:03}.png" for i, kind in enumerate(self.types)]
        self.masks = np.zeros((len(self.types), SIDE, SIDE), dtype=bool)
        self.masks[[kind not in ("good", *unmasked) for kind in self.types], 4:12, 6:20] = True
        defective = np.array([kind != "good" for kind in self.types], dtype=bool)
        self.maps = (rng.gamma(3, 1, self.masks.shape) + 4 * self.masks).astype(np.float32)
        self.scores = (rng.gamma(4, 1, len(self.types)) + 6 * defective).astype(np.float32)
        without = frozenset(path for path, kind in zip(self.paths, self.types, strict=True) if kind in unmasked)
        by_path = dict(zip(self.paths, self.types, strict=True))
        data = DataDescription("drawn", "bottle", True, 10, by_path, without, (), "f" * 64)
        monkeypatch.setattr("padim_bottle.runs.writer.describe", lambda _: data)
        monkeypatch.setattr("padim_bottle.runs.writer.read_alike", lambda _: 8)
        self.listener = listener or Listener()
        self.trainer = SimpleNamespace(
            callbacks=[self.listener], datamodule=None, strategy=SimpleNamespace(root_device=torch.device("cpu")),
            checkpoint_callback=None, loggers=[], default_root_dir=str(root / "nowhere"), progress_bar_callback=None,
            save_checkpoint=lambda path: path.write_bytes(b"a model"),
        )  # fmt: skip
        self.model = Model()
        self.writer = ResultsWriter("drawn", root)

    def train(self):
        self.writer.setup(self.trainer, self.model, "fit")
        self.writer.on_fit_start(self.trainer, self.model)
        self.writer.on_train_start(self.trainer, self.model)
        self.writer.on_train_end(self.trainer, self.model)
        self.writer.on_fit_end(self.trainer, self.model)

    def begin_test(self):
        self.writer.setup(self.trainer, self.model, "test")
        self.writer.on_test_start(self.trainer, self.model)
        for some in np.array_split(np.arange(len(self.paths)), 2):
            outputs = SimpleNamespace(
                anomaly_map=torch.from_numpy(self.maps[some])[:, None], pred_score=torch.from_numpy(self.scores[some]),
                gt_mask=torch.from_numpy(self.masks[some])[:, None], image_path=[self.paths[i] for i in some],
                gt_label=torch.tensor([self.types[i] != "good" for i in some], dtype=torch.bool),
                image=torch.zeros(len(some), 3, SIDE, SIDE),
            )  # fmt: skip
            self.writer.on_test_batch_end(self.trainer, self.model, outputs, None, 0)

    def test(self):
        self.begin_test()
        self.writer.on_test_end(self.trainer, self.model)
        self.writer.teardown(self.trainer, self.model, "test")
        return Run.read(self.writer.folder)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_run_is_what_the_outputs_say(tmp_path, monkeypatch):
    rehearsal = Rehearsal(tmp_path, monkeypatch)
    rehearsal.train()
    run = rehearsal.test()
    assert run.folder == tmp_path / "drawn" / "seed_3"
    assert names(run.folder) == {"config.yaml", "figures", "metrics.json", "model.ckpt", "page.html", "predictions.csv"}
    table = pd.read_csv(run.folder / "predictions.csv", float_precision="round_trip")
    assert list(table["image_path"]) == rehearsal.paths
    assert (table["score"] == rehearsal.scores.astype(float)).all()
    assert (table["predicted_label"] == (rehearsal.scores >= 8.5)).all()
    assert table["p_value"].tolist() == pytest.approx([(1 + (np.arange(10) >= s).sum()) / 11 for s in table["score"]])
    assert run.metrics["images"] == {"good": 4, "defective": 5}
    assert run.metrics["seconds"].keys() == {"train", "test", "draw", "evaluate", "report", "total"}
    assert run.arrays["pro_names"].tolist() == ["", "crack", "stain"]


def test_listeners_are_told_in_order_and_before_the_run_has_its_name(tmp_path, monkeypatch):
    rehearsal = Rehearsal(tmp_path, monkeypatch)
    run = rehearsal.test()
    told = [name for name, _ in rehearsal.listener.told]
    images = ["on_run_image"] * 9
    assert told == ["on_run_start", *images, "on_run_images_end", "on_run_written", "on_run_published"]
    (hidden,) = rehearsal.listener.told[-2][1]
    assert hidden != run.folder and not hidden.exists()
    first = rehearsal.listener.told[1][1][0]
    assert first.name == Path("good", "000.png")
    np.testing.assert_array_equal(first.anomaly_map, rehearsal.maps[0])
    assert first.score == float(rehearsal.scores[0])


def test_a_listener_that_fails_in_the_end_costs_no_number(tmp_path, monkeypatch, caplog):
    rehearsal = Rehearsal(tmp_path, monkeypatch, listener=Listener(["on_run_written"]))
    with caplog.at_level(logging.WARNING):
        run = rehearsal.test()
    assert run.metrics["image_AUROC"] is not None
    assert "RuntimeError: on_run_written fails" in caplog.text


def test_a_run_that_fails_leaves_nothing(tmp_path, monkeypatch):
    rehearsal = Rehearsal(tmp_path / "results", monkeypatch)
    rehearsal.begin_test()
    rehearsal.writer.on_exception(rehearsal.trainer, rehearsal.model, ValueError())
    assert rehearsal.listener.told[-1][0] == "on_run_failed"
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the size of files")
@pytest.mark.parametrize(("limit", "drawn"), [(0, True), (300, True), (300, False), (2_000, False)])
def test_a_disk_that_fills_while_results_are_written_leaves_nothing(tmp_path, monkeypatch, limit, drawn):
    """Pictures, predictions.csv, and config.yaml, model and metrics.json."""
    rehearsal = Rehearsal(tmp_path / "results", monkeypatch, listener=Report(report=False) if drawn else None)
    rehearsal.train()
    with pytest.raises(OSError) as full, file_size_limit(limit):
        rehearsal.test()
    assert "No space left" in explain_failure(full.value)
    rehearsal.writer.on_exception(rehearsal.trainer, rehearsal.model, full.value)
    assert not list(tmp_path.rglob("*.*"))


def test_the_same_results_replace_their_run_and_others_keep_it(tmp_path, monkeypatch, caplog):
    rehearsal = Rehearsal(tmp_path, monkeypatch)
    rehearsal.test()
    folder = rehearsal.test().folder
    assert names(folder.parent) == {"seed_3"}
    first = (folder / "metrics.json").read_text()
    rehearsal.scores += 1
    with caplog.at_level(logging.WARNING):
        rehearsal.test()
    assert names(folder.parent) == {"seed_3", "seed_3.previous_1"}
    assert (folder.with_name("seed_3.previous_1") / "metrics.json").read_text() == first
    assert "it is kept as" in caplog.text


def test_a_writer_that_is_used_again_measures_each_run_on_its_own(tmp_path, monkeypatch):
    """Its seconds, and the GPU's memory, of which only the most since the last reset is known."""
    resets = []
    monkeypatch.setattr(environment, "start_measuring", resets.append)
    rehearsal = Rehearsal(tmp_path, monkeypatch)
    rehearsal.train()
    first = rehearsal.test().metrics["seconds"]
    assert len(resets) == 1
    time.sleep(0.3)
    began = time.perf_counter()
    second = rehearsal.test().metrics["seconds"]
    lasted = time.perf_counter() - began
    assert len(resets) == 2
    assert "train" in first and "train" not in second
    assert second["test"] <= second["total"] <= lasted


@pytest.mark.parametrize(
    ("types", "undefined"),
    [
        ({"crack": 3}, ["image_AUROC", "image_false_alarm_rate"]),
        ({"good": 4}, ["image_AUROC", "image_F1Score", "pixel_AUPRO"]),
    ],
)
def test_a_test_set_without_goods_or_without_defects_gives_what_it_can(tmp_path, monkeypatch, types, undefined):
    run = Rehearsal(tmp_path, monkeypatch, types).test()
    assert all(run.metrics[name] is None for name in undefined)
    assert run.threshold == 8.5
    assert len(run.predictions) == sum(types.values())
    assert "page.html" in names(run.folder)


def test_without_test_images_everything_is_written_after_the_training(tmp_path, monkeypatch):
    rehearsal = Rehearsal(tmp_path, monkeypatch, {})
    rehearsal.train()
    run = Run.read(rehearsal.writer.folder)
    assert run.metrics["image_AUROC"] is run.metrics["confusion_matrix"] is None
    assert run.predictions.empty and run.threshold == 8.5
    rehearsal.writer.setup(rehearsal.trainer, rehearsal.model, "test")  # Lightning passes over such a test
    assert names(run.folder.parent) == {"seed_3"}


@pytest.mark.parametrize("unmasked", [["stain"], ["crack", "stain"]])
def test_types_without_masks_are_judged_and_left_out_of_pixel_metrics(tmp_path, monkeypatch, unmasked):
    """What remains is what a test set without them gives."""
    whole = Rehearsal(tmp_path / "a", monkeypatch).test().metrics
    rehearsal = Rehearsal(tmp_path / "b", monkeypatch, unmasked=unmasked)
    metrics = rehearsal.test().metrics
    said = f"There are no masks of {', '.join(unmasked)}: pixel metrics leave their images out."
    assert metrics["data"]["left_out"] == [said]
    image_metrics = [name for name in whole if name.startswith("image_")]
    assert [metrics[name] for name in image_metrics] == [whole[name] for name in image_metrics]
    masks = {args[0].name.parts[0]: args[0].mask for name, args in rehearsal.listener.told if name == "on_run_image"}
    for kind in ("crack", "stain"):
        if kind in unmasked:
            assert metrics["per_defect"][kind]["pixel_AUROC"] is masks[kind] is None
        else:
            assert metrics["per_defect"][kind] == whole["per_defect"][kind] and masks[kind].any()
    masked = {kind: count for kind, count in TYPES.items() if kind not in unmasked}
    fewer = Rehearsal(tmp_path / "c", monkeypatch, masked).test().metrics
    pixel_metrics = [name for name in whole if name.startswith("pixel_")]
    assert [metrics[name] for name in pixel_metrics] == [fewer[name] for name in pixel_metrics]


def test_the_writer_writes_what_evaluate_says(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("padim_bottle.runs.writer.evaluate", lambda *given: seen.append(given) or evaluate(*given))
    run = Rehearsal(tmp_path, monkeypatch).test()
    ((predictions, thresholds),) = seen
    assert (thresholds.image, thresholds.pixel) == (8.5, 7.0)
    expected = json.loads(json.dumps(evaluate(predictions, thresholds)))
    assert {name: run.metrics[name] for name in expected} == expected


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("a file, not a folder")
    with pytest.raises(UserError, match="Cannot write results to"):
        Rehearsal(tmp_path / "occupied", monkeypatch).train()


@pytest.mark.parametrize("name", ["../outside", "a/b", "", ".hidden", "nul\0"])
def test_an_experiments_name_cannot_leave_the_results_folder(name):
    with pytest.raises(UserError, match="cannot name a folder"):
        ResultsWriter(experiment=name)
