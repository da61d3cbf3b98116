"""Statistics of finished runs, over their seeds and over their test images."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy  # its submodules are loaded when they are first used

from padim_bottle.runs.table import COUNTS, KEY_METRICS, METRICS, RESOURCES, defect_metrics, read_predictions

CONFIDENCE = 0.95
RESAMPLES = 2000
SAME = 1e-12  # differences below this are rounding


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over seeds of every metric, time and size of every experiment, one row each.

    Columns: experiment, metric, seeds (that have a value), mean, std, low and high (Student's t interval of the mean,
    not defined for one seed), min, max.
    """
    rows = []
    for experiment, table in runs.groupby("experiment", sort=False):
        for metric in (*METRICS, *defect_metrics(runs), *RESOURCES):
            values = table[metric].dropna().to_numpy(float)
            if len(values):
                rows.append(
                    {
                        "experiment": experiment,
                        "metric": metric,
                        "seeds": len(values),
                        **t_interval(values),
                        "min": values.min(),
                        "max": values.max(),
                    }
                )
    return pd.DataFrame(rows)


def paired_differences(runs: pd.DataFrame, metrics: Sequence[str] = KEY_METRICS) -> pd.DataFrame:
    """Compare each pair of experiments seed by seed.

    Columns: first, second, metric, seeds (that both have), difference (mean of first - second), low and high (paired
    t interval), p_value (Wilcoxon's signed-rank test, two-sided; seeds without a difference are dropped), finding:
    'higher', 'lower', 'cannot tell', or why nothing was computed.
    """
    tables = dict(list(runs.groupby("experiment", sort=False)))
    rows = []
    for (first, one), (second, other) in combinations(tables.items(), 2):
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
    rows = []
    for experiment, table in runs.dropna(subset=list(COUNTS)).groupby("experiment", sort=False):
        tn, fp, fn, tp = (int(table[name].sum()) for name in COUNTS)
        low, high = _clopper_pearson(fp, tn + fp)
        rows.append(
            {
                "experiment": experiment,
                "alpha": table["alpha"].iloc[0],
                "seeds": len(table),
                "false_alarms": fp,
                "good_images": tn + fp,
                "rate": fp / (tn + fp) if tn + fp else np.nan,
                "low": low,
                "high": high,
                "missed": fn,
                "defective_images": fn + tp,
            }
        )
    return pd.DataFrame(rows)


def image_bootstrap(runs: pd.DataFrame) -> pd.DataFrame:
    """Return how image AUROC and F1 move with other test images: of the lowest seed, and of the mean over seeds.

    Good and defective images are resampled separately, the same ones for all seeds of an experiment. The threshold
    stays the run's own.

    Columns: experiment, figure ('seed 0', 'mean of 10 seeds'), metric, value, low, high (percentiles).
    """
    rows = []
    for experiment, table in runs.groupby("experiment", sort=False):
        table = table.sort_values("seed")
        predictions = [read_predictions(Path(folder)) for folder in table["folder"]]
        figures = [(f"seed {table['seed'].iloc[0]}", predictions[:1])]
        if len(predictions) > 1 and all(other.index.equals(predictions[0].index) for other in predictions):
            figures.append((f"mean of {len(predictions)} seeds", predictions))
        for figure, chosen in figures:
            for metric, (value, low, high) in bootstrap_images(chosen).items():
                rows.append(
                    {
                        "experiment": experiment,
                        "figure": figure,
                        "metric": metric,
                        "value": value,
                        "low": low,
                        "high": high,
                    }
                )
    return pd.DataFrame(rows, columns=["experiment", "figure", "metric", "value", "low", "high"])


def bootstrap_images(
    predictions: Sequence[pd.DataFrame], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Resample test images, stratified by label: percentile intervals of image AUROC and F1, averaged over runs.

    Args:
        predictions: one table a run, all of the same images in the same order, with label, score, predicted_label.
        resamples: how often.
        seed: decides the resamples.

    Returns:
        For each metric that is defined: the value, and the lower and upper limit.
    """
    labels = predictions[0]["label"].to_numpy(bool)
    good, defective = int((~labels).sum()), int(labels.sum())
    if not good or not defective:
        return {}
    rng = np.random.default_rng(seed)
    # How often each image was drawn says all that is needed about a resample. Row 0 is the sample itself.
    drawn_good = np.vstack([np.ones(good), rng.multinomial(good, np.full(good, 1 / good), resamples)])
    drawn_defective = np.vstack(
        [np.ones(defective), rng.multinomial(defective, np.full(defective, 1 / defective), resamples)]
    )
    # (good, defective): in what share of the runs the defective image outranks the good one, ties half.
    outranked = np.zeros((good, defective))
    for table in predictions:
        scores = table["score"].to_numpy(float)
        outranked += (np.sign(scores[labels] - scores[~labels][:, None]) + 1) / 2 / len(predictions)
    values = {"image_AUROC": ((drawn_good @ outranked) * drawn_defective).sum(axis=1) / (good * defective)}
    if all(table["predicted_label"].notna().all() for table in predictions):
        predicted = np.stack([table["predicted_label"].to_numpy(bool) for table in predictions])
        alarms, hits = drawn_good @ predicted[:, ~labels].T, drawn_defective @ predicted[:, labels].T
        values["image_F1Score"] = (2 * hits / (hits + alarms + defective)).mean(axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    return {
        metric: (float(value[0]), *map(float, np.percentile(value[1:], [tail, 100 - tail])))
        for metric, value in values.items()
    }


def t_interval(values: np.ndarray) -> dict[str, float]:
    """Return mean, standard deviation (n - 1) and Student's t interval of the mean; NaN where undefined."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return {"mean": mean, "std": np.nan, "low": np.nan, "high": np.nan}
    std = float(np.std(values, ddof=1))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / np.sqrt(n)
    return {"mean": mean, "std": std, "low": mean - half, "high": mean + half}


def _compare(differences: np.ndarray) -> dict[str, Any]:
    interval = t_interval(differences)
    row = {"difference": interval["mean"], "low": interval["low"], "high": interval["high"], "p_value": np.nan}
    # Rounding must neither break ties nor make a difference out of none.
    rounded = np.round(differences, 12)
    if rounded.any():
        row["p_value"] = float(scipy.stats.wilcoxon(rounded).pvalue)
    if np.ptp(differences) < SAME:
        row["finding"] = "the same difference for every seed" if rounded.any() else "equal for every seed"
    elif interval["low"] > 0:
        row["finding"] = "higher"
    elif interval["high"] < 0:
        row["finding"] = "lower"
    else:
        row["finding"] = "cannot tell"
    return row


def _clopper_pearson(count: int, total: int) -> tuple[float, float]:
    if not total:
        return np.nan, np.nan
    interval = scipy.stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)
