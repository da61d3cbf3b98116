"""``report``: draw figures and write reports again."""

from pathlib import Path

from padim_bottle.errors import UserError


def report(*folders: Path) -> None:
    """Write report.html again, of finished runs or of all in a folder.

    Of a run its figures are drawn again, too; of an experiment or a folder of results the page compares experiments and
    seeds. Nothing is computed anew.

    Args:
        folders (FOLDER): a run (results/<experiment>/seed_<n>), an experiment (results/<experiment>), or all (results)
    """
    from padim_bottle.compare.comparison import Comparison
    from padim_bottle.compare.seeds_page import write_sweep_report
    from padim_bottle.report.run_report import write_report

    if not folders:
        raise UserError("Name at least one folder, for example results/padim_resnet18/seed_42.")
    for folder in folders:
        if (folder / "metrics.json").is_file():
            print(write_report(folder))
        else:
            print(write_sweep_report(Comparison(_experiments(folder)), folder))


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
