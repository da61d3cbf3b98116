"""The thresholds worth showing beside a run's images."""

from typing import NamedTuple

import numpy as np

from padim_bottle.model.rule import Rule, fewest_scores
from padim_bottle.runs.run import Run

ALPHAS = (0.01, 0.05, 0.10)
"""False-alarm rates whose thresholds figures and report show."""


class Reference(NamedTuple):
    """A threshold worth knowing: an image is called anomalous when its score is ``value`` or more."""

    name: str
    value: float
    note: str


def spell_alpha(alpha: float) -> str:
    """Return a false-alarm rate as it is named everywhere: ``alpha = 5 %``."""
    return f"alpha = {100 * alpha:g} %"


def reference_thresholds(run: Run) -> tuple[list[Reference], list[str]]:
    """Return the thresholds to show beside the images, in a fixed order, and why others cannot be shown.

    The conformal ones are those that the model itself would have had at that alpha.
    """
    found, reasons = [], []
    own = run.threshold
    scores = run.calibration_scores
    for alpha in ALPHAS if len(scores) else ():
        needed = fewest_scores(alpha)
        if len(scores) < needed:
            reasons.append(
                f"{spell_alpha(alpha)} is not shown: it needs at least {needed} training images, and there are "
                f"{len(scores)}."
            )
            continue
        value = Rule.calibrated(scores, alpha).threshold
        above = int((scores >= value).sum())
        note = f"{above} of {len(scores)} training images, each left out in turn, score above it"
        if above < 5:
            note += ": few, so it is rough"
        if value == own:
            note = f"this run's own; {note}"
        found.append(Reference(spell_alpha(alpha), value, note))
    best = run.metrics["thresholds"]["image_F1Max"]
    if own is not None and own not in {best, *(reference.value for reference in found)}:
        found.append(Reference("this run's own", own, run.metrics["thresholds"]["source"]))
    if best is not None:
        mark = "this run's own; " if own == best else ""
        found.append(Reference("F1Max", best, f"{mark}the best F1 that any threshold reaches: it has seen the defects"))
        # The same number by another rule: score > threshold.
        just_above = float(np.nextafter(best, np.inf))
        found.append(
            Reference("anomalib's", just_above, "F1Max's, but only scores above it count: it has seen the defects too")
        )
    if not len(scores):
        reasons.append("This run was not calibrated: it has no threshold that has not seen the defects.")
    return found, reasons
