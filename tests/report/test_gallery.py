"""Figures of finished runs, against scikit-learn and against the numbers they are drawn from."""

import logging
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from recorded_runs import write_run
from sklearn.metrics import average_precision_score, roc_auc_score

from padim_bottle.evaluation.curves import region_weights, trace_curve
from padim_bottle.evaluation.predictions import Predictions, Thresholds
from padim_bottle.report import gallery as figures
from padim_bottle.report.curve_figures import draw_precision_recall, draw_roc
from padim_bottle.report.gallery import FIGURES, draw_figures, render, save_figures
from padim_bottle.report.photo_figures import draw_side_by_side
from padim_bottle.report.reference_thresholds import reference_thresholds
from padim_bottle.report.score_figures import draw_confusion_matrix, draw_score_histogram
from padim_bottle.runs.figure_data import save_data
from padim_bottle.runs.run import Run

PICTURES = {"hardest_images", "began_with"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.read(write_run(tmp_path_factory.mktemp("run") / "seed_0"))


def line(axes):
    """The curve: the longest of the lines."""
    return max((line.get_xydata() for line in axes.lines), key=len).T


def test_every_figure_is_written_twice_and_described_and_those_of_an_earlier_time_go(run, tmp_path):
    drawn = draw_figures(run)
    assert [figure.name for figure in drawn] == list(FIGURES)
    save_figures(drawn, tmp_path)
    expected = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")} | {"captions.md"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    captions = (tmp_path / "captions.md").read_text()
    for figure in drawn:
        assert figure.title in captions and len(figure.caption) > 80
        assert Image.open(tmp_path / f"{figure.name}.png").size[0] >= 800
        assert (tmp_path / f"{figure.name}.svg").read_text().startswith("<?xml")
    (tmp_path / "notes.txt").write_text("not ours")
    save_figures([figure for figure in drawn if figure.name == "roc"], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"roc.png", "roc.svg", "captions.md", "notes.txt"}


def test_roc_and_precision_recall_curve_are_scikit_learns(run):
    labels, scores = run.predictions["label"], run.predictions["score"]
    _, caption, figure = draw_roc(run)
    fpr, recall = line(figure.axes[0])
    area = roc_auc_score(labels, scores)
    assert np.trapezoid(recall, fpr) == pytest.approx(area)
    assert (fpr[0], recall[0], fpr[-1], recall[-1]) == (0, 0, 1, 1)
    assert f"{area:.4f}" in caption
    _, caption, figure = draw_precision_recall(run)
    recall, precision = line(figure.axes[0])
    average = average_precision_score(labels, scores)
    # Drawn from recall 1 to 0, each step as high as its right end.
    assert np.sum(-np.diff(recall) * precision[:-1]) == pytest.approx(average)
    assert f"{average:.4f}" in caption


def test_thresholds_are_marked_where_they_put_the_run(run):
    axes = draw_roc(run)[2].axes[0]
    labels, scores = run.predictions["label"].to_numpy(), run.predictions["score"].to_numpy()
    marks = [mark.get_xydata()[0] for mark in axes.lines if mark.get_linestyle() == "None"]
    references = reference_thresholds(run)[0]
    assert len(marks) == len(references) == 4
    for (fpr, recall), reference in zip(marks, references, strict=True):
        called = scores >= reference.value
        assert (fpr, recall) == pytest.approx((called[~labels].mean(), called[labels].mean()))
    assert len({mark.get_marker() for mark in axes.lines if mark.get_linestyle() == "None"}) == 4


def test_the_histogram_has_a_row_for_each_type_and_one_for_training_images(run):
    axes = draw_score_histogram(run)[2].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["5 broken_large", "6 contamination", "8 good", "30 training images,\neach left out"]
    # F1Max's threshold and anomalib's are one place, however they count.
    values = {round(reference.value, 6) for reference in reference_thresholds(run)[0]}
    assert {round(float(mark.get_xdata()[0]), 6) for mark in axes.lines if mark.get_marker() != "None"} == values
    assert len(values) == 3
    table = run.predictions
    rows = [table.loc[table["defect_type"] == name, "score"] for name in ("broken_large", "contamination", "good")]
    bars = [patch.get_data() for patch in axes.patches if patch.get_fill()]
    for (top, edges, base), scores in zip(bars, (*rows, run.calibration_scores), strict=True):
        in_bins = [((scores >= low) & (scores < high)).sum() for low, high in pairwise(edges)]
        assert sum(in_bins) == len(scores)
        np.testing.assert_allclose((top - base) / (top - base).max(), np.array(in_bins) / max(in_bins), atol=1e-9)


def test_the_confusion_matrix_shows_the_runs_own_counts(run):
    _, caption, figure = draw_confusion_matrix(run)
    counts = run.metrics["confusion_matrix"]
    shown = [int(text.get_text().split()[0]) for text in figure.axes[0].texts]
    assert shown == [counts[name] for name in ("true_negative", "false_positive", "false_negative", "true_positive")]
    by_type = [int(text.get_text().split()[0]) for text in figure.axes[1].texts]
    assert [sum(pair) for pair in zip(by_type[::2], by_type[1::2], strict=True)] == [8, 5, 6]
    wrong = [text.get_text().split()[0] for text in figure.axes[0].texts if "wrong" in text.get_text()]
    assert wrong == [str(counts[name]) for name in ("false_positive", "false_negative") if counts[name]]
    assert f"{counts['false_positive']} of 8 good" in caption


def test_a_thinned_pro_curve_keeps_its_area(tmp_path):
    rng = np.random.default_rng(1)
    masks = np.zeros((6, 128, 128), dtype=bool)
    masks[1:, 20:40, 30:90] = True
    masks[2:4, 80:90, 30:40] = True
    maps = (rng.gamma(3, 1, masks.shape) + 4 * masks).astype(np.float32)
    names = ["good", *["broken"] * 5]
    predictions = Predictions(["x.png"] * 6, names, np.array(names) != "good", np.arange(6.0), maps, masks)
    save_data(tmp_path / "data.npz", predictions, Thresholds(None, None, "none"), np.empty(0), np.empty(0))
    with np.load(tmp_path / "data.npz", allow_pickle=False) as data:
        fpr, overlap = data["pro_0"]
    assert len(fpr) < 700
    exact = trace_curve([np.sort(maps[~masks])], maps[masks], region_weights(masks)).aupro()
    grid = np.linspace(0, 0.3, 20_001)
    assert np.trapezoid(np.interp(grid, fpr, overlap), grid) / 0.3 == pytest.approx(exact, abs=2e-4)


def test_the_hardest_images_and_the_first_cases_are_chosen_by_rule(run):
    drawn = {figure.name: figure for figure in draw_figures(run)}
    table = run.predictions
    defective, good = table[table["label"]], table[~table["label"]]
    expected = [*defective.nsmallest(4, "score")["score"], *good.nlargest(4, "score")["score"]]
    texts = [text.get_text() for text in drawn["hardest_images"].figure.axes[0].texts]
    assert [float(text.split("score ")[1].split(",")[0]) for text in texts] == pytest.approx(expected)
    for defect in ("broken_large", "contamination"):
        scores = np.sort(table.loc[table["defect_type"] == defect, "score"])
        (text,) = [t.get_text() for t in drawn["began_with"].figure.axes[0].texts if t.get_text().startswith(defect)]
        assert f"score {scores[len(scores) // 2]:.2f}" in text


def test_models_are_shown_side_by_side_on_what_is_hardest_for_any_of_them(run, tmp_path):
    other = Run.read(write_run(tmp_path / "seed_1", seed=1))
    _, _, figure = draw_side_by_side({"one": run, "other": other}, count=2)
    texts = [text.get_text() for text in figure.axes[0].texts]
    rows = [texts[i : i + 2] for i in range(0, len(texts), 2)]
    assert [{text.split(":")[0] for text in row} for row in rows] == [{"one"}, {"other"}, {"one"}, {"other"}]
    for label, (mine, theirs) in zip((True, False), (rows[:2], rows[2:]), strict=True):
        images = [text.split(": ")[1].split("\n")[0] for text in mine]
        assert images == [text.split(": ")[1].split("\n")[0] for text in theirs]
        for model, row in ((run, mine), (other, theirs)):
            table = model.predictions[model.predictions["label"] == label]
            scores = (table["defect_type"] + "/" + table["image"]).to_list()
            hardest = table["score"].min() if label else table["score"].max()
            candidates = {name for name, score in zip(scores, table["score"], strict=True) if score == hardest}
            # What is hardest for one model is shown with both.
            assert candidates & set(images)
            for name, text in zip(images, row, strict=True):
                assert f"score {table['score'].to_list()[scores.index(name)]:.2f}" in text


def test_models_without_pictures_are_not_drawn_side_by_side(tmp_path):
    bare = Run.read(write_run(tmp_path / "seed_0", pictures=False))
    assert draw_side_by_side({"one": bare, "other": bare}) is None


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        ({"types": {"good": 5}}, {"roc", "precision_recall", "pro_curve", "began_with"}),
        ({"types": {"contamination": 4}}, {"roc", "precision_recall", "began_with"}),
        ({"types": {"good": 1, "scratch": 1}}, {"began_with"}),
        ({"training": 0}, {"confusion_matrix", "calibration_maps"}),
        ({"training": 0, "types": {"good": 3}, "pictures": False}, set(FIGURES) - {"score_histogram"}),
        ({"pictures": False}, PICTURES),
        ({"data": False}, {"pro_curve", "calibration_maps"}),
    ],
)
def test_what_a_run_lacks_is_left_out_without_complaint(arguments, missing, tmp_path, caplog):
    folder = write_run(tmp_path / "seed_0", **arguments)
    caplog.clear()
    drawn = draw_figures(Run.read(folder))
    assert {figure.name for figure in drawn} == set(FIGURES) - missing
    assert not caplog.records
    for figure in drawn:
        assert render(figure.figure, "svg")


def test_equal_scores_are_drawn(tmp_path):
    folder = write_run(tmp_path / "seed_0", pictures=False)
    table = (folder / "predictions.csv").read_text().splitlines()
    column = table[0].split(",").index("score")
    rows = [row.split(",") for row in table[1:]]
    for row in rows:
        row[column] = "3.5"
    (folder / "predictions.csv").write_text("\n".join([table[0], *map(",".join, rows)]))
    assert {"roc", "score_histogram"} <= {figure.name for figure in draw_figures(Run.read(folder))}


def test_names_that_mean_something_to_matplotlib_are_drawn_as_they_stand(tmp_path, caplog):
    names = {"good": 2, "$x^{": 1, "_hidden": 1, "a\nb\x07": 1, "<script>": 2}
    run = Run.read(write_run(tmp_path / "seed_0", names, data=False, pictures=False))
    caplog.clear()
    drawn = {figure.name: render(figure.figure, "svg") for figure in draw_figures(run)}
    assert not caplog.records
    assert b"<script" not in b"".join(drawn.values())
    labels = [label.get_text() for label in draw_score_histogram(run)[2].axes[0].get_yticklabels()]
    assert r"1 \$x^{" in labels and "1 a?b?" in labels and "1 _hidden" in labels


def test_the_same_run_gives_the_same_bytes_in_any_thread(run):
    def draw(_):
        figures = [draw_roc(run)[2], draw_confusion_matrix(run)[2]]
        return [render(figure, kind) for figure in figures for kind in ("png", "svg")]

    alone = draw(0)
    with ThreadPoolExecutor(3) as pool:
        assert all(other == alone for other in pool.map(draw, range(3)))


def test_a_figure_that_fails_takes_no_other_with_it(run, monkeypatch, caplog):
    def fail(run):
        raise ZeroDivisionError("a mistake")

    monkeypatch.setitem(figures.FIGURES, "roc", fail)
    with caplog.at_level(logging.WARNING):
        drawn = [figure.name for figure in draw_figures(run)]
    assert drawn == [name for name in FIGURES if name != "roc"]
    assert "roc could not be drawn: ZeroDivisionError: a mistake" in caplog.text
