"""``tune``: choose a configuration without a defect."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from padim_bottle.commands.arguments import photo_settings
from padim_bottle.console import quiet_imports
from padim_bottle.errors import UserError
from padim_bottle.places import find_config


def tune(
    *,
    config: Path,
    grid: list[str] | None = None,
    photos: list[Path] | None = None,
    group: str | None = None,
    settings: Path = Path("configs/tune.yaml"),
    results: str | None = None,
    cache: str | None = None,
    name: str | None = None,
) -> None:
    """Compare settings of a config on its training photos alone.

    A third of them is held out, half of those get synthetic anomalies, the model is fitted to the others; several
    times. Prints the figures of every setting, says which differences are larger than their spread, and writes the best
    one as a config. Test photos are never opened.

      --config configs/padim_resnet18_grids.yaml --grid "model.init_args.support=[0, 0.5, 1, .inf]"
      --config ... --grid ... --photos FOLDER   on photos of your own

    Args:
        config (YAML): the experiment
        grid (KEY=[VALUES]): values of one of the model's arguments; several are combined
        photos (FOLDER): tune on these photos of good parts
        group (PATTERN): which photos show one part: a regular expression with one group on the file name, or
            parent-folder
        settings (YAML): the tuning
        results (FOLDER): folder of all tunings; overrides the YAML's
        cache (FOLDER): folder where features wait while settings are compared
        name (NAME): folder of this one (default: the config's name and the keys)
    """
    from rich.console import Console

    from padim_bottle.tune.settings import candidates_of, name_of, read_grid, read_settings

    config, settings = find_config(config), find_config(settings)
    chosen = read_settings(settings)
    chosen.results = results or chosen.results
    chosen.cache_folder = cache or chosen.cache_folder
    values = read_grid(grid or [])
    if group is not None and photos is None:
        raise UserError("--group belongs to --photos; a config names it in its model.")
    fixed = {} if photos is None else photo_settings(photos, group)
    candidates = candidates_of(config, values, fixed)
    with quiet_imports():
        from padim_bottle.tune.measure import fabric_of, measure, training_paths
        from padim_bottle.tune.results import Tuning, ranking_table, write_results

    name = name or ",".join([config.stem, *(key.rsplit(".", 1)[-1] for key in values)])
    tuning = Tuning(name, config, values, chosen, settings, training_paths(candidates[0].experiment), fixed)
    tuning.check_folder()
    with _progress() as track:
        fits = measure(candidates, chosen, track)
    ranking, sentences = write_results(tuning, candidates, fits, fabric_of(candidates[0].experiment).device.type)
    Console().print(ranking_table([name_of(candidate.values) for candidate in candidates], ranking).screen())
    for sentence in sentences:
        print(sentence)
    print(f"best: {tuning.folder / 'best.yaml'}")


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
