"""One model on several categories: a row a category, their mean, and false alarms over all of them."""

import numpy as np
import pandas as pd

from padim_bottle.compare.statistics import false_alarms
from padim_bottle.data.layout import CATEGORIES
from padim_bottle.evaluation.metrics import headings
from padim_bottle.report.published import PUBLISHED_MEANS


def category_metrics() -> dict[str, str]:
    """Return key and heading of the metrics that are shown for each category: those that need no threshold."""
    return headings(threshold="none")


def of_models(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of models that were run on more than one category, with a column ``model``.

    A model is what a sweep over categories calls ``<model>,category=<category>``.
    """
    suffixes = ",category=" + runs["category"].astype(str)
    models = [name.replace(suffix, "") for name, suffix in zip(runs["experiment"], suffixes, strict=True)]
    runs = runs.assign(model=models)
    return runs[runs.groupby("model")["category"].transform("nunique") > 1]


def by_category(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each model and category, and below each model's one for the mean of its categories.

    Columns: model, category ('Mean' for the mean), categories, seeds, ``category_metrics`` (means over seeds), the
    same with ``_std`` (over seeds; of the mean: of the seeds that all categories have), false_alarms, good_images,
    alarm_rate, alarm_low, alarm_high (see ``false_alarms``; of the mean: of all good images).
    """
    columns = list(category_metrics())
    rows = []
    for model, of_model in of_models(runs).groupby("model", sort=False):
        categories = dict(list(of_model.groupby("category", sort=True)))
        for category, group in categories.items():
            rows.append(_row(model, category, group, group[columns].mean(), group[columns].std()))
        means = of_model.groupby("category")[columns].mean().mean()
        common = set.intersection(*(set(group["seed"]) for group in categories.values()))
        seeds = of_model[of_model["seed"].isin(common)].groupby("seed")[columns].mean()
        rows.append(_row(model, "Mean", of_model, means, seeds.std()))
    names = ("model", "category", "categories", "seeds", *columns, *(f"{metric}_std" for metric in columns))
    of_alarms = ("false_alarms", "good_images", "alarm_rate", "alarm_low", "alarm_high")
    return pd.DataFrame(rows, columns=[*names, *of_alarms])


def published_means(runs: pd.DataFrame) -> list[tuple[str, str, list[float | None]]]:
    """Return the averages that others published, as name, backbone and ``category_metrics``; none beside other data."""
    real = ~(runs["synthetic"] | runs["random_weights"]) & runs["category"].isin(CATEGORIES)
    if not real.all():
        return []
    names = category_metrics()
    return [(row.source, row.backbone, [getattr(row, name, None) for name in names]) for row in PUBLISHED_MEANS]


def _row(model: str, category: str, group: pd.DataFrame, mean: pd.Series, std: pd.Series) -> dict[str, object]:
    alarms = false_alarms(group.assign(experiment=model))
    first = alarms.iloc[0] if len(alarms) else {}
    return {
        "model": model,
        "category": category,
        "categories": group["category"].nunique(),
        "seeds": group["seed"].nunique(),
        **mean.to_dict(),
        **std.add_suffix("_std").to_dict(),
        **{name: first.get(name) for name in ("false_alarms", "good_images")},
        **{f"alarm_{name}": first.get(name, np.nan) for name in ("rate", "low", "high")},
    }
