"""Numbers and tables of the benchmarks. Nothing heavy is imported, see ``process_usage``."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from padim_bottle.files import write_whole

OURS, ANOMALIB = "ours", "anomalib"
BACKBONE = "resnet18.tv_in1k"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Return the spread of the ratios of values that were measured side by side."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay cells out as a Markdown table that also reads well as plain text; all columns but the first align right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in cells]
    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def comparison_table(quantities: dict[str, tuple[dict[str, Sequence[float]], str]], baseline: str) -> str:
    """Lay out, for each quantity and contender, the spread and the baseline's ratio to it pair by pair.

    Args:
        quantities: name to (contender to values, unit).
        baseline: the contender that the others are compared with.
    """
    rows = []
    for quantity, (contenders, unit) in quantities.items():
        for contender, values in contenders.items():
            ratio = "" if contender == baseline else _show(paired_ratios(contenders[baseline], values), ".2f", "x")
            rows.append([quantity, contender, *(f"{v:.2f} {unit}" for v in spread(values).values()), ratio])
    return markdown_table(["", "", "median", "min", "max", f"{baseline} / this, pair by pair (min to max)"], rows)


def _show(values: dict[str, float], form: str, unit: str) -> str:
    return f"{values['median']:{form}}{unit} ({values['min']:{form}} to {values['max']:{form}})"


def write_report(folder: Path, name: str, record: dict[str, Any], text: str | None = None) -> None:
    """Write ``<name>.json`` and, with a text, ``<name>.md``, and print the text."""
    write_whole(folder / f"{name}.json", json.dumps(record, indent=2) + "\n")
    if text is not None:
        write_whole(folder / f"{name}.md", text + "\n")
        print(f"\n{text}\n")
    print(f"Written to {folder / name}.*")
