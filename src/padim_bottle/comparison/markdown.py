"""The comparison of experiments in words and tables: ``summary.md``."""

import html
from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from padim_bottle.comparison.statistics import RESAMPLES, false_alarms, image_bootstrap, paired_differences, summarise
from padim_bottle.report.published import PUBLISHED
from padim_bottle.runs.table import FinishedRuns, defect_metrics

KEY_LABELS = {
    "image_AUROC": "image AUROC",
    "pixel_AUROC": "pixel AUROC",
    "pixel_AUPRO": "AUPRO",
    "image_F1Score": "F1 at the run's own threshold",
}
RANKING_LABELS = {"image_AUROC": "image AUROC", "image_AUPR": "image AUPR"}
OWN_THRESHOLD_LABELS = {
    "image_F1Score": "F1 at the run's own threshold",
    "image_precision": "precision",
    "image_recall": "recall",
    "image_false_alarm_rate": "false-alarm rate",
}
TUNED_LABELS = {
    "image_F1Max": "F1Max (best on the test labels)",
    "image_F1Score_anomalib": "anomalib's F1Score (tuned on the test labels)",
}
PIXEL_LABELS = {
    "pixel_AUROC": "pixel AUROC",
    "pixel_AUPR": "pixel AUPR",
    "pixel_AUPRO": "AUPRO (to a false positive rate of 0.3)",
    "pixel_F1Score": "pixel F1 at the run's own threshold",
    "pixel_F1Max": "pixel F1Max (best on the test labels)",
}
SECONDS_LABELS = {"seconds_total": "whole run", "seconds_train": "training", "seconds_test": "test"}
BYTES_LABELS = {
    "peak_memory_bytes": "peak memory, process",
    "peak_worker_memory_bytes": "peak memory, largest worker",
    "peak_gpu_memory_bytes": "peak memory, GPU",
    "checkpoint_bytes": "checkpoint",
}


def report(runs: FinishedRuns) -> str:
    """Return the comparison as Markdown: tables, and what they do and do not say."""
    table = runs.table
    names = display_names(table)
    summary = summarise(table)
    sections = [
        _opening(runs, names),
        _image_section(table, summary, names),
        _alarms_section(false_alarms(table), names),
        _bootstrap_section(table, image_bootstrap(table), names),
        "## Pixels\n\n" + _metrics_table(summary, PIXEL_LABELS, names),
        _defects_section(summary, defect_metrics(table), names),
        _published_section(table, summary, names),
        _differences_section(table, paired_differences(table), names),
        _resources_section(table, names),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _opening(runs: FinishedRuns, names: dict[str, str]) -> str:
    table = runs.table
    title = f"{next(iter(names))} over its seeds" if len(names) == 1 else f"{len(names)} experiments over their seeds"
    lines = ["# " + _escape(title), ""]
    if not is_real(table).all():
        lines += [
            "> **DEMONSTRATION: experiments marked SYNTHETIC IMAGES or RANDOM WEIGHTS say nothing about MVTec AD and "
            "must not be set against the others.**",
            "",
        ]
    if runs.problems:
        lines += [f"> **Left out:** {_escape(problem)}." for problem in runs.problems] + [""]
    rows = []
    for experiment, group in table.groupby("experiment", sort=False):
        first = group.iloc[0]
        rows.append(
            (
                names[experiment],
                f"{first['data']} '{first['category']}' ({spell_figure(first['data_fingerprint'], str)})",
                f"{first['train_images']} / {first['test_images']}",
                f"{first['weights']} ({spell_figure(first['weights_sha256'], str)})",
                ", ".join(map(str, group["seed"])),
                "; ".join(dict.fromkeys(group["threshold_source"])),
            )
        )
    lines += [
        _markdown(("experiment", "data", "images train / test", "weights", "seeds", "own threshold"), rows),
        "",
        "Mean ± standard deviation over seeds, and a 95 % Student's t interval of that mean. A seed decides what is "
        "random in a run (in PaDiM: which channels are kept), never the test images: the interval says how well the "
        "mean over such draws is known *on these images*. It may reach beyond 1, where a metric ends; where all seeds "
        "agree it has no width, which is not certainty. A dash means undefined, or one seed only.",
    ]
    return "\n".join(lines)


def _image_section(table: pd.DataFrame, summary: pd.DataFrame, names: dict[str, str]) -> str:
    sources = table.groupby("experiment", sort=False)["threshold_source"].first()
    parts = ["## Images", "### Without a threshold", _metrics_table(summary, RANKING_LABELS, names)]
    if table["image_F1Score"].notna().any():
        parts += [
            "### At the run's own threshold",
            "\n".join(_escape(f"- {names[name]}: {source}") for name, source in sources.items()),
            _metrics_table(summary, OWN_THRESHOLD_LABELS, names),
        ]
    parts += [
        "### Tuned on the test labels",
        "These thresholds have seen the defects that they are judged by: figures to set beside published ones, not "
        "what to expect in use. F1Max counts score ≥ threshold; anomalib counts score > threshold and so misses the "
        "very image that its threshold comes from.",
        _metrics_table(summary, TUNED_LABELS, names),
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
            spell_interval(row.low, row.high, _percent),
            spell_figure(row.alpha, "{:g}".format),
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
        (
            names[row.experiment],
            row.figure,
            KEY_LABELS[row.metric],
            spell_figure(row.value),
            spell_interval(row.low, row.high),
        )
        for row in bootstrap.itertuples()
    ]
    images = " and ".join(dict.fromkeys(str(count) for count in table["test_images"]))
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
    return "\n\n".join(
        ["## Other test images", text, _markdown(("experiment", "figure of", "metric", "value", "95 % interval"), rows)]
    )


def _defects_section(summary: pd.DataFrame, metrics: list[str], names: dict[str, str]) -> str:
    endings = {
        f"_{name}": KEY_LABELS.get(name, name) for name in ("image_AUROC", "pixel_AUROC", "pixel_AUPRO", "recall")
    }
    labels = {
        metric: f"{metric.removesuffix(ending)}: {label}"
        for metric in metrics
        for ending, label in endings.items()
        if metric.endswith(ending)
    }
    text = "Each type against all good images. Recall is at the run's own threshold."
    body = _metrics_table(summary, labels, names)
    return f"## Types of defects\n\n{text}\n\n{body}" if metrics else ""


def _published_section(table: pd.DataFrame, summary: pd.DataFrame, names: dict[str, str]) -> str:
    comparable = table[is_comparable(table)]["experiment"].unique()
    if not len(comparable):
        return ""
    figures = summary.set_index(["experiment", "metric"])
    rows: list[tuple[str, ...]] = []
    for experiment in comparable:
        runs = table[table["experiment"] == experiment]
        cells = []
        for metric in (*KEY_LABELS, *TUNED_LABELS):
            # A threshold that has seen the defects is no match for one that has not.
            tuned = metric == "image_F1Score" and runs["alpha"].isna().all()
            cells.append("-" if tuned else _mean_and_spread(figures, experiment, metric))
        rows.append((f"**{names[experiment]}**, {_count(len(runs), 'seed')}", *cells))
    rows += [(row.source, *map(spell_figure, row[1:4]), "-", "-", spell_figure(row.image_F1)) for row in PUBLISHED]
    header = ("", "image AUROC", "pixel AUROC", "AUPRO", "F1, no defect seen", "F1Max", "anomalib's F1Score")
    text = (
        "Mean ± standard deviation over seeds. F1, no defect seen: the threshold is from training images. F1Max and "
        "anomalib's F1Score are tuned on the test labels, as all published F1 figures are: compare those with the last "
        "column. Most published rows are one run, or do not say."
    )
    return f"## Beside published figures\n\n{_markdown(header, rows)}\n\n{text}"


def _mean_and_spread(figures: pd.DataFrame, experiment: str, metric: str) -> str:
    if (experiment, metric) not in figures.index:
        return "-"
    row = figures.loc[(experiment, metric)]
    return spell_figure(row["mean"]) + (f" ± {spell_figure(row['std'])}" if row["seeds"] > 1 else "")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + "s" * (number != 1)


def _differences_section(table: pd.DataFrame, differences: pd.DataFrame, names: dict[str, str]) -> str:
    if differences.empty:
        return ""
    computed = differences.dropna(subset="difference")
    rows = [
        (
            f"{names[row.first]} − {names[row.second]}",
            KEY_LABELS[row.metric],
            str(row.seeds),
            spell_figure(row.difference, "{:+.5f}".format),
            spell_interval(row.low, row.high, "{:+.5f}".format),
            spell_figure(row.p_value, "{:.3g}".format),
        )
        for row in computed.itertuples()
    ]
    parts = ["## Differences between experiments"]
    parts.append("\n".join(f"- {_escape(sentence)}" for sentence in verdicts(differences, names)))
    if rows:
        header = ("first − second", "metric", "common seeds", "mean difference", "95 % t interval", "Wilcoxon p")
        fewest = int(computed["seeds"].min())
        parts.append(_markdown(header, rows))
        text = (
            "Differences seed by seed: Student's t interval of their mean, and Wilcoxon's two-sided signed-rank test. "
            "Both experiments of a pair are judged on the same test images, and seeds vary the channels kept, not the "
            "images: 'tell apart' means that the difference is more than other channels would make on these images, "
            "not that it would hold on other ones. Between different backbones a seed is only a number, as the "
            f"channels it keeps have nothing in common. Nothing is corrected for {len(rows)} comparisons: of intervals "
            "around no difference, one in twenty excludes 0 by chance."
        )
        if 2 * 0.5**fewest > 0.05:
            text += f" With {fewest} seeds Wilcoxon's p cannot fall below {2 * 0.5**fewest:.2g}."
        compared = {*computed["first"], *computed["second"]}
        if table.loc[table["experiment"].isin(compared), "threshold_source"].nunique() > 1:
            text += " F1 here compares thresholds that come from different sources (see above)."
        parts.append(text)
    return "\n\n".join(parts)


def verdicts(differences: pd.DataFrame, names: dict[str, str]) -> list[str]:
    """Say in one sentence a pair whether the data can tell the two apart."""
    sentences = []
    for (first, second), pair in differences.groupby(["first", "second"], sort=False):
        told, rest = [], {}
        for row in pair.itertuples():
            if row.finding in ("higher", "lower"):
                better = names[first if row.finding == "higher" else second]
                told.append(f"{KEY_LABELS[row.metric]} ({better} higher by {abs(row.difference):.5f})")
            else:
                rest.setdefault(row.finding, []).append(KEY_LABELS[row.metric])
        parts = []
        if told:
            parts.append(f"these seeds tell the two apart in {', '.join(told)}")
        reasons = {
            "cannot tell": "cannot be told apart (the interval includes 0)",
            "different data": "not compared, their data differ",
            "unknown data": "not compared, nothing tells whether their data are the same",
            "fewer than 2 common seeds": "not compared, fewer than 2 common seeds",
            "equal for every seed": "equal for every seed",
            "the same difference for every seed": "the same difference for every seed, so no spread to judge it by",
        }
        parts += [
            reasons[finding] if len(metrics) == len(pair) else f"{', '.join(metrics)}: {reasons[finding]}"
            for finding, metrics in rest.items()
        ]
        sentences.append(f"{names[first]} and {names[second]}: {'; '.join(parts)}.")
    return sentences


def _resources_section(table: pd.DataFrame, names: dict[str, str]) -> str:
    # A run that took another's features says nothing about what a run costs.
    alone = table[table["features_from_seed"].isna()]
    if alone.empty:
        return ""
    summary = summarise(alone)
    devices = list(dict.fromkeys(alone["device"]))
    text = f"Measured on: {_escape('; '.join(devices))}."
    if len(devices) > 1:
        text += " **The devices differ: so do the times, for that reason alone.**"
    if len(alone) < len(table):
        text += (
            f" Of {len(alone)} of the {len(table)} runs: the others took their features from one of these in a sweep, "
            "and so cost less."
        )
    in_mib = summary[summary["metric"].isin(BYTES_LABELS)].copy()
    in_mib[["mean", "std", "low", "high", "min", "max"]] /= 2**20
    return "\n\n".join(
        [
            "## Time and memory",
            text,
            _metrics_table(summary, {k: f"{v}, s" for k, v in SECONDS_LABELS.items()}, names, "{:.1f}".format),
            _metrics_table(in_mib, {k: f"{v}, MiB" for k, v in BYTES_LABELS.items()}, names, "{:.0f}".format),
        ]
    )


def _metrics_table(
    summary: pd.DataFrame,
    labels: dict[str, str],
    names: dict[str, str],
    spell: Callable[[float], str] = "{:.4f}".format,
) -> str:
    rows = [
        (
            label,
            names[row.experiment],
            f"{spell(row.mean)} ± {spell_figure(row.std, spell)}",
            spell_interval(row.low, row.high, spell),
            spell(row.min),
            spell(row.max),
            str(row.seeds),
        )
        for metric, label in labels.items()
        for row in summary[summary["metric"] == metric].itertuples()
    ]
    header = ("metric", "experiment", "mean ± SD", "95 % interval", "min", "max", "seeds")
    return _markdown(header, rows)


def _markdown(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Lay out a table. pandas would need one more package for it."""
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines += [f"| {' | '.join(map(_escape, row))} |" for row in rows]
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Keep names from breaking a table or becoming markup."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")


def spell_figure(value: float | None, spell: Callable[[float], str] = "{:.4f}".format) -> str:
    """Return a number as text, a dash where it is undefined."""
    # NaN, of all numbers, does not equal itself.
    return "-" if value is None or value != value else spell(value)


def spell_interval(low: float, high: float, spell: Callable[[float], str] = "{:.4f}".format) -> str:
    """Return an interval as text, a dash where it is undefined."""
    return "-" if low != low else f"[{spell(low)}, {spell(high)}]"


def _percent(value: float) -> str:
    return spell_figure(value, lambda share: f"{100 * share:.1f} %")


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
        marks = [
            mark
            for mark, flag in (("SYNTHETIC IMAGES", first["synthetic"]), ("RANDOM WEIGHTS", first["random_weights"]))
            if flag
        ]
        names[experiment] = f"{experiment} ({', '.join(marks)})" if marks else experiment
    return names
