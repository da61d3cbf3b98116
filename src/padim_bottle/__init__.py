"""PaDiM on MVTec AD 'bottle' with Anomalib.

``padim_bottle.Padim``, ``padim_bottle.MVTecAD``, ``padim_bottle.Photos``, ``padim_bottle.SyntheticBottles``,
``padim_bottle.ResultsWriter`` and ``padim_bottle.Report`` are what the configs name. They are loaded when they are
first asked for: importing this package is cheap.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("padim-bottle")

_HOMES = {
    "Padim": "padim_bottle.model.padim",
    "MVTecAD": "padim_bottle.data.mvtec",
    "Photos": "padim_bottle.data.photos",
    "SyntheticBottles": "padim_bottle.data.synthetic",
    "ResultsWriter": "padim_bottle.runs.writer",
    "Report": "padim_bottle.report.callback",
    "MLFlowLogger": "padim_bottle.runs.loggers",
}

__all__ = ["MLFlowLogger", "MVTecAD", "Padim", "Photos", "Report", "ResultsWriter", "SyntheticBottles"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
