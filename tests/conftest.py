"""Fixtures that several test modules share."""

import io
import os
import shutil
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from filelock import FileLock
from small import train_small
from timm.models import save_for_hf

from padim_bottle.data.synthetic import write_bottles
from padim_bottle.places import data_root, weights_folders

ROOT = Path(__file__).parents[1]
# Data and weights that lie at a default place of this checkout are found wherever a test runs.
for name, folder in (
    ("MVTEC_AD_ROOT", data_root(ROOT)),
    ("PADIM_WEIGHTS_DIR", next(filter(Path.is_dir, weights_folders(ROOT)), None)),
):
    if folder is not None and folder.is_dir():
        os.environ.setdefault(name, str(folder.resolve()))

TINY = {"size": 64, "train_good": 12, "test_good": 4, "test_per_defect": 3, "seed": 0}


# Whoever uses one is slow.
SLOW = {"exports", "swept", "tuned", "browser", "short_times"}
# A process takes file after file: those that take long come first, or the others wait for the last of them.
LONG = (
    "test_real_data.py", "test_faults.py", "test_precision.py", "test_export.py", "test_configs.py", "test_notebook.py",
    "test_ray_cluster.py", "test_watch.py", "test_drift.py", "test_sweep.py", "test_doors.py", "test_wheel.py",
    "test_app_browser.py", "test_browser.py", "test_anomalib.py", "test_results_writer.py", "test_train_on_photos.py",
)  # fmt: skip


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist's: files of many tests first


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))
    for item in items:
        if SLOW.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Tests are offline: whoever asks the hub gets an answer at once."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def mvtec_root() -> Path:
    """Folder with the real MVTec AD 'bottle'."""
    root = os.environ.get("MVTEC_AD_ROOT")
    if not root or not Path(root, "bottle").is_dir():
        pytest.skip("needs the real MVTec AD 'bottle': set MVTEC_AD_ROOT to the folder that holds it")
    return Path(root)


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """Folder with the real ImageNet weights."""
    root = os.environ.get("PADIM_WEIGHTS_DIR")
    if not root or not Path(root, "resnet18.tv_in1k").is_dir():
        pytest.skip("needs ImageNet weights: set PADIM_WEIGHTS_DIR to a folder with resnet18.tv_in1k")
    return Path(root)


@pytest.fixture(scope="session")
def bottles(tmp_path_factory) -> Path:
    """Root of a tiny synthetic data set, in MVTec AD's layout; its category is 'bottle'."""
    root = tmp_path_factory.mktemp("bottles")
    write_bottles(root, "bottle", **TINY)
    return root


@pytest.fixture(scope="session")
def _resnet18(tmp_path_factory) -> Path:
    """A ResNet-18 of random weights, as the hub has it."""
    folder = tmp_path_factory.mktemp("resnet18")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_for_hf(timm.create_model("resnet18.tv_in1k", pretrained=False), folder, safe_serialization=True)
    return folder


@pytest.fixture
def random_weights(tmp_path, monkeypatch, _resnet18) -> Path:
    """A weights folder as a user would have it, with a ResNet-18 of random weights in it."""
    root = tmp_path / "weights"
    shutil.copytree(_resnet18, root / "resnet18.tv_in1k", copy_function=os.link)
    monkeypatch.setenv("PADIM_WEIGHTS_DIR", str(root))
    return root


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id) -> Path:
    """A folder of all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def run_folder(shared) -> Path:
    """The folder of a finished run: the small experiment, trained once a test run. It is only read."""
    with FileLock(shared / "run.lock"):
        runs = list(shared.glob("run/results/*/seed_*"))
        if runs:
            return runs[0]
        (shared / "run").mkdir()
        return train_small(shared / "run")


@pytest.fixture(scope="session")
def traced_once():
    """A context in which a model is traced once, which is most of an export's work, however often it is written."""
    from padim_bottle.export import formats  # not above: tests/core_alone.py has no doors

    trace, made = formats.trace, {}

    def once(padim, folder):
        state = io.BytesIO()
        torch.save(padim.state_dict(), state)
        key = sha256(state.getbuffer()).digest()
        if key not in made:
            path = trace(padim, folder)
            made[key] = path.relative_to(folder), path.read_bytes()
        name, content = made[key]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        return folder / name

    @contextmanager
    def context():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(formats, "trace", once)
            yield

    return context


@pytest.fixture(scope="session")
def exports(run_folder, shared, traced_once) -> Path:
    """The run's exports in single precision, made and proven once a test run, by the command. They are only read."""
    from padim_bottle.commands.command_line import run_verb
    from padim_bottle.export.formats import PACKAGES

    with FileLock(shared / "exports.lock"):
        folder = shared / "exports"
        if not folder.is_dir():
            formats = [name for name, packages in PACKAGES.items() if all(map(find_spec, packages))]
            with traced_once():
                assert (
                    run_verb("export", ["--model", str(run_folder), "--output", str(folder), "--format", *formats]) == 0
                )
        return folder


@pytest.fixture
def error_line(capsys):
    """Return the one line in which a command said why it ended, without a traceback beside it."""

    def read() -> str:
        lines = capsys.readouterr().err.splitlines()
        assert not any("Traceback" in line for line in lines)
        (line,) = [line for line in lines if line.startswith("error: ")]
        return line

    return read


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, driven by Playwright; closed with the module, for its event loop is in others' way."""
    playwright = pytest.importorskip("playwright.sync_api", reason='needs Playwright: pip install -e ".[dev]"')
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        # GitHub's machines have one: a missing one is a fault there.
        end = pytest.fail if os.environ.get("GITHUB_ACTIONS") else pytest.skip
        end("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # Chromium's sandbox does not work for root.
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()
