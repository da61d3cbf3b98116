"""The comparison of experiments in words and tables: ``summary.md``."""

import html
from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from padim_bottle.comparison.statistics import RESAMPLES, false_alarms, image_bootstrap, paired_differences, summarise
from padim_bottle.report.page import (
    AUPIMO_NOTE,
    COLUMNS,
    METRICS_NOTE,
    OwnRow,
    comparison_rows,
    describe_setup,
    spell,
)
from padim_bottle.runs.table import METRICS, RESOURCES, FinishedRuns, defect_metrics

REASONS = {
    "cannot tell": "cannot be told apart (the interval includes 0)",
    "different data": "not compared, their data differ",
    "unknown data": "not compared, nothing tells whether their data are the same",
    "fewer than 2 common seeds": "not compared, fewer than 2 common seeds",
    "equal for every seed": "equal for every seed",
    "the same difference for every seed": "the same difference for every seed, so no spread to judge it by",
}


def report(runs: FinishedRuns) -> str:
    """Return the comparison as Markdown: tables, and what they do and do not say."""
    table, summary = runs.table, summarise(runs.table)
    names = display_names(table)
    sections = [
        _opening(runs, names),
        _image_section(table, summary, names),
        _alarms_section(false_alarms(table), names),
        _bootstrap_section(table, image_bootstrap(table), names),
        "## Pixels",
        f"AUPRO: to a false positive rate of 0.3. {AUPIMO_NOTE}",
        _metrics_table(summary, {name: label for name, label in METRICS.items() if name.startswith("pixel_")}, names),
        _defects_section(summary, defect_metrics(table), names),
        _published_section(table),
        _differences_section(table, paired_differences(table), names),
        _resources_section(table, names),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


# --- What pages and the command show too ---


def is_real(table: pd.DataFrame) -> pd.Series:
    """Tell which runs are on real images with trained weights."""
    return ~(table["synthetic"] | table["random_weights"])


def is_comparable(table: pd.DataFrame) -> pd.Series:
    """Tell which runs the published figures stand beside: those on the real 'bottle'."""
    return is_real(table) & (table["category"] == "bottle")


def display_names(table: pd.DataFrame) -> dict[str, str]:
    """Return what each experiment is called in the report: what is not real says so wherever it is named."""
    names = {}
    for experiment, group in table.groupby("experiment", sort=False):
        first = group.iloc[0]
        marks = ["SYNTHETIC IMAGES"] * int(first["synthetic"]) + ["RANDOM WEIGHTS"] * int(first["random_weights"])
        names[experiment] = f"{experiment} ({', '.join(marks)})" if marks else experiment
    return names


def key_figures(table: pd.DataFrame, dash: str = "-") -> list[OwnRow]:
    """Return a row an experiment: mean and standard deviation over seeds of each of ``COLUMNS``."""
    names, rows = display_names(table), []
    for experiment, group in table.groupby("experiment", sort=False):
        first, cells = group.iloc[0], []
        for metric in COLUMNS:
            values = group[metric].dropna()
            # A threshold that has seen the defects is no match for one that has not.
            if values.empty or (metric == "image_F1Score" and group["alpha"].isna().all()):
                cells.append(dash)
            else:
                cells.append(spell(values.mean()) + (f" ± {spell(values.std())}" if len(values) > 1 else ""))
        setup = describe_setup(first["weights"], first["image_size"].split("x") if first["image_size"] else None)
        rows.append(OwnRow(f"{names[experiment]}, {_count(len(group), 'seed')}", setup, cells))
    return rows


def verdicts(differences: pd.DataFrame, names: dict[str, str]) -> list[str]:
    """Say in one sentence a pair whether the data can tell the two apart."""
    sentences = []
    for (first, second), pair in differences.groupby(["first", "second"], sort=False):
        told = [
            f"{METRICS[row.metric]} ({names[first if row.finding == 'higher' else second]} higher by "
            f"{abs(row.difference):.5f})"
            for row in pair.itertuples()
            if row.finding in ("higher", "lower")
        ]
        parts = [f"these seeds tell the two apart in {', '.join(told)}"] if told else []
        rest = pair[pair["finding"].isin(list(REASONS))].groupby("finding", sort=False)["metric"]
        for finding, metrics in rest:
            which = "" if len(metrics) == len(pair) else f"{', '.join(METRICS[metric] for metric in metrics)}: "
            parts.append(which + REASONS[finding])
        sentences.append(f"{names[first]} and {names[second]}: {'; '.join(parts)}.")
    return sentences


# --- Sections ---


def _opening(runs: FinishedRuns, names: dict[str, str]) -> str:
    table = runs.table
    title = f"{next(iter(names))} over its seeds" if len(names) == 1 else f"{len(names)} experiments over their seeds"
    parts = ["# " + _escape(title)]
    if not is_real(table).all():
        parts.append(
            "> **DEMONSTRATION: experiments marked SYNTHETIC IMAGES or RANDOM WEIGHTS say nothing about MVTec AD and "
            "must not be set against the others.**"
        )
    parts += [f"> **Left out:** {_escape(problem)}." for problem in runs.problems]
    rows = []
    for experiment, group in table.groupby("experiment", sort=False):
        first = group.iloc[0]
        rows.append(
            (
                names[experiment],
                f"{first['data']} '{first['category']}' ({_figure(first['data_fingerprint'], str)})",
                f"{first['train_images']} / {first['test_images']}",
                f"{first['weights']} ({_figure(first['weights_sha256'], str)})",
                ", ".join(map(str, group["seed"])),
                "; ".join(group["threshold_source"].unique()),
            )
        )
    header = ("experiment", "data", "images train / test", "weights", "seeds", "own threshold")
    parts += [
        _markdown(header, rows),
        "Mean ± standard deviation over seeds, and a 95 % Student's t interval of that mean. A seed decides what is "
        "random in a run (in PaDiM: which channels are kept), never the test images: the interval says how well the "
        "mean over such draws is known *on these images*. It may reach beyond 1, where a metric ends; where all seeds "
        "agree it has no width, which is not certainty. A dash means undefined, or one seed only.",
    ]
    return "\n\n".join(parts)


def _image_section(table: pd.DataFrame, summary: pd.DataFrame, names: dict[str, str]) -> str:
    def metrics(*chosen: str) -> str:
        return _metrics_table(summary, {name: METRICS[name] for name in chosen}, names)

    parts = ["## Images", "### Without a threshold", metrics("image_AUROC", "image_AUPR")]
    if table["image_F1Score"].notna().any():
        sources = table.groupby("experiment", sort=False)["threshold_source"].first()
        parts += [
            "### At the run's own threshold",
            "\n".join(_escape(f"- {names[name]}: {source}") for name, source in sources.items()),
            metrics("image_F1Score", "image_precision", "image_recall", "image_false_alarm_rate"),
        ]
    parts += [
        "### Tuned on the test labels",
        "These thresholds have seen the defects that they are judged by: figures to set beside published ones, not "
        "what to expect in use. F1Max counts score ≥ threshold; anomalib counts score > threshold and so misses the "
        "very image that its threshold comes from.",
        metrics("image_F1Max", "image_F1Score_anomalib"),
    ]
    return "\n\n".join(parts)


def _alarms_section(alarms: pd.DataFrame, names: dict[str, str]) -> str:
    if alarms.empty:
        return ""
    rows = [
        (
            names[row.experiment],
            f"{row.false_alarms} of {row.good_images}",
            _percent(row.rate),
            _interval(row.low, row.high, _percent),
            _figure(row.alpha, "{:g}".format),
            f"{row.missed} of {row.defective_images}",
        )
        for row in alarms.itertuples()
    ]
    header = ("experiment", "false alarms, all seeds", "rate", "95 % interval", "alpha aimed at", "missed defects")
    text = "The interval is exact for a binomial proportion (Clopper-Pearson)."
    if (alarms["seeds"] > 1).any():
        images = " or ".join(map(str, dict.fromkeys(alarms["good_images"] // alarms["seeds"])))
        text += (
            f" It is only indicative: every seed is tested on the same {images} good images, so these are not "
            "independent trials, and the true uncertainty is larger."
        )
    return "\n\n".join(["## False alarms", _markdown(header, rows), text])


def _bootstrap_section(table: pd.DataFrame, bootstrap: pd.DataFrame, names: dict[str, str]) -> str:
    if bootstrap.empty:
        return ""
    rows = [
        (names[row.experiment], row.figure, METRICS[row.metric], spell(row.value), _interval(row.low, row.high))
        for row in bootstrap.itertuples()
    ]
    images = " and ".join(table["test_images"].astype(str).unique())
    text = (
        f"The {images} test images are few: this is how much a figure moves with other images. 95 % percentile "
        f"bootstrap, {RESAMPLES} resamples of the test images, good and defective ones separately, the same for all "
        "seeds; thresholds stay as they are."
    )
    if ((bootstrap["value"] == 1) & (bootstrap["low"] == 1)).any():
        text += (
            " [1.0000, 1.0000] is not certainty: resampling images on which nothing went wrong cannot show what "
            "would. With no error among n images, the rate of errors may still be as high as about 3 / n."
        )
    table = _markdown(("experiment", "figure of", "metric", "value", "95 % interval"), rows)
    return "\n\n".join(["## Other test images", text, table])


def _defects_section(summary: pd.DataFrame, labels: dict[str, str], names: dict[str, str]) -> str:
    text = "Each type against all good images. Recall is at the run's own threshold."
    return f"## Types of defects\n\n{text}\n\n{_metrics_table(summary, labels, names)}" if labels else ""


def _published_section(table: pd.DataFrame) -> str:
    comparable = table[is_comparable(table)]
    if comparable.empty:
        return ""
    header, rows, notes = comparison_rows(key_figures(comparable), comparable=True, dash="-")
    lines = [(f"**{row['name']}**" if row["own"] else row["name"], *row["cells"]) for row in rows]
    text = f"Mean ± standard deviation over seeds. {METRICS_NOTE} Most published rows are one run, or do not say."
    return "\n\n".join(["## Beside published figures", _markdown(header, lines), *notes, text])


def _differences_section(table: pd.DataFrame, differences: pd.DataFrame, names: dict[str, str]) -> str:
    if differences.empty:
        return ""
    computed = differences.dropna(subset="difference")
    parts = ["## Differences between experiments"]
    parts.append("\n".join(f"- {_escape(sentence)}" for sentence in verdicts(differences, names)))
    if len(computed):
        rows = [
            (
                f"{names[row.first]} − {names[row.second]}",
                METRICS[row.metric],
                str(row.seeds),
                f"{row.difference:+.5f}",
                _interval(row.low, row.high, "{:+.5f}".format),
                _figure(row.p_value, "{:.3g}".format),
            )
            for row in computed.itertuples()
        ]
        header = ("first − second", "metric", "common seeds", "mean difference", "95 % t interval", "Wilcoxon p")
        text = (
            "Differences seed by seed: Student's t interval of their mean, and Wilcoxon's two-sided signed-rank test. "
            "Both experiments of a pair are judged on the same test images, and seeds vary the channels kept, not the "
            "images: 'tell apart' means that the difference is more than other channels would make on these images, "
            "not that it would hold on other ones. Between different backbones a seed is only a number, as the "
            f"channels it keeps have nothing in common. Nothing is corrected for {len(rows)} comparisons: of intervals "
            "around no difference, one in twenty excludes 0 by chance."
        )
        smallest = 2 * 0.5 ** int(computed["seeds"].min())
        if smallest > 0.05:
            text += f" With {computed['seeds'].min()} seeds Wilcoxon's p cannot fall below {smallest:.2g}."
        compared = table["experiment"].isin({*computed["first"], *computed["second"]})
        if table.loc[compared, "threshold_source"].nunique() > 1:
            text += " F1 here compares thresholds that come from different sources (see above)."
        parts += [_markdown(header, rows), text]
    return "\n\n".join(parts)


def _resources_section(table: pd.DataFrame, names: dict[str, str]) -> str:
    # A run that took another's features says nothing about what a run costs.
    alone = table[table["features_from_seed"].isna()]
    if alone.empty:
        return ""
    devices = alone["device"].unique()
    text = f"Measured on: {_escape('; '.join(devices))}."
    if len(devices) > 1:
        text += " **The devices differ: so do the times, for that reason alone.**"
    if len(alone) < len(table):
        text += (
            f" Of {len(alone)} of the {len(table)} runs: the others took their features from one of these in a sweep, "
            "and so cost less."
        )
    summary = summarise(alone)
    in_bytes = summary["metric"].str.endswith("_bytes")
    summary.loc[in_bytes, ["mean", "std", "low", "high", "min", "max"]] /= 2**20
    return "\n\n".join(["## Time and memory", text, _metrics_table(summary, RESOURCES, names, "{:.1f}".format)])


# --- Tables ---


def _metrics_table(
    summary: pd.DataFrame,
    labels: dict[str, str],
    names: dict[str, str],
    number: Callable[[float], str] = "{:.4f}".format,
) -> str:
    rows = [
        (
            label,
            names[row.experiment],
            f"{number(row.mean)} ± {_figure(row.std, number)}",
            _interval(row.low, row.high, number),
            number(row.min),
            number(row.max),
            str(row.seeds),
        )
        for metric, label in labels.items()
        for row in summary[summary["metric"] == metric].itertuples()
    ]
    return _markdown(("metric", "experiment", "mean ± SD", "95 % interval", "min", "max", "seeds"), rows)


def _markdown(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Lay out a table; pandas would need one more package for it, and would not keep names from breaking it."""
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines += [f"| {' | '.join(map(_escape, row))} |" for row in rows]
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Keep names from breaking a table or becoming markup."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")


def _figure(value: float | str | None, number: Callable[..., str]) -> str:
    return "-" if pd.isna(value) else number(value)


def _interval(low: float, high: float, number: Callable[[float], str] = "{:.4f}".format) -> str:
    return "-" if pd.isna(low) else f"[{number(low)}, {number(high)}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + "s" * (number != 1)
