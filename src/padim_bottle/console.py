"""Silences messages of libraries that a user can do nothing about."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Silence the libraries that are imported within, while they are loaded and from then on."""
    quiet()
    yield
    # Once more: anomalib and Lightning set warning filters and the levels of their loggers when they are loaded.
    quiet()


@contextlib.contextmanager
def errors_alone(logger: str) -> Iterator[None]:
    """Let a logger say nothing but errors within."""
    named = logging.getLogger(logger)
    level = named.level
    named.setLevel(logging.ERROR)
    try:
        yield
    finally:
        named.setLevel(level)


def quiet() -> None:
    """Silence messages of libraries that a user can do nothing about."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for message in (
        ".*configure_optimizers. returned .None.*",
        ".*in eval mode at the start of training.*",
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*LeafSpec.*",
        ".*Total length of .list. across ranks is zero.*",  # no test images, which a run says itself
        ".*Please use.*weights_only.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_fabric", "pytorch_lightning", "anomalib", "timm"):
        logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.ERROR)
