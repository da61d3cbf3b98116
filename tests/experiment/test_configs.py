"""Every config as it stands: what its head says, and that it runs."""

import inspect
import json
from importlib import import_module
from pathlib import Path

import other_data
import pytest
import yaml
from small import NAME, QUIET

from padim_bottle.commands.command_line import run_verb
from padim_bottle.data.synthetic import write_bottles
from padim_bottle.experiment.config import ExperimentConfig
from padim_bottle.experiment.train import build, train
from padim_bottle.runs.table import read_runs

ROOT = Path(__file__).parents[2]
CONFIGS = [*sorted((ROOT / "configs").glob("*.yaml")), *sorted((ROOT / "configs" / "peers").glob("*.yaml"))]
EXPERIMENTS = [config for config in CONFIGS if "model" in yaml.safe_load(config.read_text())]
OTHER_DATA = {"folder": "my_parts", "visa": "visa", "mvtec_ad2": "MVTec_AD_2"}
FAST = {"padim_resnet18", "padim_resnet18_grids"}
# The wheel's test runs the demo, test_anomalib_models.py runs DFM.
REAL = [config for config in EXPERIMENTS if config.stem not in {"demo", "dfm_resnet18", *OTHER_DATA}]


def init_defaults(class_path):
    """The arguments of a class that a YAML names, with their defaults."""
    module, _, name = class_path.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def test_the_experiment_shows_every_key_with_its_default():
    """So a config that leaves a key out means what this one says."""
    config = yaml.safe_load((ROOT / "configs" / "padim_resnet18.yaml").read_text())
    # What is as in anomalib, or an object that no plain value stands for.
    unlisted = {
        "padim_bottle.Padim": {"pre_processor", "post_processor"},
        "padim_bottle.MVTecAD": {
            "train_augmentations", "val_augmentations", "test_augmentations", "augmentations", "test_split_mode",
            "test_split_ratio", "val_split_mode", "val_split_ratio", "seed",
        },
        "padim_bottle.ResultsWriter": set(),
    }  # fmt: skip
    for part in (config["model"], config["data"], *config["trainer"]["callbacks"]):
        defaults = init_defaults(part["class_path"])
        assert part["init_args"].keys() == defaults.keys() - unlisted[part["class_path"]]
        for name, value in part["init_args"].items():
            default = list(defaults[name]) if isinstance(defaults[name], tuple) else defaults[name]
            assert default == value or name == "experiment", name


@pytest.mark.parametrize("config", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_config_names_its_results_and_says_what_to_expect(config):
    """Figures, time and memory in its head are those of the runs in results/reference."""
    head, text = config.read_text().split("\nmodel:")[0], yaml.safe_load(config.read_text())
    writer = text["trainer"]["callbacks"][0]
    assert writer["class_path"] == "padim_bottle.ResultsWriter"
    name = writer["init_args"]["experiment"]
    assert name == config.stem or (config.stem == "demo" and "synthetic" in name and "random" in name)
    assert config.relative_to(ROOT).as_posix() in head, "the head names the command"
    reference = ROOT / "results" / "reference" / config.stem
    if not reference.is_dir():
        assert "+-" not in head
        return
    runs = read_runs([reference]).table
    names = {"image_AUROC": "image AUROC", "pixel_AUROC": "pixel AUROC", "pixel_AUPRO": "AUPRO", "image_F1Score": "F1"}
    for metric, name in names.items():
        mean, deviation = (f"{value:.4f}".replace("0.", ".") for value in (runs[metric].mean(), runs[metric].std()))
        # A model without anything random has one run.
        assert f"{name} {mean} +- {deviation}" in head if len(runs) > 1 else f"{name} {mean}" in head
    alone = runs[runs["features_from_seed"].isna()].iloc[0]
    assert f"One run takes {alone['seconds_total']:.0f} s and {alone['peak_memory_bytes'] / 1e9:.1f} GB" in head


@pytest.fixture(scope="module")
def few_bottles(tmp_path_factory):
    root = tmp_path_factory.mktemp("few")
    write_bottles(root, "bottle", size=64, train_good=4, test_good=2, test_per_defect=1)
    return root


@pytest.mark.parametrize(
    "config",
    [pytest.param(path, marks=[] if path.stem in FAST else pytest.mark.slow) for path in REAL],
    ids=lambda path: path.stem,
)
def test_every_config_runs(config, few_bottles, random_weights, tmp_path, monkeypatch):
    """On a few synthetic bottles and random weights; the network, layers and options are the config's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVTEC_AD_ROOT", str(few_bottles))
    text = yaml.safe_load(config.read_text())
    arguments = [*QUIET, "--trainer.callbacks.report", "false", "--trainer.callbacks.images", "false"]
    if text["model"]["class_path"].endswith(".Padim"):
        arguments += ["--model.init_args.n_features", "30"]
    if text["model"]["class_path"].startswith("padim_bottle."):
        size = "[28, 28]" if "patch14" in text["model"]["init_args"].get("backbone", "") else "[32, 32]"
        arguments += ["--model.init_args.pre_trained", "false", "--model.init_args.image_size", size]
    if "coreset_sampling_ratio" in text["model"]["init_args"]:
        arguments += ["--model.init_args.coreset_sampling_ratio", "0.01"]
    if "max_epochs" in text["trainer"]:
        arguments += ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
    # These bottles are not the published one, against which a config's own MVTecAD is verified.
    monkeypatch.setattr("padim_bottle.data.mvtec.verify_category", lambda *_: "unverified")
    train(config, arguments, seed=1)
    metrics = json.loads((tmp_path / "results" / config.stem / "seed_1" / "metrics.json").read_text())
    assert metrics["seed"] == 1
    assert 0 <= metrics["image_AUROC"] <= 1
    assert 0 <= metrics["pixel_AUPRO"] <= 1
    written = text["model"]["init_args"]
    assert all(metrics["model"][key] == written[key] for key in ("layers", "grids") if key in written)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "folder" else pytest.mark.slow) for name in OTHER_DATA]
)
def test_every_config_of_other_data_runs(name, bottles, random_weights, tmp_path, monkeypatch):
    """On tiny synthetic bottles in that data set's own layout, where the config says that it lies."""
    monkeypatch.chdir(tmp_path)
    getattr(other_data, f"lay_out_{name}")(bottles / "bottle", tmp_path / "datasets" / OTHER_DATA[name])
    small = ["--model.pre_trained", "false", "--model.image_size", "[64, 64]", "--model.n_features", "30"]
    train(ROOT / "configs" / f"{name}.yaml", [*QUIET, *small, "--trainer.callbacks.report", "false"])
    run = tmp_path / "results" / name / "seed_42"
    metrics = json.loads((run / "metrics.json").read_text())
    types = {"folder": {"dent", "scratch"}}.get(name, {"bad"})
    assert set(metrics["per_defect"]) == types
    assert metrics["image_AUROC"] > 0.5
    assert metrics["pixel_AUPRO"] > 0
    assert metrics["images"]["good"] == 4
    assert {path.name for path in (run / "images").iterdir()} == {"good", *types}


def test_one_batch_runs_without_validation_images(bottles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other_data.lay_out_folder(bottles / "bottle", tmp_path / "datasets" / OTHER_DATA["folder"])
    one_batch = [
        "--trainer.fast_dev_run",
        "true",
        "--data.val_split_mode",
        "none",
        "--trainer.callbacks.report",
        "false",
    ]
    small = ["--model.pre_trained", "false", "--model.image_size", "[64, 64]"]
    train(ROOT / "configs" / "folder.yaml", [*QUIET, *one_batch, *small])
    assert (tmp_path / "results" / "folder" / "seed_42" / "metrics.json").is_file()


def test_one_seed_decides_everything_also_for_the_control(bottles, random_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVTEC_AD_ROOT", str(bottles))
    monkeypatch.setattr("padim_bottle.data.mvtec.verify_category", lambda *_: "unverified")
    chosen = []
    for seed in (5, 5, 6):
        cli = build(ExperimentConfig(ROOT / "configs" / "padim_resnet18_anomalib.yaml").choose(seed))
        chosen.append(cli.model.model.idx.tolist())
    assert chosen[0] == chosen[1] != chosen[2]


def test_where_nothing_can_be_had_the_demo_runs_and_says_so(tmp_path, monkeypatch, capsys):
    """Elsewhere the demo is run: here it is only begun."""
    monkeypatch.setenv("PADIM_WEIGHTS_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    begun = []
    monkeypatch.setattr("padim_bottle.experiment.train.run", begun.append)
    config = ["--config", str(ROOT / "configs" / "padim_wide_resnet50.yaml"), "--results", str(tmp_path / "results")]
    assert run_verb("train", [*config, "--fallback", str(ROOT / "configs" / "demo.yaml")]) == 0
    errors = capsys.readouterr().err
    assert "RUNNING THE DEMO INSTEAD" in errors
    assert "No weights for wide_resnet50_2.tv_in1k" in errors
    assert "say nothing\nabout MVTec AD" in errors
    (experiment,) = begun
    assert experiment.results_writer.experiment == NAME
    assert experiment.results_writer.root == tmp_path / "results"
    assert experiment.datamodule.synthetic and experiment.model.weights.source == "random"
