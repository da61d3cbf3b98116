"""The table that a finished run prints."""

from dataclasses import replace
from typing import Any

from rich.console import Console

from padim_bottle.report.html import METRICS_NOTE, defects_table, describe_counts, run_table
from padim_bottle.runs.changes import change_sentences
from padim_bottle.runs.run import Run
from padim_bottle.tables import DASH, figure

_FILES = (
    "report.html", "metrics.json", "predictions.csv", "training_photos.csv", "images", "figures", "config.yaml",
    "model.ckpt",
)  # fmt: skip


def print_summary(run: Run, console: Console | None = None) -> None:
    """Print a run's figures, those of each defect type, the published ones, and the paths to look at.

    Args:
        run: the run.
        console: where to print; standard output if not given.
    """
    # Wide enough for the table even where output goes to a file or a CI log.
    console = console or Console(width=max(144, Console().width))
    metrics, data = run.metrics, run.metrics["data"]
    console.print()
    sentences = []
    if not run.is_real:
        sentences.append(
            "Demonstration: synthetic bottles or random weights. These figures say nothing about MVTec AD."
        )
    if data["test_images"]:
        title = f"{data['name']} '{data['category']}', {data['test_images']} test images"
        table = run_table(run, title, published=True)
        console.print(replace(table, notes=[METRICS_NOTE, *table.notes]).screen())
    else:
        sentences.append(
            f"{data['name']} '{data['category']}', {data['train_images']} training images. Threshold "
            f"{metrics['thresholds']['image']:.3f} ({metrics['thresholds']['source']})."
        )
    if metrics["confusion_matrix"] is not None:
        sentences.append(_threshold_sentences(metrics))
    sentences += data.get("left_out", [])
    if run.changes:
        sentences += change_sentences(run.changes)
    for sentence in sentences:
        console.print(sentence, markup=False, highlight=False)
    if metrics["per_defect"]:
        console.print(defects_table(metrics["per_defect"]).screen())
    for name in _FILES:
        if (run.folder / name).exists():
            console.print(f"  {run.folder / name}", markup=False, highlight=False)


def _threshold_sentences(metrics: dict[str, Any]) -> str:
    own, counts = metrics["thresholds"], metrics["confusion_matrix"]
    return (
        f"Threshold {own['image']:.3f} ({own['source']}): {describe_counts(counts)}; "
        f"precision {_spell(metrics['image_precision'])}, recall {_spell(metrics['image_recall'])}.\n"
        f"Tuned on the test labels, for comparison: anomalib's F1Score {_spell(metrics['image_F1Score_anomalib'])}, "
        f"best possible F1 {_spell(metrics['image_F1Max'])}."
    )


def _spell(value: float | None) -> str:
    return figure(value) or DASH
