"""The table that a finished run prints."""

from pathlib import Path
from typing import Any

from rich.console import Console

from padim_bottle.report.html import AUPIMO_NOTE, comparison_table, describe_setup
from padim_bottle.runs.table import DEFECT_METRICS
from padim_bottle.tables import DASH, Row, Table, figure

_COLUMNS = {
    "image_AUROC": "image AUROC",
    "pixel_AUROC": "pixel AUROC",
    "pixel_AUPRO": "AUPRO",
    "pixel_AUPIMO": "AUPIMO",
    "image_F1Score": "F1",
    "image_F1Score_anomalib": "F1 tuned",
}


def print_summary(metrics: dict[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print a run's figures, those of each defect type, the published ones, and the paths to look at.

    Args:
        metrics: what ``metrics.json`` holds.
        folder: the run's folder.
        console: where to print; standard output if not given.
    """
    # Wide enough for the table even where output goes to a file or a CI log.
    console = console or Console(width=max(116, Console().width))
    real = not metrics["data"]["synthetic"] and metrics["weights"]["source"] != "random"
    console.print()
    if not real:
        console.print(
            "[bold]Demonstration: synthetic bottles or random weights. These figures say nothing about MVTec AD.[/bold]"
        )
    data = metrics["data"]
    if data["test_images"]:
        published = real and (data["name"], data["category"]) == ("MVTec AD", "bottle")
        console.print(_metrics_table(metrics, with_published=published).screen())
    else:
        console.print(_calibration_sentence(metrics), highlight=False)
    if metrics["confusion_matrix"] is not None:
        console.print(_threshold_sentences(metrics))
    for sentence in data.get("left_out", []):
        console.print(sentence, highlight=False)
    if metrics["per_defect"]:
        console.print(_defects_table(metrics["per_defect"]).screen())
    for name in (
        "report.html",
        "metrics.json",
        "predictions.csv",
        "training_photos.csv",
        "images",
        "figures",
        "config.yaml",
        "model.ckpt",
    ):
        if (folder / name).exists():
            console.print(f"  {folder / name}", highlight=False)


def _metrics_table(metrics: dict[str, Any], with_published: bool) -> Table:
    data = metrics["data"]
    seed = "unseeded" if metrics["seed"] is None else f"seed {metrics['seed']}"
    setup = describe_setup(metrics["weights"]["name"], metrics["model"].get("image_size"))
    cells = [figure(metrics.get(name)) for name in _COLUMNS]
    own = Row([f"{metrics['experiment']}, {seed}", setup, *cells], own=True)
    table = comparison_table([own], with_published, _COLUMNS)
    # Backbone and size stand with the name: a screen has no room for a column of theirs.
    rows = [Row([f"{row.cells[0]}, {row.cells[1]}", *row.cells[2:]], row.own) for row in table.rows]
    notes = ["F1: at the run's own threshold. F1 tuned: on the test labels, as published.", AUPIMO_NOTE, *table.notes]
    title = f"{data['name']} '{data['category']}', {data['test_images']} test images"
    return Table(["", *table.header[2:]], rows, notes, title)


def _calibration_sentence(metrics: dict[str, Any]) -> str:
    data, thresholds = metrics["data"], metrics["thresholds"]
    return (
        f"{data['name']} '{data['category']}', {data['train_images']} training images. Threshold "
        f"{thresholds['image']:.3f} ({thresholds['source']})."
    )


def _threshold_sentences(metrics: dict[str, Any]) -> str:
    counts, thresholds = metrics["confusion_matrix"], metrics["thresholds"]
    alarms = counts["false_positive"]
    good = alarms + counts["true_negative"]
    defective = counts["true_positive"] + counts["false_negative"]
    return (
        f"Threshold {thresholds['image']:.3f} ({thresholds['source']}): {counts['true_positive']} of {defective} "
        f"defects found, {alarms} false alarm{'s' * (alarms != 1)} on {good} good images; "
        f"precision {_figure(metrics['image_precision'])}, recall {_figure(metrics['image_recall'])}.\n"
        f"Tuned on the test labels, for comparison: anomalib's F1Score {_figure(metrics['image_F1Score_anomalib'])}, "
        f"best possible F1 {_figure(metrics['image_F1Max'])}."
    )


def _defects_table(per_defect: dict[str, Any]) -> Table:
    rows = [
        Row([defect, str(figures["images"]), *(figure(figures.get(key)) for key in DEFECT_METRICS)])
        for defect, figures in per_defect.items()
    ]
    return Table(["defect", "images", *DEFECT_METRICS.values()], rows)


def _figure(value: float | None) -> str:
    return figure(value) or DASH
