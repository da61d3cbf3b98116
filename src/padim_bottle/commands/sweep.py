"""``scripts/sweep.py``: many runs in one command."""

from collections.abc import Sequence
from pathlib import Path

from padim_bottle.commands.arguments import new_parser
from padim_bottle.errors import run_command
from padim_bottle.sweep.driver import sweep
from padim_bottle.sweep.plan import SweepSettings, finished, in_shard, plan, read_settings

DEFAULT_CONFIG = Path("configs/sweep.yaml")

SWEEP_HELP = """\
Run experiments over seeds and grids of settings, then compare them. A finished run is not done again, so a sweep that
was stopped goes on where it was. Exit code: 0, 1 where a run failed, 2 for an error that you can mend, 130 when
interrupted.
"""


def sweep_command(arguments: Sequence[str] | None = None) -> int:
    """Do the runs of a sweep that are not done yet, or list them all.

    Args:
        arguments: the command line; that of the process if not given.

    Returns:
        The exit code, see ``run_command``; 1 where a run failed.
    """
    parser = new_parser("sweep.py", SWEEP_HELP)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="the sweep (default: %(default)s)")
    parser.add_argument("--experiments", help="YAML files, separated by commas; overrides the sweep's")
    parser.add_argument("--seeds", help="for example 0-9 or 0,3,7; overrides the sweep's")
    parser.add_argument("--results", help="folder of all results; overrides the sweep's")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="spread over a Ray cluster: auto, or the head node's host:port"
    )
    parser.add_argument("--cache", metavar="FOLDER", help="folder where features wait for the other seeds")
    parser.add_argument("--shard", metavar="2/5", help="do every fifth run only, from the second on; then compare.py")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and which of them are done")
    options = parser.parse_args(arguments)

    def command() -> int:
        settings = read_settings(options.config)
        settings.experiments = options.experiments.split(",") if options.experiments else settings.experiments
        settings.seeds = options.seeds or settings.seeds
        settings.results = options.results or settings.results
        settings.ray.address = options.ray or settings.ray.address
        settings.cache_folder = options.cache or settings.cache_folder
        if options.dry_run:
            return _list_runs(settings, options.shard)
        return 1 if sweep(settings, options.shard) else 0

    return run_command(
        command, interrupted="interrupted: finished runs are kept, and the same command goes on from here"
    )


def _list_runs(settings: SweepSettings, shard: str | None) -> int:
    runs = plan(settings) if shard is None else in_shard(plan(settings), shard)
    done = finished(runs)
    for run in runs:
        print(f"{'done ' if run in done else 'to do'}  {run.folder}")
    print(f"{len(runs)} runs, {len(done)} of them done")
    return 0
