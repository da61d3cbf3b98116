"""Which differences between settings are larger than their spread over splits."""

import numpy as np
import pandas as pd
import scipy  # its submodules are loaded when they are first used

from padim_bottle.tune.settings import METRICS

CONFIDENCE = 0.95


def rank(fits: pd.DataFrame, choose_by: list[str]) -> pd.DataFrame:
    """Return a row a setting, the best one first: mean and standard deviation of each metric over its fits.

    Columns: setting (the index), ``METRICS`` and ``<metric>_std`` (n - 1), fits, and choice: the mean of the metrics
    that choose, of those that all settings have, by which the settings are ordered.
    """
    groups = fits.groupby("setting", sort=True)
    table = groups[list(METRICS)].mean()
    table = table.join(groups[list(METRICS)].std().add_suffix("_std")).assign(fits=groups.size())
    table["choice"] = table[choose_by].dropna(axis=1).mean(axis=1)
    return table.sort_values("choice", ascending=False, kind="stable")


def differences_from(best: int, fits: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """Compare every other setting with the best one, split by split; a split's value is the mean over its seeds.

    Splits share most of their photos, so their differences are not independent. The interval corrects for that
    (Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003): Student's t with the
    variance of the mean taken as (1 / splits + ratio) times that of the differences.

    Args:
        best: number of the best setting.
        fits: a row a fit.
        ratio: photos held out over photos fitted.

    Returns:
        Columns: setting, metric, difference (mean of the setting's minus the best one's), low, high, finding:
        'higher', 'lower', 'cannot tell' or 'equal'.
    """
    values = fits.groupby(["setting", "split"])[list(METRICS)].mean()
    rows = []
    for setting in values.index.unique("setting").drop(best):
        for metric in METRICS:
            differences = (values.loc[setting, metric] - values.loc[best, metric]).dropna().to_numpy(float)
            if len(differences) > 1:
                rows.append({"setting": setting, "metric": metric, **_interval(differences, ratio)})
    return pd.DataFrame(rows, columns=["setting", "metric", "difference", "low", "high", "finding"])


def _interval(differences: np.ndarray, ratio: float) -> dict[str, float | str]:
    count, mean = len(differences), float(differences.mean())
    error = float(np.sqrt((1 / count + ratio) * differences.var(ddof=1)))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    low, high = mean - half, mean + half
    finding = "higher" if low > 0 else "lower" if high < 0 else "cannot tell"
    if not differences.any():
        finding = "equal"
    return {"difference": mean, "low": low, "high": high, "finding": finding}
