"""A sweep's groups of runs on a Ray cluster whose nodes need share no disk.

Only this module knows Ray, and it is loaded only where it is asked for. A node trains in a temporary folder and sends
a run's files back as soon as they are whole; this machine, the driver, puts them in its own folder of results. A group
whose worker or node dies is sent out again, without the runs that came back.
"""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from padim_bottle.errors import UserError, in_a_line
from padim_bottle.runs.environment import code_digest
from padim_bottle.runs.folder import PartialRun
from padim_bottle.sweep.group import Outcome, PlannedRun, train_group

CONNECT_SECONDS = 15
ATTEMPTS = 4
# What tells a node where data and weights are.
ENVIRONMENT = ("MVTEC_AD_ROOT", "PADIM_WEIGHTS_DIR", "HF_HUB_OFFLINE")


class Parcel(NamedTuple):
    """What a node sends back: what became of a run, and its files by their path in the run's folder."""

    outcome: Outcome
    files: dict[str, bytes]


@contextlib.contextmanager
def connected(address: str, num_cpus: float, num_gpus: float) -> Iterator[None]:
    """Connect to a cluster, and disconnect at the end.

    Args:
        address: ``auto`` for the cluster that this machine belongs to, or the head node's ``host:port``.
        num_cpus: what a group will reserve.
        num_gpus: what a group will reserve.

    Raises:
        UserError: Ray is not installed, nothing answers at the address, or no node has that many CPUs and GPUs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError('Ray is not installed: pip install -e ".[ray]", on every node.') from error
    if address != "auto":
        _check_reachable(address)
    variables = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    try:
        ray.init(address, runtime_env={"env_vars": variables}, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(f"--ray {address}: no Ray cluster answers there ({in_a_line(error)}).") from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= num_cpus and node.get("GPU", 0) >= num_gpus for node in nodes):
            raise UserError(f"ray: no node of {address} has num_cpus: {num_cpus:g} and num_gpus: {num_gpus:g}.")
        yield
    finally:
        ray.shutdown()


def train_on_ray(groups: Sequence[Sequence[PlannedRun]], num_cpus: float, num_gpus: float) -> Iterator[Outcome]:
    """Train groups of runs on the cluster that is connected, and put the results in the runs' own folders.

    Args:
        groups: each of one experiment.
        num_cpus: what a group reserves.
        num_gpus: what a group reserves.

    Yields:
        What became of each run, when its results are in place.
    """
    import ray

    work = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)(_train_on_node)

    def send(runs: list[PlannedRun]) -> ray.ObjectRefGenerator:
        return work.remote(runs, runs[0].config.read_text(), code_digest(), str(Path.cwd()))

    waiting = {send(list(runs)): (list(runs), 1) for runs in groups}
    while waiting:
        (stream,), _ = ray.wait(list(waiting), num_returns=1)
        runs, attempt = waiting.pop(stream)
        try:
            parcel = ray.get(next(stream))
        except StopIteration:
            continue
        except ray.exceptions.RayTaskError as error:  # raised by the code on the node: it would be again
            yield from (Outcome.failed(run, error.cause or error) for run in runs)
        except ray.exceptions.RayError as error:
            if attempt < ATTEMPTS:
                waiting[send(runs)] = (runs, attempt + 1)
            else:
                yield from (Outcome.failed(run, error) for run in runs)
        else:
            run = next(run for run in runs if run.seed == parcel.outcome.run.seed)
            runs.remove(run)
            waiting[stream] = (runs, attempt)
            outcome = replace(parcel.outcome, run=run)
            if outcome.error is None:
                try:
                    _put_in_place(parcel.files, run.folder)
                except OSError as error:  # of this machine's disk: the other runs go on
                    outcome = Outcome.failed(run, error, outcome.seconds)
            yield outcome


def _train_on_node(runs: list[PlannedRun], config: str, code: str, directory: str) -> Iterator[Parcel]:
    """Train a group on this node; send each run's files and forget them."""
    if code_digest() != code:
        raise UserError(f"{socket.gethostname()} has another version of padim_bottle than the driver.")
    # Relative paths mean what they mean to the driver, where this node has the driver's folder.
    with contextlib.suppress(OSError):
        os.chdir(directory)
    with TemporaryDirectory(prefix="padim-sweep-") as name:
        workplace, results = Path(name, "lightning"), Path(name, "results")
        Path(name, "config.yaml").write_text(config)
        here = [replace(run, config=Path(name, "config.yaml")) for run in runs]
        for outcome in train_group(here, workplace, Path(name), results):
            folder = results / outcome.run.folder.relative_to(outcome.run.root)
            files = [path for path in folder.rglob("*") if path.is_file()] if outcome.error is None else []
            yield Parcel(outcome, {path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
            shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(files: dict[str, bytes], folder: Path) -> None:
    partial = PartialRun(folder)
    try:
        for name, content in files.items():
            path = partial.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        partial.publish()
    finally:
        partial.discard()


def _check_reachable(address: str) -> None:
    """Raise a UserError where nothing listens: ``ray.init`` itself would wait for minutes, and then exit."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except ValueError as error:
        raise UserError(f"--ray {address}: name a host and port, for example 10.0.0.1:6379, or auto.") from error
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray: no Ray cluster at {address}: {error}.") from error
