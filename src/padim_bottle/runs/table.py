"""Finished runs as a table, one row a run."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from padim_bottle.errors import UserError, in_a_line
from padim_bottle.evaluation.curves import trace_curve
from padim_bottle.evaluation.metrics import defect_labels, labels
from padim_bottle.evaluation.predictions import confusion_matrix

RESOURCES = {
    "seconds_total": "whole run, s",
    "seconds_train": "training, s",
    "seconds_test": "test, s",
    "peak_memory_bytes": "peak memory, process, MiB",
    "peak_worker_memory_bytes": "peak memory, largest worker, MiB",
    "peak_gpu_memory_bytes": "peak memory, GPU, MiB",
    "checkpoint_bytes": "checkpoint, MiB",
}
COUNTS = ("true_negative", "false_positive", "false_negative", "true_positive")

# Runs of one experiment must agree in these to be averaged.
IDENTITY = (
    "data",
    "category",
    "data_fingerprint",
    "synthetic",
    "weights",
    "random_weights",
    "weights_sha256",
    "settings",
)

# Classes of the first records, which named the module instead of what a YAML names.
RENAMED = {
    "padim_bottle.model.Padim": "padim_bottle.Padim",
    "anomalib.models.image.padim.lightning_model.Padim": "anomalib.models.Padim",
}
# Arguments of Padim that the first records do not have yet, each with the value that changes nothing.
ADDED = {
    "grids": None,
    "support": 1.0,
    "sigma": 4.0,
    "guided": None,
    "group": None,
    "copies": "warn",
    "confidence": None,
}

TOLERANCE = 1e-6


class FinishedRuns(NamedTuple):
    """Runs as a table, one row a run; what is wrong with runs that were left out; what was passed over."""

    table: pd.DataFrame
    problems: list[str]
    notes: list[str]


def read_runs(folders: Sequence[str | Path]) -> FinishedRuns:
    """Read every finished run of some experiments and check that it is what its experiment wrote.

    A run is left out, and named among the problems, where its files contradict each other or where data, weights or
    settings differ from those of most runs of its experiment.

    Args:
        folders: experiments' folders, ``<results>/<experiment>``.

    Raises:
        UserError: a folder that is not there or that holds no finished run.
    """
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    notes: list[str] = []
    for experiment, folder in _experiments(folders).items():
        finished, passed_over = _find_runs(folder)
        notes += passed_over
        if not finished:
            raise UserError(
                f"There is no finished run in {folder}: it should hold seed_<n>/metrics.json and predictions.csv, "
                "as scripts/train.py writes them."
            )
        read = [_read_or_report(run, problems) for run in finished]
        rows += _alike([{"experiment": experiment, **row} for row in read if row is not None], problems)
    if not rows:
        raise UserError(f"There is no usable run. {'; '.join(problems)}.")
    table = pd.DataFrame(rows)
    integers = (*COUNTS, "features_from_seed", *(name for name in RESOURCES if name.endswith("_bytes")))
    kinds = dict.fromkeys((*labels(), *defect_metrics(table), *RESOURCES), "float") | dict.fromkeys(integers, "Int64")
    return FinishedRuns(table.astype(kinds), problems, notes)


def defect_metrics(runs: pd.DataFrame) -> dict[str, str]:
    """Return the columns of ``runs`` that hold a metric of one defect type, and what they are called."""
    return {
        column: f"{column.removesuffix(f'_{metric}')}: {label}"
        for column in runs
        for metric, label in defect_labels().items()
        if column.endswith(f"_{metric}") and column not in labels()
    }


def _experiments(folders: Sequence[str | Path]) -> dict[str, Path]:
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"There is no folder {folder}.")
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    # As much of each path as tells them all apart.
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return {"/".join(path.parts[-depth:]): path for path in paths}


def _find_runs(folder: Path) -> tuple[list[Path], list[str]]:
    finished, notes = [], []
    for run in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if not re.fullmatch(r"seed_\d+", run.name):
            notes.append(f"{_title(run)} is passed over: it is not named seed_<n>")
        elif not all((run / name).is_file() for name in ("metrics.json", "predictions.csv")):
            notes.append(f"{_title(run)} is passed over: it is not finished")
        else:
            finished.append(run)
    return sorted(finished, key=lambda run: int(run.name.removeprefix("seed_"))), notes


def _read_or_report(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        return _read_run(folder)
    except KeyError as error:
        problems.append(f"{_title(folder)}: metrics.json or predictions.csv lacks {error}")
    except (TypeError, AttributeError) as error:
        problems.append(f"{_title(folder)}: metrics.json or predictions.csv has another layout ({error})")
    except (OSError, ValueError) as error:
        problems.append(f"{_title(folder)}: {in_a_line(error)}")
    return None


def _read_run(folder: Path) -> dict[str, Any]:
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"metrics.json is no JSON: {error}") from error
    if folder.name != f"seed_{metrics['seed']}":
        raise ValueError(f"metrics.json is of seed {metrics['seed']}")
    data, weights, thresholds, counts = (
        metrics[name] for name in ("data", "weights", "thresholds", "confusion_matrix")
    )
    _check_predictions(folder, metrics)
    row = {
        "folder": str(folder),
        "seed": metrics["seed"],
        "data": data["name"],
        "category": data["category"],
        "data_fingerprint": _short(data["fingerprint"]),
        "synthetic": bool(data["synthetic"]),
        "train_images": data["train_images"],
        "test_images": data["test_images"],
        "weights": weights["name"],
        "random_weights": weights["source"] == "random",
        "weights_sha256": _short(weights["sha256"]),
        "image_size": "x".join(map(str, metrics["model"].get("image_size") or ())),
        "settings": _short(settings_digest(metrics["model"])),
        **{name: _number(metrics.get(name), name) for name in labels()},
        **{name: None if counts is None else counts[name] for name in COUNTS},
        "image_threshold": _number(thresholds["image"], "the image threshold"),
        "pixel_threshold": _number(thresholds["pixel"], "the pixel threshold"),
        "threshold_source": str(thresholds["source"]),
        "alpha": _number((metrics["calibration"] or {}).get("alpha"), "alpha"),
        **{f"seconds_{phase}": metrics["seconds"].get(phase) for phase in ("total", "train", "test")},
        "peak_memory_bytes": metrics["peak_memory_bytes"]["process"],
        "peak_worker_memory_bytes": metrics["peak_memory_bytes"]["largest_worker"],
        "peak_gpu_memory_bytes": metrics["peak_memory_bytes"]["gpu"],
        "checkpoint_bytes": metrics["checkpoint_bytes"],
        "device": f"{metrics['device']['name']}, {metrics['device']['threads']} threads",
        "features_from_seed": metrics.get("features_from_seed"),
        "git_commit": metrics["git_commit"],
    }
    for name in RESOURCES:
        _number(row[name], name)
    for defect, figures in metrics["per_defect"].items():
        for metric in defect_labels():
            name = f"{defect}_{metric}"
            # A defect type could be called 'image'.
            row[f"defect_{name}" if name in row else name] = _number(figures.get(metric), name)
    return row


def settings_digest(model: dict[str, Any]) -> str:
    """Return a SHA-256 of a model's class and arguments but its seed, the same for records of any version.

    Args:
        model: what ``metrics.json`` says of the model.
    """
    settings = {**model, "class": RENAMED.get(model["class"], model["class"])}
    settings = {name: value for name, value in settings.items() if name not in ADDED or value != ADDED[name]}
    settings.pop("seed", None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _check_predictions(folder: Path, metrics: dict[str, Any]) -> None:
    """Raise ValueError where predictions.csv and metrics.json are not of one and the same run."""
    predictions = read_predictions(folder)
    labels, scores = predictions["label"].to_numpy(bool), predictions["score"].to_numpy(float)
    curve = trace_curve([np.sort(scores[~labels])], scores[labels])
    recomputed = {"image_AUROC": None if curve is None else curve.auroc}
    recorded = metrics["confusion_matrix"]
    if recorded is not None:
        counts = confusion_matrix(predictions["predicted_label"].to_numpy(bool), labels)
        if counts != recorded:
            raise ValueError(f"the confusion matrix is {recorded} in metrics.json, {counts} by predictions.csv")
        hits, errors = 2 * counts["true_positive"], counts["false_positive"] + counts["false_negative"]
        recomputed["image_F1Score"] = hits / (hits + errors) if labels.any() else None
    for name, value in recomputed.items():
        recorded = _number(metrics.get(name), name)
        if recorded != value and (recorded is None or value is None or abs(value - recorded) > TOLERANCE):
            raise ValueError(f"{name} is {recorded} in metrics.json, {value} by predictions.csv")


def read_predictions(folder: Path) -> pd.DataFrame:
    """Return label, score and predicted_label of a run's test images, indexed and ordered by type and file name."""
    # A defect may be called 'NA': only an empty cell is a missing value, and only where there may be one.
    table = pd.read_csv(
        folder / "predictions.csv", keep_default_na=False, na_values={"predicted_label": [""], "threshold": [""]}
    )
    table["image"] = [re.split(r"[/\\]", str(path))[-1] for path in table["image_path"]]
    table = table.set_index(["defect_type", "image"]).sort_index()[["label", "score", "predicted_label"]]
    if table["label"].dtype != bool or not np.isfinite(table["score"].to_numpy(float)).all():
        raise ValueError("predictions.csv has labels that are not True or False, or scores that are not finite")
    return table


def _alike(rows: list[dict[str, Any]], problems: list[str]) -> list[dict[str, Any]]:
    """Return the runs that agree with most of their experiment; report the others: a mean over both says nothing."""
    identities = [tuple(row[name] for name in IDENTITY) for row in rows]
    if not rows:
        return []
    usual = max(identities, key=identities.count)
    kept = []
    for row, identity in zip(rows, identities, strict=True):
        if identity == usual:
            kept.append(row)
            continue
        differing = [name for name, a, b in zip(IDENTITY, identity, usual, strict=True) if a != b]
        problems.append(
            f"{_title(Path(row['folder']))}: differs from other runs of the experiment in {', '.join(differing)}"
        )
    return kept


def _number(value: Any, name: str) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value)):
        raise ValueError(f"{name} is {value!r}, not a number")
    return value


def _title(run: Path) -> str:
    return f"{run.parent.name}/{run.name}"


def _short(digest: str | None) -> str | None:
    return digest and digest[:12]
