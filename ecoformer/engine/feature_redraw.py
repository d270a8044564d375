"""When random features are drawn anew, and the callback that does it."""

from ecoformer.config.schema import FeatureRedrawConfig
from ecoformer.engine.callbacks import Callback, Training
from ecoformer.nn.random_features import redraw_features, redrawn_layers


def redraw_due(config: FeatureRedrawConfig, epoch: int) -> bool:
    """Whether features are drawn anew before the steps of `epoch` (from 0). Pure, so a resume agrees.

    Not before epoch 0: the features that a model is built or loaded with are as good.
    """
    return config.enabled and epoch > 0 and epoch % config.every == 0


def redraw_seed(seed: int, epoch: int) -> int:
    """The seed of the draw before `epoch`: another one each time, the same on every rank and on a resume."""
    return (seed * 1_000_003 + epoch * 7_907 + 29) % 2**63


class FeatureRedraw(Callback):
    """Draws the random features of all layers anew (Performer), before the steps of the epochs that are due.

    With one draw for a whole training the weights come to rely on its errors; Choromanski et al. (2021)
    redraw for that reason. Every rank draws the same; the EMA model's features are made equal too.
    """

    name = "feature_redraw"

    def __init__(self, config: FeatureRedrawConfig) -> None:
        self.config = config

    def on_epoch_start(self, trainer: Training, epoch: int) -> None:
        resumed_inside = trainer.step % trainer.steps_per_epoch != 0  # drawn before; the checkpoint holds them
        if not redraw_due(self.config, epoch) or resumed_inside or not redrawn_layers(trainer.model):
            return
        count = redraw_features(trainer.model, redraw_seed(trainer.seed, epoch))
        trainer.sync_buffers()
        trainer.log("feature_redraw", layers=count)
