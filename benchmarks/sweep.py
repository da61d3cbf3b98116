"""Many seeds in one command: ``scripts/sweep.py`` on ten seeds, one whole process."""

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from process import run_measured
from record import new_benchmark_parser, print_rows, write_record

from padim_bottle.commands.arguments import positive
from padim_bottle.errors import UserError, run_command

CONFIG = Path("configs/padim_resnet18.yaml")


def main(seeds: int, output: Path) -> int:
    """Measure, print and record."""
    if not CONFIG.is_file():
        raise UserError(f"There is no {CONFIG} here: run this from the root of the checkout.")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        command = [sys.executable, "scripts/sweep.py", "--experiments", str(CONFIG), "--results", folder]
        usage = run_measured([*command, "--seeds", f"0-{seeds - 1}"])
        done = len([*Path(folder).glob("*/*/metrics.json")])
        if done != seeds:
            raise UserError(f"The sweep did {done} runs of {seeds}.")
    cells = [f"{usage.seconds:.1f} s", f"{usage.together_bytes / 1e9:.2f} GB"]
    print_rows("Many seeds", [[f"one sweep of {seeds} seeds", *cells]], ["", "time", "memory of all processes"])
    write_record(output, "sweep", {"seeds": seeds, **asdict(usage)})
    return 0


if __name__ == "__main__":
    parser = new_benchmark_parser(__doc__)
    parser.add_argument("--seeds", type=positive, default=10, help="how many (default: %(default)s)")
    options = parser.parse_args()
    raise SystemExit(run_command(lambda: main(options.seeds, options.output)))
