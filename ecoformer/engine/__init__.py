"""The engine room: training loop, evaluation, checkpoints, logs. It knows no kind of attention."""

from ecoformer import late

_HOME = {
    "Callback": "ecoformer.engine.callbacks",
    "Diverged": "ecoformer.engine.divergence",
    "EnergyLog": "ecoformer.engine.callbacks",
    "EvalResult": "ecoformer.engine.evaluation",
    "HashUpdate": "ecoformer.engine.hash_update",
    "Interrupted": "ecoformer.errors",
    "Logger": "ecoformer.engine.loggers",
    "Trainer": "ecoformer.engine.trainer",
    "WandbLogger": "ecoformer.engine.wandb_logger",
    "evaluate": "ecoformer.engine.evaluation",
    "evaluated_weights": "ecoformer.model.checkpoint",
    "load_checkpoint": "ecoformer.model.checkpoint",
    "load_weights": "ecoformer.model.checkpoint",
    "save_checkpoint": "ecoformer.model.checkpoint",
}

__all__ = [*_HOME]
__getattr__ = late(__name__, _HOME)
