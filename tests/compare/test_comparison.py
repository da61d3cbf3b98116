"""Comparing finished runs: the statistics against scipy and closed forms, and runs that must not be counted."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import recorded_runs
from PIL import Image
from scipy import stats

from padim_bottle.commands.command_line import run_verb
from padim_bottle.compare.comparison import Comparison, draw_maps
from padim_bottle.compare.markdown import report
from padim_bottle.compare.outputs import write_comparison
from padim_bottle.compare.statistics import (
    bootstrap_images,
    false_alarms,
    image_bootstrap,
    paired_differences,
    summarise,
)
from padim_bottle.errors import UserError
from padim_bottle.runs.run import Run
from padim_bottle.runs.table import defect_metrics, read_runs

GOOD = 8
WRITTEN = {"summary.csv", "summary.md", "comparison.png"}


def write_run(experiment, seed, *, threshold=7.0, defects=("crack", "stain"), data=None, weights=None, **metrics):
    """Write a run of an image-only test set that counts as real; `metrics` overrides what metrics.json says."""
    run = recorded_runs.write_run(
        experiment / f"seed_{seed}", {"good": GOOD, **dict.fromkeys(defects, 5)}, training=0, threshold=threshold,
        real=True, pixels=False, pictures=False, data=False, seed=seed, experiment=experiment.name,
    )  # fmt: skip
    record = json.loads((run / "metrics.json").read_text())
    record["data"] |= {"train_images": 20, **(data or {})}
    record["weights"] |= {"sha256": "cd" * 32, **(weights or {})}
    record |= {
        "calibration": {"alpha": 0.05},
        "seconds": {"train": 10.0 + seed, "test": 2.0, "total": 13.0 + seed},
        "peak_memory_bytes": {"process": 2**30, "largest_worker": 2**29, "gpu": None},
    }
    (run / "metrics.json").write_text(json.dumps(record | metrics))
    return run


def write_experiment(folder, values, **options):
    """One run for each pixel AUROC of `values`, a mapping from seeds."""
    for seed, value in values.items():
        write_run(folder, seed, pixel_AUROC=value, **options)
    return folder


def edit(run, change):
    metrics = json.loads((run / "metrics.json").read_text())
    change(metrics)
    (run / "metrics.json").write_text(json.dumps(metrics))


def table_rows(text):
    return [line for line in text.splitlines() if line.startswith("|")]


class TestStatistics:
    def test_summary_is_scipys_and_numpys(self, tmp_path):
        values = np.array([0.98, 0.985, 0.983, 0.991])
        runs = read_runs([write_experiment(tmp_path / "a", dict(enumerate(values)))]).table
        row = summarise(runs).set_index("metric").loc["pixel_AUROC"]
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (row["low"], row["high"]) == pytest.approx((low, high))
        assert (row["mean"], row["std"]) == pytest.approx((0.98475, values.std(ddof=1)))
        assert row["seeds"] == 4

    def test_false_alarms_are_summed_with_an_exact_interval(self, tmp_path):
        for seed in range(3):
            write_run(tmp_path / "a", seed, threshold=-9.0)  # every good image is an alarm
        row = false_alarms(read_runs([tmp_path / "a"]).table).iloc[0]
        assert (row["false_alarms"], row["good_images"], row["missed"], row["defective_images"]) == (24, 24, 0, 30)
        # Clopper-Pearson of n out of n: (alpha / 2) ** (1 / n).
        assert (row["low"], row["high"]) == pytest.approx((0.025 ** (1 / 24), 1.0))

    def test_bootstrap_is_close_to_scipys_stratified_one(self):
        rng = np.random.default_rng(3)
        good, defective = rng.normal(0, 1, 20), rng.normal(1.5, 1, 63)
        table = pd.DataFrame(
            {"label": [False] * 20 + [True] * 63, "score": [*good, *defective], "predicted_label": pd.NA}
        )
        value, low, high = bootstrap_images([table])["image_AUROC"]

        def auroc(a, b, axis=-1):
            return (a[..., :, None] < b[..., None, :]).mean(axis=(-2, -1))

        expected = stats.bootstrap(
            (good, defective), auroc, n_resamples=2000, method="percentile", vectorized=True, rng=0
        ).confidence_interval
        assert value == pytest.approx(auroc(good, defective))
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.006)
        assert low < value - 0.02

    def test_bootstrap_of_f1_keeps_the_threshold_and_averages_over_runs(self):
        def table(alarms, hits):
            predicted = [*[True] * alarms, *[False] * (10 - alarms), *[True] * hits, *[False] * (40 - hits)]
            return pd.DataFrame(
                {"label": [False] * 10 + [True] * 40, "score": np.arange(50.0), "predicted_label": predicted}
            )

        one, other = bootstrap_images([table(2, 36)]), bootstrap_images([table(0, 40)])
        assert one["image_F1Score"][0] == pytest.approx(72 / (72 + 2 + 4))
        # The binomial standard deviation, by the delta method, is about 0.03.
        assert 0.07 < one["image_F1Score"][2] - one["image_F1Score"][1] < 0.17
        assert other["image_F1Score"] == (1, 1, 1)
        both = bootstrap_images([table(2, 36), table(0, 40)])["image_F1Score"]
        assert both == pytest.approx([(a + 1) / 2 for a in one["image_F1Score"]])

    def test_bootstrap_reads_the_lowest_seed_and_the_mean(self, tmp_path):
        for seed in (10, 2, 3):
            write_run(tmp_path / "a", seed)
        runs = read_runs([tmp_path / "a"]).table
        bootstrap = image_bootstrap(runs).set_index(["figure", "metric"])["value"]
        for metric in ("image_AUROC", "image_F1Score"):
            assert bootstrap["seed 2", metric] == pytest.approx(runs.set_index("seed").loc[2, metric])
            assert bootstrap["mean of 3 seeds", metric] == pytest.approx(runs[metric].mean())


class TestPairs:
    def compare(self, tmp_path, one, other, **options):
        folders = [
            write_experiment(tmp_path / "one", dict(enumerate(one))),
            write_experiment(tmp_path / "other", dict(enumerate(other)), **options),
        ]
        differences = paired_differences(read_runs(folders).table)
        text = report(Comparison(folders))
        return differences.set_index("metric").loc["pixel_AUROC"], text

    def test_a_real_shift_is_found(self, tmp_path):
        noise = np.random.default_rng(0).normal(0, 0.001, (2, 8))
        one, other = 0.98 + noise[0], 0.975 + noise[1]
        row, text = self.compare(tmp_path, one, other)
        expected = stats.ttest_rel(one, other).confidence_interval(0.95)
        assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
        assert row["p_value"] == pytest.approx(stats.wilcoxon(one, other).pvalue)
        assert row["finding"] == "higher"
        assert "one and other: these seeds tell the two apart in pixel AUROC (one higher by 0.0" in text

    @pytest.mark.parametrize(
        ("one", "other", "finding", "words"),
        [
            ([0.98, 0.982, 0.979, 0.981], [0.981, 0.98, 0.982, 0.979], "cannot tell", "Wilcoxon's p cannot fall below"),
            ([0.98, 0.98, 0.98], [0.97, 0.97, 0.97], "the same difference for every seed", ""),
            ([0.98, 0.97], [0.98, 0.97], "equal for every seed", ""),
            ([0.9, 0.91], [0.8], "fewer than 2 common seeds", "Not compared, fewer than 2 common seeds: 1 pair."),
        ],
    )
    def test_what_is_no_shift_is_not_claimed(self, tmp_path, one, other, finding, words):
        row, text = self.compare(tmp_path, one, other)
        assert row["finding"] == finding
        assert np.isnan(row["p_value"]) or one != other
        assert words in text and "tell the two apart in" not in text
        assert ("pixel AUROC: cannot be told apart" in text) == (finding == "cannot tell")

    def test_only_common_seeds_count(self, tmp_path):
        folders = [
            write_experiment(tmp_path / "one", {0: 0.1, 3: 0.98, 5: 0.99}),
            write_experiment(tmp_path / "other", {3: 0.97, 5: 0.96, 7: 0.2}),
        ]
        row = paired_differences(read_runs(folders).table).set_index("metric").loc["pixel_AUROC"]
        assert row["seeds"] == 2
        assert row["difference"] == pytest.approx(0.02)

    @pytest.mark.parametrize(
        ("fingerprints", "says"),
        [
            (("ab" * 32, "ef" * 32), "their data differ"),
            (("ab" * 32, None), "nothing tells whether their data are the same"),
            ((None, None), "nothing tells whether their data are the same"),
        ],
    )
    def test_other_or_unknown_data_are_not_compared(self, tmp_path, fingerprints, says):
        folders = [
            write_experiment(tmp_path / name, {0: shift, 1: shift + 0.01}, data={"fingerprint": fingerprint})
            for name, shift, fingerprint in zip(("one", "other"), (0.9, 0.8), fingerprints, strict=True)
        ]
        runs = read_runs(folders)
        assert paired_differences(runs.table)["difference"].isna().all()
        assert f"one and other: not compared, {says}." in report(Comparison(folders))


class TestReading:
    def test_what_is_no_finished_run_is_passed_over(self, tmp_path):
        experiment = write_experiment(tmp_path / "a", {0: 0.98, 10: 0.97, 2: 0.99})
        shutil.copytree(experiment / "seed_0", experiment / "seed_0.previous_1")
        shutil.copytree(experiment / "seed_0", experiment / ".seed_4.partial-host-1")
        (experiment / "seed_3").mkdir()
        runs = read_runs([experiment, f"{experiment}/"])
        assert list(runs.table["seed"]) == [0, 2, 10]
        assert runs.problems == []
        assert [note.split(" ")[0] for note in runs.notes] == ["a/seed_0.previous_1", "a/seed_3"]

    def test_defect_types_of_each_experiment(self, tmp_path):
        folders = [tmp_path / "a", tmp_path / "b"]
        write_run(folders[0], 0, defects=("crack",))
        write_run(folders[1], 0, defects=("image", "stain"))
        runs = read_runs(folders).table
        assert {name.removesuffix("_recall") for name in defect_metrics(runs) if name.endswith("_recall")} == {
            "crack", "defect_image", "stain",
        }  # fmt: skip
        row = runs.set_index("experiment").loc["b"]
        recorded = json.loads((folders[1] / "seed_0" / "metrics.json").read_text())
        assert row["image_recall"] == recorded["image_recall"]
        assert row["defect_image_recall"] == recorded["per_defect"]["image"]["recall"]
        assert np.isnan(row["crack_image_AUROC"])
        text = report(Comparison(folders))
        assert [row.split("|")[2].strip() for row in table_rows(text) if "crack: recall" in row] == ["a"]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda m: m.update(seed=7), "of seed 7"),
            (lambda m: m.update(seed="1 "), "of seed 1"),
            (lambda m: m.pop("seconds"), "lack 'seconds'"),
            (lambda m: m.update(pixel_AUPRO="0.95"), "pixel_AUPRO is '0.95', not a number"),
            (lambda m: m.update(pixel_AUPRO=float("nan")), "pixel_AUPRO is nan"),
            (lambda m: m.update(data=None), "files are broken"),
            (lambda m: m["data"].update(test_images=17), "18 rows for 17 test images"),
            (lambda m: m["model"].update(n_features=50), "differs from other runs of the experiment in settings"),
            (lambda m: m["data"].update(fingerprint="00"), "in data_fingerprint"),
            (lambda m: m["weights"].update(source="random", sha256=None), "in random_weights, weights_sha256"),
        ],
    )
    def test_an_edited_run_is_left_out(self, tmp_path, change, says):
        experiment = write_experiment(tmp_path / "a", {0: 0.98, 1: 0.1, 2: 0.99})
        edit(experiment / "seed_1", change)
        runs = read_runs([experiment])
        assert list(runs.table["seed"]) == [0, 2]
        assert len(runs.problems) == 1
        assert runs.problems[0].startswith("a/seed_1: ")
        assert says in runs.problems[0]

    def test_a_run_left_out_is_named_and_the_others_are_written(self, tmp_path, capsys):
        experiment = write_experiment(tmp_path / "a", {0: 0.98, 1: 0.1, 2: 0.99, 3: 0.97, 4: 0.97})
        edit(experiment / "seed_1", lambda m: m.update(image_AUROC="high"))
        (experiment / "seed_3" / "metrics.json").write_text("[]")
        (experiment / "seed_4" / "predictions.csv").write_text("")
        assert run_verb("compare", [str(experiment)]) == 1
        assert "image_AUROC is 'high', not a number" in capsys.readouterr().err
        table = pd.read_csv(experiment / "summary.csv")
        assert list(table.loc[table["row"] == "run", "seed"]) == [0, 2]
        text = (experiment / "summary.md").read_text()
        assert all(f"Left out:** a/seed_{seed}: " in text for seed in (1, 3, 4))

    @pytest.mark.parametrize("threshold", [1.0, None])
    def test_a_defect_may_be_called_na(self, tmp_path, threshold):
        run = write_run(tmp_path / "a", 0, defects=("NA", "null"), threshold=threshold)
        assert set(Run.read(run).predictions["defect_type"]) == {"good", "NA", "null"}
        compared = Comparison([tmp_path / "a"])
        assert not compared.runs.problems
        text = report(compared)
        assert any(row.startswith("| NA: image AUROC | a |") for row in table_rows(text))
        assert ("image_F1Score" in set(image_bootstrap(compared.table)["metric"])) == (threshold is not None)

    def test_folders_of_one_name_are_told_apart(self, tmp_path):
        folders = [write_experiment(tmp_path / parent / "r" / "a", {0: 0.9}) for parent in ("x", "y")]
        assert list(read_runs(folders).table["experiment"]) == ["x/r/a", "y/r/a"]
        with pytest.raises(UserError, match="--output"):
            write_comparison(folders)


class TestReport:
    def test_files_and_their_place(self, tmp_path):
        folders = [write_experiment(tmp_path / name, {0: 0.98, 1: 0.97}) for name in "abcde"]
        assert write_comparison(folders) == tmp_path / "summary.md"
        assert {path.name for path in tmp_path.iterdir() if path.is_file()} == WRITTEN
        with Image.open(tmp_path / "comparison.png") as image:
            assert image.width >= 1200
        assert (tmp_path / "comparison.png").stat().st_size < 300_000
        assert write_comparison(folders[:1]) == folders[0] / "summary.md"
        assert write_comparison(folders[:1], tmp_path / "new" / "place") == tmp_path / "new" / "place" / "summary.md"
        assert {path.name for path in (tmp_path / "new" / "place").iterdir()} == WRITTEN
        assert str(tmp_path) not in (tmp_path / "summary.md").read_text() + (tmp_path / "summary.csv").read_text()

    def test_the_csv_has_a_row_a_run_and_a_mean_an_experiment(self, tmp_path):
        one = write_experiment(tmp_path / "a", {0: 0.98, 1: 0.97})
        edit(one / "seed_1", lambda m: m.update(features_from_seed=0))
        write_comparison([one, write_run(tmp_path / "b", 4).parent])
        table = pd.read_csv(tmp_path / "summary.csv")
        assert list(zip(table["experiment"], table["row"], strict=True)) == [
            ("a", "run"), ("a", "run"), ("a", "mean"), ("b", "run"), ("b", "mean"),
        ]  # fmt: skip
        runs, means = table[table["row"] == "run"], table[table["row"] == "mean"]
        assert list(runs["seed"]) == [0, 1, 4] and means["seed"].isna().all()
        assert list(runs["seconds_train"]) == [10, 11, 14]
        assert table["peak_memory_bytes"][0] == 2**30
        assert (runs["false_positive"] + runs["true_negative"] == GOOD).all()
        assert list(means["pixel_AUROC"].round(9)) == [0.975, pytest.approx(np.nan, nan_ok=True)]
        assert means["image_AUROC"].iloc[0] == pytest.approx(runs["image_AUROC"][:2].mean())
        assert list(means["seconds_train"]) == [10, 14], "a run that took another's features costs less"
        assert list(means["weights"]) == ["resnet18.tv_in1k"] * 2

    def test_a_metric_that_a_run_lacks_is_a_dash(self, tmp_path):
        old, new = write_experiment(tmp_path / "old", {0: 0.9, 1: 0.91}), write_experiment(tmp_path / "new", {0: 0.9})
        for seed in (0, 1):
            edit(old / f"seed_{seed}", lambda m: m.pop("pixel_AUPIMO", None))
        edit(new / "seed_0", lambda m: m.update(pixel_AUPIMO=0.83, pixel_AUPIMO_median=0.9))
        edit(new / "seed_0", lambda m: m["per_defect"]["crack"].update(pixel_AUPIMO=0.7))
        compared = Comparison([old, new])
        assert not compared.runs.problems
        text = report(compared)
        (published,) = (row for row in table_rows(text) if row.startswith("| **old, 2 seeds**"))
        assert published.split(" | ")[5] == "-"
        assert any(row.startswith("| AUPIMO | new | 0.8300 ± - |") for row in table_rows(text))
        assert any(row.startswith("| crack: AUPIMO | new | 0.7000 ± - |") for row in table_rows(text))

    @pytest.mark.parametrize(
        ("values", "row"),
        [
            ({3: 0.98}, "| pixel AUROC | a | 0.9800 ± - | - | 1 |"),
            ({0: 0.98, 1: None, 2: 0.96}, "| pixel AUROC | a | 0.9700 ± 0.0141 |"),
        ],
    )
    def test_one_seed_has_no_interval_and_undefined_metrics_are_left_out(self, tmp_path, values, row):
        text = report(Comparison([write_experiment(tmp_path / "a", values)]))
        assert any(found.startswith(row) for found in table_rows(text))
        assert ("independent trials" in text) == (len(values) > 1)
        # Good images are shared by seeds.
        assert (f"every seed is tested on the same {GOOD} good images" in text) == (len(values) > 1)
        assert "pixel AUPR " not in text
        assert "nan" not in text.lower()

    def test_runs_without_test_images_are_rows_of_dashes(self, tmp_path):
        tested = recorded_runs.write_run(tmp_path / "tested" / "seed_0").parent
        untested = recorded_runs.without_test_images(recorded_runs.write_run(tmp_path / "untested" / "seed_0")).parent
        (untested / "seed_0" / "predictions.csv").write_text("image_path,defect_type,label,score,predicted_label\n")
        compared = Comparison([tested, untested])
        assert not compared.runs.problems
        rows = table_rows(report(compared))
        for metric in ("image AUROC", "F1 at the run's own threshold", "AUPRO"):
            assert any(
                row.startswith(f"| {metric} | untested (SYNTHETIC") and row.endswith("| - | - | 0 |") for row in rows
            )
        text = report(Comparison([untested]))
        assert "There were no test images" in text
        assert not any(row.startswith("| image AUROC") for row in table_rows(text))
        assert run_verb("compare", [str(tested), str(untested), "--output", str(tmp_path)]) == 0

    def test_runs_without_a_threshold(self, tmp_path):
        write_run(tmp_path / "a", 0, threshold=None)
        text = write_comparison([tmp_path / "a"]).read_text()
        assert "## False alarms" not in text
        assert "### At the run's own threshold" not in text
        assert "F1Max (best on the test labels)" in text

    @pytest.mark.parametrize("weights", [{}, {"source": "random", "sha256": None}])
    @pytest.mark.parametrize("synthetic", [False, True])
    def test_what_is_not_real_is_labelled_and_not_set_beside_published_figures(self, tmp_path, weights, synthetic):
        demo = write_experiment(tmp_path / "demo", {0: 0.7, 1: 0.8}, weights=weights, data={"synthetic": synthetic})
        text = report(Comparison([demo]))
        real = not weights and not synthetic
        assert ("Beside published figures" in text) == real
        assert ("DEMONSTRATION" in text) == (not real)
        marks = ["SYNTHETIC IMAGES"] * synthetic + ["RANDOM WEIGHTS"] * bool(weights)
        named = [row for row in table_rows(text) if "demo" in row]
        assert len(named) > 10
        assert all(mark in row for mark in marks for row in named)

    def test_published_rows_are_only_those_of_bottle(self, tmp_path):
        text = report(Comparison([write_experiment(tmp_path / "a", {0: 0.9}, data={"category": "cable"})]))
        assert "published figures" not in text

    def test_hostile_names_do_not_break_tables(self, tmp_path):
        names = ["a|b", "$x^$ <b>", "c\nd"]
        folders = [write_experiment(tmp_path / name, {0: 0.98, 1: 0.97}) for name in names]
        text = write_comparison(folders).read_text()
        columns = None
        for line in text.splitlines():
            if not line.startswith("|"):
                columns = None
                continue
            found = line.replace("\\|", "").count("|")
            assert columns in (None, found), line
            columns = found
        assert "a\\|b" in text
        assert "<b>" not in text


class TestCommand:
    def test_prints_the_key_figures(self, tmp_path, capsys):
        experiment = write_experiment(tmp_path / "a", {0: 0.98, 1: 0.97})
        assert run_verb("compare", [str(experiment)]) == 0
        printed = capsys.readouterr()
        assert "a, 2 seeds:" in printed.out
        assert "pixel AUROC          0.9750 ± 0.0071" in printed.out
        assert str(experiment / "summary.md") in printed.out
        assert printed.err == ""

    def test_errors_take_one_line(self, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        broken = write_run(tmp_path / "broken", 0, image_AUROC="high").parent
        sound = write_run(tmp_path / "sound", 0).parent
        (tmp_path / "file").write_text("")
        for arguments in (
            [tmp_path / "nowhere"],
            [tmp_path / "empty"],
            [sound, tmp_path / "empty"],
            [broken],
            [sound, "--output", tmp_path / "file"],
        ):
            assert run_verb("compare", list(map(str, arguments))) == 2
            printed = capsys.readouterr()
            assert printed.out == ""
            assert printed.err.startswith("error: ")
            assert printed.err.count("\n") == 1
        assert not {path.name for path in tmp_path.rglob("*")} & WRITTEN


def test_what_a_run_costs_is_told_by_runs_that_did_all_their_work(tmp_path):
    write_run(tmp_path / "swept", 0, features_from_seed=None)
    write_run(tmp_path / "swept", 1, features_from_seed=0)
    text = report(Comparison([tmp_path / "swept"])).partition("## Time and memory")[2]
    assert "Of 1 of the 2 runs" in text
    assert next(row for row in table_rows(text) if "training, s" in row).split("|")[3].strip() == "10.0 ± -"


def test_seconds_and_memory_stand_beside_the_metrics(tmp_path):
    one = write_experiment(tmp_path / "one", {0: 0.9, 1: 0.9})
    for seed, change in enumerate(
        ({"peak_memory_bytes": {"process": 1.5e9, "largest_worker": 2.5e9, "gpu": None}}, {"features_from_seed": 0})
    ):
        edit(one / f"seed_{seed}", lambda metrics, change=change: metrics.update(change))
    rows = [row for row in table_rows(report(Comparison([one]))) if row.startswith("| **one, 2 seeds**")]
    # The larger process of the run that did all its work itself; it took 13 s.
    assert rows[0].endswith("| 13 | 2.50 |")


class TestMapsSideBySide:
    def runs(self, tmp_path, fingerprints=("0" * 64, "0" * 64), pictures=(True, True)):
        folders = []
        for name, fingerprint, kept in zip(("paper", "grids"), fingerprints, pictures, strict=True):
            run = recorded_runs.write_run(tmp_path / name / "seed_0", pictures=kept, experiment=name)
            edit(run, lambda metrics, f=fingerprint: metrics["data"].update(fingerprint=f))
            folders.append(tmp_path / name)
        return folders

    def test_experiments_on_the_same_images_are_drawn(self, tmp_path):
        written = write_comparison(self.runs(tmp_path))
        with Image.open(written.with_name("side_by_side.png")) as picture:
            assert min(picture.size) > 300
        _, caption, figure = draw_maps(read_runs([tmp_path / "paper", tmp_path / "grids"]).table)
        assert "paper" in caption and "grids" in caption
        texts = [text.get_text() for text in figure.axes[0].texts]
        # Three defective and three good images, each with both models.
        assert len(texts) == 12
        assert sum(text.startswith("grids") for text in texts) == 6

    @pytest.mark.parametrize("without", [{"fingerprints": ("0" * 64, "1" * 64)}, {"pictures": (True, False)}])
    def test_other_images_or_no_pictures_are_not_drawn(self, tmp_path, without):
        assert not write_comparison(self.runs(tmp_path, **without)).with_name("side_by_side.png").exists()
