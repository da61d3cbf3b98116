"""What an area to look at saves: bottle in whole, and the middle third of its photos alone.

python benchmarks/area.py
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from record import new_benchmark_parser, write_record
from rich.console import Console
from training import measured, our_command

from padim_bottle.errors import run_command

if TYPE_CHECKING:
    from padim_bottle.tables import Table

CONFIGS = ("padim_resnet18", "padim_resnet18_grids")
WHOLE, THIRD = "the whole photo", "its middle third"
FIGURES = ("image_AUROC", "image_F1Score", "checkpoint_bytes")


def measure(config: str, region: Path | None) -> dict[str, Any]:
    """Train and test with an area or none, as a process, and return what it used and reached."""
    overrides = ["--trainer.callbacks.report=false", *([f"--model.init_args.region={region}"] if region else [])]
    usage, metrics = measured(lambda folder: our_command(folder, Path("configs", f"{config}.yaml"), *overrides))
    return {**asdict(usage), **{name: metrics[name] for name in FIGURES}, "run_seconds": metrics["seconds"]["total"]}


def main(output: Path) -> int:
    """Measure, print and record."""
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        picture = Path(temporary, "third.png")
        area = np.zeros((900, 900), np.uint8)
        area[300:600] = 255
        cv2.imwrite(str(picture), area)
        for config in CONFIGS:
            for name, region in ((WHOLE, None), (THIRD, picture)):
                runs.setdefault(config, {})[name] = measure(config, region)
    record = {"runs": runs}
    for table in tables(record):
        Console().print(table.screen())
    write_record(output, "area", record)
    return 0


def tables(record: dict[str, Any]) -> list["Table"]:
    """Return what the docs show."""
    from padim_bottle.tables import Row, Table

    rows = [
        Row([config, name, f"{of['checkpoint_bytes'] / 1e6:.0f} MB", f"{of['largest_bytes'] / 1e9:.2f} GB"])
        for config, of_config in record["runs"].items()
        for name, of in of_config.items()
    ]
    return [Table(["model", "what counts", "checkpoint", "memory of the run"], rows, texts=2)]


if __name__ == "__main__":
    parser = new_benchmark_parser(__doc__)
    raise SystemExit(run_command(lambda: main(parser.parse_args().output)))
