"""What the fit of the statistics costs, ours and anomalib's: on the same embeddings, and as their number grows."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmark_report import ANOMALIB, BACKBONE, OURS, comparison_table, paired_ratios, write_report
from process_usage import maxrss_bytes

from padim_bottle.errors import UserError

CALIBRATED = "ours, calibrated"

# The shapes of bottle with ResNet-18 at 256 x 256.
IMAGES, FEATURES, GRID = 209, 100, 64
BATCH = 16
# Pixels a side of a position: layer1 has a quarter of the image's resolution.
STRIDE = 4


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

    from padim_bottle.model.network import PadimModel

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
    from padim_bottle.data.layout import find_files
    from padim_bottle.model.padim import Padim

    padim = Padim(BACKBONE, evaluator=False, visualizer=False).eval()
    parts = []
    with torch.inference_mode():
        for photo in find_files(root, "bottle").train:
            image = torch.from_numpy(read_image(photo.path)).permute(2, 0, 1).float().div_(255)
            features = padim.model.feature_extractor(padim.pre_processor.transform(image[None]))
            embedding = padim.model.generate_embedding(features)
            parts.append(embedding.unflatten(1, features["layer1"].shape[-2:]))
    return torch.cat(parts).clone(), "embeddings of bottle's training images"


def scaling_benchmark(images: Sequence[int], output: Path) -> None:
    """Fit each contender to growing numbers of images, each in a process of its own."""
    record: dict[str, Any] = {"images": list(images)}
    for contender in (ANOMALIB, OURS, CALIBRATED):
        points = []
        for count in images:
            code = f"from fit_benchmark import print_fit; print_fit({contender!r}, {count})"
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
