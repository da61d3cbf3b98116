"""What a run changes against the one before, from the files of both: thresholds, and verdicts on the same photos."""

from pathlib import Path
from typing import Any

import pandas as pd

from padim_bottle.runs.run import Run, read_csv


def describe_changes(before: Run, after: Run) -> dict[str, Any]:
    """Return what changed, ready for JSON.

    Args:
        before: a calibrated run.
        after: another.

    Returns:
        ``before`` names the first run; ``image_threshold``, ``pixel_threshold``, ``false_alarm_rate_range`` and
        ``training_images`` have its value and the second's. ``photos`` is how many photos both judged, in training
        (left out in turn) or test, and ``verdicts`` those of them whose verdict changed.

    Raises:
        UserError: the files of a run are broken.
    """
    earlier, later = _verdicts(before), _verdicts(after)
    both = earlier.join(later, how="inner", lsuffix="_before", rsuffix="_after")
    changed = both[both["anomalous_before"] != both["anomalous_after"]]
    pairs = {
        "image_threshold": [run.metrics["thresholds"]["image"] for run in (before, after)],
        "pixel_threshold": [run.metrics["thresholds"]["pixel"] for run in (before, after)],
        "false_alarm_rate_range": [run.calibration.get("false_alarm_rate_range") for run in (before, after)],
        "training_images": [run.metrics["data"]["train_images"] for run in (before, after)],
    }
    return {
        "before": f"{before.title}, finished {before.metrics.get('finished')}",
        **pairs,
        "photos": len(both),
        "verdicts": [
            {
                "image_path": path,
                "before": "anomalous" if row["anomalous_before"] else "good",
                "after": "anomalous" if row["anomalous_after"] else "good",
                "score": [row["score_before"], row["score_after"]],
            }
            for path, row in changed.iterrows()
        ],
    }


def _verdicts(run: Run) -> pd.DataFrame:
    """Return score and verdict of each photo by its path; of one that was trained on when it was left out."""
    found = [pd.DataFrame({"score": [], "anomalous": []})]
    for name in ("predictions.csv", "training_photos.csv"):
        if (run.folder / name).is_file():
            table = read_csv(run.folder / name).set_index("image_path")[["score"]].astype(float)
            found.append(table.assign(anomalous=table["score"] >= run.threshold))
    return pd.concat(found)


def change_sentences(changes: dict[str, Any]) -> list[str]:
    """Return what changed as a person reads it."""
    (old, new), (few, many) = changes["image_threshold"], changes["training_images"]
    ranges = [f"{100 * low:.1f} to {100 * high:.1f} %" for low, high in filter(None, changes["false_alarm_rate_range"])]
    changed = changes["verdicts"]
    return [
        f"Against {changes['before']}: threshold {old:.3f} -> {new:.3f}, {few} -> {many} training photos"
        + (f", false alarms {' -> '.join(ranges)}." if ranges else "."),
        f"{len(changed)} of {changes['photos']} photos that both judged change their verdict"
        + (":" if changed else "."),
        *(
            f"{Path(photo['image_path']).name}: {photo['before']} -> {photo['after']} "
            f"(score {photo['score'][0]:.3f} -> {photo['score'][1]:.3f})"
            for photo in changed
        ),
    ]
