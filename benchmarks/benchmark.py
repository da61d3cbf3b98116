"""What this package costs and what anomalib costs: whole runs, the fit, where a run's time goes, growth, prediction.

Two implementations are always measured in turn (A B A B ...), so that a machine that slows down slows both, and
compared pair by pair. Nothing heavy is imported at the top, see ``process_usage``.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark_report import (
    ANOMALIB,
    BACKBONE,
    OURS,
    comparison_table,
    markdown_table,
    paired_ratios,
    write_report,
)
from fit_benchmark import scaling_benchmark, statistics_benchmark
from predict_benchmark import predict_benchmark
from process_usage import measure

from padim_bottle.commands.arguments import positive
from padim_bottle.errors import UserError, run_command

OUR_CONFIG = Path("configs/padim_resnet18.yaml")
ANOMALIB_CONFIG = Path("configs/padim_resnet18_anomalib.yaml")

FIGURES = ("image_AUROC", "image_F1Max", "image_F1Score", "pixel_AUROC", "pixel_AUPRO")


def train_benchmark(pairs: int, output: Path) -> None:
    """Train and test with the stock CLI and with ours, in turn, after an uncounted run of each.

    The uncounted run is the one in which the memory of the whole process tree is sampled.

    Raises:
        UserError: a run failed.
    """
    for needed in (OUR_CONFIG, ANOMALIB_CONFIG, Path("scripts/train.py")):
        if not needed.is_file():
            raise UserError(f"There is no {needed} here: run this from the root of the checkout.")
    commands = {ANOMALIB: _anomalib_command(), OURS: _our_command}
    runs: dict[str, list[dict[str, Any]]] = {ANOMALIB: [], OURS: []}
    metrics: dict[str, dict[str, Any]] = {}
    for pair in range(pairs + 1):
        for contender, command in commands.items():
            with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
                usage = measure(command(Path(folder)), sample_tree=pair == 0)
                (found,) = Path(folder).glob("results/*/*/metrics.json")
                metrics[contender] = json.loads(found.read_text())
            run = {
                **asdict(usage),
                "checkpoint_bytes": metrics[contender]["checkpoint_bytes"],
                **{name: metrics[contender][name] for name in FIGURES},
            }
            runs[contender].append(run)
            name = f"pair {pair} of {pairs}" if pair else "warm-up"
            print(f"{name}, {contender}: {usage.wall_seconds:.1f} s, {usage.peak_bytes / 1e6:.0f} MB", flush=True)

    warm_up = {contender: done.pop(0) for contender, done in runs.items()}
    record = {
        "pairs": pairs,
        "device": metrics[OURS]["device"],
        "versions": metrics[OURS]["versions"],
        "git_commit": metrics[OURS]["git_commit"],
        "warm_up": warm_up,
        "runs": runs,
        "ratios": {
            key: paired_ratios([run[key] for run in runs[ANOMALIB]], [run[key] for run in runs[OURS]])
            for key in ("wall_seconds", "cpu_seconds", "peak_bytes", "checkpoint_bytes")
        },
    }
    write_report(output, "train", record, _train_report(record))


def _our_command(folder: Path) -> list[str]:
    lightning, results = folder / "lightning", folder / "results"
    return [
        sys.executable, "scripts/train.py", "--config", str(OUR_CONFIG), "--results", str(results),
        "--default_root_dir", str(lightning),
    ]  # fmt: skip


def _anomalib_command() -> Callable[[Path], list[str]]:
    """Return what makes the stock command: the CLI beside this Python, with data and weights where ours finds them."""
    # In a process of its own: finding weights loads torch and timm, and this process must stay small.
    finder = f"from padim_bottle.model.backbone import locate_weights; print(locate_weights({BACKBONE!r})[0])"
    found = subprocess.run([sys.executable, "-c", finder], capture_output=True, text=True)
    if found.returncode:
        raise UserError(found.stderr.strip().splitlines()[-1])
    options = ["--model.init_args.backbone", found.stdout.strip()]
    if os.environ.get("MVTEC_AD_ROOT"):
        options += ["--data.init_args.root", os.environ["MVTEC_AD_ROOT"]]
    program = [str(Path(sys.executable).with_name("anomalib")), "train", "--config", str(ANOMALIB_CONFIG), *options]

    def command(folder: Path) -> list[str]:
        # A key of a list is that of its last item: the config's one callback is ResultsWriter.
        root = ["--trainer.callbacks.init_args.root", str(folder / "results")]
        return [*program, "--default_root_dir", str(folder / "lightning"), *root]

    return command


def _train_report(record: dict[str, Any]) -> str:
    def values(key: str, scale: float = 1.0) -> dict[str, list[float]]:
        return {contender: [run[key] * scale for run in runs] for contender, runs in record["runs"].items()}

    table = comparison_table(
        {
            "wall time": (values("wall_seconds"), "s"),
            "CPU time": (values("cpu_seconds"), "s"),
            "peak memory, largest process": (values("peak_bytes", 1e-6), "MB"),
            "checkpoint": (values("checkpoint_bytes", 1e-6), "MB"),
        },
        ANOMALIB,
    )
    figures = markdown_table(
        ["", *FIGURES],
        [
            [contender, *(f"{statistics.median([run[name] for run in runs]):.4f}" for name in FIGURES)]
            for contender, runs in record["runs"].items()
        ],
    )
    tree = ", ".join(
        f"{contender} {run['tree_peak_bytes'] / 1e6:.0f} MB"
        for contender, run in record["warm_up"].items()
        if run["tree_peak_bytes"]
    )
    device, versions = record["device"], record["versions"]
    return "\n\n".join(
        [
            "# Train and test: stock anomalib and this package",
            f"Whole processes, in turn, {record['pairs']} pairs after an uncounted run of each. "
            f"{device['name']}, {device['threads']} threads, anomalib {versions['anomalib']}, "
            f"torch {versions['torch']}.",
            table,
            f"Peak of all processes together (proportional set size, one run each): {tree or 'not sampled'}.",
            "What they reach (medians of the same runs; anomalib's channels differ from run to run, its CLI has no "
            "seed, and its F1Score uses a threshold tuned on the test set):",
            figures,
        ]
    )


def benchmark_command(arguments: Sequence[str] | None = None) -> int:
    """Run ``scripts/benchmark.py``.

    Args:
        arguments: the command line; that of the process if not given.

    Returns:
        The exit code: 0, 2 for an error that the user can mend, 130 when interrupted.
    """
    options = _parser().parse_args(arguments)
    # What it measures runs in sessions of their own, and would outlive it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return run_command(lambda: options.run(options) or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmark.py", description="Time and memory, ours and anomalib's.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, summary: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument(
            "--output", type=Path, default=Path("results/benchmark"), help="folder of the results (%(default)s)"
        )
        command.set_defaults(run=run)
        return command

    train = add("train", "whole runs: stock anomalib and ours, in turn", lambda o: train_benchmark(o.pairs, o.output))
    train.add_argument("--pairs", type=positive, default=3, help="counted runs of each (%(default)s)")

    fit_alone = add(
        "statistics", "the fit of the statistics alone", lambda o: statistics_benchmark(o.repeats, o.output)
    )
    fit_alone.add_argument("--repeats", type=positive, default=5, help="fits of each (%(default)s)")

    add("profile", "where the time of one run goes", lambda o: _profile(o.output))

    scaling = add(
        "scaling", "growth with the number of training images", lambda o: scaling_benchmark(o.images, o.output)
    )
    scaling.add_argument(
        "--images", type=positive, nargs="+", default=[50, 100, 209, 500, 1000], help="numbers of images"
    )

    predict = add(
        "predict",
        "latency of predictions: stock anomalib, and ours in torch, ONNX Runtime and OpenVINO, in turn",
        lambda o: predict_benchmark(o.model, o.images, o.batches, o.passes, o.warm_up, o.threads, o.output),
    )
    predict.add_argument("--model", type=Path, required=True, help="a run's folder, or its model.ckpt")
    predict.add_argument("--images", type=Path, help="a folder of photos (default: the run's test images)")
    predict.add_argument("--batches", type=positive, nargs="+", default=[1, 8, 32], help="photos a pass")
    predict.add_argument("--passes", type=positive, default=100, help="timed passes of each (%(default)s)")
    predict.add_argument("--warm-up", type=positive, default=10, help="passes before those (%(default)s)")
    cores = os.cpu_count() or 1
    predict.add_argument("--threads", type=positive, default=cores, help="of the CPU, each (%(default)s)")
    return parser


def _profile(output: Path) -> None:
    from profiling import profile

    profile(_our_command, output)


if __name__ == "__main__":
    raise SystemExit(benchmark_command())
