"""What a prediction costs: stock anomalib in torch, this package in torch, ONNX Runtime and OpenVINO.

Each contender lives in a process of its own, for its memory, and all of them are asked in turn, pass by pass, so that a
machine that slows down slows them all. A pass takes photos that are in memory already, as bytes, to scores, maps, masks
and verdicts in memory: preprocessing, network and postprocessing.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark_report import ANOMALIB, OURS, markdown_table, write_report
from process_usage import maxrss_bytes

from padim_bottle.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONTENDERS = (f"{ANOMALIB}, torch", f"{OURS}, torch", f"{OURS}, ONNX Runtime", f"{OURS}, OpenVINO")
BASELINE = CONTENDERS[0]

# Different photos to take in turn, at the least.
PHOTOS = 32

# Seconds before each pass: threads of the contender before may spin for a while after its pass.
PAUSE = 0.1


def predict_benchmark(
    model: Path, images: Path | None, batches: Sequence[int], passes: int, warm_up: int, threads: int, output: Path
) -> None:
    """Time all contenders on the same photos.

    Args:
        model: a run's folder, or its checkpoint; it is exported into a temporary folder.
        images: a folder of photos; the run's test images if not given.
        batches: numbers of photos a pass.
        passes: timed passes of each contender at each batch size.
        warm_up: passes before those.
        threads: of the CPU, for each contender.
        output: folder of the results.

    Raises:
        UserError: there is no model or no photo, or a contender failed.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        # Not in this process: on Linux a child's peak memory starts at its parent's size.
        _export(model, Path(folder))
        photos = _photos(model, images, max(PHOTOS, *batches))
        places = {
            CONTENDERS[0]: model,
            CONTENDERS[1]: model,
            CONTENDERS[2]: Path(folder, "onnx"),
            CONTENDERS[3]: Path(folder, "openvino"),
        }
        workers = {}
        try:
            for contender, place in places.items():
                workers[contender] = Worker(contender, place, threads, photos)
            record = _measure(workers, batches, passes, warm_up)
        finally:
            for worker in workers.values():
                worker.close()
    record = {
        "model": str(model),
        "photos": len(photos),
        "threads": threads,
        "warm_up": warm_up,
        "passes": passes,
        **record,
    }
    write_report(output, "predict", record, _report(record))
    _draw(record, output / "predict.png")


def _measure(workers: dict[str, Worker], batches: Sequence[int], passes: int, warm_up: int) -> dict[str, Any]:
    results: dict[str, dict[str, Any]] = {contender: {} for contender in workers}
    devices = {contender: worker.ask()["device"] for contender, worker in workers.items()}
    for batch in batches:
        seconds: dict[str, list[float]] = {contender: [] for contender in workers}
        for i in range(-warm_up, passes):
            for contender, worker in workers.items():
                time.sleep(PAUSE)
                taken = worker.ask(batch, i)["seconds"]
                if i >= 0:
                    seconds[contender].append(taken)
        for contender, taken in seconds.items():
            results[contender][str(batch)] = {**latency(taken, batch), "seconds": taken}
            print(f"batch {batch}, {contender}: {results[contender][str(batch)]['median_ms']:.1f} ms", flush=True)
    memory = {contender: worker.ask() for contender, worker in workers.items()}
    return {
        "devices": devices,
        "results": results,
        "peak_bytes": {contender: answer["peak_bytes"] for contender, answer in memory.items()},
        "peak_gpu_bytes": {contender: answer["peak_gpu_bytes"] for contender, answer in memory.items()},
    }


def latency(seconds: Sequence[float], batch: int) -> dict[str, float]:
    """Return median and 95th percentile of a pass in milliseconds, and photos a second at the median."""
    ordered = sorted(seconds)
    median = statistics.median(ordered)
    # The smallest value that at least 95 % do not exceed.
    p95 = ordered[-(-95 * len(ordered) // 100) - 1]
    return {"median_ms": 1e3 * median, "p95_ms": 1e3 * p95, "photos_per_second": batch / median}


class Worker:
    """A contender in a process of its own, which answers line by line."""

    def __init__(self, contender: str, place: Path, threads: int, photos: Sequence[str]) -> None:
        self.contender = contender
        code = f"from predict_benchmark import serve; serve({contender!r}, {str(place)!r}, {threads})"
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._send(photos)

    def ask(self, batch: int = 0, number: int = 0) -> dict[str, Any]:
        """Let the contender make a pass, or with no batch only tell its memory and device."""
        self._send([batch, number])
        line = self._process.stdout.readline()
        if not line:
            self._fail()
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()

    def _send(self, message: Any) -> None:
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            self._fail()

    def _fail(self) -> None:
        self._errors.seek(0)
        raise UserError(f"{self.contender} failed:\n{self._errors.read().strip()[-2000:]}")


def serve(contender: str, place: str, threads: int) -> None:
    """Be a contender: read from standard input the photos' paths, then a batch size and a number a line."""
    import resource

    from padim_bottle.console import quiet
    from padim_bottle.data.images import read_image

    quiet()
    # What libraries print goes to standard error; standard output is for answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    photos = [read_image(path) for path in json.loads(sys.stdin.readline())]
    run, device, gpu_peak = contestant(contender, Path(place), threads)
    for line in sys.stdin:
        batch, number = json.loads(line)
        start = (max(number, 0) * batch) % len(photos)
        images = [photos[(start + i) % len(photos)] for i in range(batch)]
        began = time.perf_counter()
        if images:
            run(images)
        answer = {
            "seconds": time.perf_counter() - began,
            "device": device,
            "peak_bytes": maxrss_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss),
            "peak_gpu_bytes": gpu_peak(),
        }
        print(json.dumps(answer), file=answers, flush=True)


def contestant(
    contender: str, place: Path, threads: int
) -> tuple[Callable[[list[NDArray[np.uint8]]], Any], str, Callable[[], int | None]]:
    """Return what predicts photos to arrays in memory, its device, and what tells its peak of GPU memory."""
    if contender in CONTENDERS[2:]:
        from padim_bottle.deploy.predictor import load_predictor

        return load_predictor(place, threads=threads).predict, "cpu", lambda: None

    import torch

    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "cpu"
    if contender == BASELINE:
        run = stock(place, "cuda" if cuda else "cpu")
    else:
        from padim_bottle.deploy.predictor import load_predictor

        run = load_predictor(place, threads=threads).predict
    return run, device, lambda: torch.cuda.max_memory_allocated() if cuda else None


def stock(place: Path, device: str) -> Callable[[list[NDArray[np.uint8]]], Any]:
    """Return anomalib's own Padim with the channels, Gaussians and settings of a checkpoint, run as it runs itself.

    Photos are prepared and judged as ``anomalib.deploy.TorchInferencer.predict`` does, which resizes without
    antialiasing: less work than in training.

    Raises:
        UserError: anomalib's class cannot hold the model, see ``PadimModel.anomalib_state_dict``.
    """
    import torch
    from anomalib.models import Padim
    from torchvision.transforms.v2.functional import to_dtype, to_image

    from padim_bottle.deploy.checkpoint import load_padim

    ours = load_padim(place / "model.ckpt" if place.is_dir() else place)
    model = Padim(
        backbone=ours.model.backbone,
        layers=list(ours.model.layers),
        pre_trained=False,
        n_features=ours.model.n_features,
        pre_processor=Padim.configure_pre_processor(ours.input_size),
        evaluator=False,
        visualizer=False,
    )
    model.model.load_state_dict(ours.model.anomalib_state_dict(), strict=False)
    thresholds = ours.post_processor
    for name in ("image", "pixel"):
        threshold = getattr(thresholds, f"{name}_threshold")
        getattr(model.post_processor, f"_{name}_threshold").copy_(threshold)
        getattr(model.post_processor, f"{name}_min").copy_(0 * threshold)
        getattr(model.post_processor, f"{name}_max").copy_(2 * threshold)
    model = model.eval().to(device)
    del ours

    def run(images: list[NDArray[np.uint8]]) -> list[Any]:
        with torch.inference_mode():
            batch = torch.stack([to_dtype(to_image(image), torch.float32, scale=True) for image in images])
            outputs = model(batch.to(device))
            return [value.cpu().numpy() for value in outputs if value is not None]

    return run


def _export(model: Path, folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from padim_bottle.console import quiet; quiet(); "
        "from padim_bottle.deploy.export import find_checkpoint, export; "
        f"export(find_checkpoint(Path({str(model)!r})), ['onnx', 'openvino'], Path({str(folder)!r}))"
    )
    _run(code)


def _photos(model: Path, images: Path | None, count: int) -> list[str]:
    code = (
        "import json; from pathlib import Path; from padim_bottle.deploy.export import find_checkpoint; "
        "from padim_bottle.deploy.proof import find_proof_photos; "
        f"run = find_checkpoint(Path({str(model)!r})).parent; "
        f"images = {None if images is None else str(images)!r}; "
        "photos = find_proof_photos(run, images and Path(images)).paths; "
        "print(json.dumps([str(photo.absolute()) for photo in photos]))"
    )
    photos = json.loads(_run(code).splitlines()[-1])
    # Spread over all kinds; not more than a pass needs.
    return photos[:: max(1, len(photos) // count)][:count]


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(lines[-1].removeprefix("padim_bottle.errors.UserError: "))
    return done.stdout


def _report(record: dict[str, Any]) -> str:
    rows = []
    for batch in next(iter(record["results"].values())):
        for contender, results in record["results"].items():
            own, base = results[batch], record["results"][BASELINE][batch]
            ratio = "" if contender == BASELINE else f"{own['photos_per_second'] / base['photos_per_second']:.2f}x"
            cells = [f"{own['median_ms']:.1f}", f"{own['p95_ms']:.1f}", f"{own['photos_per_second']:.1f}", ratio]
            rows.append([batch, contender, *cells])
    table = markdown_table(
        ["batch", "", "median, ms", "95 %, ms", "photos a second", f"times {BASELINE}"],
        rows,
    )
    memory = markdown_table(
        ["", "device", "peak memory, MB", "of the GPU, MB"],
        [
            [
                contender,
                record["devices"][contender],
                f"{record['peak_bytes'][contender] / 1e6:.0f}",
                "" if gpu is None else f"{gpu / 1e6:.0f}",
            ]
            for contender, gpu in record["peak_gpu_bytes"].items()
        ],
    )
    return "\n\n".join(
        [
            "# Prediction: stock anomalib and this package",
            f"Photos in memory to scores, maps, masks and verdicts in memory: preprocessing, network, postprocessing. "
            f"{record['photos']} photos, {record['threads']} threads, {record['passes']} passes after "
            f"{record['warm_up']} uncounted ones, all contenders in turn. Each runs in a process of its own.",
            table,
            memory,
            "Anomalib is timed as its TorchInferencer predicts, without antialiasing; ours resize with it, as both "
            "packages do in training.",
        ]
    )


def _draw(record: dict[str, Any], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for contender, results in record["results"].items():
        batches = [int(batch) for batch in results]
        panels[0].plot(batches, [result["median_ms"] for result in results.values()], "o-", label=contender)
        panels[1].plot(batches, [result["photos_per_second"] for result in results.values()], "o-", label=contender)
    for panel, title in zip(panels, ("median latency of a pass, ms", "photos a second"), strict=True):
        panel.set(title=title, xlabel="photos a pass", ylim=(0, None), xscale="log")
        panel.set_xticks(batches, [str(batch) for batch in batches])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.suptitle(f"Prediction, {record['threads']} threads")
    figure.savefig(file, dpi=150)
