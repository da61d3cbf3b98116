"""``report.html`` of a run: one file that opens from disk and loads nothing.

Names of files and folders come from outside: Jinja escapes them, in the block of data too, and the page's policy lets
no script run but its own.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from padim_bottle.errors import UserError
from padim_bottle.files import write_whole
from padim_bottle.model.rule import false_alarm_range, what_few_miss
from padim_bottle.report.gallery import RunFigure, draw_figures, save_figures
from padim_bottle.report.html import (
    METRICS_NOTE,
    RANDOM_WEIGHTS,
    SYNTHETIC,
    data_source,
    defects_table,
    describe_counts,
    read_template,
    render_page,
    run_table,
)
from padim_bottle.report.panels import encode_jpeg, read_strip, strip_size
from padim_bottle.report.reference_thresholds import Reference, reference_thresholds, spell_alpha
from padim_bottle.report.score_figures import is_skewed
from padim_bottle.runs.changes import change_sentences
from padim_bottle.runs.run import Run

GALLERY_NOTE = "Every test image by its score, with its verdict at the threshold set above."
PICTURES_NOTE = (
    " Left to right: photograph, anomaly map (one colour scale for all images), prediction (solid yellow) with the "
    "true defect (dashed blue)."
)
_VECTOR_LIMIT = 300_000  # bytes; an SVG with photographs in it is larger
_ROW = 18  # pixels
_MANY = 120  # images whose panels a page shows in full size
_ODDEST = 15  # training photos to look at
_KEYS = "ABCDEFGH"


def write_report(folder: Path) -> Path:
    """Draw a finished run's figures and write its ``report.html``, from the files in its folder.

    Returns:
        The path of the report.

    Raises:
        UserError: there is no finished run, its files are broken, or nothing can be written.
    """
    run = Run.read(folder)
    # What is broken shows here, before anything is drawn.
    run.training, run.arrays  # noqa: B018
    # By falling scores.
    images = run.predictions[::-1].reset_index(drop=True)
    images["title"] = images["defect_type"] + "/" + images["image"]
    try:
        figures = draw_figures(run)
        save_figures(figures, folder / "figures")
        write_whole(folder / "report.html", _page(run, images, figures, _cards(run, images)))
    except OSError as error:
        raise UserError(f"Cannot write the report to {folder}: {error}.") from error
    return folder / "report.html"


# --- Parts of a run's report ---


def _page(run: Run, images: pd.DataFrame, figures: Sequence[RunFigure], cards: Sequence[dict[str, Any]]) -> str:
    metrics = run.metrics
    data, weights = metrics["data"], metrics["weights"]
    references, reasons = reference_thresholds(run)
    chart = _chart(run, references) if len(images) else None
    origin = "random weights" if run.is_random else f"trained weights (from: {weights['source']})"
    types = images["defect_type"].value_counts().sort_index()
    return render_page(
        "report.html.j2",
        script=read_template("report.js") if len(images) else "",
        title=run.title,
        experiment=metrics["experiment"],
        seed=run.title.rpartition(", ")[2],
        warnings=[SYNTHETIC] * run.is_synthetic + [RANDOM_WEIGHTS] * run.is_random,
        facts=[
            {
                "name": "data",
                "value": f"{data['name']} '{data['category']}': {data['train_images']} training images, "
                f"{data['test_images']} test images",
            },
            {"name": "backbone", "value": f"{weights['name']}, {origin}"},
            {"name": "threshold", "value": metrics["thresholds"]["source"]},
            *_verdicts(run),
        ],
        metrics=run_table(run, published=False) if len(images) else None,
        published=run_table(run, "Beside published figures", published=True) if run.is_comparable else None,
        metrics_note=METRICS_NOTE,
        defects=defects_table(metrics["per_defect"]),
        figures=[
            {
                "name": figure.name,
                "title": figure.title,
                "caption": figure.caption,
                "source": _figure_source(run.folder / "figures" / figure.name),
            }
            for figure in figures
        ],
        chart=chart,
        references=[
            {**reference._asdict(), "key": key, "spelled": f"{reference.value:.3f}"}
            for key, reference in zip(_KEYS, references, strict=False)
        ],
        reasons=reasons,
        alpha_note=_alpha_note(run),
        changes=change_sentences(run.changes) if run.changes else [],
        refused=run.refused,
        training=_training(run),
        gallery_note=GALLERY_NOTE + PICTURES_NOTE * any(card["source"] for card in cards),
        types=[
            {"name": "all", "count": len(images)},
            *({"name": name, "count": count} for name, count in types.items()),
        ],
        has_pictures=any(card["source"] for card in cards),
        cards=cards,
        data={
            "start": _first_threshold(run, references),
            "logarithmic": chart["logarithmic"],
            "types": list(types.index),
            "images": [
                {"score": row.score, "label": row.label, "type": row.defect_type} for row in images.itertuples()
            ],
        }
        if chart
        else None,
        footer=_footer(metrics),
    )


def _verdicts(run: Run) -> list[dict[str, str]]:
    """Return what is asked first: how many defects were found, and how many good images raised an alarm."""
    if run.threshold is None or run.predictions.empty:
        return []
    return [{"name": "verdicts", "value": describe_counts(run.counts(run.threshold))}]


def _first_threshold(run: Run, references: Sequence[Reference]) -> float:
    if run.threshold is not None:
        return run.threshold
    return references[0].value if references else float(run.predictions["score"].median())


def _chart(run: Run, references: Sequence[Reference]) -> dict[str, Any]:
    """Place scores and thresholds on the slider: in its own units, and in per cent of its width."""
    table = run.predictions
    values = [*table["score"], *(reference.value for reference in references)]
    logarithmic = is_skewed(values)
    to_place = math.log if logarithmic else float
    low, high = to_place(min(values)), to_place(max(values))
    margin = 0.02 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def percent(value: float) -> float:
        return round(100 * (to_place(value) - low) / (high - low), 3)

    top = 12 * len(references) + _ROW // 2
    return {
        "logarithmic": logarithmic,
        "low": low,
        "high": high,
        "height": top + 2 * _ROW,
        "good": int((~table["label"]).sum()),
        "defective": int(table["label"].sum()),
        "marks": [
            {"x": percent(reference.value), "y": 12 * i, "key": key}
            for i, (key, reference) in enumerate(zip(_KEYS, references, strict=False))
        ],
        "dots": [
            {
                "x": percent(row.score),
                "y": top + _ROW // 2 + (0 if row.label else _ROW),
                "kind": "defective" if row.label else "good",
            }
            for row in table.itertuples()
        ],
    }


def _training(run: Run) -> dict[str, Any] | None:
    """Return the oddest training photos, and those that are copies of others."""
    copies = [f"{Path(a).name} and {Path(b).name} ({kind})" for a, b, kind in run.calibration.get("copies", [])]
    if run.training.empty and not copies:
        return None
    oddest = run.training.head(_ODDEST)
    # Where each photo shows a part of its own, a part's name tells nothing.
    titles = (
        "part " + oddest["part"] + ": " + oddest["image"]
        if run.training["part"].duplicated().any()
        else oddest["image"]
    )
    return {
        "count": len(run.training),
        "cards": _cards(run, oddest.assign(title=titles)),
        "drawn": oddest["strip"].notna().any(),
        "copies": copies,
    }


def _alpha_note(run: Run) -> str | None:
    """Say what alpha means, and how far one training set's false-alarm rate may lie from it."""
    count = len(run.calibration_scores)
    if not count:
        return None
    alpha, confidence = run.calibration["alpha"], run.calibration.get("confidence")
    low, high = false_alarm_range(count, alpha, confidence)
    kept = "" if confidence is None else f" This run's own threshold keeps it with confidence {confidence:g}."
    few = "" if (missed := what_few_miss(count)) is None else f" {missed}"
    return (
        "alpha is the share of good images that raise a false alarm. The thresholds come from the scores of the "
        "training images, each left out of the model that it is measured by (the jackknife). In simulations that keeps "
        "alpha nearly exactly, a little on the safe side; no theorem promises it for a finite number of images. One "
        f"training set differs from the next: with {count} scores and {spell_alpha(alpha)}, the true rate is expected "
        f"between {100 * low:.1f} % and {100 * high:.1f} % for 95 of 100 training sets. Four times as many images "
        f"halve that range.{kept}{few}"
    )


def _cards(run: Run, images: pd.DataFrame) -> list[dict[str, Any]]:
    # Many pictures are made smaller, so that the page stays within a few megabytes.
    share = min(1.0, math.sqrt(_MANY / max(1, len(images))))
    return [
        {
            "title": row.title,
            "score": f"{row.score:.3f}",
            "p_value": None if math.isnan(row.p_value) else f"{row.p_value:.3f}",
            **({"source": None} if row.strip is None else _strip(run.folder / row.strip, share)),
        }
        for row in images.itertuples()
    ]


def _strip(path: Path, share: float) -> dict[str, Any]:
    """Return the panels of an image for a page, in ``share`` of their size."""
    (width, height), content = strip_size(path), path.read_bytes()
    if share < 1:
        width, height = round(width * share), round(height * share)
        content = encode_jpeg(read_strip(path).resize((width, height), Image.Resampling.BOX))
    return {"source": data_source("image/jpeg", content), "width": width, "height": height}


def _figure_source(stem: Path) -> str:
    """Return a figure for a page: as it is drawn, or as a photograph where it is made of photographs."""
    vector = stem.with_suffix(".svg").read_bytes()
    if len(vector) <= _VECTOR_LIMIT:
        return data_source("image/svg+xml", vector)
    return data_source("image/jpeg", encode_jpeg(Image.open(stem.with_suffix(".png")).convert("RGB")))


def _footer(metrics: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in metrics["versions"].items() if version)
    digests = (("data", metrics["data"]["fingerprint"]), ("configuration", metrics.get("config_sha256")))
    parts = [versions, *(f"SHA-256 of the {name}: {digest[:12]}…" for name, digest in digests if digest)]
    spent = {stage: told["cpu_seconds"] for stage, told in metrics.get("profile", {}).items()}
    if spent:
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in spent.items() if seconds >= 0.05)
        parts.append(f"CPU seconds: {sum(spent.values()):.1f}, of which {stages}")
    return ". ".join([*parts, "More in metrics.json."])
