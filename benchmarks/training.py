"""Trainings of a benchmark, each into a folder that goes when it is read."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from process import Usage, run_measured

if TYPE_CHECKING:
    from padim_bottle.runs.run import Run


@contextlib.contextmanager
def trained(config: Path, overrides: Sequence[str] = (), seed: int | None = None) -> Iterator["Run"]:
    """Train and test a config in this process, without pictures, and yield its run."""
    from padim_bottle.console import quiet_imports

    with quiet_imports():
        from padim_bottle.experiment.train import train
        from padim_bottle.runs.run import Run

    off = [f"--trainer.{key}=false" for key in ("callbacks.images", "callbacks.report", "enable_progress_bar")]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        workplace = f"--default_root_dir={folder}/lightning"
        train(config, [*overrides, *off, workplace], seed, results=Path(folder, "results"))
        (run,) = Path(folder, "results").glob("*/*")
        yield Run.read(run)


def measured(command: Callable[[Path], Sequence[str]]) -> tuple[Usage, dict[str, Any]]:
    """Return what a command used that trains into a folder, and the metrics of its run."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        usage = run_measured(command(Path(folder)))
        (metrics,) = Path(folder).glob("results/*/*/metrics.json")
        return usage, json.loads(metrics.read_text())


def our_command(folder: Path, config: Path, *overrides: str) -> list[str]:
    """Return the command that trains a config of ours into a folder."""
    return [
        sys.executable, "scripts/train.py", "--config", str(config), "--results", str(folder / "results"),
        "--default_root_dir", str(folder / "lightning"), *overrides,
    ]  # fmt: skip
