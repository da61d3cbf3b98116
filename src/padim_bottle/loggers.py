"""The path by which configs of version 0.1 name the logger; new ones write ``padim_bottle.MLFlowLogger``."""

from padim_bottle.experiment.loggers import MLFlowLogger

__all__ = ["MLFlowLogger"]
