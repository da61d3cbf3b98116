"""The GPU check on the CPU: one device stands for both, so that all but CUDA itself is run."""

import dataclasses
import functools
import re
import subprocess
import sys
from pathlib import Path

import device_comparison
import gpu_check
import numpy as np
import pytest
import torch
import yaml
from device_comparison import TOLERANCE, ObservedRun, compare, full_precision

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "padim_resnet18.yaml"
CONTROL = ROOT / "configs" / "padim_resnet18_anomalib.yaml"
DEMO = ROOT / "configs" / "demo.yaml"
SMALL = ["--model.init_args.image_size", "[64, 64]", "--model.init_args.n_features", "20",
         "--data.init_args.num_workers", "0", "--trainer.enable_progress_bar", "false"]  # fmt: skip


def run_of(scores, maps=((0.0, 1.0),), auroc=0.9, recall=1.0):
    metrics = {"image_AUROC": auroc, "seed": 1, "per_defect": {"hole": {"images": 2, "recall": recall}}}
    scores = np.array(scores)
    return ObservedRun(metrics, scores, scores >= 5, np.array([maps]))


@pytest.fixture
def on_the_cpu(monkeypatch):
    """The command, with a CPU for a GPU."""
    monkeypatch.setattr(gpu_check, "require_cuda", lambda: None)
    monkeypatch.setattr(
        device_comparison, "check_device", functools.partial(device_comparison.check_device, accelerator="cpu")
    )


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.gpu_check_command([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: No GPU to check: PyTorch \S+ sees no CUDA device on this machine\.\n", err)
    assert not list(tmp_path.iterdir())


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys\nfrom gpu_check import gpu_check_command\n"
        "try: gpu_check_command(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'anomalib', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--control" in done.stdout


@pytest.mark.slow
def test_a_reduced_copy_of_the_data_is_checked_and_a_difference_is_found(
    on_the_cpu, bottles, random_weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVTEC_AD_ROOT", str(bottles))
    control = yaml.safe_load(CONTROL.read_text())
    control["model"]["init_args"] |= {"n_features": 20, "layers": ["layer3"], "visualizer": False}
    (tmp_path / "control.yaml").write_text(yaml.safe_dump(control))
    arguments = ["--config", str(CONFIG), "--control", "control.yaml", "--output", "deep/gpu.md", *SMALL]
    checks = []
    real_report = gpu_check.report
    monkeypatch.setattr(gpu_check, "report", lambda check, notes: checks.append(check) or real_report(check, notes))
    assert gpu_check.gpu_check_command(arguments) == 0
    text = (tmp_path / "deep" / "gpu.md").read_text()
    assert text in capsys.readouterr().out
    assert "The data are not the published ones" in text
    assert "GPU and CPU agree within 0.001" in text
    assert "12 training and 13 test images" in text
    assert list(tmp_path.glob("**/*.partial*")) == []

    # The same computation twice is the same to the last bit; anomalib's network, of another seed's channels, is not.
    (check,) = checks
    np.testing.assert_array_equal(check.usual.anomaly_maps, check.reference.anomaly_maps)
    assert check.usual.anomaly_maps.shape == (13, 64, 64)
    np.testing.assert_array_equal(check.usual.scores, check.reference.scores)
    assert check.anomalib.anomaly_maps.shape == (13, 256, 256)
    np.testing.assert_allclose(check.anomalib.anomaly_maps.max(axis=(1, 2)), check.anomalib.scores, rtol=1e-6)
    for run in (check.precise, check.usual, check.reference, check.anomalib):
        assert 0 < run.metrics["seconds"]["fit"] < run.metrics["seconds"]["train"]
        assert run.metrics["seed"] == 42
    row = next(line for line in text.splitlines() if line.startswith("| image_AUROC"))
    expected = [f"{run.metrics['image_AUROC']:.5f}" for run in (check.reference, check.precise, check.usual)]
    assert [cell.strip() for cell in row.split("|")][2:5] == expected

    # A GPU whose maps are off by twice the tolerance.
    maps = check.reference.anomaly_maps.copy()
    maps[3, 10, 20] += 2 * TOLERANCE * maps.max()
    wrong = dataclasses.replace(check, precise=dataclasses.replace(check.precise, anomaly_maps=maps))
    monkeypatch.setattr(device_comparison, "check_device", lambda *_, **__: wrong)
    assert gpu_check.gpu_check_command(arguments) == 1
    assert "DIFFER by more than 0.001" in (tmp_path / "deep" / "gpu.md").read_text()


def test_differences_are_the_largest_ones_and_relative_where_they_should_be():
    found = compare(
        run_of([1.0, 4.99, 8.0], maps=((0.0, 2.0),), auroc=0.9, recall=1.0),
        run_of([1.0, 5.01, 10.0], maps=((0.5, 4.0),), auroc=0.9004, recall=0.5),
    )
    assert found.metrics == {"image_AUROC": pytest.approx(0.0004), "hole: recall": 0.5}
    assert found.scores == pytest.approx(0.2)
    assert found.maps == pytest.approx(0.5)
    assert found.verdicts == 1
    assert not found.holds


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        ({}, True),
        ({"auroc": 0.9 + 0.9 * TOLERANCE}, True),
        ({"auroc": 0.9 + 1.1 * TOLERANCE}, False),
        ({"recall": 1 - 1.1 * TOLERANCE}, False),
        ({"recall": None}, False),
        ({"auroc": float("nan")}, False),
        ({"scores": [1.0, 10 * (1 + 1.1 * TOLERANCE)]}, False),
        ({"scores": [float("nan"), 10.0]}, False),
        ({"maps": ((0.0, 1 + 1.1 * TOLERANCE),)}, False),
    ],
)
def test_what_is_within_the_tolerance_holds(changed, holds):
    assert compare(run_of(**{"scores": [1.0, 10.0]} | changed), run_of([1.0, 10.0])).holds is holds


@pytest.mark.parametrize("before", [True, False])
def test_tf32_is_off_inside_and_as_before_afterwards(before):
    # No monkeypatch: it cannot undo an attribute that lives outside Python.
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    original = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = before
        with pytest.raises(KeyboardInterrupt), full_precision():
            assert [switch.allow_tf32 for switch in switches] == [False, False]
            raise KeyboardInterrupt
        assert [switch.allow_tf32 for switch in switches] == [before, before]
    finally:
        for switch, value in zip(switches, original, strict=True):
            switch.allow_tf32 = value


def test_published_data_are_checked_as_the_configs_stand(bottles, random_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("MVTEC_AD_ROOT", str(bottles))
    monkeypatch.setattr("padim_bottle.data.mvtec.verify_category", lambda *_: "as published")
    assert gpu_check.prepare(CONFIG, CONTROL, DEMO, [], tmp_path) == (CONFIG, CONTROL, [], [])


def test_where_nothing_can_be_had_the_demo_is_checked_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PADIM_WEIGHTS_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    config, control, overrides, notes = gpu_check.prepare(CONFIG, CONTROL, DEMO, SMALL, tmp_path)
    assert config == DEMO
    assert "THIS IS THE DEMO" in notes[0]
    assert "Could not download MVTec AD" in notes[0]

    from padim_bottle.experiment.train import build

    ours = build(config, overrides, quiet=True)
    anomalib = build(control, seed=1, quiet=True)
    assert ours.datamodule.root == anomalib.datamodule.root
    assert anomalib.model.__class__.__module__.startswith("anomalib.")
    assert (
        ours.model.pre_processor.transform.transforms[0].size
        == anomalib.model.pre_processor.transform.transforms[0].size
    )


def test_a_mistake_in_an_override_is_one_line(on_the_cpu, bottles, random_weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVTEC_AD_ROOT", str(bottles))
    arguments = ["--config", str(CONFIG), "--model.init_args.n_featurs", "3"]
    assert gpu_check.gpu_check_command(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "n_featurs" in line
