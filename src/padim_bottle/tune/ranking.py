"""Which differences between settings are larger than their spread over splits."""

import pandas as pd

from padim_bottle.errors import UserError
from padim_bottle.evaluation.differences import paired_difference
from padim_bottle.tune.settings import METRICS


def rank(fits: pd.DataFrame, choose_by: list[str]) -> pd.DataFrame:
    """Return a row a setting, the best one first: mean and standard deviation of each metric over its fits.

    Columns: setting (the index), ``METRICS`` and ``<metric>_std`` (n - 1), fits, and choice: the mean of the metrics
    that choose, of those that all settings have, by which the settings are ordered.

    Raises:
        UserError: there is no such metric.
    """
    groups = fits.groupby("setting", sort=True)
    table = groups[list(METRICS)].mean()
    table = table.join(groups[list(METRICS)].std().add_suffix("_std")).assign(fits=groups.size())
    defined = table[choose_by].dropna(axis=1)
    if defined.empty:
        raise UserError(
            f"choose_by: no setting can be chosen, as {' and '.join(choose_by)} cannot be computed of so few held-out "
            "photos: choose by others, or hold out more."
        )
    table["choice"] = defined.mean(axis=1)
    return table.sort_values("choice", ascending=False, kind="stable")


def differences_from(best: int, fits: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """Compare every other setting with the best one, split by split; a split's value is the mean over its seeds.

    Args:
        best: number of the best setting.
        fits: a row a fit.
        ratio: photos held out over photos fitted: splits share most of their photos, and the interval corrects for it.

    Returns:
        Columns: setting, metric, difference (mean of the setting's minus the best one's), low, high, finding; see
        ``PairedDifference``.
    """
    values = fits.groupby(["setting", "split"])[list(METRICS)].mean()
    rows = []
    for setting in values.index.unique("setting").drop(best):
        for metric in METRICS:
            differences = (values.loc[setting, metric] - values.loc[best, metric]).dropna().to_numpy(float)
            if len(differences) > 1:
                rows.append({"setting": setting, "metric": metric, **paired_difference(differences, ratio)._asdict()})
    return pd.DataFrame(rows, columns=["setting", "metric", "difference", "low", "high", "finding"])
