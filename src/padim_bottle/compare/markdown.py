"""The comparison of experiments in words and tables: ``summary.md``."""

import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from padim_bottle.compare.categories import category_metrics, of_models, published_means
from padim_bottle.compare.statistics import RESAMPLES, false_alarms, image_bootstrap, summarise
from padim_bottle.evaluation.metrics import headings, labels
from padim_bottle.report.html import AUPIMO_NOTE, METRICS_NOTE, comparison_table, describe_setup
from padim_bottle.runs.table import RESOURCES, defect_metrics
from padim_bottle.tables import DASH, Row, Table, escape_markdown, figure, mean_and_spread, template_of

if TYPE_CHECKING:
    from padim_bottle.compare.comparison import Comparison

METRICS_OF: dict[str, dict[str, str]] = {
    "ranking": {"level": "image", "threshold": "none"},
    "own_threshold": {"level": "image", "threshold": "own"},
    "tuned": {"level": "image", "threshold": "tuned"},
    "pixels": {"level": "pixel"},
}
"""Which metrics each section shows."""
REASONS = {
    "cannot tell": "cannot be told apart (the interval includes 0)",
    "different data": "not compared, their data differ",
    "unknown data": "not compared, nothing tells whether their data are the same",
    "fewer than 2 common seeds": "not compared, fewer than 2 common seeds",
    "equal for every seed": "equal for every seed",
    "the same difference for every seed": "the same difference for every seed, so no spread to judge it by",
}


def report(compared: "Comparison") -> str:
    """Return the comparison as Markdown: tables, and what they do and do not say."""
    table, names, summary = compared.table, compared.names, summarise(compared.table)
    # A run that took another's features says nothing about what a run costs.
    alone = table[table["features_from_seed"].isna()]
    bootstrap, alarms = image_bootstrap(table), false_alarms(table)
    differences = compared.differences.dropna(subset="difference")
    untested = set(table.loc[table["test_images"] == 0, "experiment"])
    both = table["experiment"].isin({*differences["first"], *differences["second"]})
    tables = {
        "experiments": _experiments_table(table, names),
        **{kind: _metrics_table(summary, labels(**chosen), names, untested) for kind, chosen in METRICS_OF.items()},
        "alarms": _alarms_table(alarms, names),
        "bootstrap": _bootstrap_table(bootstrap, names),
        "defects": _metrics_table(summary, defect_metrics(table), names),
        "published": _published_table(table[is_comparable(table)]),
        "differences": _differences_table(differences, names),
        "categories": _categories_table(compared.categories),
        "category_means": _category_means_table(compared.categories, published_means(of_models(table))),
        "resources": _resources_table(summarise(alone), names),
    }
    text = template_of("padim_bottle.compare", "summary.md.j2").render(
        {name: laid_out.markdown() for name, laid_out in tables.items()},
        names=[escape_markdown(name) for name in names.values()],
        real=is_real(table).all(),
        problems=map(escape_markdown, compared.runs.problems),
        runs=len(table),
        tested=len(untested) < len(names),
        sources=[escape_markdown(f"{name}: {_sources(table, experiment)}") for experiment, name in names.items()],
        thresholds=table["image_F1Score"].notna().any(),
        good_images=" or ".join((alarms["good_images"] // alarms["seeds"]).astype(str).unique()),
        seeds=int(table["experiment"].value_counts().max()),
        test_images=" and ".join(table["test_images"].astype(str).unique()),
        resamples=RESAMPLES,
        flawless=((bootstrap["value"] == 1) & (bootstrap["low"] == 1)).any(),
        aupimo_note=AUPIMO_NOTE,
        metrics_note=METRICS_NOTE,
        verdicts=[escape_markdown(sentence) for sentence in compared.verdicts],
        comparisons=len(differences),
        fewest=0 if differences.empty else int(differences["seeds"].min()),
        several_sources=table.loc[both, "threshold_source"].nunique() > 1,
        devices=[escape_markdown(device) for device in alone["device"].unique()],
        alone=len(alone),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


# --- What pages and the command show too ---


def is_real(table: pd.DataFrame) -> pd.Series:
    """Tell which runs are on real images with trained weights."""
    return ~(table["synthetic"] | table["random_weights"])


def is_comparable(table: pd.DataFrame) -> pd.Series:
    """Tell which runs the published figures stand beside: those on MVTec AD's 'bottle'."""
    return is_real(table) & (table["data"] == "MVTec AD") & (table["category"] == "bottle")


def display_names(table: pd.DataFrame) -> dict[str, str]:
    """Return what each experiment is called in the report: what is not real says so wherever it is named."""
    names = {}
    for experiment, group in table.groupby("experiment", sort=False):
        first = group.iloc[0]
        marks = ["SYNTHETIC IMAGES"] * int(first["synthetic"]) + ["RANDOM WEIGHTS"] * int(first["random_weights"])
        names[experiment] = f"{experiment} ({', '.join(marks)})" if marks else experiment
    return names


def key_figures(table: pd.DataFrame) -> list[Row]:
    """Return a row an experiment: mean and standard deviation over seeds of each headline metric."""
    names, rows = display_names(table), []
    for experiment, group in table.groupby("experiment", sort=False):
        first = group.iloc[0]
        # A threshold that has seen the defects is no match for one that has not.
        tuned = headings(threshold="own") if group["alpha"].isna().all() else {}
        cells = [
            None if metric in tuned else mean_and_spread(group[metric].mean(), group[metric].std())
            for metric in headings()
        ]
        setup = describe_setup(first["weights"], first["image_size"].split("x") if first["image_size"] else None)
        rows.append(Row([f"{names[experiment]}, {len(group)} seed{'s' * (len(group) > 1)}", setup, *cells], own=True))
    return rows


def verdicts(differences: pd.DataFrame, names: dict[str, str]) -> list[str]:
    """Say in one sentence a pair whether the data can tell the two apart; pairs with too few seeds share one."""
    sentences = []
    too_few = 0
    for (first, second), pair in differences.groupby(["first", "second"], sort=False):
        if (pair["finding"] == "fewer than 2 common seeds").all():
            too_few += 1
            continue
        told = [
            f"{labels()[row.metric]} ({names[first if row.finding == 'higher' else second]} higher by "
            f"{abs(row.difference):.5f})"
            for row in pair.itertuples()
            if row.finding in ("higher", "lower")
        ]
        parts = [f"these seeds tell the two apart in {', '.join(told)}"] if told else []
        rest = pair[pair["finding"].isin(list(REASONS))].groupby("finding", sort=False)["metric"]
        for finding, metrics in rest:
            which = "" if len(metrics) == len(pair) else f"{', '.join(labels()[metric] for metric in metrics)}: "
            parts.append(which + REASONS[finding])
        sentences.append(f"{names[first]} and {names[second]}: {'; '.join(parts)}.")
    if too_few:
        sentences.append(f"Not compared, fewer than 2 common seeds: {too_few} pair{'s' * (too_few > 1)}.")
    return sentences


# --- Tables ---


def _experiments_table(table: pd.DataFrame, names: dict[str, str]) -> Table:
    rows = []
    for experiment, group in table.groupby("experiment", sort=False):
        first = group.iloc[0]
        rows.append(
            Row([
                names[experiment],
                f"{first['data']} '{first['category']}' ({first['data_fingerprint'] or DASH})",
                f"{first['train_images']} / {first['test_images']}",
                f"{first['weights']} ({first['weights_sha256'] or DASH})",
                ", ".join(map(str, group["seed"])),
                _sources(table, experiment),
            ])
        )  # fmt: skip
    return Table(["experiment", "data", "images train / test", "weights", "seeds", "own threshold"], rows)


def _categories_table(categories: pd.DataFrame) -> Table:
    """Return a row a category, the columns of all models side by side, and a last row of means."""
    models = list(categories["model"].unique())
    header = ["category"]
    header += [f"{labels()[metric]}, {model}" for metric in category_metrics() for model in models]
    header += [f"false alarms, {model}" for model in models]
    rows = []
    # The means last; there are none without categories.
    for category in sorted(categories["category"].unique(), key=lambda name: (name == "Mean", name)):
        of_model = {row["model"]: row for row in categories[categories["category"] == category].to_dict("records")}
        found = [of_model.get(model, {}) for model in models]
        cells = [
            mean_and_spread(row.get(metric), row.get(f"{metric}_std")) for metric in category_metrics() for row in found
        ]
        cells += [f"{row['false_alarms']} of {row['good_images']}" if row.get("good_images") else None for row in found]
        rows.append(Row([category, *cells], own=category == "Mean"))
    return Table(header, rows)


def _category_means_table(categories: pd.DataFrame, published: Sequence[tuple[str, str, list[float | None]]]) -> Table:
    """Return the models' means over their categories, with the rate of false alarms, beside published means."""
    rows = [
        Row(
            [
                f"{row['model']}, {row['seeds']} seed{'s' * (row['seeds'] > 1)}",
                str(row["categories"]),
                *(mean_and_spread(row[metric], row[f"{metric}_std"]) for metric in category_metrics()),
                f"{_percent(row['alarm_rate'])} {_interval(row['alarm_low'], row['alarm_high'], _percent)}"
                if row["good_images"]
                else None,
            ],
            own=True,
        )
        for row in categories[categories["category"] == "Mean"].to_dict("records")
    ]
    rows += [Row([f"{source}, {backbone}", "15", *map(figure, values), None]) for source, backbone, values in published]
    header = ["", "categories", *(labels()[metric] for metric in category_metrics()), "false alarms, 95 % interval"]
    return Table(header, rows)


def _sources(table: pd.DataFrame, experiment: str) -> str:
    return "; ".join(table.loc[table["experiment"] == experiment, "threshold_source"].unique())


def _alarms_table(alarms: pd.DataFrame, names: dict[str, str]) -> Table:
    rows = [
        Row([
            names[row.experiment],
            f"{row.false_alarms} of {row.good_images}",
            _percent(row.rate),
            _interval(row.low, row.high, _percent),
            figure(row.alpha, "{:g}".format),
            f"{row.missed} of {row.defective_images}",
        ])
        for row in alarms.itertuples()
    ]  # fmt: skip
    header = ["experiment", "false alarms, all seeds", "rate", "95 % interval", "alpha aimed at", "missed defects"]
    return Table(header, rows)


def _bootstrap_table(bootstrap: pd.DataFrame, names: dict[str, str]) -> Table:
    rows = [
        Row([names[row.experiment], row.figure, labels()[row.metric], figure(row.value), _interval(row.low, row.high)])
        for row in bootstrap.itertuples()
    ]
    return Table(["experiment", "figure of", "metric", "value", "95 % interval"], rows)


def _published_table(comparable: pd.DataFrame) -> Table:
    """Return our figures and what a run of ours costs above published figures, which come without costs."""
    table = comparison_table(key_figures(comparable), comparable=not comparable.empty)
    costs = [_costs(group) for _, group in comparable.groupby("experiment", sort=False)]
    costs += [(None, None)] * (len(table.rows) - len(costs))
    rows = [Row([*row.cells, *cost], own=row.own) for row, cost in zip(table.rows, costs, strict=True)]
    return Table([*table.header, "run, s", "memory, GB"], rows, table.notes)


def _costs(runs: pd.DataFrame) -> tuple[str | None, str | None]:
    """Return the mean seconds of an experiment's runs, and the mean peak memory of their largest process."""
    alone = runs[runs["features_from_seed"].isna()]
    memory = alone[["peak_memory_bytes", "peak_worker_memory_bytes"]].astype(float).max(axis=1)
    return figure(alone["seconds_total"].mean(), "{:.0f}".format), figure(memory.mean() / 1e9, "{:.2f}".format)


def _differences_table(compared: pd.DataFrame, names: dict[str, str]) -> Table:
    rows = [
        Row([
            f"{names[row.first]} − {names[row.second]}",
            labels()[row.metric],
            str(row.seeds),
            f"{row.difference:+.5f}",
            _interval(row.low, row.high, "{:+.5f}".format),
            figure(row.p_value, "{:.3g}".format),
        ])
        for row in compared.itertuples()
    ]  # fmt: skip
    return Table(["first − second", "metric", "common seeds", "mean difference", "95 % t interval", "Wilcoxon p"], rows)


def _resources_table(summary: pd.DataFrame, names: dict[str, str]) -> Table:
    in_bytes = summary["metric"].str.endswith("_bytes")
    summary.loc[in_bytes, ["mean", "std", "low", "high"]] /= 2**20
    return _metrics_table(summary, RESOURCES, names, number="{:.1f}".format)


def _metrics_table(
    summary: pd.DataFrame,
    labels: dict[str, str],
    names: dict[str, str],
    untested: Collection[str] = (),
    number: Callable[[float], str] = "{:.4f}".format,
) -> Table:
    """Return a row for each metric and experiment that has it; dashes for ``untested`` ones, where others have it."""
    rows = []
    for metric, label in labels.items():
        of_metric = {row.experiment: row for row in summary[summary["metric"] == metric].itertuples()}
        for experiment in names if of_metric else ():
            if row := of_metric.get(experiment):
                spelled = f"{number(row.mean)} ± {figure(row.std, number) or DASH}"
                rows.append(
                    Row([label, names[experiment], spelled, _interval(row.low, row.high, number), str(row.seeds)])
                )
            elif experiment in untested:
                rows.append(Row([label, names[experiment], None, None, "0"]))
    return Table(["metric", "experiment", "mean ± SD", "95 % interval", "seeds"], rows)


def _interval(low: float, high: float, number: Callable[[float], str] = "{:.4f}".format) -> str | None:
    return None if pd.isna(low) else f"[{number(low)}, {number(high)}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
