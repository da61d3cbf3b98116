"""Whole runs of one experiment on two devices, and how far their results are apart."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from padim_bottle.experiment.train import build, run

# Of metrics, absolutely; of scores and anomaly maps, relative to the largest of them.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class ObservedRun:
    """What one run said.

    Attributes:
        metrics: of ``metrics.json``; ``seconds`` has the time of the model's fit as well.
        scores: (N,) raw image scores.
        anomalous: (N,) bool, the verdicts.
        anomaly_maps: (N, H, W) raw.
    """

    metrics: dict[str, Any]
    scores: np.ndarray
    anomalous: np.ndarray
    anomaly_maps: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """How far a run is from the one on the CPU.

    Attributes:
        metrics: absolute difference of each metric that both have, per defect type too.
        scores: largest difference of two image scores, divided by the largest score.
        maps: largest difference of two pixels of the anomaly maps, divided by the largest pixel.
        verdicts: number of images that one run calls good and the other does not.
        missing: metrics that only one of the runs has.
    """

    metrics: dict[str, float]
    scores: float
    maps: float
    verdicts: int
    missing: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether everything lies within the tolerance."""
        differences = (*self.metrics.values(), self.scores, self.maps)
        # Not by max(): NaN would slip through.
        return not self.missing and all(difference <= TOLERANCE for difference in differences)


@dataclass(frozen=True)
class GpuCheck:
    """All runs of a check: ``precise`` is held against ``reference``; ``usual`` and ``anomalib`` are timed."""

    precise: ObservedRun
    usual: ObservedRun
    reference: ObservedRun
    anomalib: ObservedRun

    @property
    def agreement(self) -> Agreement:
        """Of the run without TF32 with the CPU."""
        return compare(self.precise, self.reference)


def check_device(
    config: Path,
    control: Path,
    seed: int,
    workplace: Path,
    overrides: Sequence[str] = (),
    *,
    accelerator: str = "gpu",
    progress: Callable[[str], None] = lambda _: None,
) -> GpuCheck:
    """Run the experiment on a device and on the CPU, and anomalib's on the device.

    Args:
        config: the experiment.
        control: anomalib's own.
        seed: of all runs.
        workplace: an existing folder for results that nobody keeps.
        overrides: of the experiment, in the stock CLI's spelling.
        accelerator: Lightning's name of the device; ``cpu`` compares the CPU with itself.
        progress: is told what comes next.

    Raises:
        UserError: as ``scripts/train.py``.
    """

    def run(name: str, what: Path, changes: Sequence[str], device: str) -> ObservedRun:
        progress(f"{name} ...")
        return observe(what, changes, seed, workplace / name.replace(" ", "_"), device)

    with full_precision():
        precise = run("GPU without TF32", config, overrides, accelerator)
    return GpuCheck(
        precise=precise,
        usual=run("GPU", config, overrides, accelerator),
        anomalib=run("anomalib on the GPU", control, (), accelerator),
        reference=run("CPU", config, overrides, "cpu"),
    )


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 convolutions and matrix products in float32, as the CPU does, and not in TF32."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def observe(config: Path, overrides: Sequence[str], seed: int, folder: Path, accelerator: str) -> ObservedRun:
    """Train and test one experiment, and keep what it said.

    Args:
        config: the experiment, ours or anomalib's.
        overrides: in the stock CLI's spelling.
        seed: of the run.
        folder: for its results.
        accelerator: Lightning's name of the device.

    Raises:
        UserError: as ``scripts/train.py``.
    """
    device = ["--trainer.accelerator", accelerator, "--trainer.devices", "1"]
    experiment = build(config, [*overrides, *device], seed, results=folder, quiet=True, workplace=folder / "lightning")
    writer = experiment.results_writer
    writer.report = False  # the same work on the CPU for every run
    maps: list[np.ndarray] = []

    def keep_maps(network: torch.nn.Module, _: Any, output: Any) -> None:
        if not network.training:
            maps.append(output.anomaly_map.float().cpu().numpy())

    experiment.model.model.register_forward_hook(keep_maps)
    fit = _Timed(experiment.model.fit)
    experiment.model.fit = fit
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    run(experiment)

    table = pd.read_csv(writer.folder / "predictions.csv")
    metrics = {**writer.metrics, "seconds": {**writer.metrics["seconds"], "fit": fit.seconds}}
    # Anomalib infers the test images twice, first as validation.
    stacked = np.concatenate(maps)[-len(table) :]
    observed = ObservedRun(
        metrics=metrics,
        scores=table["score"].to_numpy(),
        anomalous=table["predicted_label"].to_numpy(dtype=bool),
        anomaly_maps=stacked.reshape(len(table), *stacked.shape[-2:]),
    )
    # A trainer and its model refer to each other, and would keep the GPU's memory.
    del experiment
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return observed


class _Timed:
    """A function that is timed until the GPU is done with what it asked for."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self) -> None:
        self._wait()
        start = time.perf_counter()
        self.function()
        self._wait()
        self.seconds += time.perf_counter() - start

    @staticmethod
    def _wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def compare(run: ObservedRun, reference: ObservedRun) -> Agreement:
    """Return how far a run is from another of the same experiment and seed."""
    ours, theirs = comparable_metrics(run.metrics), comparable_metrics(reference.metrics)
    return Agreement(
        metrics={name: abs(ours[name] - theirs[name]) for name in ours if name in theirs},
        scores=float(np.abs(run.scores - reference.scores).max() / np.abs(reference.scores).max()),
        maps=float(np.abs(run.anomaly_maps - reference.anomaly_maps).max() / np.abs(reference.anomaly_maps).max()),
        verdicts=int((run.anomalous != reference.anomalous).sum()),
        missing=tuple(sorted(ours.keys() ^ theirs.keys())),
    )


def comparable_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of the run and of each defect type, by name; what is undefined (``None``) is left out."""
    found = {name: value for name, value in metrics.items() if isinstance(value, float)}
    for defect, figures in metrics["per_defect"].items():
        found |= {f"{defect}: {name}": value for name, value in figures.items() if isinstance(value, float)}
    return found
