"""Many runs in one command: experiments, seeds and grids of settings, each run done once.

Heavy imports are inside the functions.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from padim_bottle.errors import UserError
from padim_bottle.files import write_whole
from padim_bottle.runs.folder import failure_record, recover
from padim_bottle.sweep.group import Outcome, PlannedRun, train_group
from padim_bottle.sweep.plan import SweepSettings, finished, in_groups, in_shard, plan


def sweep(settings: SweepSettings, shard: str | None = None) -> int:
    """Do what is not done yet, record what fails, and compare the experiments.

    Args:
        settings: of the whole sweep.
        shard: which part of it is done here, see ``in_shard``; the experiments are then compared later, by
            ``scripts/compare.py``.

    Returns:
        How many runs failed.

    Raises:
        UserError: settings that no run can begin with, or another sweep at work in the same results folder.
    """
    from filelock import FileLock, Timeout

    planned = plan(settings) if shard is None else in_shard(plan(settings), shard)
    root = Path(settings.results)
    # Shards work side by side in one folder of results.
    workplace = root / (".sweep" if shard is None else f".sweep.{shard.replace('/', '-of-')}")
    lock = FileLock(workplace.with_name(f"{workplace.name}.lock"), timeout=0)
    try:
        root.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except Timeout as error:
        raise UserError(f"Another sweep is at work in {root}: wait for it, or choose other --results.") from error
    except OSError as error:
        raise UserError(f"Cannot write results to {root}: {error}.") from error
    with held:
        shutil.rmtree(workplace, ignore_errors=True)  # of a sweep that was killed
        for run in planned:
            recover(run.folder)
        done = finished(planned)
        groups = in_groups([run for run in planned if run not in done], settings.group_size)
        try:
            failures = _work_off(groups, len(done), settings, workplace)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
        for failure in failures:
            print(f"failed: {failure.run}: {failure.error}", file=sys.stderr)
        if shard is None:
            _compare(planned)
        else:
            print(f"shard {shard} is done; when all are: python scripts/compare.py {root}/<experiment> ...")
    return len(failures)


def _work_off(
    groups: Sequence[Sequence[PlannedRun]], done: int, settings: SweepSettings, workplace: Path
) -> list[Outcome]:
    """Do all groups here or on Ray, show progress, and return the runs that failed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    if settings.ray.address:
        from padim_bottle.sweep.ray_cluster import connected, train_on_ray

        cluster = connected(settings.ray.address, settings.ray.num_cpus, settings.ray.num_gpus)
    else:
        cluster = contextlib.nullcontext()  # type: ignore[assignment]
    left = sum(map(len, groups))
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    failures = []
    with (
        cluster,
        Progress(*columns, TimeLeft(), console=Console(stderr=True), refresh_per_second=2) as progress,
    ):
        bar = progress.add_task("runs", total=left)
        progress.console.print(f"{left} runs to do, {done} done already", highlight=False)
        # Not the system's temporary folder, which may be in memory.
        cache_folder = Path(settings.cache_folder) if settings.cache_folder else workplace
        if settings.ray.address:
            outcomes = train_on_ray(groups, settings.ray.num_cpus, settings.ray.num_gpus)
        else:
            outcomes = (outcome for runs in groups for outcome in train_group(runs, workplace, cache_folder))
        for outcome in outcomes:
            word = "done"
            if outcome.error is not None:
                word = "failed"
                failures.append(outcome)
                _record_failure(outcome)
            progress.console.print(f"{outcome.run}: {word}, {outcome.seconds:.1f} s", highlight=False)
            progress.advance(bar)
    return failures


def _record_failure(outcome: Outcome) -> None:
    record = {
        "experiment": outcome.run.experiment,
        "seed": outcome.run.seed,
        "error": outcome.error,
        "traceback": outcome.traceback,
        "failed": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    path = failure_record(outcome.run.folder)
    try:
        write_whole(path, json.dumps(record, indent=2) + "\n")
    except OSError as error:  # such as the full disk that the run failed of; the other runs go on
        print(f"{outcome.run}: its failure is not recorded ({error.strerror})", file=sys.stderr)


def _compare(runs: Sequence[PlannedRun]) -> None:
    from padim_bottle.compare.comparison import Comparison
    from padim_bottle.compare.outputs import write_comparison

    folders = sorted({run.folder.parent for run in runs if run.folder.is_dir()})
    if folders:
        compared = Comparison(folders)
        summary = write_comparison(compared)
        print(summary)
        try:
            from padim_bottle.compare.seeds_page import write_sweep_report

            print(write_sweep_report(compared, summary.parent))
        except Exception as error:  # the numbers are in the summary
            print(f"report.html could not be written: {type(error).__name__}: {error}", file=sys.stderr)
