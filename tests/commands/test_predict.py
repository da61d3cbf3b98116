"""The predict command, as a line's script and as a person would call it."""

import csv
import json
import os
import shutil
import time
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from padim_bottle.commands.command_line import run_verb
from padim_bottle.data.images import read_image
from padim_bottle.predict.heatmaps import draw
from padim_bottle.predict.judge import read_ahead
from padim_bottle.predict.predictor import ImagePrediction, load_predictor

pytestmark = pytest.mark.slow


@pytest.fixture
def table(run_folder):
    return pd.read_csv(run_folder / "predictions.csv")


def predict(run_folder, *arguments):
    return run_verb("predict", ["--model", str(run_folder), "--device", "cpu", *map(str, arguments)])


def test_every_line_is_the_runs_own_and_the_exit_code_counts(run_folder, table, capsys):
    assert predict(run_folder, "--json", *table["image_path"]) == 1
    rows = pd.DataFrame(map(json.loads, capsys.readouterr().out.splitlines()))
    assert rows["path"].tolist() == table["image_path"].tolist()
    np.testing.assert_allclose(rows["score"], table["score"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rows["p_value"], table["p_value"])
    assert (rows["verdict"] == "anomalous").tolist() == table["predicted_label"].tolist()
    np.testing.assert_allclose(rows["threshold"], table["threshold"])
    # An alarm says where: in pixels of the photo, by falling largest value.
    assert [bool(regions) for regions in rows["regions"]] == table["predicted_label"].tolist()
    for path, regions in zip(rows["path"], rows["regions"], strict=True):
        height, width = read_image(path).shape[:2]
        assert regions == sorted(regions, key=lambda region: -region["largest"])
        for region in regions:
            left, top, across, down = region["box"]
            assert left >= 0 <= top and left + across <= width and top + down <= height
            assert 0 < region["area"] <= across * down and 0 < region["mean"] <= region["largest"] < 1

    good = table.loc[~table["predicted_label"], "image_path"].iloc[0]
    assert predict(run_folder, good) == 0
    line = capsys.readouterr().out
    expected = table.set_index("image_path").loc[good]
    assert line == f"{good}  score {expected['score']:.4f}  p {expected['p_value']:.4f}  good\n"


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(run_folder, table, tmp_path, capsys):
    good = table.loc[~table["predicted_label"], "image_path"].iloc[0]
    shutil.copy(good, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    shutil.copy(good, tmp_path / "d.png")
    nowhere = tmp_path / "nowhere"
    assert predict(run_folder, tmp_path, nowhere, "--batch-size", 3, "--csv", tmp_path / "new" / "table.csv") == 2
    output = capsys.readouterr()
    assert [line.split()[0] for line in output.out.splitlines()] == [str(tmp_path / "a.png"), str(tmp_path / "d.png")]
    for name in ("b.png", "c.png", "nowhere"):
        assert sum(line.startswith("error:") and str(tmp_path / name) in line for line in output.err.splitlines()) == 1
    with (tmp_path / "new" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in rows] == [False, True, True, False]
    assert rows[0]["score"] == rows[3]["score"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table.csv"]
    assert predict(run_folder, tmp_path / "a.png", tmp_path / "b.png") == 2


def test_a_name_that_is_no_utf_8_is_judged_and_printed_everywhere(run_folder, table, tmp_path, capsys):
    good = table.loc[~table["predicted_label"], "image_path"].iloc[0]
    shutil.copy(good, tmp_path / os.fsdecode(b"caf\xe9.png"))
    (tmp_path / os.fsdecode(b"th\xe9.png")).write_bytes(b"no picture")
    for form in ([], ["--json"]):
        assert predict(run_folder, tmp_path, "--csv", tmp_path / "table.csv", *form) == 2
        assert "caf\\xe9.png" in (output := capsys.readouterr()).out.replace("\\\\", "\\")
        assert "th\\xe9.png" in output.err
        assert pd.read_csv(tmp_path / "table.csv")["path"].tolist() == [
            str(tmp_path / name) for name in ("caf\\xe9.png", "th\\xe9.png")
        ]


def test_a_table_goes_to_standard_output(run_folder, table, capsys):
    predict(run_folder, "--csv", "-", table["image_path"][0])
    header, row = capsys.readouterr().out.splitlines()
    assert header == "path,score,normalised_score,p_value,verdict,threshold,regions,box,map_mean,drift,error"
    assert row.startswith(f"{table['image_path'][0]},")


def test_pictures_have_the_photos_own_size(run_folder, table, tmp_path, capsys):
    path = table.sort_values("score")["image_path"].iloc[-1]
    for folder, size in (("x", (150, 130)), ("y", (40, 48))):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "photo.png"), cv2.resize(cv2.imread(path), size[::-1]))
    cv2.imwrite(str(tmp_path / "x" / "photo.bmp"), np.zeros((64, 64, 3), np.uint8))
    assert predict(run_folder, tmp_path / "x", tmp_path / "y", "--output", tmp_path / "out") == 1
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")}
    names = ("x/photo.png", "x/photo.bmp", "y/photo")
    assert written == {f"{name}_{kind}.png" for name in names for kind in ("heatmap", "mask")}
    for name, shape in (("x/photo.png", (150, 130, 3)), ("x/photo.bmp", (64, 64, 3)), ("y/photo", (40, 48, 3))):
        assert read_image(tmp_path / "out" / f"{name}_heatmap.png").shape == shape
        mask = cv2.imread(str(tmp_path / "out" / f"{name}_mask.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == shape[:2]
        assert set(np.unique(mask)) <= {0, 255}


@pytest.mark.parametrize("size", [(64, 64), (150, 200), (32, 48)])
def test_the_mask_lies_where_the_map_is_high(size):
    anomaly_map = np.full((64, 64), 0.25, np.float32)
    anomaly_map[16:32, 32:64] = 0.8
    prediction = ImagePrediction(9.0, 0.8, 0.1, True, anomaly_map)
    photo = np.full((*size, 3), 128, np.uint8)
    heatmap, mask = draw(photo, prediction)
    expected = cv2.resize(prediction.mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    assert (mask > 0).mean() == pytest.approx(1 / 8, abs=0.01)
    assert ((mask > 0) != (expected > 0)).mean() < 0.02
    # Brighter inside.
    assert heatmap[mask > 0].mean() > heatmap[mask == 0].mean() + 30
    passed = replace(prediction, anomalous=False)
    assert not draw(photo, passed)[1].any() and (draw(photo, passed)[0] != heatmap).any()
    # Not even a single pixel of an alarm is lost by resizing.
    single = np.full((64, 64), 0.25, np.float32)
    single[33, 21] = 0.5
    assert draw(photo, replace(prediction, anomaly_map=single))[1].any()
    # A defect that is hardly above the threshold is one, too.
    slight = replace(prediction, anomaly_map=np.where(anomaly_map > 0.5, 0.51, 0.49).astype(np.float32))
    np.testing.assert_allclose((draw(photo, slight)[1] > 0).mean(), 1 / 8, atol=0.02)


def test_reading_ahead_is_bounded():
    started = []
    reader = read_ahead(started.append, list(range(100)), ahead=4)
    next(reader)
    time.sleep(0.2)  # for those that were asked for beforehand
    reader.close()
    assert len(started) <= 5


def test_a_bug_is_no_verdict(run_folder, table, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("padim_bottle.predict.predictor.Predictor.predict_prepared", fail)
    assert predict(run_folder, table["image_path"][0]) == 70
    assert "a bug" in capsys.readouterr().err


def test_another_false_alarm_rate_changes_the_verdicts(run_folder, table, capsys):
    for alpha in (0.08, 0.5):
        predict(run_folder, "--json", "--alpha", alpha, *table["image_path"])
        rows = pd.DataFrame(map(json.loads, capsys.readouterr().out.splitlines()))
        assert (rows["verdict"] == "anomalous").tolist() == (table["p_value"] <= alpha).tolist()
        assert ((rows["score"] >= rows["threshold"]) == (rows["verdict"] == "anomalous")).all()
        np.testing.assert_allclose(rows["p_value"], table["p_value"])
    predict(run_folder, "--json", *table["image_path"])
    usual = pd.DataFrame(map(json.loads, capsys.readouterr().out.splitlines()))
    predict(run_folder, "--json", "--confidence", 0.9, *table["image_path"])
    kept = pd.DataFrame(map(json.loads, capsys.readouterr().out.splitlines()))
    assert (kept["threshold"] > usual["threshold"]).all()


def test_a_batch_is_judged_by_its_false_discovery_rate(run_folder, table, tmp_path, capsys):
    (tmp_path / "broken.png").touch()
    arguments = ["--json", "--fdr", 0.3, *table["image_path"]]
    predict(run_folder, *arguments)
    output = capsys.readouterr()
    rows = pd.DataFrame(map(json.loads, output.out.splitlines()))
    # Benjamini and Hochberg 1995, as they put it.
    p, m = np.sort(table["p_value"]), len(table)
    largest = max((i for i in range(1, m + 1) if p[i - 1] <= i / m * 0.3 + 1e-6), default=0)
    assert (rows["verdict"] == "anomalous").sum() == (0 if not largest else (table["p_value"] <= p[largest - 1]).sum())
    fewest = next(k for k in range(1, 1000) if k / m * 0.3 + 1e-6 >= 1 / 13)
    assert [bool(regions) for regions in rows["regions"]] == (rows["verdict"] == "anomalous").tolist()
    assert f"of the {m} photos that were judged either at least {fewest} are called anomalous or none" in output.err
    drawn = ["--output", tmp_path / "out", "--csv", tmp_path / "table.csv"]
    assert predict(run_folder, *arguments, tmp_path / "broken.png", *drawn) == 2
    for row in pd.read_csv(tmp_path / "table.csv").dropna(subset="verdict").itertuples():
        (mask,) = (tmp_path / "out").rglob("/".join(row.path.split("/")[-2:]).replace(".png", "_mask.png"))
        assert read_image(mask).any() == (row.verdict == "anomalous") == (row.regions > 0)


def test_memory_does_not_hold_photos_at_their_own_size(run_folder):
    prepared = load_predictor(run_folder, device="cpu").prepare(np.zeros((3000, 4000, 3), np.uint8))
    assert prepared.pixels.shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere", "photo.png"], "There is no photo photo.png"),
        (["--model", "nowhere", __file__], "There is no model nowhere"),
    ],
)
def test_what_is_not_there_is_named(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_verb("predict", arguments) == 2
    assert words in capsys.readouterr().err


def test_pictures_go_beside_the_photos_not_among_them(run_folder, table, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(table["image_path"].iloc[0], folder / "a.png")
    for output in (folder, folder / "out", tmp_path / "photos" / ".." / "photos" / "deep" / "out"):
        assert predict(run_folder, folder, "--output", output) == 2
        assert "judged" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["a.png"]
    assert predict(run_folder, folder, "--output", tmp_path / "out") in (0, 1)
    assert len(list((tmp_path / "out").iterdir())) == 2
