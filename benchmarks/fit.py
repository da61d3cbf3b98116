"""The fit alone: from a backbone's features to fitted Gaussians, anomalib's against ours, as the training set grows."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contender import Contender
from record import ANOMALIB, OURS, new_benchmark_parser, print_rows, ratio, spread, write_record

from padim_bottle.commands.arguments import positive
from padim_bottle.errors import run_command

if TYPE_CHECKING:
    import torch

CALIBRATED = "ours, calibrated"
CONTENDERS = (ANOMALIB, OURS, CALIBRATED)
# Of ResNet-18: channels, and the side of their grid at 256 x 256.
LAYERS = {"layer1": (64, 64), "layer2": (128, 32), "layer3": (256, 16)}
IMAGE_SIZE, FEATURES, BATCH = 256, 100, 16
# Different batches of random features, taken again and again: the time does not depend on the numbers.
BATCHES = 4


def new_model(contender: str) -> Any:
    """Return a contender's PaDiM network in training mode, without a backbone: its images are taken for features.

    All that happens behind the backbone, in training and in the fit, is the contender's own code.
    """
    import torch
    from anomalib.models.image.padim.torch_model import PadimModel as AnomalibPadimModel

    from padim_bottle.model.network import PadimModel

    class GivenFeatures(torch.nn.Module):
        given: dict[str, torch.Tensor]

        def forward(self, _: torch.Tensor) -> dict[str, torch.Tensor]:
            return self.given

    network = AnomalibPadimModel if contender == ANOMALIB else PadimModel
    model = network("resnet18", [*LAYERS], pre_trained=False, n_features=FEATURES)
    model.feature_extractor = GivenFeatures()
    if contender == CALIBRATED:
        model.calibrating = True
    return model.train()


def random_features(batches: int) -> list[dict[str, "torch.Tensor"]]:
    """Return batches of features as a backbone has them: (B, C, h, w) a layer, none below 0."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [
        {
            layer: torch.randn(BATCH, channels, side, side, generator=generator)
            .relu_()
            .contiguous(memory_format=torch.channels_last)
            for layer, (channels, side) in LAYERS.items()
        }
        for _ in range(batches)
    ]


def collect(model: Any, images: int, features: Sequence[dict[str, "torch.Tensor"]]) -> None:
    """Train a ``new_model`` on so many images, up to the fit."""
    import torch

    for start in range(0, images, BATCH):
        count = min(BATCH, images - start)
        model.feature_extractor.given = {
            layer: batch[:count] for layer, batch in features[start // BATCH % len(features)].items()
        }
        # Only their size matters.
        model(torch.empty(count, 3, IMAGE_SIZE, IMAGE_SIZE, device="meta"))


def fit(model: Any, images: int, features: Sequence[dict[str, "torch.Tensor"]]) -> None:
    """Train a ``new_model`` on so many images and fit it."""
    collect(model, images, features)
    if getattr(model, "calibrating", False):
        model.fit_and_calibrate(pixel_quantile=0.9995)
    else:
        model.fit()


def make(contender: str) -> Callable[[int], float]:
    """Return what fits a contender to a number of images, and returns the seconds; see ``Contender``."""
    features = random_features(BATCHES)

    def fit_once(images: int) -> float:
        model = new_model(contender)
        start = time.perf_counter()
        fit(model, images, features)
        return time.perf_counter() - start

    return fit_once


def main(images: Sequence[int], repeats: int, output: Path) -> int:
    """Measure, print and record."""
    contenders = {name: Contender(make, name) for name in CONTENDERS}
    seconds: dict[str, dict[str, list[float]]] = {name: {str(count): [] for count in images} for name in CONTENDERS}
    memory: dict[str, dict[str, int]] = {name: {} for name in CONTENDERS}
    # From few images to many: the peak memory of a process never falls.
    for count in sorted(images):
        for _ in range(repeats):
            for name, contender in contenders.items():
                taken, memory[name][str(count)] = contender(count)
                seconds[name][str(count)].append(taken)
    for contender in contenders.values():
        contender.close()
    record = {"images": [*images], "seconds": seconds, "bytes": memory}
    title = f"Features of {IMAGE_SIZE} x {IMAGE_SIZE} images to Gaussians, {repeats} fits each in turn: median (range)"
    print_rows(title, rows(record, OURS) + rows(record, CALIBRATED))
    write_record(output, "fit", record)
    return 0


def rows(record: Mapping[str, Any], contender: str = CALIBRATED) -> list[list[str]]:
    """Return two rows a number of images, see ``HEADER``."""
    table = []
    calibrated = ", here with calibration" if contender == CALIBRATED else ""
    for count in map(str, record["images"]):
        seconds = [record["seconds"][name][count] for name in (ANOMALIB, contender)]
        memory = [[record["bytes"][name][count]] for name in (ANOMALIB, contender)]
        table += [
            [f"fit of {count} images{calibrated}", *(spread(v, "s", digits=2) for v in seconds), ratio(*seconds)],
            ["its memory", *(spread(v, "GB", 1e-9, 2) for v in memory), ratio(*memory)],
        ]
    return table


if __name__ == "__main__":
    parser = new_benchmark_parser(__doc__)
    parser.add_argument("--images", type=positive, nargs="+", default=[50, 209, 1000], help="(default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=3, help="fits of each (default: %(default)s)")
    options = parser.parse_args()
    raise SystemExit(run_command(lambda: main(options.images, options.repeats, options.output)))
