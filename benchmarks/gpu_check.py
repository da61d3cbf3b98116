"""Does a GPU give the CPU's results, and how fast? Whole runs of one experiment on both, and anomalib's on the GPU.

The GPU trains twice. First without TF32, which rounds the factors of a convolution to 10 bits and is PyTorch's default
on GPUs since Ampere: this run is held against the CPU's. Then with PyTorch's defaults, as users run it: this one is
warm, so its times count. Heavy imports are inside the functions: ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from padim_bottle.commands.arguments import new_parser
from padim_bottle.console import quiet_imports
from padim_bottle.errors import UnavailableError, UserError, run_command
from padim_bottle.files import write_whole

if TYPE_CHECKING:
    from device_comparison import GpuCheck

GPU_CHECK_HELP = """\
Train and test one experiment on the GPU and on the CPU with the same seed, and compare metrics, scores and anomaly
maps; time it, and anomalib's own PaDiM, on the GPU. Exit code: 0 where they agree, 1 where they differ, 2 for an error,
such as no GPU. Further arguments are overrides of the experiment, in the spelling of scripts/train.py.

In an environment that has anomalib already: pip install --no-deps -e . && python scripts/gpu_check.py
"""

PHASES = {
    "train": "training",
    "fit": "of it fitting and calibrating",
    "validate": "of it validation (anomalib fits in it)",
    "test": "test",
    "draw": "waiting for pictures",
    "evaluate": "evaluation (CPU)",
    "total": "whole run, without imports and figures",
}


def gpu_check_command(arguments: Sequence[str] | None = None) -> int:
    """Run ``scripts/gpu_check.py``: check, print and write the table.

    Args:
        arguments: the command line; that of the process if not given.

    Returns:
        The exit code: 0 where GPU and CPU agree, 1 where they differ, 2 for an error that the user can mend.
    """
    parser = new_parser("gpu_check.py", GPU_CHECK_HELP)
    configs = Path("configs")
    for name, config, what in (
        ("--config", "padim_resnet18.yaml", "the experiment"),
        ("--control", "padim_resnet18_anomalib.yaml", "anomalib's own"),
        ("--fallback", "demo.yaml", "run this where data or weights cannot be had"),
    ):
        parser.add_argument(name, type=Path, default=configs / config, help=f"{what} (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="of all runs (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("results/gpu.md"), help="the table, Markdown (default: %(default)s)"
    )
    options, overrides = parser.parse_known_args(arguments)
    return run_command(lambda: _check(options, overrides))


def _check(options: argparse.Namespace, overrides: list[str]) -> int:
    require_cuda()
    with quiet_imports():
        from device_comparison import check_device

    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        workplace = Path(folder)
        config, control, overrides, notes = prepare(
            options.config, options.control, options.fallback, overrides, workplace
        )
        check = check_device(config, control, options.seed, workplace, overrides, progress=_say)
    text = report(check, notes)
    write_whole(options.output, text)
    print(f"\n{text}\nWritten to {options.output}")
    return 0 if check.agreement.holds else 1


def require_cuda() -> None:
    """Raise a UserError where PyTorch sees no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"No GPU to check: PyTorch {torch.__version__} sees no CUDA device on this machine.")


def prepare(
    config: Path, control: Path, fallback: Path, overrides: Sequence[str], workplace: Path
) -> tuple[Path, Path, list[str], list[str]]:
    """Find out what this machine can run: the experiment, the experiment on a changed copy of the data, or the demo.

    Args:
        config: the experiment.
        control: anomalib's own.
        fallback: the demo.
        overrides: of the experiment.
        workplace: an existing folder, for a control on the same data.

    Returns:
        The config and the control to run, overrides of the config, and sentences for the report.

    Raises:
        UserError: as ``scripts/train.py``.
    """
    notes = []
    try:
        if not _is_published(config, overrides):
            overrides = [*overrides, "--data.init_args.verify", "false"]
            notes = ["The data are not the published ones: these metrics are to be compared with no others."]
    except UnavailableError as error:
        reason = str(error).strip().splitlines()[0]
        notes = [
            "THIS IS THE DEMO: synthetic bottles, random weights. It shows that the GPU works, and nothing about the "
            f"times and metrics of the experiment, which cannot be run here. {reason}"
        ]
        # As large as anomalib's images, which its config cannot change.
        config, overrides = fallback, ["--model.init_args.image_size", "[256, 256]"]
    if overrides:
        control = _on_the_same_data(control, config, overrides, workplace)
    return config, control, list(overrides), notes


def _is_published(config: Path, overrides: Sequence[str]) -> bool:
    """Return whether the data can be used as they are; a reduced copy can, without verification."""
    from lightning.pytorch.cli import instantiate_class

    from padim_bottle.experiment.cli import ExperimentCLI

    data = instantiate_class((), ExperimentCLI(config, overrides).settings.data.as_dict())
    try:
        data.prepare_data()
    except UnavailableError:
        raise
    except UserError:
        if not getattr(data, "verify", False):
            raise
        data.verify = False
        data.prepare_data()
        return False
    return True


def _on_the_same_data(control: Path, config: Path, overrides: Sequence[str], workplace: Path) -> Path:
    """Write a control that reads the data of a config, through its data module, and has weights if that has."""
    import yaml

    from padim_bottle.experiment.cli import ExperimentCLI
    from padim_bottle.experiment.results_writer import dump_config

    parsed = ExperimentCLI(config, overrides)
    ours = yaml.safe_load(dump_config(parsed._parser("train"), parsed.settings))
    text = yaml.safe_load(control.read_text(encoding="utf-8"))
    text["data"] = ours["data"]
    text["model"]["init_args"]["pre_trained"] = ours["model"]["init_args"]["pre_trained"]
    changed = workplace / control.name
    changed.write_text(yaml.safe_dump(text), encoding="utf-8")
    return changed


def report(check: GpuCheck, notes: Sequence[str] = ()) -> str:
    """Return the check as Markdown: what ran where, whether the results agree, times and memory.

    Args:
        check: the runs.
        notes: sentences that a reader must not miss, put first.
    """
    from benchmark_report import markdown_table
    from device_comparison import TOLERANCE, comparable_metrics, compare

    usual, reference, agreement = check.usual.metrics, check.reference.metrics, check.agreement
    device, versions, data = usual["device"], usual["versions"], usual["data"]
    loose = compare(check.usual, check.reference)
    differences = [
        ["largest of a metric", *(f"{max(found.metrics.values()):.1e}" for found in (agreement, loose))],
        ["image scores, relative to the largest", *(f"{found.scores:.1e}" for found in (agreement, loose))],
        ["anomaly maps, relative to the largest pixel", *(f"{found.maps:.1e}" for found in (agreement, loose))],
        ["verdicts that differ", *(str(found.verdicts) for found in (agreement, loose))],
    ]
    columns = [comparable_metrics(run.metrics) for run in (check.reference, check.precise, check.usual, check.anomalib)]
    figures = [[name, *(_figure(column.get(name)) for column in columns)] for name in columns[0]]
    runs = (check.usual, check.anomalib, check.reference, check.precise)
    times = [[what, *(_seconds(run.metrics["seconds"].get(phase)) for run in runs)] for phase, what in PHASES.items()]
    times.append(["peak GPU memory, MB", *(_megabytes(run.metrics["peak_memory_bytes"]["gpu"]) for run in runs)])
    verdict = f"agree within {TOLERANCE:g}" if agreement.holds else f"DIFFER by more than {TOLERANCE:g}"
    if agreement.missing:
        verdict += f" (only one of them has {', '.join(agreement.missing)})"
    parts = [
        "# GPU check",
        *(f"**{note}**" for note in notes),
        f"{usual['experiment']}, seed {usual['seed']}, {data['name']} '{data['category']}': {data['train_images']} "
        f"training and {data['test_images']} test images. {device['name']}; CPU: {os.cpu_count()} cores, "
        f"{reference['device']['threads']} threads; torch {versions['torch']}, anomalib {versions['anomalib']}, "
        f"Python {versions['python']}; commit {usual['git_commit'] or 'unknown'}.",
        f"**GPU and CPU {verdict}.**",
        "## Differences from the CPU",
        markdown_table(["", "GPU without TF32", "GPU"], differences),
        "The first column is what is checked. TF32 rounds the factors of a convolution to 10 bits; it is PyTorch's "
        "default on GPUs since Ampere, hence the second column.",
        "## Times and memory",
        markdown_table(["seconds", "GPU", "anomalib, GPU", "CPU", "GPU, first run"], times),
        "The first run loads CUDA's libraries, so it is slower. Both draw a picture of every test image on the CPU, "
        "ours in threads beside the test.",
        "## Metrics",
        markdown_table(["", "CPU", "GPU without TF32", "GPU", "anomalib, GPU"], figures),
        "anomalib draws its channels in another way from the same seed, so its metrics need not equal ours.",
    ]
    return "\n\n".join(parts) + "\n"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.0f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"


def _say(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    raise SystemExit(gpu_check_command())
