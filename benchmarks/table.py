"""The table of times in docs/results.md, made from the records: ``python benchmarks/table.py`` prints it."""

import statistics
from pathlib import Path

import fit
import predict
import train
from record import ANOMALIB, HEADER, RECORDS, ratio, read_record

from padim_bottle.errors import run_command


def docs_table(folder: Path = RECORDS) -> str:
    """Return the table in Markdown, with a sentence on what it was measured on.

    Raises:
        UserError: a record is missing.
    """
    records = {name: read_record(folder, name) for name in ("train", "sweep", "fit", "predict")}
    # Ten runs of anomalib were not waited for.
    seeds, sweep = records["sweep"]["seeds"], [records["sweep"]["seconds"]]
    alone = [seeds * statistics.median(run["seconds"] for run in records["train"]["runs"][ANOMALIB])]
    rows = [
        HEADER,
        ["---"] * len(HEADER),
        *train.rows(records["train"]),
        [f"{seeds} seeds (as many runs; one sweep)", f"{alone[0]:.0f} s", f"{sweep[0]:.0f} s", ratio(alone, sweep)],
        *fit.rows(records["fit"]),
        *predict.brief_rows(records["predict"]),
    ]
    machine, versions = records["train"]["machine"], records["train"]["versions"]
    caption = (
        f"Medians (range) on {machine['cpu']}, {machine['cores']} cores, Anomalib {versions['anomalib']}, torch "
        f"{versions['torch']}, Python {versions['python']}; the last column divides the medians."
    )
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", caption])


def main() -> int:
    """Print the table."""
    print(docs_table())
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
