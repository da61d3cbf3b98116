"""What bf16-mixed does to a run on bottle: each metric, scores and verdicts; and the backbone's CPU time.

python benchmarks/precision.py                                    # some minutes
"""

import json
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
from record import new_benchmark_parser, write_record
from rich.console import Console
from training import trained

from padim_bottle.commands.arguments import positive
from padim_bottle.errors import run_command
from padim_bottle.evaluation.metrics import headings
from padim_bottle.tables import Row, Table

# A config without anything random has one run.
CONFIGS = {"padim_resnet18": True, "padim_resnet18_grids": False}
PRECISIONS = ("32-true", "bf16-mixed")
METRICS = headings(threshold="none") | headings(threshold="own")


def run(config: str, seed: int, precision: str) -> tuple[dict[str, Any], pd.DataFrame]:
    """Train and test a config; return its metrics and its predictions, by the path of the image."""
    from padim_bottle.runs.run import read_csv

    with trained(Path("configs", f"{config}.yaml"), [f"--trainer.precision={precision}"], seed) as done:
        return done.metrics, read_csv(done.folder / "predictions.csv").set_index("image_path")


def measure(seeds: int) -> list[dict[str, Any]]:
    """Return a row a config and seed: its metrics in each precision, and how far scores and verdicts differ."""
    rows = []
    for config, is_random in CONFIGS.items():
        for seed in range(seeds if is_random else 1):
            (plain, before), (mixed, after) = (run(config, seed, precision) for precision in PRECISIONS)
            change = (after["score"] / before["score"] - 1).abs()
            runs = dict(zip(PRECISIONS, (plain, mixed), strict=True))
            rows.append(
                {
                    "config": config,
                    "seed": seed,
                    "metrics": {name: {key: of[key] for key in METRICS} for name, of in runs.items()},
                    "threshold": {name: of["thresholds"]["image"] for name, of in runs.items()},
                    "backbone_cpu_seconds": {
                        name: of["profile"]["backbone"]["cpu_seconds"] for name, of in runs.items()
                    },
                    "largest_change_of_scores": float(change.max()),
                    "median_change_of_scores": float(change.median()),
                    "other_verdicts": int((after["predicted_label"] != before["predicted_label"]).sum()),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def table(record: dict[str, Any]) -> Table:
    """Return what the docs show: means over seeds, and of scores the median change and the largest."""
    rows = []
    for config in CONFIGS:
        runs = [row for row in record["runs"] if row["config"] == config]
        median = statistics.median(row["median_change_of_scores"] for row in runs)
        largest = max(row["largest_change_of_scores"] for row in runs)
        for precision in PRECISIONS:
            cells = [f"{statistics.mean(row['metrics'][precision][key] for row in runs):.4f}" for key in METRICS]
            moved = None if precision == PRECISIONS[0] else f"{100 * median:.1f} % (up to {100 * largest:.1f} %)"
            rows.append(Row([config, precision, *cells, moved]))
    return Table(["model", "precision", *METRICS.values(), "scores move by"], rows)


def main(seeds: int, output: Path) -> int:
    """Measure, print and record."""
    record = {"runs": measure(seeds)}
    Console().print(table(record).screen())
    write_record(output, "precision", record)
    return 0


if __name__ == "__main__":
    parser = new_benchmark_parser(__doc__)
    parser.add_argument("--seeds", type=positive, default=3, help="of the random config (default: %(default)s)")
    options = parser.parse_args()
    raise SystemExit(run_command(lambda: main(options.seeds, options.output)))
