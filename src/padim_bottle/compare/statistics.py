"""Statistics of finished runs, over their seeds and over their test images."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy  # its submodules are loaded when they are first used

from padim_bottle.evaluation.differences import CONFIDENCE, paired_difference
from padim_bottle.evaluation.metrics import headings, labels
from padim_bottle.runs.run import Run
from padim_bottle.runs.table import COUNTS, RESOURCES, defect_metrics

RESAMPLES = 2000

# Findings that are worded for seeds.
_OF_SEEDS = {"equal": "equal for every seed", "no spread": "the same difference for every seed"}


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over seeds of every metric, time and size of every experiment that has one, a row each.

    Columns: experiment, metric, seeds (that have a value), mean, std (n - 1), low and high (Student's t interval of the
    mean, not defined for one seed).
    """
    metrics = [*labels(), *defect_metrics(runs), *RESOURCES]
    values = runs.astype(dict.fromkeys(metrics, float)).melt("experiment", metrics, var_name="metric").dropna()
    summary = (
        values.groupby(["experiment", "metric"], sort=False)["value"]
        .agg(seeds="count", mean="mean", std="std")
        .reset_index()
    )
    half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, summary["seeds"] - 1) * summary["std"] / np.sqrt(summary["seeds"])
    return summary.assign(low=summary["mean"] - half, high=summary["mean"] + half)


def mean_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row an experiment: means of its metrics over its runs, and what all of its runs agree in.

    Times and memory are means of the runs that did all their work: a run that took another's features costs less.
    """
    rows = []
    for _, group in runs.groupby("experiment", sort=False):
        shared = {name: group[name].iloc[0] for name in group if group[name].nunique(dropna=False) == 1}
        metrics = group[[*labels(), *defect_metrics(runs)]].mean()
        costs = group.loc[group["features_from_seed"].isna(), list(RESOURCES)].astype(float).mean()
        rows.append({**shared, **metrics, **costs, "seed": pd.NA})
    means = pd.DataFrame(rows, columns=runs.columns)
    for name in filter(lambda name: pd.api.types.is_integer_dtype(runs[name]), runs):
        means[name] = pd.to_numeric(means[name], errors="coerce").round().astype("Int64")
    return means


def paired_differences(runs: pd.DataFrame) -> pd.DataFrame:
    """Compare each pair of experiments on one category seed by seed.

    Columns: first, second, metric, seeds (that both have), difference (mean of first - second), low and high (paired
    t interval), p_value (Wilcoxon's signed-rank test, two-sided; seeds without a difference are dropped), finding:
    'higher', 'lower', 'cannot tell', or why nothing was computed.
    """
    tables = dict(list(runs.groupby("experiment", sort=False)))
    metrics = [metric for metric in headings(sees_labels=False) if runs[metric].notna().any()]
    rows = []
    for (first, one), (second, other) in combinations(tables.items(), 2):
        if one["category"].iloc[0] != other["category"].iloc[0]:
            continue
        digests = [one["data_fingerprint"].iloc[0], other["data_fingerprint"].iloc[0]]
        joined = one.set_index("seed").join(other.set_index("seed"), how="inner", lsuffix="", rsuffix="_other")
        for metric in metrics:
            differences = (joined[metric] - joined[f"{metric}_other"]).dropna().to_numpy(float)
            row = {"first": first, "second": second, "metric": metric, "seeds": len(differences)}
            if pd.isna(digests).any():
                row["finding"] = "unknown data"
            elif digests[0] != digests[1]:
                row["finding"] = "different data"
            elif len(differences) < 2:
                row["finding"] = "fewer than 2 common seeds"
            else:
                row |= _compare(differences)
            rows.append(row)
    columns = ("first", "second", "metric", "seeds", "difference", "low", "high", "p_value", "finding")
    return pd.DataFrame(rows, columns=columns)


def false_alarms(runs: pd.DataFrame) -> pd.DataFrame:
    """Return false alarms and missed defects summed over seeds, with the exact interval of the false-alarm rate.

    Columns: experiment, alpha, seeds, false_alarms, good_images, rate, low, high (Clopper-Pearson, as if images of
    different seeds were different images), missed, defective_images. Experiments without a threshold have no row.
    """
    alarms = (
        runs.dropna(subset=list(COUNTS))
        .groupby("experiment", sort=False)
        .agg(
            alpha=("alpha", "first"),
            seeds=("seed", "count"),
            false_alarms=("false_positive", "sum"),
            good_images=("true_negative", "sum"),
            missed=("false_negative", "sum"),
            defective_images=("true_positive", "sum"),
        )
        .reset_index()
    )
    alarms["good_images"] += alarms["false_alarms"]
    alarms["defective_images"] += alarms["missed"]
    alarms = alarms[alarms["good_images"] > 0]
    intervals = [
        scipy.stats.binomtest(int(row.false_alarms), int(row.good_images)).proportion_ci(CONFIDENCE, method="exact")
        for row in alarms.itertuples()
    ]
    return alarms.assign(
        rate=(alarms["false_alarms"] / alarms["good_images"]).astype(float),
        low=[interval.low for interval in intervals],
        high=[interval.high for interval in intervals],
    )


def image_bootstrap(runs: pd.DataFrame) -> pd.DataFrame:
    """Return how image AUROC and F1 move with other test images: of the lowest seed, and of the mean over seeds.

    Good and defective images are resampled separately, the same ones for all seeds of an experiment. The threshold
    stays the run's own. AUPIMO, of the lowest seed, moves with other good images alone: its run has the interval.

    Columns: experiment, figure ('seed 0', 'mean of 10 seeds'), metric, value, low, high (percentiles).
    """
    rows = []
    for experiment, table in runs.groupby("experiment", sort=False):
        table = table.sort_values("seed")
        found = [Run.read(Path(folder)) for folder in table["folder"]]
        predictions = [run.predictions.set_index(["defect_type", "image"]).sort_index() for run in found]
        figures = [(f"seed {table['seed'].iloc[0]}", predictions[:1])]
        if len(predictions) > 1 and all(other.index.equals(predictions[0].index) for other in predictions):
            figures.append((f"mean of {len(predictions)} seeds", predictions))
        for figure, chosen in figures:
            for metric, limits in bootstrap_images(chosen).items():
                rows.append((experiment, figure, metric, *limits))
        if interval := found[0].metrics.get("pixel_AUPIMO_interval"):
            rows.append((experiment, figures[0][0], "pixel_AUPIMO", found[0].metrics["pixel_AUPIMO"], *interval))
    return pd.DataFrame(rows, columns=["experiment", "figure", "metric", "value", "low", "high"])


def bootstrap_images(predictions: Sequence[pd.DataFrame]) -> dict[str, tuple[float, float, float]]:
    """Resample test images, stratified by label: percentile intervals of image AUROC and F1, averaged over runs.

    Args:
        predictions: one table a run, all of the same images in the same order, with label, score, predicted_label.

    Returns:
        For each metric that is defined: the value, and the lower and upper limit.
    """
    labels = predictions[0]["label"].to_numpy(bool)
    good, defective = np.flatnonzero(~labels), np.flatnonzero(labels)
    if len(good) < 2 or len(defective) < 2:
        return {}
    # (good, defective): in what share of the runs the defective image outranks the good one, ties half.
    outranked = np.zeros((len(good), len(defective)))
    for table in predictions:
        scores = table["score"].to_numpy(float)
        outranked += (np.sign(scores[defective] - scores[good][:, None]) + 1) / 2 / len(predictions)

    # Of drawn images, by their numbers; the last axis are the images of a resample.
    def auroc(drawn_good: np.ndarray, drawn_defective: np.ndarray, axis: int = -1) -> np.ndarray:
        return outranked[drawn_good[..., :, None], drawn_defective[..., None, :]].mean(axis=(-2, -1))

    def f1(drawn_good: np.ndarray, drawn_defective: np.ndarray, axis: int = -1) -> np.ndarray:
        alarms, hits = called[:, good][:, drawn_good].sum(-1), called[:, defective][:, drawn_defective].sum(-1)
        return (2 * hits / (hits + alarms + len(defective))).mean(axis=0)

    statistics = {"image_AUROC": auroc}
    if all(table["predicted_label"].notna().all() for table in predictions):
        called = np.stack([table["predicted_label"].to_numpy(bool) for table in predictions])
        statistics["image_F1Score"] = f1
    sample = np.arange(len(good)), np.arange(len(defective))
    limits = {}
    for metric, statistic in statistics.items():
        interval = scipy.stats.bootstrap(
            sample, statistic, n_resamples=RESAMPLES, batch=max(1, 10_000_000 // outranked.size),
            confidence_level=CONFIDENCE, method="percentile", vectorized=True, random_state=0,
        ).confidence_interval  # fmt: skip
        limits[metric] = (float(statistic(*sample)), float(interval.low), float(interval.high))
    return limits


def _compare(differences: np.ndarray) -> dict[str, Any]:
    row = paired_difference(differences)._asdict()
    row["finding"] = _OF_SEEDS.get(row["finding"], row["finding"])
    # Rounding must neither break ties nor make a difference out of none.
    rounded = np.round(differences, 12)
    return row | ({"p_value": float(scipy.stats.wilcoxon(rounded).pvalue)} if rounded.any() else {})
