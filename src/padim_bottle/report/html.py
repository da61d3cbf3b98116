"""What the pages of a run and of a sweep have in common: tables, warnings, and one file that holds everything."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from padim_bottle.evaluation.metrics import defect_labels, headings
from padim_bottle.report.published import PUBLISHED
from padim_bottle.runs.run import Run
from padim_bottle.tables import Row, Table, figure, template_of

TEMPLATES = Path(__file__).parent / "templates"

AUPIMO_NOTE = (
    "AUPIMO: how much of a defect is found, image by image, while only 1 in 100,000 to 1 in 10,000 pixels of good "
    "images light up. It looks at good images only, and a constant added to the maps of defective ones makes it 1: "
    "read it beside AUPRO and AP."
)
METRICS_NOTE = (
    "AP: average precision of the pixels. AUPRO: to a false positive rate of 0.3. "
    f"{AUPIMO_NOTE} F1, no defect seen: the threshold is from training images. F1Max and anomalib's F1Score are tuned "
    "on the test labels, as all published F1 figures are: compare those with the last column."
)
SYNTHETIC = {
    "title": "Synthetic images.",
    "text": "These bottles were drawn by a program. No figure here says anything about MVTec AD.",
}
RANDOM_WEIGHTS = {
    "title": "Random weights.",
    "text": "The backbone was never trained. No figure here says anything about PaDiM.",
}


def comparison_table(own: Sequence[Row], comparable: bool, title: str = "Metrics") -> Table:
    """Lay our figures out above the published ones.

    Args:
        own: our rows: name, backbone and size of images, and a cell for each headline metric.
        comparable: whether published figures stand beside these.
        title: of the table.

    Returns:
        The table, with a footnote for every protocol that is not ours.
    """
    rows, notes = list(own), list[str]()
    for row in PUBLISHED if comparable else ():
        name = row.source
        if row.protocol:
            if row.protocol not in notes:
                notes.append(row.protocol)
            name += f" [{notes.index(row.protocol) + 1}]"
        setup = ", ".join(filter(None, (row.backbone, row.size)))
        rows.append(Row([name, setup, *(figure(getattr(row, metric, None)) for metric in headings())]))
    numbered = [f"[{number}] {note}." for number, note in enumerate(notes, 1)]
    return Table(["", "backbone, px", *headings().values()], rows, numbered, title, texts=2)


def run_table(run: Run, title: str = "Metrics", *, published: bool) -> Table:
    """Lay a run's headline figures out.

    Args:
        run: the run.
        title: of the table.
        published: below them the published ones, where these are of the same data.
    """
    metrics = run.metrics
    setup = describe_setup(metrics["weights"]["name"], metrics["model"].get("image_size"))
    # A threshold that has seen the defects is no match for one that has not.
    tuned = {} if run.calibration else headings(threshold="own")
    cells = [None if name in tuned else figure(metrics.get(name)) for name in headings()]
    return comparison_table([Row([run.title, setup, *cells], own=True)], published and run.is_comparable, title)


def defects_table(per_defect: Mapping[str, Any]) -> Table:
    """Lay out the figures of each defect type."""
    rows = [
        Row([name, str(figures["images"]), *(figure(figures.get(key)) for key in defect_labels())])
        for name, figures in per_defect.items()
    ]
    return Table(["", "images", *defect_labels().values()], rows, title="Metrics by type of defect")


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return a confusion matrix in words: ``62 of 63 defects found, 1 false alarm on 20 good images``."""
    found, alarms = counts["true_positive"], counts["false_positive"]
    return (
        f"{found} of {found + counts['false_negative']} defects found, {alarms} false alarm{'s' * (alarms != 1)} on "
        f"{alarms + counts['true_negative']} good images"
    )


def describe_setup(weights: str, image_size: Sequence[int] | None) -> str:
    """Return backbone and size of the images as a table names them."""
    sides = dict.fromkeys(image_size or ())
    return ", ".join(filter(None, (weights.split(".")[0], " x ".join(map(str, sides)))))


def render_page(template: str, *, script: str, **content: Any) -> str:
    """Return a page with its style and its script within it; no other script can run there.

    Args:
        template: name of the template.
        script: JavaScript, or nothing.
        content: what the template shows; all of it is escaped.
    """
    style = read_template("report.css")
    return template_of("padim_bottle.report", template).render(
        style=Markup(style), style_hash=_hash(style), script=Markup(script), script_hash=_hash(script), **content
    )  # fmt: skip


def read_template(name: str) -> str:
    """Return a file of the templates, which are part of this package."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Name a script or style as a content security policy does."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def data_source(kind: str, content: bytes) -> str:
    """Return content of a media type as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
