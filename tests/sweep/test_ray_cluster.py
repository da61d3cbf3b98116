"""A sweep on a real Ray cluster of two nodes, all on the loopback."""

import contextlib
import errno
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from small import small_config, write_config

from padim_bottle.commands.command_line import run_verb

ray = pytest.importorskip("ray", reason='needs Ray: pip install -e ".[ray]"')

pytestmark = pytest.mark.slow

# 2 CPUs a group, so a node takes one group at a time.
SWEEP = "{experiments: [small.yaml], group_size: 2}"
RUN_FILES = {
    "config.yaml", "figures", "images", "metrics.json", "model.ckpt", "predictions.csv", "training_photos.csv",
}  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """An empty current folder but for the sweep's YAML."""
    folder = tmp_path_factory.mktemp("workplace")
    write_config(folder / "small.yaml", small_config(report=False))
    (folder / "sweep.yaml").write_text(SWEEP)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112 - what else runs on this machine is not the tests' affair
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - or workers wait for whatever else this machine does
    node = {"num_cpus": 2, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    yield cluster
    cluster.shutdown()


def descendants(process):
    """The processes that a process started, and those that they started."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


def busy_workers():
    """Processes that train a group, of clusters that this process started."""
    for process in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if b"ray::_train_on_node" in Path(f"/proc/{process}/cmdline").read_bytes():
                yield process


def numbers(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    # A checkpoint holds the path of Lightning's folder, so its size depends on that.
    own = {
        "seconds", "profile", "peak_memory_bytes", "finished", "config_sha256", "features_from_seed",
        "checkpoint_bytes",
    }  # fmt: skip
    return {key: value for key, value in metrics.items() if key not in own}


@pytest.mark.timeout(180)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker to kill in /proc")
def test_a_cluster_gives_the_local_results_though_a_worker_is_killed_and_the_disk_is_full(
    cluster, workplace, monkeypatch, capfd
):
    """A full disk of the driver fails the run that met it and no other."""
    from padim_bottle.sweep import ray_cluster

    killed, put = [], ray_cluster._put_in_place

    def kill_one():
        while not list(Path("remote").glob("*/seed_*")):
            time.sleep(0.05)
        for process in list(busy_workers())[:1]:
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    def full(files, folder):
        if folder.name == "seed_3":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        put(files, folder)

    monkeypatch.setattr(ray_cluster, "_put_in_place", full)
    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    remote_sweep = ["--config", "sweep.yaml", "--seeds", "0-3", "--results", "remote"]
    assert run_verb("sweep", [*remote_sweep, "--ray", cluster.address]) == 1
    killer.join()
    assert killed
    # One of each group.
    assert run_verb("sweep", ["--config", "sweep.yaml", "--seeds", "0, 2", "--results", "local"]) == 0

    (remote,) = Path("remote").glob("demo*")
    (local,) = Path("local").glob("demo*")
    assert {path.name for path in remote.glob("seed_*")} == {"seed_0", "seed_1", "seed_2", "seed_3.failed.json"}
    assert "No space left" in json.loads((remote / "seed_3.failed.json").read_text())["error"]
    for seed in ("seed_0", "seed_2"):
        assert {path.name for path in (remote / seed).iterdir()} == RUN_FILES
        assert (remote / seed / "predictions.csv").read_text() == (local / seed / "predictions.csv").read_text()
        assert numbers(remote / seed) == numbers(local / seed)
        assert "root: remote" in (remote / seed / "config.yaml").read_text()
    # What is finished is not sent out again.
    capfd.readouterr()
    assert run_verb("sweep", [*remote_sweep, "--dry-run"]) == 0
    assert "4 runs, 3 of them done" in capfd.readouterr().out


def test_more_cpus_than_any_node_has_are_refused(cluster, workplace, capsys):
    Path("greedy.yaml").write_text(SWEEP.replace("}", ", ray: {num_cpus: 64}}"))
    assert run_verb("sweep", ["--config", "greedy.yaml", "--results", "greedy", "--ray", cluster.address]) == 2
    assert "no node of" in capsys.readouterr().err


def test_an_address_without_a_cluster_is_one_line_soon(workplace, capfd):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert run_verb("sweep", ["--config", "sweep.yaml", "--results", "nowhere", "--ray", address]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: --ray: no Ray cluster at {address}: ")


@pytest.mark.parametrize("address", ["somewhere", "host:port", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(address, workplace, capfd):
    assert run_verb("sweep", ["--config", "sweep.yaml", "--results", "nowhere", "--ray", address]) == 2
    assert address.rpartition(":")[2] in capfd.readouterr().err
