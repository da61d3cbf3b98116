"""Train and test: anomalib's own command line against ours, at both precisions, whole processes, in turn."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from record import ANOMALIB, BFLOAT16, OURS, new_benchmark_parser, print_rows, ratio, spread, write_record
from training import measured, our_command

from padim_bottle.commands.arguments import positive
from padim_bottle.errors import UserError, run_command

OUR_CONFIG, ANOMALIB_CONFIG = Path("configs/padim_resnet18.yaml"), Path("configs/padim_resnet18_anomalib.yaml")
BACKBONE = "resnet18.tv_in1k"
# Of metrics.json: the same work was done.
FIGURES = ("checkpoint_bytes", "image_AUROC", "pixel_AUROC")


def anomalib_command(folder: Path) -> list[str]:
    """Return the stock command, with data and weights where ours finds them."""
    from padim_bottle.model.backbone import locate_weights

    root = os.environ.get("MVTEC_AD_ROOT")
    return [
        str(Path(sys.executable).with_name("anomalib")), "train", "--config", str(ANOMALIB_CONFIG),
        "--model.init_args.backbone", locate_weights(BACKBONE)[0],
        *(["--data.init_args.root", root] if root else []),
        "--default_root_dir", str(folder / "lightning"),
        # A key of a list is that of its last item: the config's one callback is ResultsWriter.
        "--trainer.callbacks.init_args.root", str(folder / "results"),
    ]  # fmt: skip


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    ANOMALIB: anomalib_command,
    OURS: lambda folder: our_command(folder, OUR_CONFIG),
    BFLOAT16: lambda folder: our_command(folder, OUR_CONFIG, "--trainer.precision", "bf16-mixed"),
}


def measure_pairs(commands: Mapping[str, Callable[[Path], list[str]]], pairs: int) -> dict[str, list[dict[str, float]]]:
    """Run the commands in turn, ``pairs`` times each, and return what each run used and reached."""
    runs: dict[str, list[dict[str, float]]] = {contender: [] for contender in commands}
    for pair in range(pairs):
        for contender, command in commands.items():
            usage, metrics = measured(command)
            start = metrics["profile"]["start"]["seconds"]
            runs[contender].append(
                {**asdict(usage), "start_seconds": start, **{name: metrics[name] for name in FIGURES}}
            )
            print(f"pair {pair + 1} of {pairs}, {contender}: {usage.seconds:.1f} s", flush=True)
    return runs


def main(pairs: int, output: Path) -> int:
    """Measure, print and record."""
    for needed in (OUR_CONFIG, ANOMALIB_CONFIG, Path("scripts/train.py")):
        if not needed.is_file():
            raise UserError(f"There is no {needed} here: run this from the root of the checkout.")
    record = {"runs": measure_pairs(COMMANDS, pairs)}
    figures = [
        [name, *(spread([run[name] for run in record["runs"][who]], "", digits=4) for who in (ANOMALIB, OURS)), ""]
        for name in ("image_AUROC", "pixel_AUROC")
    ]
    print_rows(f"Train and test, {pairs} runs each in turn: median (range)", [*rows(record), *figures])
    write_record(output, "train", record)
    return 0


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return a row a quantity, see ``HEADER``."""
    table = []
    for what, who, key, unit, scale, digits in (
        ("train and test", OURS, "seconds", "s", 1, 1),
        ("of it loading the libraries", OURS, "start_seconds", "s", 1, 1),
        ("its CPU time", OURS, "cpu_seconds", "s", 1, 1),
        ("train and test, here in bfloat16", BFLOAT16, "seconds", "s", 1, 1),
        ("its CPU time", BFLOAT16, "cpu_seconds", "s", 1, 1),
        ("memory of all processes", OURS, "together_bytes", "GB", 1e-9, 2),
        ("memory of the largest process", OURS, "largest_bytes", "GB", 1e-9, 2),
        ("checkpoint", OURS, "checkpoint_bytes", "MB", 1e-6, 0),
    ):
        theirs, ours = ([run[key] for run in record["runs"][contender]] for contender in (ANOMALIB, who))
        cells = (spread(values, unit, scale, digits) for values in (theirs, ours))
        table.append([what, *cells, ratio(theirs, ours)])
    return table


if __name__ == "__main__":
    parser = new_benchmark_parser(__doc__)
    parser.add_argument("--pairs", type=positive, default=3, help="runs of each (default: %(default)s)")
    options = parser.parse_args()
    raise SystemExit(run_command(lambda: main(options.pairs, options.output)))
