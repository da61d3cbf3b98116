"""What a benchmark measured, on which machine: a JSON file a benchmark, from which docs/results.md has its table."""

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from padim_bottle.errors import UserError
from padim_bottle.files import write_whole
from padim_bottle.stages import cores

RECORDS = Path("results/reference/benchmarks")
ANOMALIB, OURS, BFLOAT16 = "anomalib", "ours", "ours, bfloat16"
# Of the rows that a benchmark prints and the docs repeat.
HEADER = ("", "Anomalib", "here", "Anomalib / here")


def new_benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with ``--output``, which all benchmarks have."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=RECORDS, help="folder of the record (default: %(default)s)")
    return parser


def describe_machine() -> dict[str, Any]:
    """Return the processor's name, the number of cores this process may use, and the system."""
    return {"cpu": _cpu_name(), "cores": cores(), "system": f"{platform.system()} {platform.machine()}"}


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_record(folder: Path, name: str, measured: dict[str, Any]) -> None:
    """Write ``<folder>/<name>.json``: what was measured, the machine, the versions and the commit."""
    # torch comes with it: not before the measuring is done.
    from padim_bottle.runs.environment import git_commit, versions

    record = {"machine": describe_machine(), "versions": versions(), "commit": git_commit(), **measured}
    file = folder / f"{name}.json"
    write_whole(file, json.dumps(record, indent=2) + "\n")
    print(f"Written to {file}")


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """Return a record.

    Raises:
        UserError: there is none.
    """
    file = folder / f"{name}.json"
    if not file.is_file():
        raise UserError(f"There is no record {file}: python benchmarks/{name}.py measures it.")
    return json.loads(file.read_text())


def spread(values: Sequence[float], unit: str, scale: float = 1, digits: int = 1) -> str:
    """Return the median with its unit, and the range where there is one."""
    low, median, high = (f"{v * scale:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{median} {unit}" + (f" ({low} to {high})" if low != high else "")


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Return the quotient of the medians: what a reader who divides the cells of a row gets."""
    return f"{statistics.median(theirs) / statistics.median(ours):.1f}"


def print_rows(title: str, rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> None:
    """Print a table; all columns but the first align right."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
