"""What training costs behind the backbone as photos get more: seconds by stage, memory, disk.

Features are random, of the paper's one grid (ResNet-18, 256 x 256, 100 channels). Each number of photos has a process
of its own. 10,000 photos take 17 GB of disk and some minutes:

python benchmarks/growth.py
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contender import Contender, peak_bytes
from fit import BATCHES, CALIBRATED, collect, new_model, random_features
from record import new_benchmark_parser, write_record
from rich.console import Console

from padim_bottle.commands.arguments import positive
from padim_bottle.errors import run_command

if TYPE_CHECKING:
    from padim_bottle.tables import Table

STAGES = ("collect", "copies", "fit", "calibration")


def make() -> Callable[[int], dict[str, float]]:
    """Return what trains on a number of photos, and returns what that took; see ``Contender``."""
    from padim_bottle.model.copies import near_copies
    from padim_bottle.stages import clock, stage

    features = random_features(BATCHES)

    def train(images: int) -> dict[str, float]:
        model = new_model(CALIBRATED)
        clock.restart()
        with stage("collect"):
            collect(model, images, features)
        stores = [model.likenesses, *(grid.embeddings for grid in model.grids)]
        disk = sum(4 * len(store) * math.prod(store.shape) for store in stores)
        with stage("copies"):
            near_copies(model.likenesses)
        with stage("fit"):
            model.fit_and_calibrate(pixel_quantile=0.9995)
        seconds = {name: clock.stages[name].own_seconds for name in STAGES}
        return {**seconds, "process_bytes": peak_bytes(), "disk_bytes": disk}

    return train


def main(images: Sequence[int], output: Path) -> int:
    """Measure, print and record."""
    record: dict[str, Any] = {"costs": {}}
    for count in images:
        contender = Contender(make)
        record["costs"][str(count)], _ = contender(count)
        contender.close()
        print(f"{count} photos are done", flush=True)
    Console().print(table(record).screen())
    write_record(output, "growth", record)
    return 0


def table(record: dict[str, Any]) -> "Table":
    """Return what the docs show."""
    from padim_bottle.tables import Row, Table

    rows = [
        Row(
            [
                f"{int(count):,}",
                *(f"{cost[stage]:.1f} s" for stage in STAGES),
                f"{cost['process_bytes'] / 1e9:.2f} GB",
                f"{cost['disk_bytes'] / 1e9:.2f} GB",
            ]
        )
        for count, cost in record["costs"].items()
    ]
    return Table(["photos", *STAGES, "memory of the process", "disk while training"], rows)


if __name__ == "__main__":
    parser = new_benchmark_parser(__doc__)
    parser.add_argument("--images", type=positive, nargs="+", default=[100, 1000, 10000], help="(default: %(default)s)")
    options = parser.parse_args()
    raise SystemExit(run_command(lambda: main(options.images, options.output)))
