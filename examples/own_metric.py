"""Your own metric: named once, it stands in metrics.json, summary.csv, summary.md, report.html and on the screen.

    python examples/own_metric.py configs/demo.yaml

A metric is computed from the evidence of a test run: raw scores, labels, anomaly maps and masks, and the run's own
thresholds. None says that it is undefined.
"""

import sys
from pathlib import Path

from padim_bottle.compare.outputs import write_comparison
from padim_bottle.evaluation.metrics import METRICS, Evidence, Metric
from padim_bottle.experiment.train import train


def recall_without_alarms(evidence: Evidence) -> float | None:
    """Return the share of defects that score above every good photo."""
    scores, labels = evidence.predictions.scores, evidence.predictions.labels
    if labels.all() or not labels.any():
        return None
    return float((scores[labels] > scores[~labels].max()).mean())


METRICS.append(
    Metric(
        key="image_recall_without_alarms",
        label="recall without a false alarm",
        compute=recall_without_alarms,
        level="image",
        threshold="tuned",  # it looks at the test labels to choose one
        headline=True,  # for the tables on the screen and in report.html as well
    )
)


def main() -> None:
    """Train with the config that is named, and compare the experiment's seeds."""
    config, *overrides = sys.argv[1:]
    experiment = train(Path(config), overrides)
    print(write_comparison([experiment.results_writer.folder.parent]))


if __name__ == "__main__":
    main()
