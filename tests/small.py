"""The small experiment that tests train: the demo, on fewer and smaller bottles."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import yaml

from padim_bottle.experiment.train import train

ROOT = Path(__file__).parents[1]
NAME = "demo_synthetic_random_weights"
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.num_workers", "0"]


@cache
def _demo() -> dict:
    return yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())


def small_config(report: bool = True, **model) -> dict:
    """Return the demo's config, smaller.

    Args:
        report: draw figures and write report.html, which takes most of the time.
        model: arguments of the model.
    """
    config = copy.deepcopy(_demo())
    config["model"]["init_args"] |= {"image_size": [64, 64], "n_features": 30, "alpha": 0.2, **model}
    config["data"]["init_args"] |= {"size": 96, "train_good": 12, "test_good": 4, "test_per_defect": 3}
    config["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False}
    config["trainer"]["callbacks"][0]["init_args"]["report"] = report
    return config


def write_config(path: Path, config: dict | None = None) -> Path:
    """Write a config, the small one if none is given; return the path."""
    path.write_text(yaml.safe_dump(config or small_config()))
    return path


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond this: write() fails as it does on a full disk."""
    import resource  # Windows has none

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def train_small(folder: Path, **model) -> Path:
    """Train the small experiment, with report, all of it in a folder; return the folder of the run."""
    config = small_config(**model)
    config["data"]["init_args"]["root"] = str(folder / "data")
    config["default_root_dir"] = str(folder / "lightning")
    train(write_config(folder / "small.yaml", config), results=folder / "results")
    (run,) = folder.glob("results/*/seed_*")
    return run
