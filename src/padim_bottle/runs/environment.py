"""The environment of a run: versions, commit, device, memory."""

import hashlib
import platform
import subprocess
import sys
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("padim-bottle", "anomalib", "lightning", "torch", "torchvision", "timm", "numpy")


CORE = (
    "errors.py", "files.py", "places.py", "console.py", "stages.py", "tables.py", "heat.py", "data", "model",
    "evaluation", "runs", "experiment",
)  # fmt: skip
"""What the numbers of a run come from."""


def describe(device: torch.device, run: str) -> dict[str, Any]:
    """Return what ``metrics.json`` has of the environment; the arguments are those of ``peak_memory``."""
    return {
        "peak_memory_bytes": peak_memory(device, run),
        "device": describe_device(device),
        "versions": versions(),
        "git_commit": git_commit(),
        "code_sha256": code_digest(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def git_commit() -> str | None:
    """Return the commit of this checkout, with ``-dirty`` where tracked files differ, or ``None`` outside one.

    A repository that only surrounds an installed package, such as one with an environment in it, says nothing of it.
    """
    folder = Path(__file__).parent
    if _git("-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@lru_cache
def code_digest() -> str:
    """Return a SHA-256 of the core's Python files as this process first found them, with or without git.

    What opens on the core, such as the report or the app, changes no number of a run, and counts for nothing.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    files = [
        path for room in CORE for path in (package / room, *(package / room).rglob("*.py")) if path.suffix == ".py"
    ]
    for path in sorted(files):
        # Line endings differ between checkouts of the same code.
        content = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{path.relative_to(package).as_posix()} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def describe_device(device: torch.device) -> dict[str, Any]:
    """Return the device's name and the number of threads."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} ({platform.machine()}, {platform.system()})"
    return {"type": device.type, "name": name, "threads": torch.get_num_threads()}


_runs_measured: set[str] = set()


def start_measuring(device: torch.device) -> None:
    """Forget the largest memory that the GPU, if it is one, had in use before this run."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device, run: str) -> dict[str, int | None]:
    """Return the largest resident memory of this process and of its largest child, and of the GPU, in bytes.

    The GPU's is that since ``start_measuring``. The system keeps one peak for the life of a process: after its first
    run it is no longer any run's own, and unknown.

    Args:
        device: where the run computed.
        run: the run's folder.
    """
    memory: dict[str, int | None] = {"process": None, "largest_worker": None, "gpu": None}
    _runs_measured.add(run)
    if sys.platform != "win32" and len(_runs_measured) == 1:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        memory["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        memory["largest_worker"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    if device.type == "cuda":
        memory["gpu"] = torch.cuda.max_memory_allocated(device)
    return memory
