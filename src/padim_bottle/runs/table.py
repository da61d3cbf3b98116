"""Finished runs as a table, one row a run."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from padim_bottle.errors import UserError
from padim_bottle.evaluation.metrics import defect_labels, labels
from padim_bottle.runs.identity import settings_digests
from padim_bottle.runs.run import Run, named

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


class FinishedRuns(NamedTuple):
    """Runs as a table, one row a run; what is wrong with runs that were left out; what was passed over."""

    table: pd.DataFrame
    problems: list[str]
    notes: list[str]


def read_runs(folders: Sequence[str | Path]) -> FinishedRuns:
    """Read every finished run of some experiments.

    A run is left out, and named among the problems, where its files are broken or where data, weights or settings
    differ from those of most runs of its experiment.

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
        alike = _alike([found for found in read if found is not None], problems)
        rows += [{"experiment": experiment, **row} for row in alike]
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


def _read_or_report(folder: Path, problems: list[str]) -> tuple[Run, dict[str, Any]] | None:
    try:
        run = Run.read(folder)
        with named(folder):
            return run, _row(run)
    except UserError as error:
        problems.append(str(error).replace(str(folder), _title(folder)).rstrip("."))
    return None


def _row(run: Run) -> dict[str, Any]:
    metrics = run.metrics
    if run.folder.name != f"seed_{metrics['seed']}":
        raise ValueError(f"metrics.json is of seed {metrics['seed']}")
    data, weights, thresholds, counts = (
        metrics[name] for name in ("data", "weights", "thresholds", "confusion_matrix")
    )
    if len(run.predictions) != data["test_images"]:
        raise ValueError(f"predictions.csv has {len(run.predictions)} rows for {data['test_images']} test images")
    row = {
        "folder": str(run.folder),
        "seed": metrics["seed"],
        "data": data["name"],
        "category": data["category"],
        "data_fingerprint": _short(data["fingerprint"]),
        "synthetic": run.is_synthetic,
        "train_images": data["train_images"],
        "test_images": data["test_images"],
        "weights": weights["name"],
        "random_weights": run.is_random,
        "weights_sha256": _short(weights["sha256"]),
        "image_size": "x".join(map(str, metrics["model"].get("image_size") or ())),
        "settings": "",  # see _alike
        **{name: _number(metrics.get(name), name) for name in labels()},
        **{name: None if counts is None else counts[name] for name in COUNTS},
        "image_threshold": _number(thresholds["image"], "the image threshold"),
        "pixel_threshold": _number(thresholds["pixel"], "the pixel threshold"),
        "threshold_source": str(thresholds["source"]),
        "alpha": _number(run.calibration.get("alpha"), "alpha"),
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


def _alike(read: list[tuple[Run, dict[str, Any]]], problems: list[str]) -> list[dict[str, Any]]:
    """Return the runs that agree with most of their experiment; report the others: a mean over both says nothing."""
    if not read:
        return []
    for (_, row), digest in zip(read, settings_digests([run.metrics["model"] for run, _ in read]), strict=True):
        row["settings"] = _short(digest)
    rows = [row for _, row in read]
    identities = [tuple(row[name] for name in IDENTITY) for row in rows]
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
