"""The engine room: training loop, evaluation, checkpoints, logs. It knows no kind of attention."""

from ecoformer.engine.callbacks import Callback
from ecoformer.engine.loggers import Logger

__all__ = ["Callback", "Logger"]
