"""report.html of runs and of sweeps: what it says, and that nothing in it is loaded or run that should not be."""

import json
import logging
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recorded_runs import add_training_photos, without_test_images, write_run

from padim_bottle.commands.command_line import run_verb
from padim_bottle.compare.comparison import Comparison
from padim_bottle.compare.seeds_page import write_sweep_report
from padim_bottle.errors import UserError
from padim_bottle.model.rule import Rule, false_alarm_range
from padim_bottle.predict.checkpoint import load_padim
from padim_bottle.report.reference_thresholds import reference_thresholds
from padim_bottle.report.run_report import write_report
from padim_bottle.runs.figure_data import DATA_FILE
from padim_bottle.runs.run import Run

NO_FIGURES = ("padim_bottle.report.gallery.FIGURES", {})  # for the sake of time
HOSTILE = "<img src=x onerror=alert(1)>&\"'</script>".replace("/", "")


class Page(HTMLParser):
    """The tags of a page, its text, its tables and its block of data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.text, self.rows, self.data = [], "", [], None
        self._in_data = self._in_cell = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._in_data = ("id", "data") in attributes
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        self._in_cell |= tag in ("td", "th")

    def handle_endtag(self, tag):
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_data:
            self.data, self._in_data = json.loads(data), False
        else:
            self.text += data
            if self._in_cell:
                self.rows[-1][-1] += data.strip()

    def row(self, name):
        return next(row for row in self.rows if row and row[0] == name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("results") / "an_experiment" / "seed_0")
    write_report(run)
    return run


def test_a_report_names_its_run_and_shows_its_metrics(folder):
    page, metrics = Page(folder / "report.html"), json.loads((folder / "metrics.json").read_text())
    names = (
        "image_AUROC", "pixel_AUROC", "pixel_AUPR", "pixel_AUPRO", "pixel_AUPIMO", "image_F1Score", "image_F1Max",
        "image_F1Score_anomalib",
    )  # fmt: skip
    assert page.row("an_experiment, seed 0")[1:] == ["resnet18, 32", *(spell(metrics.get(name)) for name in names)]
    large = metrics["per_defect"]["broken_large"]
    names = ("image_AUROC", "pixel_AUROC", "pixel_AUPRO", "pixel_AUPIMO", "recall")
    assert page.row("broken_large")[1:] == ["5", *(spell(large.get(name)) for name in names)]
    assert "1 in 100,000 to 1 in 10,000 pixels" in page.text


def spell(value):
    return "–" if value is None else f"{value:.4f}"


def test_a_report_loads_nothing(folder):
    page = Page(folder / "report.html")
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
        assert tag not in ("link", "iframe", "object", "base")
    assert "url(" not in page.source and "@import" not in page.source
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_the_gallery_has_every_image_by_falling_score(folder):
    page, table = Page(folder / "report.html"), Run.read(folder).predictions
    assert [image["score"] for image in page.data["images"]] == sorted(table["score"], reverse=True)
    photographs = [a for t, a in page.tags if t == "img" and a["src"].startswith("data:image/jpeg") and "loading" in a]
    assert len(photographs) == len(table)
    titles = {attributes["alt"].split(":")[0] for attributes in photographs}
    assert titles == {f"{row.defect_type}/{row.image}" for row in table.itertuples()}


@pytest.mark.parametrize(("real", "banners"), [(False, 2), (True, 0)])
def test_what_is_not_real_says_so_and_stands_beside_no_published_figure(real, banners, tmp_path, monkeypatch):
    monkeypatch.setattr(*NO_FIGURES)
    run = write_run(tmp_path / "seed_0", real=real, pictures=False)
    page = Page(write_report(run))
    assert ("Synthetic images." in page.text, "Random weights." in page.text) == (not real, not real)
    assert ("PatchCore" in page.text) == ("[1] its AUPRO averages over the defective images alone" in page.text) == real
    assert sum(a.get("class") == "banner" and a.get("role") == "note" for _, a in page.tags) == banners


@pytest.mark.parametrize("name", ["MVTec AD", "photos"])
def test_verdicts_and_pictures_come_first_and_published_figures_last(name, tmp_path, monkeypatch):
    """Of photos of one's own no published row appears at all."""
    monkeypatch.setattr(*NO_FIGURES)
    folder = write_run(tmp_path / "seed_0", real=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["data"]["name"] = name
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = Page(write_report(folder))
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == ["threshold", "images", "metrics", *["published"] * (name == "MVTec AD")]
    assert ("PatchCore" in page.text) == ("Rd550" in page.text) == (name == "MVTec AD")
    counts = metrics["confusion_matrix"]
    found, alarms = counts["true_positive"], counts["false_positive"]
    assert f"{found} of {found + counts['false_negative']} defects found, {alarms} false alarm" in page.text
    assert page.text.index("defects found, ") < page.text.index("highest score first")
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{section}" for section in sections]


def test_alphas_mean_what_the_model_means_by_them():
    """Each threshold splits scores exactly where the p-value passes alpha."""
    run = type("Run", (), {})()
    for count in (19, 30, 99, 209):
        scores = np.sort(np.random.default_rng(count).gamma(4, 2, count).astype(np.float32))
        run.calibration_scores, run.threshold = scores, None
        run.metrics = {"thresholds": {"image_F1Max": None, "source": ""}}
        found, reasons = reference_thresholds(run)
        alphas = [alpha for alpha in (0.01, 0.05, 0.1) if count >= round(1 / alpha) - 1]
        assert [reference.name for reference in found] == [f"alpha = {100 * alpha:g} %" for alpha in alphas]
        assert len(reasons) == 3 - len(alphas)
        candidates = np.sort(np.concatenate([scores, np.nextafter(scores, np.float32(np.inf))]))
        p_values = Rule.calibrated(scores, 0.5).p_values(candidates)
        for reference, alpha in zip(found, alphas, strict=True):
            np.testing.assert_array_equal(candidates >= reference.value, p_values <= alpha + 1e-9)


def test_thresholds_of_a_run(folder, caplog):
    run = Run.read(folder)
    with caplog.at_level(logging.WARNING):
        found = {reference.name: reference for reference in reference_thresholds(run)[0]}
    assert not caplog.records
    assert list(found) == ["alpha = 5 %", "alpha = 10 %", "F1Max", "anomalib's"]
    assert found["alpha = 10 %"].value == run.metrics["thresholds"]["image"]
    assert "this run's own" in found["alpha = 10 %"].note
    f1 = {}
    for name, reference in found.items():
        counts = run.counts(reference.value)
        tp, wrong = counts["true_positive"], counts["false_positive"] + counts["false_negative"]
        f1[name] = 2 * tp / (2 * tp + wrong)
    assert f1["F1Max"] == pytest.approx(run.metrics["image_F1Max"])
    assert f1["anomalib's"] == pytest.approx(run.metrics["image_F1Score_anomalib"])
    assert f1["alpha = 10 %"] == pytest.approx(run.metrics["image_F1Score"])
    text = " ".join(Page(folder / "report.html").text.split())
    low, high = (f"{100 * rate:.1f} %" for rate in false_alarm_range(30, 0.1))
    assert f"with 30 scores and alpha = 10 %, the true rate is expected between {low} and {high}" in text
    assert "no theorem promises it" in text
    assert "alpha = 1 % is not shown: it needs at least 99 training images, and there are 30." in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"training": 0}, "not calibrated"),
        ({"types": {"good": 3}, "training": 0}, "not calibrated"),
        ({"types": {"crack": 3}}, "crack"),
        ({"data": False, "pictures": False}, "no picture was drawn"),
        ({"alpha": 0.2}, "this run's own"),
        ({"training": 3}, "alpha = 10 % is not shown"),
    ],
)
def test_a_run_that_lacks_something_has_a_report_of_the_rest(arguments, words, tmp_path, monkeypatch):
    monkeypatch.setattr(*NO_FIGURES)
    run = write_run(tmp_path / "seed_0", **arguments)
    page = Page(write_report(run))
    assert words in page.text
    assert len(page.data["images"]) == sum(arguments.get("types", {"all": 19}).values())


def test_the_oddest_training_photos_are_shown_and_copies_named(tmp_path, monkeypatch):
    monkeypatch.setattr(*NO_FIGURES)
    run = write_run(tmp_path / "seed_0")
    add_training_photos(run, copies=[["/photos/001.png", "/photos/004.png", "exact"]], parts=True)
    page = Page(write_report(run))
    # Scores rise with the number of the photo: the oddest comes first, with the part that it shows.
    titles = [a["alt"].split(":")[0] for t, a in page.tags if t == "img" and "part" in a["alt"]]
    assert titles == [f"part {i // 2}" for i in range(29, 14, -1)]
    assert "part 14: 029.png" in page.text and "part 7: 014.png" not in page.text
    assert "The 15 oddest of 30 training photos" in page.text
    assert "001.png and 004.png (exact)" in page.text
    assert len(page.data["images"]) == 19
    shutil.rmtree(run / "figures" / "panels" / "train")  # drawn of a folder of photos only
    page = Page(write_report(run))
    assert "part 14: 029.png (p = 0.033), part 14: 028.png" in page.text and "no picture was drawn" not in page.text


def test_a_run_without_test_images_has_a_report(tmp_path):
    run = without_test_images(add_training_photos(write_run(tmp_path / "seed_0")))
    page = Page(write_report(run))
    assert "The 15 oddest of 30 training photos" in page.text and "Copies." not in page.text
    assert "029.png" in page.text and "part 29" not in page.text
    assert "There were no test images" in page.text
    found = {reference.name: reference.value for reference in reference_thresholds(Run.read(run))[0]}
    assert list(found) == ["alpha = 5 %", "alpha = 10 %"]
    assert all(f"{name}: {value:.3f}" in page.text for name, value in found.items())
    names = [a["id"] for t, a in page.tags if t == "figure"]
    assert names == ["figure-score_histogram", "figure-calibration_maps"]
    assert page.data is None and not any(t == "script" for t, _ in page.tags)
    assert "nan" not in page.text.lower().replace("covariance", "")


def test_hostile_names_are_text(tmp_path):
    run = write_run(tmp_path / "seed_0", {"good": 2, HOSTILE: 2}, experiment="<b>bold</b>")
    page = Page(write_report(run))
    assert f"{HOSTILE}/002.png" in page.text
    assert "<b>bold</b>" in page.text
    assert HOSTILE in page.data["types"]
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    captions = (run / "figures" / "captions.md").read_text()
    assert "<img" not in captions


def test_the_command_writes_the_same_report_again(folder, capsys):
    files = ["report.html", *(str(path.relative_to(folder)) for path in (folder / "figures").rglob("*.*"))]
    before = {name: (folder / name).read_bytes() for name in files}
    (folder / "report.html").unlink()
    (folder / "figures" / "roc.svg").unlink()
    assert run_verb("report", [str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert {name: (folder / name).read_bytes() for name in files} == before


def test_a_sweeps_report_compares_and_links(tmp_path, monkeypatch):
    monkeypatch.setattr(*NO_FIGURES)
    metrics = {}
    for experiment, shift in (("first", 0), ("second", 10)):
        for seed in (0, 1):
            # Of the same images, so that they can be compared.
            run = write_run(tmp_path / experiment / f"seed_{seed}", seed=seed + shift, experiment=experiment)
            values = json.loads((run / "metrics.json").read_text())
            (run / "metrics.json").write_text(json.dumps({**values, "seed": seed}))
            metrics.setdefault(experiment, []).append(values)
    write_report(tmp_path / "first" / "seed_1")
    assert run_verb("report", [str(tmp_path), str(tmp_path / "first")]) == 0
    page = Page(tmp_path / "report.html")
    row = next(row for row in page.rows if row and row[0].startswith("first (") and "2 seeds" in row[0])
    aurocs = [run["image_AUROC"] for run in metrics["first"]]
    assert row[2] == f"{np.mean(aurocs):.4f} ± {np.std(aurocs, ddof=1):.4f}"
    links = [a["href"] for t, a in page.tags if t == "a" and not a["href"].startswith("#")]
    assert links == ["first/seed_1/report.html"]
    assert "first (SYNTHETIC IMAGES, RANDOM WEIGHTS) and second (SYNTHETIC IMAGES, RANDOM WEIGHTS): " in page.text
    assert "Demonstration." in page.text
    assert sum(t == "img" and a["src"].startswith("data:image/svg+xml") for t, a in page.tags) == 1
    own = Page(tmp_path / "first" / "report.html")
    assert [a["href"] for t, a in own.tags if t == "a" and "html" in a["href"]] == ["seed_1/report.html"]


@pytest.mark.parametrize("damage", ["metrics.json", "predictions.csv", "data", "columns", "values", "picture", "size"])
def test_broken_files_are_an_error_for_people(damage, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(*NO_FIGURES)
    run = tmp_path / "seed_0"
    shutil.copytree(folder, run)
    if damage == "data":
        np.savez(run / DATA_FILE, map_shape=np.array([{"a": 1}], dtype=object))  # would need pickle
    elif damage == "columns":
        (run / "predictions.csv").write_text("image_path,score\nx.png,1\n")
    elif damage == "picture":
        next((run / "figures" / "panels").rglob("*.jpg")).write_bytes(b"")
    elif damage == "size":
        Image.new("RGB", (100, 100)).save(next((run / "figures" / "panels").rglob("*.jpg")))
    elif damage == "values":
        (run / "metrics.json").write_text("{}")
    else:
        (run / damage).write_text("\0")
    assert run_verb("report", [str(run)]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(run) in line


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_runs_is_an_error_for_people(exists, tmp_path, capsys):
    folder = tmp_path / "results"
    if exists:
        folder.mkdir()
    assert run_verb("report", [str(folder)]) == 2
    assert capsys.readouterr().err.startswith("error: There is no")
    with pytest.raises(UserError):
        write_sweep_report(Comparison([folder]), tmp_path)


def test_a_trained_run_has_a_report_of_its_own_thresholds(run_folder, monkeypatch):
    """The model's threshold, to the last bit, is the one that the report computes from the scores in the files."""
    assert (run_folder / "report.html").is_file()
    run, model = Run.read(run_folder), load_padim(run_folder / "model.ckpt")
    monkeypatch.setattr("padim_bottle.report.reference_thresholds.ALPHAS", (0.1, 0.2))
    own = next(reference for reference in reference_thresholds(run)[0] if "this run's own" in reference.note)
    assert own.value == model.post_processor.image_threshold.item()
    np.testing.assert_array_equal(run.calibration_scores, model.post_processor.calibration_scores.numpy())
    np.testing.assert_array_equal(run.arrays["scored_std"], model.model.scored_std.numpy())
    assert run.counts(own.value) == run.metrics["confusion_matrix"]
