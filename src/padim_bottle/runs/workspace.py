"""What Lightning and anomalib's Engine made beside a run, and what of it the run takes."""

import contextlib
import re
import shutil
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from lightning import Trainer
from lightning.pytorch.cli import SaveConfigCallback


def dump_config(parser: ArgumentParser, config: Namespace) -> str:
    """Return the text of ``config.yaml``: the config as resolved, whose digest is ``config_sha256``."""
    return parser.dump(config, skip_none=False, skip_validation=True)


def config_text(trainer: Trainer) -> str:
    """Return the text of a run's ``config.yaml``, as the trainer's callbacks know it."""
    saver = next((callback for callback in trainer.callbacks if isinstance(callback, SaveConfigCallback)), None)
    if saver is None:
        return "# This run was started from Python: there was no configuration file.\n"
    return dump_config(saver.parser, saver.config)


def take_checkpoint(trainer: Trainer, target: Path) -> None:
    """Move the checkpoint that the trainer saved, or save one."""
    saved = trainer.checkpoint_callback.best_model_path if trainer.checkpoint_callback else ""
    if saved and Path(saved).is_file():
        shutil.move(saved, target)
    else:
        trainer.save_checkpoint(target)


def discard_workspace(trainer: Trainer) -> None:
    """Remove the versioned folder that anomalib's Engine made, if nothing but a copy of the config is left in it."""
    workspace = Path(trainer.default_root_dir)
    left = [path for path in workspace.rglob("*") if path.is_file()]
    if re.fullmatch(r"v\d+", workspace.name) and all(path.name == "config.yaml" for path in left):
        latest = workspace.with_name("latest")
        if latest.is_symlink() and latest.resolve() == workspace.resolve():
            latest.unlink()
        shutil.rmtree(workspace, ignore_errors=True)
        # .../<root>/Padim/MVTecAD/bottle: remove what is empty now.
        with contextlib.suppress(OSError):
            for parent in list(workspace.parents)[:4]:
                parent.rmdir()
