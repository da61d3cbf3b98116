"""Sweeps over seeds and grids, on tiny synthetic bottles."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import other_data
import pandas as pd
import pytest
import yaml
from filelock import FileLock
from small import NAME, ROOT, small_config, write_config

from padim_bottle.commands.command_line import run_verb
from padim_bottle.errors import UserError
from padim_bottle.experiment.config import ExperimentConfig
from padim_bottle.experiment.train import build, train
from padim_bottle.sweep import driver as sweeps
from padim_bottle.sweep.feature_cache import FeatureCache
from padim_bottle.sweep.plan import name_suffix, parse_seeds


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A current folder that holds nothing but the small demo, as small.yaml."""
    folder = tmp_path_factory.mktemp("workplace")
    write_config(folder / "small.yaml", small_config(report=False))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def write_sweep(name="sweep.yaml", **settings):
    Path(name).write_text(yaml.safe_dump({"experiments": ["small.yaml"], **settings}, sort_keys=False))
    return ["--config", name]


@pytest.fixture(scope="module")
def swept(workplace):
    """The results of seeds 0 and 1."""
    assert run_verb("sweep", [*write_sweep(), "--seeds", "0-1", "--results", "swept"]) == 0
    return workplace / "swept" / NAME


def read(folder):
    return json.loads((folder / "metrics.json").read_text())


def numbers(folder):
    # A checkpoint holds the path of Lightning's folder, so its size depends on that.
    own = {"seconds", "profile", "peak_memory_bytes", "finished", "features_from_seed", "checkpoint_bytes"}
    return {key: value for key, value in read(folder).items() if key not in own}


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def error_of(arguments, capsys):
    assert run_verb("sweep", arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_swept_run_is_the_run_that_train_makes(swept, workplace):
    """Seed 1 took the features of seed 0, and not a digit differs, nor the config, nor the checkpoint's tensors."""
    import torch

    kept = workplace / "kept"
    swept.parent.rename(kept)
    try:
        train(Path("small.yaml"), seed=1, results=Path("swept"))
        alone = workplace / "alone"
        swept.parent.rename(alone)
    finally:
        kept.rename(swept.parent)
    alone, shared = alone / NAME / "seed_1", swept / "seed_1"
    assert read(shared)["features_from_seed"] == 0
    assert read(alone)["features_from_seed"] is None
    assert files(shared) == files(alone)
    assert numbers(shared) == numbers(alone)
    for name in files(shared) - {"metrics.json", "model.ckpt"}:
        assert (shared / name).read_bytes() == (alone / name).read_bytes(), name
    checkpoints = [torch.load(run / "model.ckpt", weights_only=False) for run in (shared, alone)]
    assert checkpoints[0].keys() == checkpoints[1].keys()
    states = [dict(checkpoint["state_dict"]) for checkpoint in checkpoints]
    torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_seeds_share_the_backbones_pass_whatever_the_data(bottles, tmp_path, monkeypatch, capsys):
    """anomalib's own data modules shuffle, so a sum over images may differ in its last digits, and no more."""
    monkeypatch.chdir(tmp_path)
    other_data.lay_out_folder(bottles / "bottle", tmp_path / "data")
    config = yaml.safe_load((ROOT / "configs" / "folder.yaml").read_text())
    config["data"]["init_args"] |= {"root": "data", "num_workers": 0}
    config["model"]["init_args"] |= {"image_size": [64, 64], "n_features": 40, "pre_trained": False}
    config["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False}
    config["trainer"]["callbacks"][0]["init_args"]["report"] = False
    Path("other.yaml").write_text(yaml.safe_dump(config))
    arguments = write_sweep(experiments=["other.yaml"])
    assert run_verb("sweep", [*arguments, "--seeds", "0-1", "--results", "swept"]) == 0
    shared = tmp_path / "swept" / "folder" / "seed_1"
    assert read(shared)["features_from_seed"] == 0
    train(Path("other.yaml"), seed=1, results=tmp_path / "alone")
    alone = tmp_path / "alone" / "folder" / "seed_1"
    assert read(alone)["data"] == read(shared)["data"]
    ours, theirs = (pd.read_csv(run / "predictions.csv").set_index("image_path") for run in (shared, alone))
    np.testing.assert_allclose(ours.score, theirs.score[ours.index], rtol=1e-4)
    assert run_verb("sweep", [*arguments, "--seeds", "0-1", "--results", "swept", "--dry-run"]) == 0
    assert "2 runs, 2 of them done" in capsys.readouterr().out


def test_a_sweep_leaves_runs_and_a_comparison(swept):
    assert {path.name for path in swept.iterdir()} == {
        "seed_0", "seed_1", "summary.csv", "summary.md", "comparison.png", "report.html",
    }  # fmt: skip
    assert {path.name for path in swept.parent.iterdir()} <= {NAME, ".sweep.lock"}
    assert len({json.dumps(read(swept / f"seed_{seed}")["calibration"]) for seed in range(2)}) == 2


def test_finished_runs_are_not_done_again_and_what_killed_ones_left_goes(swept, monkeypatch, capsys):
    killed = "import os, sys; from padim_bottle.runs.folder import *; PartialRun(Path(sys.argv[1])); os._exit(0)"
    subprocess.run([sys.executable, "-c", killed, swept / "seed_1"], check=True)
    assert list(swept.glob(".seed_1.*"))
    monkeypatch.setattr(sweeps, "train_group", pytest.fail)
    assert run_verb("sweep", ["--config", "sweep.yaml", "--seeds", "0-1", "--results", "swept"]) == 0
    assert "0 runs to do, 2 done already" in capsys.readouterr().err
    assert not list(swept.glob(".seed_1.*"))


@pytest.mark.parametrize("change", ["code", "data", "config"])
def test_a_run_of_other_code_data_or_settings_is_not_done(swept, change, monkeypatch, capsys):
    arguments = ["--config", "sweep.yaml"]
    if change == "code":
        monkeypatch.setattr("padim_bottle.runs.environment.code_digest", lambda: "another")
    elif change == "data":
        monkeypatch.setattr("padim_bottle.data.samples.fingerprint_of", lambda *_: "another")
    else:
        arguments = write_sweep("alpha.yaml", overrides={"model.init_args.alpha": 0.3})
    assert run_verb("sweep", [*arguments, "--seeds", "0-1", "--results", "swept", "--dry-run"]) == 0
    assert "2 runs, 0 of them done" in capsys.readouterr().out


def test_where_the_data_are_not_the_record_of_a_run_is_trusted(swept, workplace, capsys):
    """As on the driver of a cluster whose nodes have the data."""
    (workplace / "datasets").rename(workplace / "elsewhere")
    try:
        assert run_verb("sweep", ["--config", "sweep.yaml", "--seeds", "0-1", "--results", "swept", "--dry-run"]) == 0
    finally:
        (workplace / "elsewhere").rename(workplace / "datasets")
    assert "2 runs, 2 of them done" in capsys.readouterr().out


def test_a_dry_run_lists_and_writes_nothing(swept, capsys):
    assert run_verb("sweep", ["--config", "sweep.yaml", "--seeds", "1-2", "--results", "swept", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"done   swept/{NAME}/seed_1",
        f"to do  swept/{NAME}/seed_2",
        "2 runs, 1 of them done",
    ]
    assert not (swept / "seed_2").exists()


def test_a_grid_names_its_experiments(workplace, capsys):
    arguments = write_sweep(
        "grid.yaml",
        seeds=[0, 4],
        overrides={
            "model.init_args.n_features": [10, 20],
            "model.init_args.layers": [["layer1"], ["layer1", "layer2"]],
            "trainer.accelerator": "cpu",
        },
    )
    assert run_verb("sweep", [*arguments, "--dry-run"]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    assert total == "8 runs, 0 of them done"
    assert f"to do  results/{NAME},n_features=20,layers=layer1+layer2/seed_4" in lines


def test_a_model_without_anything_random_is_run_once(workplace, capsys):
    overrides = {"model.init_args.grids": [[["layer1"], ["layer2"]]], "model.init_args.n_features": None}
    assert run_verb("sweep", [*write_sweep("grids.yaml", seeds="5-9", overrides=overrides), "--dry-run"]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    assert total == "1 runs, 0 of them done"
    assert lines[0].endswith("/seed_5")


def test_two_keys_with_the_same_end_are_spelled_in_full():
    assert name_suffix({"a.b.size": 3, "a.c.size": "x/y"}) == ",a.b.size=3,a.c.size=x-y"


@pytest.mark.parametrize(
    ("seeds", "expected"), [("0-3", [0, 1, 2, 3]), ("7", [7]), (5, [5]), ([3, 1, 3], [3, 1]), ("0-1, 5", [0, 1, 5])]
)
def test_seeds_are_ranges_lists_or_both(seeds, expected):
    assert parse_seeds(seeds) == expected


@pytest.mark.parametrize("seeds", ["", "a", "3-1", "-1", "1.5", [0, "x"], [], True, None, "0-", "0-999999999"])
def test_other_seeds_are_refused(seeds):
    with pytest.raises(UserError, match="seeds"):
        parse_seeds(seeds)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"experiments": ["no_such.yaml"]}, ["no_such.yaml"]),
        ({"experiments": []}, ["experiments"]),
        ({"experiments": ["small.yaml", "small.yaml"]}, ["Two runs", "seed_0"]),
        ({"seed": 3}, ["seed"]),
        ({"group_size": "many"}, ["group_size", "many"]),
        ({"group_size": 0}, ["group_size"]),
        ({"ray": {"cpus": 3}}, ["ray.cpus"]),
        ({"overrides": {"model.init_args.alpha": []}}, ["alpha", "at least one"]),
        ({"overrides": {"model.init_args.seed": [1, 2]}}, ["'seeds'"]),
        ({"overrides": {"model.init_args.alfa": [0.1]}}, ["alfa"]),
        ({"overrides": {"model.init_args.n_features": list(range(1, 1001))}}, ["10000 runs", "max_runs: 200"]),
    ],
)
def test_a_mistake_is_refused_in_one_line_before_anything_is_written(workplace, settings, words, capsys):
    line = error_of([*write_sweep("wrong.yaml", **settings), "--results", "wrong"], capsys)
    assert all(word in line for word in words), line
    assert not Path("wrong").exists()


def test_a_sweep_that_is_no_yaml_or_not_there_is_refused(workplace, capsys):
    Path("broken.yaml").write_text("seeds: [0, 1\nresults: x")
    assert "broken.yaml" in error_of(["--config", "broken.yaml"], capsys)
    assert "no_such.yaml" in error_of(["--config", "no_such.yaml"], capsys)


@pytest.mark.parametrize("file", ["config.yaml", "metrics.json"])
def test_a_run_folder_that_was_edited_is_refused_and_left_alone(swept, file, capsys):
    path = swept / "seed_0" / file
    before = path.read_text()
    path.write_text(before.replace("alpha: 0.2", "alpha: 0.3") if file == "config.yaml" else before[:-30])
    edited = path.read_text()
    try:
        line = error_of(["--config", "sweep.yaml", "--seeds", "0-5", "--results", "swept"], capsys)
        assert "seed_0" in line
        assert path.read_text() == edited
        assert not (swept / "seed_3").exists()
    finally:
        path.write_text(before)


def test_two_sweeps_in_one_results_folder_are_refused(swept, capsys):
    with FileLock(swept.parent / ".sweep.lock"):
        line = error_of(["--config", "sweep.yaml", "--seeds", "0-5", "--results", "swept"], capsys)
    assert "Another sweep is at work in swept" in line


@pytest.mark.slow
def test_a_run_that_fails_is_recorded_and_stops_no_other(workplace, monkeypatch, capsys):
    from padim_bottle.runs.writer import ResultsWriter

    arguments = [*write_sweep("failing.yaml"), "--seeds", "0-1", "--results", "failing"]
    on_test_end = ResultsWriter.on_test_end

    def fail_once(self, trainer, model):
        if model.seed == 0:
            raise OSError("disk full")
        on_test_end(self, trainer, model)

    with monkeypatch.context() as patch:
        patch.setattr(ResultsWriter, "on_test_end", fail_once)
        assert run_verb("sweep", arguments) == 1
    folder = Path("failing", NAME)
    assert "seed_0: OSError: disk full" in capsys.readouterr().err
    record = json.loads((folder / "seed_0.failed.json").read_text())
    assert record["error"] == "OSError: disk full"
    assert "fail_once" in record["traceback"]
    assert not (folder / "seed_0").exists()
    # What seed 0 recorded was not whole, so seed 1 began anew.
    assert read(folder / "seed_1")["features_from_seed"] is None

    assert run_verb("sweep", arguments) == 0
    assert (folder / "seed_0").is_dir()
    assert not (folder / "seed_0.failed.json").exists()


@pytest.mark.slow
def test_shards_divide_a_sweep_over_photos_without_test_photos_and_a_comparison_joins_them(workplace, bottles, capsys):
    photos = {"class_path": "padim_bottle.Photos", "init_args": {"folder": str(bottles / "bottle" / "train" / "good")}}
    arguments = [*write_sweep("own.yaml", seeds=[0, 1], overrides={"data": photos}), "--results", "own"]
    for shard, seeds in (("2/2", [1]), ("1/2", [0, 1])):
        with FileLock(Path("own", ".sweep.lock")):  # shards work side by side, but none of them twice
            assert run_verb("sweep", [*arguments, "--shard", shard]) == 0
        assert sorted(path.name for path in Path("own", NAME).glob("seed_*")) == [f"seed_{seed}" for seed in seeds]
    capsys.readouterr()
    with FileLock(Path("own", ".sweep.1-of-2.lock")):
        assert "Another sweep is at work" in error_of([*arguments, "--shard", "1/2"], capsys)
    assert not list(Path("own").glob("*summary*"))
    assert run_verb("compare", [str(Path("own", NAME))]) == 0
    runs = pd.read_csv(Path("own", NAME, "summary.csv")).query("row == 'run'")
    assert list(runs["seed"]) == [0, 1]
    assert runs["image_AUROC"].isna().all() and (runs["image_threshold"] > 0).all()
    capsys.readouterr()
    assert run_verb("sweep", [*arguments, "--dry-run"]) == 0
    assert "2 runs, 2 of them done" in capsys.readouterr().out


def test_every_run_is_in_one_shard(workplace, capsys):
    def listed(*words):
        assert run_verb("sweep", [*write_sweep("many.yaml"), "--seeds", "0-4", "--dry-run", *words]) == 0
        return capsys.readouterr().out.splitlines()[:-1]

    shards = [listed("--shard", f"{number}/3") for number in (1, 2, 3)]
    assert sorted(line for shard in shards for line in shard) == sorted(listed())
    assert [len(shard) for shard in shards] == [2, 2, 1]
    for shard in ("0/3", "4/3", "2", "a/b"):
        assert f"--shard {shard}" in error_of(["--config", "many.yaml", "--shard", shard], capsys)


def test_without_calibration_no_features_are_shared(workplace):
    """It has a pass over validation images as well."""
    overrides = ["--model.init_args.calibration", "false", "--model.init_args.position_calibration", "false"]
    experiment = build(ExperimentConfig(Path("small.yaml"), overrides).choose(0), quiet=True)
    cache, network = FeatureCache(), experiment.model.model
    for _ in range(2):
        with cache.shared(experiment) as seed:
            assert seed is None and network._source is None


def test_features_that_do_not_fit_the_batches_are_an_error(workplace):
    import torch

    experiment = build(ExperimentConfig(Path("small.yaml")).choose(0), quiet=True)
    cache, network = FeatureCache(), experiment.model.model
    with cache.shared(experiment) as seed:
        assert seed is None
        recorded = network.features(torch.zeros(2, 3, 64, 64))
    with cache.shared(experiment) as seed:
        assert seed == 0
        replayed = network.features(torch.ones(2, 3, 64, 64))
        assert all(torch.equal(replayed[layer], feature) for layer, feature in recorded.items())
        with pytest.raises(RuntimeError, match="not those of these batches"):
            network.features(torch.zeros(3, 3, 64, 64))


def test_a_run_that_fails_leaves_no_features_and_nothing_replaced(workplace):
    import torch

    experiment = build(ExperimentConfig(Path("small.yaml")).choose(0), quiet=True)
    cache, before = FeatureCache(), dict(vars(experiment.datamodule))

    def fail():
        with cache.shared(experiment):
            experiment.model.model.features(torch.zeros(2, 3, 64, 64))
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
        assert vars(experiment.datamodule) == before
    with cache.shared(experiment) as seed:
        assert seed is None
