"""README, CONTRIBUTING and docs: links, paths and commands exist, and figures are those of code and records."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from padim_bottle.model.rule import false_alarm_range, fewest_scores, threshold_rank

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "results" / "README.md",
]
REFERENCE = ROOT / "results" / "reference"
PLACES = ("benchmarks", "configs", "docs", "examples", "notebooks", "results/reference", "scripts", "src", "tests")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page):
    """The names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(page):
    """What stands in code spans and indented lines."""
    text = page.read_text()
    return re.findall(r"`([^`\n]+)`", text) + re.findall(r"^(?: {4})+(\S.*)$", text, re.MULTILINE)


@cache
def help_of(script):
    done = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pages
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pages
def test_paths_exist(page):
    for span in code(page):
        for path in re.findall(rf"(?<![\w./<-])(?:{'|'.join(PLACES)})/[\w./*-]*", span):
            assert any(ROOT.glob(path)), path


@pages
def test_commands_know_their_options(page):
    for span in code(page):
        if command := re.match(r"python ((?:scripts|benchmarks)/\w+\.py)(.*)", span):
            script, arguments = command.groups()
            for option in re.findall(r"(?<= )--[\w.-]+", arguments):
                # Keys of the YAML are the config's own, and refused by name where they are wrong.
                assert "." in option or option in help_of(script), f"{script} {option}"


def test_every_page_is_reached_from_the_readme():
    readme = PAGES[0].read_text()
    assert all(f"(docs/{page.name})" in readme for page in (ROOT / "docs").glob("*.md"))
    assert len(readme.splitlines()) <= 110


def test_ranges_of_the_false_alarm_rate():
    rows = re.findall(
        r"^\| (\d+) \| (\d+) % \| ([\d.]+) to ([\d.]+) % \|$", (ROOT / "docs/threshold.md").read_text(), re.M
    )
    assert len(rows) >= 5
    for count, percent, low, high in rows:
        said = false_alarm_range(int(count), int(percent) / 100)
        assert (low, high) == tuple(f"{100 * rate:.1f}" for rate in said)


def test_rates_that_a_confidence_aims_at():
    text = (ROOT / "docs/threshold.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) % \| ([\d.]+) % \|$", text, re.M)
    assert len(rows) == 3
    for count, percent, rate in rows:
        rank = threshold_rank(int(count), int(percent) / 100, 0.95)
        assert rate == f"{100 * (1 - rank / (int(count) + 1)):.1f}"
    fewest = [fewest_scores(alpha, 0.95) for alpha in (0.05, 0.01)]
    assert "It takes {} good parts at alpha = 5 %, and {} at 1 %.".format(*fewest) in text


def test_figures_of_the_two_grids():
    def runs(experiment):
        return [json.loads(path.read_text()) for path in sorted((REFERENCE / experiment).glob("*/metrics.json"))]

    (grids,), (larger,), paper = runs("padim_resnet18_grids"), runs("padim_resnet18_grids_384"), runs("padim_resnet18")
    for metric in ("pixel_AUROC", "pixel_AUPRO", "pixel_AUPR"):
        assert larger[metric] > grids[metric] > max(run[metric] for run in paper)
    text = " ".join((ROOT / "docs/maps.md").read_text().split())
    sizes = [run["checkpoint_bytes"] / 1e6 for run in (grids, larger, paper[0])]
    assert "from a model of {:.0f} MB ({:.0f} at 384 pixels) against {:.0f}".format(*sizes) in text
    record = json.loads((REFERENCE / "benchmarks" / "maps.json").read_text())
    damped, plain = (
        next(row for row in record["bottle"] if row["part"] == part) for part in ("as configured", "not damped")
    )
    aupimo = f"from {plain['pixel_AUPIMO']:.2f} to {damped['pixel_AUPIMO']:.2f} at 384 pixels".replace("0.", ".")
    assert aupimo in text


@pytest.mark.parametrize("file", ["summary.csv", "padim_resnet18/seed_0/predictions.csv"])
def test_every_column_is_explained(file):
    explained = set(re.findall(r"`([\w]+)`", (ROOT / "results" / "README.md").read_text()))
    columns = pd.read_csv(REFERENCE / file).columns
    kinds = set(pd.read_csv(REFERENCE / "padim_resnet18/seed_0/predictions.csv")["defect_type"])
    unexplained = {name for name in columns if name not in explained}
    assert {name for name in unexplained if not name.startswith(tuple(f"{kind}_" for kind in kinds))} == set()
