"""A finished run on a few small synthetic bottles."""

from pathlib import Path

import yaml

from padim_bottle.experiment.train import train

ROOT = Path(__file__).parents[1]


def train_small(folder: Path, **model) -> Path:
    """Run the demo, smaller; return the folder of the run."""
    config = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    config["model"]["init_args"] |= {"image_size": [64, 64], "n_features": 30, "alpha": 0.2, **model}
    config["data"]["init_args"] |= {
        "root": str(folder / "data"), "size": 96, "train_good": 12, "test_good": 4, "test_per_defect": 3,
    }  # fmt: skip
    config["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False}
    config["default_root_dir"] = str(folder / "lightning")
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    train(folder / "small.yaml", results=folder / "results")
    (run,) = folder.glob("results/*/seed_*")
    return run
