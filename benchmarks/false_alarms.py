"""How often new good photos raise a false alarm: simulated ones, and real bottles in ten folds, each new once."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import new_benchmark_parser, write_record
from rich.console import Console

from padim_bottle.commands.arguments import positive
from padim_bottle.errors import run_command

if TYPE_CHECKING:
    import torch

    from padim_bottle.tables import Table

ALPHA, CONFIDENCE = 0.05, 0.95
# Of the simulation: photos of a training set, and new ones.
COUNTS, NEW = (60, 209), 2000
FOLDS = 10
CONFIGS = ("padim_resnet18", "padim_resnet18_grids", "padim_resnet18_grids_384")


def rates(scores: "torch.Tensor", calibration: "torch.Tensor") -> tuple[float, float]:
    """Return the share of new good photos that are called anomalous: at alpha, and at alpha with a confidence."""
    from padim_bottle.model.rule import Rule

    rules = (Rule.calibrated(calibration, ALPHA, confidence) for confidence in (None, CONFIDENCE))
    usual, kept = ((scores >= rule.threshold).double().mean().item() for rule in rules)
    return usual, kept


def simulated(count: int, position_calibration: bool, sets: int) -> Iterator[tuple[float, float]]:
    """Yield the rates of models of ``count`` photos each, whose features are random."""
    import torch

    from padim_bottle.model.network import PadimModel

    for seed in range(sets):
        torch.manual_seed(seed)
        model = PadimModel(
            "resnet18", ["layer1"], pre_trained=False, n_features=50, position_calibration=position_calibration
        )
        model.calibrating = True
        # Positions differ in how much they vary.
        scale = torch.rand(64, 8, 8) + 0.2
        images = torch.empty(1, 3, 32, 32).expand(count + NEW, -1, -1, -1)
        features = {"layer1": torch.randn(count + NEW, 64, 8, 8) * scale}
        model.collect({layer: feature[:count] for layer, feature in features.items()}, images[:count])
        calibration = model.fit_and_calibrate(pixel_quantile=0.9995)
        output = model.score({layer: feature[count:] for layer, feature in features.items()}, images[count:])
        yield rates(output.pred_score, calibration.scores)


def of_bottles(name: str, repeats: int) -> list[int]:
    """Return how many of all training photos of bottle raise a false alarm when each is new to a model of nine folds.

    Args:
        name: of ``CONFIGS``.
        repeats: how often the photos are dealt to the folds; each time with other seeds.
    """
    import torch

    from padim_bottle import MVTecAD
    from padim_bottle.experiment.config import ExperimentConfig
    from padim_bottle.model.rule import Rule
    from padim_bottle.tune.measure import build_model

    experiment = ExperimentConfig(Path("configs", f"{name}.yaml"))

    def model(seed: int) -> Any:
        return build_model(experiment, seed)

    data = MVTecAD(category="bottle")
    data.prepare_data()
    data.setup()
    first = model(0)
    with torch.inference_mode():
        images = torch.cat([first.pre_processor.transform(batch.image) for batch in data.train_dataloader()])
        batches = [first.model.features(batch) for batch in images.split(8)]
    features = {layer: torch.cat([batch[layer] for batch in batches]) for layer in batches[0]}
    count = len(images)

    def of(chosen: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return {layer: feature[chosen] for layer, feature in features.items()}, images[chosen]

    alarms = []
    for repeat in range(repeats):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(repeat))
        called = 0
        for fold, new in enumerate(order.tensor_split(FOLDS)):
            network = model(FOLDS * repeat + fold).model
            for chosen in order[~torch.isin(order, new)].split(16):
                network.collect(*of(chosen))
            calibration = network.fit_and_calibrate(pixel_quantile=0.9995)
            output = network.score(*of(new))
            called += int((output.pred_score >= Rule.calibrated(calibration.scores, ALPHA).threshold).sum())
        alarms.append(called)
    return alarms


def main(sets: int, repeats: int, output: Path) -> int:
    """Measure, print and record."""
    record: dict[str, Any] = {"alpha": ALPHA, "confidence": CONFIDENCE, "simulated": [], "bottle": {}}
    for count in COUNTS:
        for position_calibration in (True, False):
            usual, kept = zip(*simulated(count, position_calibration, sets), strict=True)
            record["simulated"].append(
                {"photos": count, "position_calibration": position_calibration, "rates": usual, "rates_kept": kept}
            )
    for name in CONFIGS:
        record["bottle"][name] = of_bottles(name, repeats)
    for table in tables(record):
        Console().print(table.screen())
    write_record(output, "false_alarms", record)
    return 0


def tables(record: dict[str, Any]) -> list["Table"]:
    """Return what the docs show."""
    from padim_bottle.tables import Row, Table

    alpha, confidence = record["alpha"], record["confidence"]
    simulated = [
        Row([
            str(of["photos"]),
            "position-calibrated" if of["position_calibration"] else "plain maximum",
            f"{100 * statistics.mean(of['rates']):.1f} ± {100 * statistics.stdev(of['rates']):.1f} %",
            f"{sum(rate <= alpha for rate in of['rates'])} of {len(of['rates'])}",
            f"{sum(rate <= alpha for rate in of['rates_kept'])} of {len(of['rates'])}",
        ])
        for of in record["simulated"]
    ]  # fmt: skip
    below = f"models at or below {100 * alpha:g} %"
    bottle = [Row([name, ", ".join(map(str, alarms))]) for name, alarms in record["bottle"].items()]
    return [
        Table(
            ["photos", "score", "false-alarm rate, mean ± SD", below, f"with confidence {confidence:g}"],
            simulated,
            title=f"Simulated photos, alpha = {100 * alpha:g} %",
        ),
        Table(
            ["model", "false alarms of 209"],
            bottle,
            title="Bottle's training photos in ten folds, dealt anew each time",
        ),
    ]


if __name__ == "__main__":
    parser = new_benchmark_parser(__doc__)
    parser.add_argument("--sets", type=positive, default=100, help="simulated training sets (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=5, help="deals of the bottles (default: %(default)s)")
    options = parser.parse_args()
    raise SystemExit(run_command(lambda: main(options.sets, options.repeats, options.output)))
