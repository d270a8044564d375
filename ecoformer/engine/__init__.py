"""The engine room: training loop, evaluation, checkpoints, logs. It knows no kind of attention."""

import importlib
from typing import Any

# Loaded when first asked for, so that a file of this room that needs no torch does not wait for it.
_HOME = {
    "Callback": "engine.callbacks",
    "Diverged": "engine.divergence",
    "EnergyLog": "engine.callbacks",
    "EvalResult": "engine.evaluation",
    "HashUpdate": "engine.hash_update",
    "Interrupted": "errors",
    "Logger": "engine.loggers",
    "Trainer": "engine.trainer",
    "WandbLogger": "engine.wandb_logger",
    "evaluate": "engine.evaluation",
    "evaluated_weights": "model.checkpoint",
    "load_checkpoint": "model.checkpoint",
    "load_weights": "model.checkpoint",
    "save_checkpoint": "model.checkpoint",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"ecoformer.{_HOME[name]}"), name)
