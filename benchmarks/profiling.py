"""Where the time of one run goes: stop watches around named functions of a run through ``experiment.train``.

Times are exclusive: a watched function that calls another hands its clock over, so stages of the main thread add up,
and what no watch covers is reported as 'other'. Threads and loader processes work beside the main thread: their time
is listed apart and is no part of the sum.
"""

import functools
import inspect
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from padim_bottle.errors import UserError

# Stage, then the functions that belong to it, as module:qualified.name. Later stages may be called by earlier ones.
STAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("parse and instantiate", ("padim_bottle.experiment.cli:ExperimentCLI.__init__",)),
    ("check weights", ("padim_bottle.model.backbone:locate_weights", "padim_bottle.runs.description:locate_weights")),
    ("verify data", ("padim_bottle.data.mvtec:MVTecAD.prepare_data",)),
    (
        "start and stop workers",
        (
            "torch.utils.data:DataLoader.__iter__",
            "torch.utils.data.dataloader:_MultiProcessingDataLoaderIter._shutdown_workers",
        ),
    ),
    ("wait for images", ("torch.utils.data.dataloader:_BaseDataLoaderIter.__next__",)),
    (
        "normalise",
        (
            "anomalib.pre_processing:PreProcessor.on_train_batch_start",
            "anomalib.pre_processing:PreProcessor.on_test_batch_start",
        ),
    ),
    ("backbone", ("anomalib.models.components.feature_extractors:TimmFeatureExtractor.forward",)),
    ("embedding", ("padim_bottle.model.network:PadimModel.generate_embedding",)),
    (
        "statistics",
        (
            "padim_bottle.model.network:PadimModel._fit",
            "padim_bottle.model.gaussian:PatchGaussians.update",
            "padim_bottle.model.gaussian:PatchGaussians.factorize",
        ),
    ),
    (
        "leave-one-out calibration",
        (
            "padim_bottle.model.padim:Padim.fit",
            "padim_bottle.model.network:leave_one_out_distances",
            "padim_bottle.model.network:calibrate",
            "padim_bottle.model.embedding_bank:EmbeddingBank.append",
            "padim_bottle.model.embedding_bank:EmbeddingBank.block",
        ),
    ),
    (
        "scoring",
        ("padim_bottle.model.gaussian:PatchGaussians.distance", "padim_bottle.model.network:PadimModel.image_score"),
    ),
    ("save the checkpoint", ("lightning.pytorch:Trainer.save_checkpoint",)),
    ("collect predictions", ("padim_bottle.experiment.results_writer:ResultsWriter.on_test_batch_end",)),
    ("write results", ("padim_bottle.experiment.results_writer:ResultsWriter.on_test_end",)),
    ("evaluate", ("padim_bottle.experiment.results_writer:evaluate",)),
    ("print the summary", ("padim_bottle.experiment.results_writer:print_summary",)),
)

# Work of threads (drawing) and of loader processes (the rest).
BESIDE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("draw pictures (threads)", ("padim_bottle.experiment.results_writer:ResultsWriter._draw",)),
    ("decode (workers)", ("padim_bottle.data.dataset:read_image", "padim_bottle.data.dataset:read_mask")),
    ("resize and the rest (workers)", ("padim_bottle.data.dataset:PhotoDataset.__getitem__",)),
    ("collate (workers)", ("anomalib.data:ImageBatch.collate",)),
)


class Stopwatches:
    """Exclusive time and number of calls of each stage, in this process, its threads, and processes it forks.

    Args:
        stages: names of the stages that may be watched.
    """

    def __init__(self, stages: Sequence[str]) -> None:
        self.stages = list(stages)
        # Shared memory: a loader's worker counts in it too.
        self._seconds = multiprocessing.Array("d", len(self.stages))
        self._calls = multiprocessing.Array("l", len(self.stages))
        self._running = threading.local()

    def wrap(self, function: Callable, stage: str) -> Callable:
        """Return the function with a watch around it; time in other watched functions that it calls is theirs."""
        index = self.stages.index(stage)

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(self._running, "inner_seconds", 0.0)
            self._running.inner_seconds = 0.0
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                with self._seconds.get_lock():
                    self._seconds[index] += elapsed - self._running.inner_seconds
                    self._calls[index] += 1
                self._running.inner_seconds = outer + elapsed

        return watched

    def watch(self, target: str, stage: str) -> None:
        """Put a watch around ``module:qualified.name``."""
        owner, name, original = find(target)
        if isinstance(original, staticmethod | classmethod):
            setattr(owner, name, type(original)(self.wrap(original.__func__, stage)))
        else:
            setattr(owner, name, self.wrap(original, stage))

    def read(self) -> dict[str, dict[str, float]]:
        """Return ``seconds`` and ``calls`` of each stage."""
        pairs = zip(self.stages, self._seconds, self._calls, strict=True)
        return {stage: {"seconds": seconds, "calls": calls} for stage, seconds, calls in pairs}


def find(target: str) -> tuple[Any, str, Any]:
    """Return the owner, name and definition of ``module:qualified.name``."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, import_module(module))
    return owner, name, inspect.getattr_static(owner, name)


def run_watched(arguments: Sequence[str], record: Path) -> None:
    """Train with watches on, and write what they say: the profiled process calls this.

    Args:
        arguments: of ``scripts/train.py``.
        record: file to write.
    """
    main = time.time()
    from padim_bottle.commands.train import train_command
    from padim_bottle.console import quiet

    quiet()
    watches = Stopwatches([stage for stage, _ in (*STAGES, *BESIDE)])
    targets = [(target, stage) for stage, functions in (*STAGES, *BESIDE) for target in functions]
    for target, _ in targets:
        import_module(target.partition(":")[0])
    imported = time.time()
    for target, stage in targets:
        watches.watch(target, stage)
    code = train_command(arguments)
    record.write_text(json.dumps({"main": main, "imported": imported, "end": time.time(), "stages": watches.read()}))
    sys.exit(code)


def profile(command: Callable[[Path], list[str]], output: Path) -> None:
    """Profile one run in a process of its own and write ``profile.json``, ``profile.md`` and ``profile.png``.

    Args:
        command: makes the command of a run that writes into a given folder: Python, a script, its arguments.
        output: folder of the results.

    Raises:
        UserError: the run failed.
    """
    from benchmark_report import markdown_table, write_report

    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        record = Path(folder) / "record.json"
        python, _script, *arguments = command(Path(folder))
        code = f"from pathlib import Path; from profiling import run_watched as run; run({arguments!r}, "
        start = time.time()
        done = subprocess.run([python, "-c", f"{code}Path({str(record)!r}))"], capture_output=True, text=True)
        end = time.time()
        if done.returncode or not record.is_file():
            raise UserError(f"The profiled run failed:\n{(done.stdout + done.stderr)[-3000:]}")
        times = json.loads(record.read_text())

    stages = {
        "start Python": {"seconds": times["main"] - start, "calls": 1},
        "import": {"seconds": times["imported"] - times["main"], "calls": 1},
        **{stage: times["stages"][stage] for stage, _ in STAGES},
        "exit": {"seconds": end - times["end"], "calls": 1},
    }
    total = end - start
    stages["other"] = {"seconds": total - sum(stage["seconds"] for stage in stages.values()), "calls": 1}
    beside = {stage: times["stages"][stage] for stage, _ in BESIDE}
    rows = [
        [name, f"{stage['seconds']:.2f}", f"{stage['seconds'] / total:.1%}", f"{stage['calls']:.0f}"]
        for name, stage in stages.items()
    ]
    text = "\n\n".join(
        [
            "# Where the time of one run goes",
            f"One watched run, {os.cpu_count()} cores: {total:.1f} s.",
            markdown_table(["main thread", "seconds", "share", "calls"], rows),
            "Beside the main thread, no part of the sum:",
            markdown_table(
                ["", "seconds", "calls"],
                [[name, f"{stage['seconds']:.2f}", f"{stage['calls']:.0f}"] for name, stage in beside.items()],
            ),
        ]
    )
    write_report(output, "profile", {"total_seconds": total, "main_thread": stages, "beside": beside}, text)
    _draw(stages, total, output / "profile.png")


def _draw(stages: dict[str, dict[str, float]], total: float, file: Path) -> None:
    from matplotlib.figure import Figure

    seconds = {name: stage["seconds"] for name, stage in reversed(stages.items())}
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    bars = panel.barh(list(seconds), list(seconds.values()), color="#3b6ea5")
    labels = [f"{value:.2f} s ({value / total:.0%})" for value in seconds.values()]
    panel.bar_label(bars, labels, padding=3, fontsize=8)
    panel.set(xlabel="seconds", title=f"Where the {total:.1f} s of one run go")
    panel.margins(x=0.15)
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
