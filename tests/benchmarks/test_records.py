"""The records of the benchmarks, and the table in docs/results.md that rests on them."""

from pathlib import Path

import area
import few_photos
import growth
import maps
import precision
import pytest
import regions
import torch
from false_alarms import rates, tables
from record import HEADER, read_record, write_record
from scipy import stats
from table import docs_table

from padim_bottle.errors import UserError
from padim_bottle.evaluation.regions import HIGHEST

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "results" / "reference" / "benchmarks"


@pytest.fixture
def records(tmp_path):
    """Records of every benchmark, with made-up numbers."""

    def run(seconds, size):
        times = {"seconds": seconds, "cpu_seconds": 2 * seconds, "start_seconds": 7.0}
        return {**times, "largest_bytes": size, "together_bytes": 2 * size, "checkpoint_bytes": size}

    runs = {"anomalib": [run(40.0, 2e9), run(44.0, 2e9)], "ours": [run(20.0, 1e9), run(22.0, 1e9)]}
    runs["ours, bfloat16"] = [run(10.0, 1e9), run(11.0, 1e9)]
    write_record(tmp_path, "train", {"runs": runs})
    write_record(tmp_path, "sweep", {"seeds": 10, "seconds": 60.0})
    contenders = ("anomalib", "ours", "ours, calibrated")
    times = {name: {"209": [4.0 / (i + 1)]} for i, name in enumerate(contenders)}
    write_record(
        tmp_path, "fit", {"images": [209], "seconds": times, "bytes": {name: {"209": 1e9} for name in contenders}}
    )
    milliseconds = {
        name: [value] * 20
        for name, value in {
            "anomalib, torch": 40.0, "one, torch": 20.0, "one, OpenVINO": 16.0, "two, torch": 25.0,
            "two, OpenVINO": 20.0,
        }.items()
    }  # fmt: skip
    write_record(tmp_path, "predict", {"milliseconds": milliseconds, "stages": {}})
    return tmp_path


def test_the_table_has_a_row_for_each_thing_measured(records):
    lines = docs_table(records).splitlines()
    assert lines[0] == "|  | Anomalib | here | Anomalib / here |"
    assert lines[2] == "| train and test | 42.0 s (40.0 to 44.0) | 21.0 s (20.0 to 22.0) | 2.0 |"
    assert "| train and test, here in bfloat16 | 42.0 s (40.0 to 44.0) | 10.5 s (10.0 to 11.0) | 4.0 |" in lines
    assert "| 10 seeds (as many runs; one sweep) | 420 s | 60 s | 7.0 |" in lines
    assert "| fit of 209 images, here with calibration | 4.00 s | 1.33 s | 3.0 |" in lines
    assert "| one photo: one, OpenVINO | 40.0 ms (95 %: 40.0) | 16.0 ms (95 %: 16.0) | 2.5 |" in lines
    # Of a second model the fastest runtime is enough.
    assert [line.split(" | ")[0] for line in lines if "photo: two" in line] == ["| one photo: two, OpenVINO"]
    assert all(line.count("|") == len(HEADER) + 1 for line in lines[:-2])


def test_a_record_names_machine_versions_and_commit_but_no_path(records):
    record = read_record(records, "train")
    assert record["machine"]["cpu"] and record["machine"]["cores"] >= 1
    assert record["versions"]["anomalib"] == "2.7.0"
    assert "commit" in record
    assert str(Path.home()) not in (records / "train.json").read_text()


def test_a_missing_record_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match=r"benchmarks/train\.py"):
        docs_table(tmp_path)


def test_the_docs_show_the_records():
    assert docs_table(RECORDS) in (ROOT / "docs" / "results.md").read_text()


def test_the_docs_show_how_often_new_photos_alarm():
    text = (ROOT / "docs" / "threshold.md").read_text()
    record = read_record(RECORDS, "false_alarms")
    simulated, bottle = tables(record)
    assert simulated.markdown() in text and bottle.markdown() in text
    assert len(simulated.rows) == 4 and len(bottle.rows) == 3
    # What is promised of each bottle's photo when it is new.
    low, high = stats.binom(209, record["alpha"]).interval(0.99)
    assert all(low <= alarms <= high for deals in record["bottle"].values() for alarms in deals)


@pytest.mark.parametrize(
    ("benchmark", "record", "page", "rows"),
    [
        (few_photos, "tuning/few_photos", "threshold", 12),
        (precision, "benchmarks/precision", "results", 4),
        (growth, "benchmarks/growth", "operations", 3),
        (area, "benchmarks/area", "maps", 4),
        (maps, "benchmarks/maps", "maps", None),
    ],
)
def test_the_docs_show_what_was_measured(benchmark, record, page, rows):
    found = read_record((RECORDS.parent / record).parent, Path(record).name)
    shown = benchmark.tables(found) if hasattr(benchmark, "tables") else [benchmark.table(found)]
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert shown and all(table.markdown() in text for table in shown)
    assert rows is None or [len(table.rows) for table in shown] == [rows]


def test_the_docs_show_what_each_rule_finds():
    record = read_record(RECORDS, "regions")
    text, (table,) = (ROOT / "docs" / "maps.md").read_text(), regions.tables(record)
    assert table.markdown() in text and len(table.rows) == 6
    grids = record["counts"]["padim_resnet18_grids"]
    names = ("good photos that pass with a pixel above", "good", "score: found", "found without a pixel above")
    said = "With two grids {} of {} good photos pass with a pixel above the threshold, which is not outlined any more. "
    said += "Of the {} anomalies found {} have no such pixel, and the highest 0.2 % lie on {} of these."
    assert said.format(*map(grids.get, [*names, "and pointed at"])) in " ".join(text.split())
    assert record["highest"] == HIGHEST == 0.998


def test_rates_are_counted_by_the_threshold_of_the_calibration():
    scores, calibration = torch.arange(1000.0), torch.arange(0.0, 1000.0, 10)
    # The 96th and the 99th smallest of 100 scores are 950 and 980: what lies above is called.
    assert rates(scores, calibration) == pytest.approx((0.049, 0.019))
