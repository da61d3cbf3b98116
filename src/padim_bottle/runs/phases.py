"""When the phases of a run begin and end, told by Lightning's hooks."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback

from padim_bottle.stages import READING, Stage, clock, since_start

PHASES = ("train", "validate", "test", "draw", "evaluate", "report", "total")
"""Of a run: their wall times hold all that is done within them."""


class TimedPhases(Callback):
    """Times training, validation and test, which wait for photos where they do nothing else."""

    def __init__(self) -> None:
        self._before: Stage | None = None

    def start_clock(self) -> None:
        """Begin a run."""
        # The first run of a process has waited for the imports.
        self._before = None if clock.stages else since_start()
        clock.restart()
        clock.begin("total")

    def times(self) -> dict[str, Any]:
        """Return what ``metrics.json`` has of the phases that have ended, and of all stages so far."""
        ended = {name: round(told.seconds, 3) for name, told in clock.stages.items() if told.seconds}
        before = {} if self._before is None else {"start": self._before}
        return {
            "seconds": {name: ended[name] for name in PHASES if name in ended},
            "profile": {
                name: {"seconds": round(told.own_seconds, 3), "cpu_seconds": round(told.own_cpu_seconds, 3)}
                for name, told in {**before, **clock.stages}.items()
            },
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the training, which waits for photos."""
        clock.begin("train")
        clock.begin(READING)

    def on_train_batch_start(self, *args: Any) -> None:
        """Note that the photos are there."""
        clock.end(READING)

    def on_train_batch_end(self, *args: Any) -> None:
        """Note that more are waited for."""
        clock.begin(READING)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the training."""
        clock.end("train")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the validation."""
        clock.begin("validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the validation."""
        clock.end("validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the test, which waits for photos."""
        clock.begin("test")
        clock.begin(READING)

    on_test_batch_start, on_test_batch_end = on_train_batch_start, on_train_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the test."""
        clock.end("test")
