"""The parts of the benchmarks that can be right or wrong; what they measure is not tested."""

import json
import subprocess
import sys

import psutil
import pytest
import torch
from contender import Contender
from fit import ANOMALIB, IMAGE_SIZE, OURS, fit, new_model, random_features
from predict import anomalib_state_dict, cell
from process import run_measured
from record import ratio, spread
from train import measure_pairs

from padim_bottle.errors import UserError

pytestmark = pytest.mark.slow

HOLD = "import time; data = b'x' * 100_000_000; time.sleep(1.5)"


def test_the_memory_of_a_commands_processes_is_added_up():
    child = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {HOLD!r}]); {HOLD}; p.wait()"
    usage = run_measured([sys.executable, "-c", child])
    assert usage.seconds >= 1.5
    assert 100e6 < usage.largest_bytes < 180e6
    assert 200e6 < usage.together_bytes < 300e6


def test_a_command_that_fails_is_named_with_its_last_words():
    with pytest.raises(UserError, match=r"(?s)exit code 3.*last words"):
        run_measured([sys.executable, "-c", "print('last words'); raise SystemExit(3)"])


def test_interrupting_a_measurement_ends_the_commands_processes(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("process._bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_measured([sys.executable, "-c", "import time; time.sleep(60)"])
    assert not [
        child for child in psutil.Process().children() if child.cmdline()[-1:] == ["import time; time.sleep(60)"]
    ]


def hoarder():
    return lambda size: len(b"x" * size) and None


def failing():
    raise RuntimeError("no such model")


def test_a_contenders_memory_is_what_it_took_since_it_was_ready():
    contender = Contender(hoarder)
    assert 90e6 < contender(100_000_000)[1] < 160e6
    contender.close()


def test_a_contender_that_fails_says_why():
    with pytest.raises(UserError, match="no such model"):
        Contender(failing)


def test_commands_are_run_in_turn_and_their_metrics_read(tmp_path, capsys):
    metrics = {"checkpoint_bytes": 5, "image_AUROC": 0.9, "pixel_AUROC": 0.8, "profile": {"start": {"seconds": 7.0}}}

    def command(folder):
        code = f"from pathlib import Path; p = Path({str(folder)!r}, 'results/a/seed_1'); p.mkdir(parents=True); "
        return [sys.executable, "-c", f"{code}(p / 'metrics.json').write_text({json.dumps(metrics)!r})"]

    runs = measure_pairs({"one": command, "other": command}, 2)
    assert [len(found) for found in runs.values()] == [2, 2]
    assert runs["one"][0]["image_AUROC"] == 0.9
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(",")[1].split(":")[0] for line in printed] == [" one", " other"] * 2


def test_both_fits_that_are_timed_give_the_same_gaussians():
    features = random_features(3)
    ours, theirs = new_model(OURS), new_model(ANOMALIB)
    theirs.idx = ours.idx.clone()
    for model in (ours, theirs):
        # Fewer positions: an eighth of the grid's height.
        small = [{name: batch[:, :, : batch.shape[2] // 8] for name, batch in given.items()} for given in features]
        fit(model, 40, small)
    torch.testing.assert_close(ours.gaussian.mean, theirs.gaussian.mean.T, rtol=1e-5, atol=1e-6)
    scale = theirs.gaussian.inv_covariance.abs().amax()
    torch.testing.assert_close(
        ours.gaussian.inv_covariance / scale, theirs.gaussian.inv_covariance / scale, rtol=0, atol=1e-4
    )


def test_ours_can_be_written_in_anomalibs_layout():
    ours, theirs = new_model(OURS), new_model(ANOMALIB)
    features = random_features(3)
    small = [{name: batch[:, :, : batch.shape[2] // 8] for name, batch in given.items()} for given in features]
    fit(ours, 40, small)
    theirs.load_state_dict(anomalib_state_dict(ours), strict=False)
    images = torch.empty(4, 3, IMAGE_SIZE // 8, IMAGE_SIZE)
    maps = []
    for model in (ours, theirs):
        model.feature_extractor.given = {name: batch[:4] for name, batch in small[0].items()}
        with torch.no_grad():
            maps.append(model.eval()(images).anomaly_map)
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=1e-3)


def test_cells_are_medians_and_the_ratio_is_theirs():
    assert spread([3.0, 1.0, 8.0], "s") == "3.0 s (1.0 to 8.0)"
    assert spread([2.5e9], "GB", 1e-9, 2) == "2.50 GB"
    assert ratio([3.0, 1.0, 8.0], [1.0, 2.0, 1.5]) == "2.0"
    assert cell(range(1, 101)) == "50.5 ms (95 %: 95.0)"


@pytest.mark.parametrize("script", ["train", "sweep", "fit", "predict", "gpu_check"])
def test_every_benchmark_explains_itself(script):
    done = subprocess.run([sys.executable, f"benchmarks/{script}.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout
