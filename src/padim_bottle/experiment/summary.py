"""The table that a finished run prints."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from padim_bottle.report.published import PUBLISHED


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
    console.print(_metrics_table(metrics, with_published=real and metrics["data"]["category"] == "bottle"))
    if metrics["confusion_matrix"] is not None:
        console.print(_threshold_sentences(metrics))
    if metrics["per_defect"]:
        console.print(_defects_table(metrics["per_defect"]))
    for name in ("report.html", "metrics.json", "predictions.csv", "images", "figures", "config.yaml", "model.ckpt"):
        if (folder / name).exists():
            console.print(f"  {folder / name}", highlight=False)


def _metrics_table(metrics: dict[str, Any], with_published: bool) -> Table:
    data = metrics["data"]
    table = Table(
        box=box.SIMPLE,
        title=f"{data['name']} '{data['category']}', {data['test_images']} test images",
        caption="F1: at the run's own threshold. F1 test-tuned: anomalib's F1Score, its threshold fitted on the test "
        "labels, as in the published rows.",
    )
    for name in ("", "image AUROC", "pixel AUROC", "AUPRO", "F1", "F1 test-tuned"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    seed = "unseeded" if metrics["seed"] is None else f"seed {metrics['seed']}"
    keys = ("image_AUROC", "pixel_AUROC", "pixel_AUPRO", "image_F1Score", "image_F1Score_anomalib")
    table.add_row(f"{metrics['experiment']}, {seed}", *(_figure(metrics[key]) for key in keys), style="bold")
    for row in PUBLISHED if with_published else ():
        table.add_row(
            row.source, _figure(row.image_AUROC), _figure(row.pixel_AUROC), _figure(row.pixel_AUPRO), "",
            _figure(row.image_F1),
        )  # fmt: skip
    return table


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
    table = Table(box=box.SIMPLE)
    for name in ("defect", "images", "image AUROC", "pixel AUROC", "AUPRO", "found"):
        table.add_column(name, justify="left" if name == "defect" else "right")
    for defect, figures in per_defect.items():
        keys = ("image_AUROC", "pixel_AUROC", "pixel_AUPRO", "recall")
        table.add_row(defect, str(figures["images"]), *(_figure(figures[key]) for key in keys))
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
