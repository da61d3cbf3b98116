"""Does a GPU give the CPU's results, and how fast? One experiment trained and tested on both, with the same seed.

TF32, which rounds the factors of a convolution to 10 bits and is PyTorch's default on GPUs since Ampere, is off, so
that both compute the same. Exit code: 0 where they agree, 1 where they differ, 2 for an error, such as no GPU. Further
arguments are overrides of the experiment, in the spelling of scripts/train.py.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from process import run_measured
from record import new_benchmark_parser, print_rows, write_record

from padim_bottle.errors import UserError, run_command

# Of metrics, absolutely; of scores relative to the largest of them.
TOLERANCE = 1e-3


def run_on(accelerator: str, config: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], pd.DataFrame]:
    """Train and test on a device; return what metrics.json and predictions.csv say."""
    print(f"{config} on {accelerator} ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        command = [
            sys.executable, "scripts/train.py", "--config", str(config), "--results", f"{folder}/results",
            "--default_root_dir", f"{folder}/lightning", "--trainer.accelerator", accelerator, "--trainer.devices", "1",
            *overrides,
        ]  # fmt: skip
        run_measured(command, {**os.environ, "NVIDIA_TF32_OVERRIDE": "0"})
        (run,) = Path(folder).glob("results/*/seed_*")
        return json.loads((run / "metrics.json").read_text()), pd.read_csv(run / "predictions.csv")


def compare(
    one: Mapping[str, Any], one_table: pd.DataFrame, other: Mapping[str, Any], other_table: pd.DataFrame
) -> dict[str, Any]:
    """Return how far two runs of one experiment are apart.

    Returns:
        ``metrics``: the absolute difference of each metric, per defect type too, NaN where only one run has it;
        ``scores``: the largest difference of two image scores, divided by the largest score; ``verdicts``: the number
        of images that one run calls good and the other does not; ``agree``: whether all but the verdicts lie within
        the tolerance, and all images are the same.
    """
    metrics = (pd.Series(figures(one)) - pd.Series(figures(other))).abs()
    rows = one_table.merge(other_table, on="image_path", suffixes=("_one", "_other"))
    scores = (rows["score_one"] - rows["score_other"]).abs().max() / rows["score_other"].abs().max()
    return {
        "metrics": metrics.to_dict(),
        "scores": float(scores),
        "verdicts": int((rows["predicted_label_one"] != rows["predicted_label_other"]).sum()),
        # NaN is not within.
        "agree": bool((metrics <= TOLERANCE).all() and scores <= TOLERANCE)
        and len(rows) == len(one_table) == len(other_table),
    }


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a run and of each defect type, by name; those that are undefined are left out."""
    found = {name: value for name, value in metrics.items() if isinstance(value, float)}
    for defect, own in metrics["per_defect"].items():
        found |= {f"{defect}: {name}": value for name, value in own.items() if isinstance(value, float)}
    return found


def main(config: Path, overrides: Sequence[str], accelerator: str, output: Path) -> int:
    """Check, print and record."""
    cpu, cpu_table = run_on("cpu", config, overrides)
    gpu, gpu_table = run_on(accelerator, config, overrides)
    difference = compare(gpu, gpu_table, cpu, cpu_table)
    device, memory = gpu["device"]["name"], gpu["peak_memory_bytes"]["gpu"]
    print_rows(
        f"{gpu['experiment']}, seed {gpu['seed']}", rows(cpu, gpu, difference), ["", "CPU", device, "difference"]
    )
    print(f"They {'agree within' if difference['agree'] else 'DIFFER by more than'} {TOLERANCE:g}.")
    seconds = {"cpu": cpu["seconds"], "gpu": gpu["seconds"]}
    write_record(
        output,
        "gpu_check",
        {"device": device, "seconds": seconds, "gpu_memory_bytes": memory, "difference": difference},
    )
    return 0 if difference["agree"] else 1


def rows(cpu: Mapping[str, Any], gpu: Mapping[str, Any], difference: Mapping[str, Any]) -> list[list[str]]:
    """Return a row a metric, then the scores, the verdicts, and the seconds of each phase."""
    theirs, seconds = figures(gpu), gpu["seconds"]
    return [
        *([name, f"{value:.5f}", f"{theirs.get(name, float('nan')):.5f}", f"{difference['metrics'][name]:.1e}"]
          for name, value in figures(cpu).items()),
        ["image scores, relative to the largest", "", "", f"{difference['scores']:.1e}"],
        ["verdicts that differ", "", "", str(difference["verdicts"])],
        *([f"seconds, {phase}", f"{value:.1f}", f"{seconds[phase]:.1f}", ""]
          for phase, value in cpu["seconds"].items()),
    ]  # fmt: skip


def require_gpu(accelerator: str) -> None:
    """Raise a UserError where PyTorch sees no CUDA device, if that is what is asked for."""
    import torch

    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(f"No GPU to check: PyTorch {torch.__version__} sees no CUDA device on this machine.")


def command(arguments: Sequence[str] | None = None) -> int:
    """Run the check."""
    parser = new_benchmark_parser(__doc__)
    parser.add_argument(
        "--config", type=Path, default=Path("configs/padim_resnet18.yaml"), help="the experiment (default: %(default)s)"
    )
    parser.add_argument("--accelerator", default="gpu", help="Lightning's name of the device (default: %(default)s)")
    options, overrides = parser.parse_known_args(arguments)

    def check() -> int:
        require_gpu(options.accelerator)
        return main(options.config, overrides, options.accelerator, options.output)

    return run_command(check)


if __name__ == "__main__":
    raise SystemExit(command())
