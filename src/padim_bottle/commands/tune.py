"""``scripts/tune.py``: choose a configuration without a defect."""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from padim_bottle.commands.arguments import add_photo_options, new_parser, photo_settings
from padim_bottle.console import quiet_imports
from padim_bottle.errors import UserError, run_command

SETTINGS = Path("configs/tune.yaml")

TUNE_HELP = """\
Compare settings of a config on its training photos alone: a third of them is held out, half of those get synthetic
anomalies, the model is fitted to the others; several times. Prints the figures of every setting, says which differences
are larger than their spread, and writes the best one as a config. Test photos are never opened.

  tune.py --config configs/padim_resnet18_grids.yaml --grid "model.init_args.support=[0, 0.5, 1, .inf]"
  tune.py --config ... --grid ... --photos FOLDER   on photos of your own
"""


def tune_command(arguments: Sequence[str] | None = None) -> int:
    """Measure every setting of a grid, print and write what was found.

    Args:
        arguments: the command line; that of the process if not given.

    Returns:
        The exit code, see ``run_command``.
    """
    parser = new_parser("tune.py", TUNE_HELP)
    parser.add_argument("--config", type=Path, required=True, help="the experiment's YAML")
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=[VALUES]",
        help="values of one of the model's arguments; several are combined",
    )
    add_photo_options(parser, "tune")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="the tuning's YAML (default: %(default)s)")
    parser.add_argument("--results", help="folder of all tunings; overrides the YAML's")
    parser.add_argument("--name", help="folder of this one (default: the config's name and the keys)")
    options = parser.parse_args(arguments)
    return run_command(lambda: _tune(options), interrupted="interrupted: nothing was written")


def _tune(options: argparse.Namespace) -> int:
    from rich.console import Console

    from padim_bottle.tune.settings import candidates_of, name_of, read_grid, read_settings

    settings = read_settings(options.settings)
    settings.results = options.results or settings.results
    grid = read_grid(options.grid)
    if options.group is not None and options.photos is None:
        raise UserError("--group belongs to --photos; a config names it in its model.")
    fixed = {} if options.photos is None else photo_settings(options.photos, options.group)
    candidates = candidates_of(options.config, grid, fixed)
    with quiet_imports():
        from padim_bottle.tune.measure import device_of, measure, training_paths
        from padim_bottle.tune.results import Tuning, default_name, ranking_table, write_results

    name = options.name or default_name(options.config, grid)
    tuning = Tuning(
        name, options.config, grid, settings, options.settings, training_paths(candidates[0].experiment), fixed
    )
    tuning.check_folder()
    with _progress() as track:
        fits = measure(candidates, settings, track)
    ranking, sentences = write_results(tuning, candidates, fits, device_of(candidates[0].experiment).type)
    Console().print(ranking_table([name_of(candidate.values) for candidate in candidates], ranking).screen())
    for sentence in sentences:
        print(sentence)
    print(f"best: {tuning.folder / 'best.yaml'}")
    return 0


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Show bars on the screen; yields what starts one."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description:<6}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *left, console=Console(stderr=True), refresh_per_second=2) as progress:

        def track(what: str, total: int) -> Callable[[int], None]:
            bar = progress.add_task(what, total=total)
            return lambda done: progress.advance(bar, done)

        yield track
