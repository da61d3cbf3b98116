"""One photo at a time, from pixels to map and verdict: anomalib in torch, ours in every runtime and precision."""

import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contender import Contender
from record import ANOMALIB, new_benchmark_parser, print_rows, ratio, write_record

from padim_bottle.commands.arguments import positive
from padim_bottle.errors import UserError, run_command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ANOMALIB_TORCH = f"{ANOMALIB}, torch"
# Where the exported copy of a runtime lies.
EXPORTS = {
    "ONNX Runtime": "onnx",
    "OpenVINO": "openvino",
    "OpenVINO, bfloat16": "openvino_bfloat16",
    "OpenVINO, int8": "openvino_int8",
}
WARM_UP = 10
# Different photos to take in turn, at the most.
PHOTOS = 32


def make(contender: str, model: Path, photos: Sequence[Path]) -> Callable[[int], None]:
    """Return what predicts the n-th photo with a contender; see ``Contender``."""
    from padim_bottle.data.images import read_image

    decoded = [read_image(photo) for photo in photos]
    predict = load(contender, model)

    def predict_in_turn(n: int) -> None:
        predict(decoded[n % len(decoded)])

    return predict_in_turn


def load(contender: str, model: Path) -> Callable[["NDArray[np.uint8]"], Any]:
    """Return what predicts one photo (h, w, 3), RGB uint8, to arrays in memory."""
    if contender == ANOMALIB_TORCH:
        return load_anomalib(model)

    from padim_bottle.predict.predictor import load_predictor

    predictor = load_predictor(model)
    return lambda photo: predictor.predict([photo])


def load_anomalib(run: Path) -> Callable[["NDArray[np.uint8]"], Any]:
    """Return anomalib's own Padim with the channels and Gaussians of a run of ours, called as it calls itself.

    Photos are prepared as by ``anomalib.deploy.TorchInferencer``, which resizes without antialiasing: less work than
    in training, and than ours.
    """
    import torch
    from anomalib.models import Padim
    from torchvision.transforms.v2.functional import to_dtype, to_image

    from padim_bottle.predict.checkpoint import load_padim

    ours = load_padim(run / "model.ckpt")
    network = ours.model
    model = Padim(
        network.backbone, list(network.layers), pre_trained=False, n_features=len(network.idx),
        pre_processor=Padim.configure_pre_processor(ours.input_size), evaluator=False, visualizer=False,
    )  # fmt: skip
    model.model.load_state_dict(anomalib_state_dict(network), strict=False)
    # Thresholds, so that it normalises and judges; their values cost nothing.
    for name in ("image", "pixel"):
        getattr(model.post_processor, f"_{name}_threshold").fill_(10.0)
        getattr(model.post_processor, f"{name}_min").fill_(0.0)
        getattr(model.post_processor, f"{name}_max").fill_(20.0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.eval().to(device)

    def predict(photo: "NDArray[np.uint8]") -> list[Any]:
        with torch.inference_mode():
            outputs = model(to_dtype(to_image(photo), torch.float32, scale=True)[None].to(device))
            return [value.cpu().numpy() for value in outputs if value is not None]

    return predict


def anomalib_state_dict(network: Any) -> dict[str, Any]:
    """Return the state dict of anomalib's ``PadimModel`` with a one-grid network's channels, means and covariances."""
    state = {f"feature_extractor.{k}": v for k, v in timm_state_dict(network.feature_extractor).items()}
    state["idx"] = network.idx
    state["gaussian.mean"] = network.gaussian.mean.T.contiguous()
    state["gaussian.inv_covariance"] = network.gaussian.inv_covariance
    return state


def timm_state_dict(backbone: Any) -> dict[str, Any]:
    """Return the state dict of timm's network, with neutral batch norms where ours has folded them."""
    state = dict(backbone.state_dict())
    for convolution, norm, epsilon in getattr(backbone, "folded", ()):
        bias = state.pop(f"feature_extractor.{convolution}.bias")
        neutral = {
            "weight": bias * 0 + 1,
            "bias": bias,
            "running_mean": bias * 0,
            "running_var": bias * 0 + 1 - epsilon,
        }
        state |= {f"feature_extractor.{norm}.{name}": value for name, value in neutral.items()}
    return state


def export_copies(run: Path, folder: Path) -> None:
    """Export a run's model to ONNX, and to OpenVINO in every precision."""
    from padim_bottle.console import quiet
    from padim_bottle.export.formats import export
    from padim_bottle.export.proof import find_training_photos

    quiet()
    export(run / "model.ckpt", ["onnx"], folder)
    for precision in ("float32", "bfloat16", "int8"):
        export(run / "model.ckpt", ["openvino"], folder, precision, find_training_photos(run))


def time_stages(contender: str, run: Path, photos: Sequence[Path], passes: int) -> dict[str, float]:
    """Return the median milliseconds of the stages of a prediction in torch, whose modules are watched."""
    from anomalib.models.components.feature_extractors import TimmFeatureExtractor
    from anomalib.models.image.padim.torch_model import PadimModel
    from anomalib.post_processing import PostProcessor
    from torch.nn.modules import module as torch_modules

    from padim_bottle.data.images import read_image
    from padim_bottle.model.extractor import FrozenBackbone

    backbones = (TimmFeatureExtractor, FrozenBackbone)
    watched = {"network": PadimModel, "backbone": backbones, "thresholds": PostProcessor}
    started: dict[str, float] = {}
    taken: dict[str, list[float]] = defaultdict(list)

    def before(module: Any, *_: Any) -> None:
        for stage, kind in watched.items():
            if isinstance(module, kind):
                started[stage] = time.perf_counter()

    def after(module: Any, *_: Any) -> None:
        for stage, kind in watched.items():
            if isinstance(module, kind):
                taken[stage].append(1e3 * (time.perf_counter() - started[stage]))

    predict = load(contender, run)
    hooks = (torch_modules.register_module_forward_pre_hook(before), torch_modules.register_module_forward_hook(after))
    for n in range(passes + WARM_UP):
        started["decode"] = time.perf_counter()
        photo = read_image(photos[n % len(photos)])
        started["predict"] = time.perf_counter()
        predict(photo)
        end = time.perf_counter()
        taken["decode"].append(1e3 * (started["predict"] - started["decode"]))
        taken["predict"].append(1e3 * (end - started["predict"]))
    for hook in hooks:
        hook.remove()
    total, network, backbone, thresholds, decode = (
        statistics.median(taken[stage][WARM_UP:])
        for stage in ("predict", "network", "backbone", "thresholds", "decode")
    )
    return {
        "decoding (not counted above)": decode,
        "resizing, copies": total - network - thresholds,
        "backbone": backbone,
        "embedding, distances, map": network - backbone,
        "thresholds": thresholds,
    }


def main(runs: Sequence[Path], photos: Sequence[Path], passes: int, output: Path) -> int:
    """Measure, print and record."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        places = {ANOMALIB_TORCH: runs[0]}
        # Not in this process: what it loads would work beside the contenders.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            for run in runs:
                copies = Path(folder, run.parent.name)
                pool.submit(export_copies, run, copies).result()
                places[f"{run.parent.name}, torch"] = run
                places |= {f"{run.parent.name}, {runtime}": copies / name for runtime, name in EXPORTS.items()}
        contenders = {name: Contender(make, name, place, photos) for name, place in places.items()}
        milliseconds: dict[str, list[float]] = {name: [] for name in contenders}
        for n in range(passes + WARM_UP):
            for name, contender in contenders.items():
                milliseconds[name].append(1e3 * contender(n)[0])
        for contender in contenders.values():
            contender.close()
    stages = {}
    for name in (name for name in places if name.endswith(", torch")):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            stages[name] = pool.submit(time_stages, name, places[name], photos, passes).result()
    record = {"milliseconds": {name: values[WARM_UP:] for name, values in milliseconds.items()}, "stages": stages}
    print_rows(f"One photo, {passes} passes each in turn: median (95 % below)", rows(record))
    print_rows("Where the milliseconds go: medians", stage_rows(record), ["", *stages])
    write_record(output, "predict", record)
    return 0


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return a row a model and runtime, see ``HEADER``."""
    milliseconds = record["milliseconds"]
    theirs = milliseconds[ANOMALIB_TORCH]
    return [
        [f"one photo: {name}", cell(theirs), cell(ours), ratio(theirs, ours)]
        for name, ours in milliseconds.items()
        if name != ANOMALIB_TORCH
    ]


def brief_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the first model, and of the others the fastest."""
    milliseconds = record["milliseconds"]
    models: dict[str, list[str]] = {}
    for name in milliseconds:
        models.setdefault(name.partition(",")[0], []).append(name)
    first, *others = (names for model, names in models.items() if model != ANOMALIB)
    fastest = [min(names, key=lambda name: statistics.median(milliseconds[name])) for names in others]
    chosen = {name: milliseconds[name] for name in (ANOMALIB_TORCH, *first, *fastest)}
    return rows({"milliseconds": chosen})


def cell(milliseconds: Sequence[float]) -> str:
    """Return the median and the 95th percentile: the smallest value that 95 % do not exceed."""
    p95 = sorted(milliseconds)[-(-95 * len(milliseconds) // 100) - 1]
    return f"{statistics.median(milliseconds):.1f} ms (95 %: {p95:.1f})"


def stage_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return a row a stage: milliseconds of anomalib's and of ours in torch."""
    stages = record["stages"]
    return [[stage, *(f"{times[stage]:.1f}" for times in stages.values())] for stage in stages[ANOMALIB_TORCH]]


def check(runs: Sequence[Path], images: Path) -> list[Path]:
    """Return some of a folder's photos, of all its subfolders.

    Raises:
        UserError: there are none, or no model.
    """
    for run in runs:
        if not (run / "model.ckpt").is_file():
            raise UserError(f"There is no {run}/model.ckpt: make run writes one, or name another run with --model.")
    photos = sorted(images.rglob("*.png"))
    if not photos:
        raise UserError(f"There is no .png below {images}: name another folder with --images.")
    return photos[:: max(1, len(photos) // PHOTOS)][:PHOTOS]


if __name__ == "__main__":
    parser = new_benchmark_parser(__doc__)
    parser.add_argument(
        "--model",
        nargs="+",
        type=Path,
        default=[Path("results/padim_resnet18/seed_42")],
        help="folders of runs; anomalib's is made of the first one (default: results/padim_resnet18/seed_42)",
    )
    photos = Path(os.environ.get("MVTEC_AD_ROOT") or "datasets/MVTecAD") / "bottle" / "test"
    parser.add_argument("--images", type=Path, default=photos, help="photos, .png (default: %(default)s)")
    parser.add_argument("--passes", type=positive, default=100, help="of each contender (default: %(default)s)")
    options = parser.parse_args()
    raise SystemExit(
        run_command(lambda: main(options.model, check(options.model, options.images), options.passes, options.output))
    )
