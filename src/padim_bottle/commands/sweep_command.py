"""``sweep``: many runs in one command."""

from pathlib import Path


def sweep(
    *,
    config: Path = Path("configs/sweep.yaml"),
    experiments: str | None = None,
    seeds: str | None = None,
    results: str | None = None,
    ray: str | None = None,
    cache: str | None = None,
    shard: str | None = None,
    dry_run: bool = False,
) -> int:
    """Run experiments over seeds and grids of settings, then compare them.

    A finished run is not done again, so a sweep that was stopped goes on where it was.

    Exit code: 0, 1 where a run failed, 2 for an error that you can mend, 130 when interrupted.

    Args:
        config (YAML): the sweep
        experiments (YAML,...): YAML files, separated by commas; overrides the sweep's
        seeds (SEEDS): for example 0-9 or 0,3,7; overrides the sweep's
        results (FOLDER): folder of all results; overrides the sweep's
        ray (ADDRESS): spread over a Ray cluster: auto, or the head node's host:port
        cache (FOLDER): folder where features wait for the other seeds
        shard (2/5): do every fifth run only, from the second on; then compare
        dry_run: list the runs and which of them are done
    """
    from padim_bottle.sweep.driver import sweep
    from padim_bottle.sweep.plan import finished, in_shard, plan, read_settings

    settings = read_settings(config)
    settings.experiments = experiments.split(",") if experiments else settings.experiments
    settings.seeds = seeds or settings.seeds
    settings.results = results or settings.results
    settings.ray.address = ray or settings.ray.address
    settings.cache_folder = cache or settings.cache_folder
    if not dry_run:
        return 1 if sweep(settings, shard) else 0
    runs = plan(settings) if shard is None else in_shard(plan(settings), shard)
    done = finished(runs)
    for run in runs:
        print(f"{'done ' if run in done else 'to do'}  {run.folder}")
    print(f"{len(runs)} runs, {len(done)} of them done")
    return 0
