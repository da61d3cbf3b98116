"""What each part of the maps from two grids does: one part changed at a time, the others as configured.

On synthetic anomalies in held-out training photos, several times, with intervals that know that such splits share
photos (Nadeau and Bengio 2003), and once on bottle's test photos. Nothing is chosen by those.

    python benchmarks/maps.py                                         # about ten minutes on two cores
"""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import new_benchmark_parser, write_record
from rich.console import Console
from training import trained

from padim_bottle.commands.arguments import positive
from padim_bottle.console import quiet
from padim_bottle.errors import run_command
from padim_bottle.evaluation.metrics import headings

if TYPE_CHECKING:
    from padim_bottle.experiment.variants import Variant
    from padim_bottle.tables import Table

CONFIG = Path("configs/padim_resnet18_grids_384.yaml")
AS_CONFIGURED = "as configured"
# What the docs call it, and the arguments of the model.
PARTS: dict[str, dict[str, Any]] = {
    AS_CONFIGURED: {},
    "256 x 256 pixels, sigma 2, guided 4": {"image_size": [256, 256], "sigma": 2.0, "guided": 4},
    "a covariance a position": {"share": 1},
    "4 x 4 positions share in the fine grid": {"share": [4, 2]},
    "tolerance 1 (a covariance a position)": {"share": [2, 1], "tolerance": 1},
    "no guided filter, sigma 6": {"guided": None, "sigma": 6.0},
    "verdict from the map": {"image_score": "map"},
    "verdict not standardised": {"position_calibration": False},
    "not damped": {"damped": False},
}
SHOWN = headings(threshold="none")
ALARMS = {"image_recall": "recall", "image_false_alarm_rate": "false alarms"}


def variants(config: Path) -> list["Variant"]:
    """Return the config with each part changed."""
    from padim_bottle.experiment.variants import variants_of

    changes = ({f"model.init_args.{key}": value for key, value in of.items()} for of in PARTS.values())
    return [next(variants_of(config, {}, change)) for change in changes]


def synthetic(config: Path, splits: int) -> list[dict[str, Any]]:
    """Return a row for each part: means over the splits, and differences from the config as it is."""
    from padim_bottle.evaluation.differences import paired_difference
    from padim_bottle.tune.measure import measure
    from padim_bottle.tune.settings import TuneSettings

    with tempfile.TemporaryDirectory(dir=".") as cache:
        settings = TuneSettings(splits=splits, seeds=[0], cache_folder=cache)
        fits = measure(variants(config), settings, lambda what, total: lambda step: None)
    overlap = settings.held_out / (1 - settings.held_out)
    values = fits.set_index(["setting", "split"])[[*SHOWN, *ALARMS]].astype(float)
    rows = []
    for number, name in enumerate(PARTS):
        differences = values.loc[number] - values.loc[0]
        rows.append(
            {
                "part": name,
                "means": values.loc[number].mean().to_dict(),
                "by_split": values.loc[number].to_dict("list"),
                "differences": {
                    key: paired_difference(differences[key].to_numpy(), overlap)._asdict() for key in differences
                },
            }
        )
    return rows


def on_bottle(config: Path) -> list[dict[str, Any]]:
    """Return a row for each part: its figures on the test photos, and the size of its checkpoint."""
    rows = []
    for name, variant in zip(PARTS, variants(config), strict=True):
        with trained(config, variant.overrides) as run:
            rows.append({"part": name, **{key: run.metrics[key] for key in (*SHOWN, *ALARMS, "checkpoint_bytes")}})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def tables(record: dict[str, Any]) -> list["Table"]:
    """Return what the docs show."""
    from padim_bottle.tables import Row, Table

    def told(row: dict[str, Any], key: str) -> str:
        mean, difference = row["means"][key], row["differences"][key]
        mark = {"higher": " ▲", "lower": " ▼"}.get(difference["finding"], "")
        return f"{mean:.4f}{mark}"

    header = ["", *SHOWN.values(), *ALARMS.values()]
    synthetic_rows = [
        Row([row["part"], *(told(row, key) for key in SHOWN), *(f"{row['means'][key]:.2f}" for key in ALARMS)])
        for row in record["synthetic"]
    ]
    bottle_rows = [
        Row([
            row["part"],
            *(f"{row[key]:.4f}" for key in SHOWN),
            *(f"{row[key]:.2f}" for key in ALARMS),
            f"{row['checkpoint_bytes'] / 1e6:.0f}",
        ])
        for row in record["bottle"]
    ]  # fmt: skip
    return [
        Table(header, synthetic_rows, title=f"Synthetic anomalies in training photos, {record['splits']} splits"),
        Table([*header, "model, MB"], bottle_rows, title="Bottle's test photos"),
    ]


def main(splits: int, output: Path) -> int:
    """Measure, print and record."""
    quiet()
    record = {"config": str(CONFIG), "splits": splits, "synthetic": synthetic(CONFIG, splits)}
    record["bottle"] = on_bottle(CONFIG)
    write_record(output, "maps", record)
    for table in tables(record):
        Console().print(table.screen())
    return 0


if __name__ == "__main__":
    parser = new_benchmark_parser(__doc__)
    parser.add_argument("--splits", type=positive, default=8, help="of the training photos (default: %(default)s)")
    options = parser.parse_args()
    raise SystemExit(run_command(lambda: main(options.splits, options.output)))
