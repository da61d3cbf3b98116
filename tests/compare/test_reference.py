"""The reference runs in results/reference/, and the tables of README and docs that rest on them."""

import re
from pathlib import Path

import pandas as pd
import pytest

from padim_bottle.compare.outputs import write_comparison
from padim_bottle.runs.table import read_runs

REPOSITORY = Path(__file__).parents[2]
REFERENCE = REPOSITORY / "results" / "reference"
# The order of the table: ours first.
EXPERIMENTS = (
    "padim_resnet18_grids_384",
    "padim_resnet18_grids",
    "padim_efficientnet_lite0_grids",
    "padim_resnet18",
    "padim_efficientnet_lite0",
    "padim_resnet18_anomalib",
    "patchcore_resnet18",
    "mh_patchcore_resnet18",
    "dfm_resnet18",
    "stfpm_resnet18",
)


def published_table(text: str) -> list[str]:
    """Return the lines of the table whose header has the published figures' last column."""
    (start,) = [i for i, line in enumerate(text.splitlines()) if line.startswith("|  | backbone, px")]
    lines = text.splitlines()[start:]
    return lines[: next(i for i, line in enumerate([*lines, ""]) if not line.startswith("|"))]


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    write_comparison([REFERENCE / name for name in EXPERIMENTS], folder)
    return folder


def test_summary_is_what_compare_writes_from_the_runs(rewritten):
    assert (rewritten / "summary.md").read_text() == (REFERENCE / "summary.md").read_text()
    pd.testing.assert_frame_equal(pd.read_csv(rewritten / "summary.csv"), pd.read_csv(REFERENCE / "summary.csv"))


def test_docs_show_the_reference_runs(rewritten):
    table = published_table((rewritten / "summary.md").read_text())
    assert len(table) > len(EXPERIMENTS)
    assert published_table((REPOSITORY / "docs" / "results.md").read_text()) == table


def test_readme_shows_five_rows_of_them(rewritten):
    """Two of ours, the control, two published ones: the lines as they are, in their order."""
    header, rule, *rows = published_table((rewritten / "summary.md").read_text())
    shown = published_table((REPOSITORY / "README.md").read_text())
    assert shown[:2] == [header, rule]
    assert [row for row in rows if row in shown] == shown[2:]
    assert [row.split(",")[0].strip("| *") for row in shown[2:5]] == [
        "padim_resnet18_grids", "padim_resnet18", "padim_resnet18_anomalib",
    ]  # fmt: skip
    assert len(shown) == 7 and not any("**" in row for row in shown[5:])


def test_what_the_docs_say_of_dfm():
    table = pd.read_csv(REFERENCE / "summary.csv").query("row == 'mean'").set_index("experiment")
    assert table["pixel_AUPIMO"].idxmax() == "dfm_resnet18"
    assert table["pixel_AUPRO"].idxmin() == table["pixel_AUPR"].idxmin() == "dfm_resnet18"


def test_figures_that_were_promised():
    runs = read_runs([REFERENCE / name for name in EXPERIMENTS])
    assert not runs.problems
    ours = runs.table[runs.table["experiment"] == "padim_resnet18"]
    assert sorted(ours["seed"]) == list(range(10))
    assert not (runs.table["synthetic"] | runs.table["random_weights"]).any()
    assert ours["image_AUROC"].mean() >= 0.998
    assert ours["image_F1Score"].mean() >= 0.985
    assert ours["image_F1Score"].min() >= 0.976
    assert ours["pixel_AUROC"].mean() >= 0.983
    assert ours["pixel_AUPRO"].mean() >= 0.950


def test_nothing_names_the_machine_they_ran_on():
    for path in REFERENCE.rglob("*"):
        if path.suffix in (".json", ".csv", ".md"):
            assert not re.search(r"/(home|work|tmp|root|Users|mnt)/", path.read_text()), path
