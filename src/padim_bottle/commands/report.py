"""``scripts/report.py``: draw figures and write reports again."""

from collections.abc import Sequence
from pathlib import Path

from padim_bottle.commands.arguments import new_parser
from padim_bottle.errors import UserError, run_command

REPORT_HELP = """\
Draw the figures of finished runs again and write their report.html, or write the report.html that compares the
experiments and seeds of a folder of results. Nothing is computed anew.
"""


def report_command(arguments: Sequence[str] | None = None) -> int:
    """Write the reports of the folders that are named.

    Args:
        arguments: the command line; that of the process if not given.

    Returns:
        The exit code, see ``run_command``.
    """
    parser = new_parser("report.py", REPORT_HELP)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER",
        help="a run (results/<experiment>/seed_<n>), an experiment (results/<experiment>), or all (results)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    return run_command(lambda: _write_reports(options.folders))


def _write_reports(folders: Sequence[Path]) -> int:
    from padim_bottle.compare.seeds_page import write_sweep_report
    from padim_bottle.report.run_report import write_report

    for folder in folders:
        if (folder / "metrics.json").is_file():
            print(write_report(folder))
        else:
            print(write_sweep_report(_experiments(folder), folder))
    return 0


def _experiments(folder: Path) -> list[Path]:
    """Return the experiments of a folder: itself, or those in it."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    if any(folder.glob("seed_*/metrics.json")):
        return [folder]
    found = sorted({path.parents[1] for path in folder.glob("*/seed_*/metrics.json")})
    if not found:
        raise UserError(f"There is no finished run in {folder}: neither metrics.json nor seed_<n>/metrics.json.")
    return found
