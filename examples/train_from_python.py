"""Train from Python: anomalib's Engine with a model, a data module and the callback that writes the results.

    python examples/train_from_python.py good_parts/

What the YAML says can be said here as well, under the same names: see configs/padim_resnet18.yaml for all of them.
"""

import sys
from pathlib import Path

from anomalib.engine import Engine

from padim_bottle import Padim, Photos, ResultsWriter


def train(folder: Path, results: Path = Path("results")) -> ResultsWriter:
    """Fit a model to the photos of good parts in a folder, and write results/my_part/seed_42/."""
    model = Padim(seed=42, alpha=0.05, evaluator=False, visualizer=False)
    data = Photos(folder)
    writer = ResultsWriter("my_part", root=results)
    engine = Engine(callbacks=[writer], accelerator="auto", logger=False, default_root_dir=results / "lightning")
    engine.train(model=model, datamodule=data)
    return writer


def main() -> None:
    """Train on the folder that is named, and say what came of it."""
    writer = train(Path(sys.argv[1]))
    print("threshold:", writer.metrics["thresholds"]["image"])
    print("results:  ", writer.folder)


if __name__ == "__main__":
    main()
