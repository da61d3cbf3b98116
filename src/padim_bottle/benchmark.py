"""What this package costs and what anomalib costs: whole runs, the fit alone, where a run's time goes, growth with N.

Two implementations are always measured in turn (A B A B ...), so that a machine that slows down slows both, and
compared pair by pair. Nothing heavy is imported at the top: on Linux a child's ``ru_maxrss`` starts at the size of
the process that starts it, so what measures must stay smaller than what is measured.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from padim_bottle.errors import UserError

OURS, ANOMALIB, CALIBRATED = "ours", "anomalib", "ours, calibrated"

OUR_CONFIG = Path("configs/padim_resnet18.yaml")
ANOMALIB_CONFIG = Path("configs/padim_resnet18_anomalib.yaml")
BACKBONE = "resnet18.tv_in1k"

FIGURES = ("image_AUROC", "image_F1Max", "image_F1Score", "pixel_AUROC", "pixel_AUPRO")

# The shapes of bottle with ResNet-18 at 256 x 256.
IMAGES, FEATURES, GRID = 209, 100, 64
BATCH = 16
# Pixels a side of a position: layer1 has a quarter of the image's resolution.
STRIDE = 4


@dataclass(frozen=True)
class Usage:
    """What a process used, the processes it waited for included.

    Attributes:
        wall_seconds: from start to exit.
        cpu_seconds: user and system time.
        peak_bytes: largest resident memory of any one of its processes.
        tree_peak_bytes: largest proportional set size of all its processes together, if sampled.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    tree_peak_bytes: int | None = None


# --- Measuring ---


def measure(command: Sequence[str], *, sample_tree: bool = False) -> Usage:
    """Run a command and measure it.

    Args:
        command: program and arguments.
        sample_tree: also sample the memory of the process and its descendants, where ``/proc`` tells it. This reads
            page tables, so do not ask for it in a run whose time counts.

    Raises:
        UserError: the command failed, with the end of its output, or the platform cannot tell.
    """
    if not hasattr(os, "wait4"):
        raise UserError("Benchmarks need os.wait4, which Windows lacks: run them on Linux or macOS.")
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            with _TreeSampler(process.pid) if sample_tree else contextlib.nullcontext() as sampler:
                _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        wall = time.perf_counter() - start
        # Popen did not see the process end, and would warn of one that is still running.
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            tail = "\n".join(output.read().decode(errors="replace").splitlines()[-30:])
            raise UserError(f"{' '.join(command)}\nfailed with exit code {process.returncode}:\n{tail}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, maxrss_bytes(usage.ru_maxrss), sampler and sampler.peak)


def maxrss_bytes(maxrss: int) -> int:
    """Return ``ru_maxrss`` in bytes: Linux counts kilobytes."""
    return maxrss if sys.platform == "darwin" else maxrss * 1024


class _TreeSampler:
    """Samples the proportional set size of a session's processes five times a second."""

    def __init__(self, session: int) -> None:
        self.session = session
        self.peak: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "_TreeSampler":
        if Path("/proc/self/smaps_rollup").exists():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.2):
            self.peak = max(self.peak or 0, sum(map(_proportional_bytes, _session_members(self.session))))


def _session_members(session: int) -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # After the name, which may hold anything: state, parent, group, session.
            if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                yield process


def _proportional_bytes(process: Path) -> int:
    # A process may be gone by now.
    with contextlib.suppress(OSError):
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


# --- Numbers and tables ---


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Return the spread of the ratios of values that were measured side by side."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay cells out as a Markdown table that also reads well as plain text; all columns but the first align right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in cells]
    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def comparison_table(quantities: dict[str, tuple[dict[str, Sequence[float]], str]], baseline: str) -> str:
    """Lay out, for each quantity and contender, the spread and the baseline's ratio to it pair by pair.

    Args:
        quantities: name to (contender to values, unit).
        baseline: the contender that the others are compared with.
    """
    rows = []
    for quantity, (contenders, unit) in quantities.items():
        for contender, values in contenders.items():
            ratio = "" if contender == baseline else _show(paired_ratios(contenders[baseline], values), ".2f", "x")
            rows.append([quantity, contender, *(f"{v:.2f} {unit}" for v in spread(values).values()), ratio])
    return markdown_table(["", "", "median", "min", "max", f"{baseline} / this, pair by pair (min to max)"], rows)


def _show(values: dict[str, float], form: str, unit: str) -> str:
    return f"{values['median']:{form}}{unit} ({values['min']:{form}} to {values['max']:{form}})"


def write_report(folder: Path, name: str, record: dict[str, Any], text: str | None = None) -> None:
    """Write ``<name>.json`` and, with a text, ``<name>.md``, and print the text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    if text is not None:
        (folder / f"{name}.md").write_text(text + "\n")
        print(f"\n{text}\n")
    print(f"Written to {folder / name}.*")


# --- train: whole processes ---


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
    finder = f"from padim_bottle.backbone import locate_weights; print(locate_weights({BACKBONE!r})[0])"
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


# --- statistics: the fit alone ---


def statistics_benchmark(repeats: int, output: Path) -> None:
    """Fit both implementations to the same embeddings, in one process, in turn."""
    embeddings, source = training_embeddings()
    record = {"embeddings": source, **compare_fits(embeddings, repeats)}
    text = "\n\n".join(
        [
            "# The fit of the statistics alone",
            f"{source}, {tuple(embeddings.shape)}, {repeats} repeats in turn.",
            comparison_table({"fit": (record["seconds"], "s")}, ANOMALIB),
            "Largest difference of the results, relative to the largest entry of the same matrix: "
            f"mean {record['difference']['mean']:.1e}, inverse covariance "
            f"{record['difference']['inverse_covariance']:.1e}.",
        ]
    )
    write_report(output, "statistics", record, text)


def compare_fits(embeddings: Any, repeats: int) -> dict[str, Any]:
    """Time the fits of all contenders to the same embeddings, and compare the results.

    Args:
        embeddings: tensor (N, h, w, d).
        repeats: timings of each contender.

    Returns:
        ``seconds`` of each contender, ``ratios`` to anomalib's pair by pair, and ``difference``: the largest
        difference between anomalib's and our mean and inverse covariance, relative to the largest entry.
    """
    import torch

    grid = tuple(embeddings.shape[1:3])
    batches = {
        ANOMALIB: [batch.permute(0, 3, 1, 2).contiguous() for batch in embeddings.split(BATCH)],
        OURS: [batch.flatten(1, 2) for batch in embeddings.split(BATCH)],
    }
    batches[CALIBRATED] = batches[OURS]
    seconds: dict[str, list[float]] = {contender: [] for contender in (ANOMALIB, OURS, CALIBRATED)}
    fitted = {}
    for _ in range(repeats):
        for contender, timings in seconds.items():
            fitted[contender] = fitter(contender, embeddings.shape[-1], grid)
            timings.append(fit(fitted[contender], batches[contender]))

    def difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
        """Of (P, ...) arrays, at the worst position."""
        return ((ours - reference).abs().flatten(1).amax(1) / reference.abs().flatten(1).amax(1)).max().item()

    ours, reference = fitted[OURS].gaussian, fitted[ANOMALIB].gaussian
    return {
        "shape": list(embeddings.shape),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "ratios": {name: paired_ratios(seconds[ANOMALIB], seconds[name]) for name in (OURS, CALIBRATED)},
        "difference": {
            "mean": difference(ours.mean, reference.mean.T),
            "inverse_covariance": difference(ours.inv_covariance, reference.inv_covariance),
        },
    }


def fitter(contender: str, features: int, grid: tuple[int, int]) -> Any:
    """Return a contender's PaDiM network whose backbone is out of the way: it is handed embeddings.

    All that happens to an embedding afterwards, in training and in the fit, is the contender's own code.
    """
    import torch
    from anomalib.models.image.padim.torch_model import PadimModel as AnomalibPadimModel

    from padim_bottle.torch_model import PadimModel

    class NoBackbone(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"layer1": torch.empty(len(images), 1, *grid, device="meta")}

    layers = ["layer1", "layer2", "layer3"]
    if contender == ANOMALIB:
        model = AnomalibPadimModel("resnet18", layers, pre_trained=False, n_features=features)
    else:
        model = PadimModel("resnet18", layers, pre_trained=False, n_features=features, position_calibration=True)
        model.calibrating = contender == CALIBRATED
    model.feature_extractor = NoBackbone()
    return model.train()


def fit(model: Any, batches: Iterable[Any]) -> float:
    """Train a ``fitter`` on embeddings, a batch at a time, and return the seconds that its own code took."""
    import torch

    seconds = 0.0
    for batch in batches:
        height, width = model.feature_extractor(batch)["layer1"].shape[-2:]
        # Only the shape of the images matters, for the size of the anomaly maps.
        images = torch.empty(len(batch), 3, STRIDE * height, STRIDE * width, device="meta")
        model.generate_embedding = lambda _, batch=batch: batch
        start = time.perf_counter()
        model(images)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    if getattr(model, "calibrating", False):
        model.fit_and_calibrate(pixel_quantile=0.9995)
    else:
        model.fit()
    return seconds + time.perf_counter() - start


def training_embeddings() -> tuple[Any, str]:
    """Return embeddings (N, h, w, d) of bottle's training images, else synthetic ones, and which they are."""
    import torch

    root = os.environ.get("MVTEC_AD_ROOT") or "datasets/MVTecAD"
    if not Path(root, "bottle").is_dir():
        torch.manual_seed(0)
        return torch.randn(IMAGES, GRID, GRID, FEATURES), "random numbers"

    from padim_bottle.data.images import read_image
    from padim_bottle.data.verify import find_files
    from padim_bottle.model import Padim

    padim = Padim(BACKBONE, evaluator=False, visualizer=False).eval()
    parts = []
    with torch.inference_mode():
        for path in find_files(root, "bottle").train:
            image = torch.from_numpy(read_image(path)).permute(2, 0, 1).float().div_(255)
            features = padim.model.feature_extractor(padim.pre_processor.transform(image[None]))
            embedding = padim.model.generate_embedding(features)
            parts.append(embedding.unflatten(1, features["layer1"].shape[-2:]))
    return torch.cat(parts).clone(), "embeddings of bottle's training images"


# --- scaling: growth with the number of images ---


def scaling_benchmark(images: Sequence[int], output: Path) -> None:
    """Fit each contender to growing numbers of images, each in a process of its own."""
    record: dict[str, Any] = {"images": list(images)}
    for contender in (ANOMALIB, OURS, CALIBRATED):
        points = []
        for count in images:
            code = f"from padim_bottle.benchmark import print_fit; print_fit({contender!r}, {count})"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"{contender}, {count} images failed:\n{done.stderr.strip()[-2000:]}")
            points.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{contender}, {count} images: {points[-1]['seconds']:.2f} s, "
                  f"{points[-1]['bytes'] / 1e6:.0f} MB", flush=True)  # fmt: skip
        record[contender] = {key: [point[key] for point in points] for key in ("seconds", "bytes")}
    write_report(output, "scaling", record)
    _draw_scaling(record, output / "scaling.png")


def print_fit(contender: str, images: int, features: int = FEATURES, side: int = GRID) -> None:
    """Fit one contender to random embeddings and print seconds and peak memory above import as a line of JSON."""
    import resource

    import torch

    def peak() -> int:
        return maxrss_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    def batches() -> Iterator[torch.Tensor]:
        for start in range(0, images, BATCH):
            count = min(BATCH, images - start)
            if contender == ANOMALIB:
                yield torch.randn(count, features, side, side)
            else:
                yield torch.randn(count, side * side, features)

    torch.manual_seed(0)
    model = fitter(contender, features, (side, side))
    imported = peak()
    seconds = fit(model, batches())
    print(json.dumps({"seconds": seconds, "bytes": peak() - imported}))


def _draw_scaling(record: dict[str, Any], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, (key, scale, title) in zip(
        panels, [("seconds", 1.0, "seconds"), ("bytes", 1e-9, "peak memory above import, GB")], strict=True
    ):
        for contender, style in ((ANOMALIB, "o-"), (CALIBRATED, "s-"), (OURS, "^-")):
            panel.plot(record["images"], [v * scale for v in record[contender][key]], style, label=contender)
        panel.set(title=title, xlabel="training images", ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.suptitle(f"Fit of the statistics, {GRID * GRID} positions, d = {FEATURES}")
    figure.savefig(file, dpi=150)


# --- The command line ---


def benchmark_command(arguments: Sequence[str] | None = None) -> int:
    """Run ``scripts/benchmark.py``.

    Args:
        arguments: the command line; that of the process if not given.

    Returns:
        The exit code: 0, 2 for an error that the user can mend, 130 when interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


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
    train.add_argument("--pairs", type=_positive, default=3, help="counted runs of each (%(default)s)")

    fit_alone = add(
        "statistics", "the fit of the statistics alone", lambda o: statistics_benchmark(o.repeats, o.output)
    )
    fit_alone.add_argument("--repeats", type=_positive, default=5, help="fits of each (%(default)s)")

    add("profile", "where the time of one run goes", lambda o: _profile(o.output))

    scaling = add(
        "scaling", "growth with the number of training images", lambda o: scaling_benchmark(o.images, o.output)
    )
    scaling.add_argument(
        "--images", type=_positive, nargs="+", default=[50, 100, 209, 500, 1000], help="numbers of images"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _profile(output: Path) -> None:
    from padim_bottle.profiling import profile

    profile(_our_command, output)
