"""The engine room: training loop, evaluation, checkpoints, logs. It knows no kind of attention."""

from ecoformer.engine.callbacks import Callback, EnergyLog
from ecoformer.engine.divergence import Diverged
from ecoformer.engine.evaluate import EvalResult, evaluate
from ecoformer.engine.hash_update import HashUpdate
from ecoformer.engine.loggers import Logger
from ecoformer.engine.signals import Interrupted
from ecoformer.engine.trainer import Trainer
from ecoformer.engine.wandb_logger import WandbLogger
from ecoformer.model.checkpoint import evaluated_weights, load_checkpoint, load_weights, save_checkpoint

__all__ = [
    "Callback",
    "Diverged",
    "EnergyLog",
    "EvalResult",
    "HashUpdate",
    "Interrupted",
    "Logger",
    "Trainer",
    "WandbLogger",
    "evaluate",
    "evaluated_weights",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
]
