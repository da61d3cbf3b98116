"""``comparison.png``: the pair of metrics that tells methods apart, and what quality costs."""

import numpy as np
import pytest
from test_comparison import write_experiment, write_run
from test_reference import EXPERIMENTS, REFERENCE

from padim_bottle.compare.figure import draw_comparison
from padim_bottle.compare.statistics import mean_rows
from padim_bottle.report.published import PUBLISHED
from padim_bottle.runs.table import read_runs


@pytest.fixture(scope="module")
def table():
    return read_runs([REFERENCE / name for name in EXPERIMENTS]).table


def markers(axes, marker=None):
    """Where the means are, or the published figures: lines of one point."""
    lines = [line for line in axes.lines if (line.get_marker() == "D" and line.get_markersize() < 5) == bool(marker)]
    return np.array([np.ravel(line.get_xydata()) for line in lines])


def test_means_and_runs_are_where_the_table_says(table):
    figure = draw_comparison(table)
    means = mean_rows(table)
    whole = means["seconds_total"].astype(float), means["pixel_AUPRO"]
    np.testing.assert_allclose(markers(figure.axes[0]), np.stack([means["pixel_AUPIMO"], means["pixel_AUPRO"]], axis=1))
    assert markers(figure.axes[1])[:, 0] == pytest.approx(whole[0])
    dots = np.concatenate([points.get_offsets() for points in figure.axes[0].collections])
    assert sorted(dots[:, 0]) == pytest.approx(sorted(table["pixel_AUPIMO"]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(EXPERIMENTS)


def test_published_figures_that_have_both_metrics_are_drawn_and_named(table):
    figure = draw_comparison(table)
    rows = [row for row in PUBLISHED if row.pixel_AUPIMO and row.pixel_AUPRO]
    expected = [(row.pixel_AUPIMO, row.pixel_AUPRO) for row in rows]
    np.testing.assert_allclose(markers(figure.axes[0], "published"), expected)
    assert all(row.source.split(" (")[0] in figure.get_supxlabel() for row in rows)
    other = draw_comparison(table.assign(category="cable"))
    assert not len(markers(other.axes[0], "published"))


def test_without_pixel_metrics_image_auroc_stands_against_the_costs(tmp_path):
    one = write_experiment(tmp_path / "a", {0: None, 1: None})
    figure = draw_comparison(read_runs([one, write_run(tmp_path / "b", 4, pixel_AUROC=None).parent]).table)
    assert figure.axes[0].get_ylabel() == "image AUROC"
    assert len(figure.axes) == 2
    assert len(markers(figure.axes[0])) == 2
