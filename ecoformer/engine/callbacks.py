"""Callbacks: what happens beside the training steps, before and after an epoch or between two steps.

Hash fits have a file of their own, hash_update.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from ecoformer.config.schema import EnergyConfig, FeatureRedrawConfig
from ecoformer.engine.loggers import Stateful
from ecoformer.engine.run_state import RunState
from ecoformer.nn.inputs import input_size
from ecoformer.nn.random_features import redraw_features


class TrainingData(Protocol):
    """What a run asks of a data module; loaders also have `__len__`.

    The training loader has `set_epoch(epoch, first_batch)`: its next pass begins at that batch of the epoch, as if
    those before it had been consumed.
    """

    img_size: int
    num_train: int
    train_loader: Any
    val_loader: Any

    @property
    def samples(self) -> str: ...  # what messages call them

    def calibration_images(self, num_images: int, seed: int) -> Tensor: ...


class Training(Protocol):
    """What a callback sees of the run: a Trainer, or what stands in for one.

    Attributes:
        state: all that a checkpoint holds; `model` and `step` are its own.
        skeleton: the model to count on, whole and perhaps without values.
    """

    state: RunState
    data: TrainingData
    seed: int
    steps_per_epoch: int
    skeleton: nn.Module

    @property
    def model(self) -> nn.Module: ...

    @property
    def step(self) -> int: ...

    def stop_if_asked(self) -> None: ...  # raises Interrupted, in what takes long and is not saved

    def sync_buffers(self, parameters: Sequence[str] = ()) -> None: ...

    def log(self, event: str, **values: Any) -> dict[str, Any]: ...

    def print(self, line: str) -> None: ...


class Callback(Stateful):
    """Base class. `state_dict` travels in the checkpoint; `summary` is merged into what `Trainer.fit` returns.

    Whether a callback acts should be a pure function of its config, the epoch and the step, as in `hash_update.due`:
    then a run that is resumed, also in the middle of an epoch, repeats nothing and skips nothing without any state.
    """

    name = "callback"

    def on_fit_start(self, trainer: Training) -> None:
        """Once, after a resumed state was loaded, before the first epoch."""

    def on_epoch_start(self, trainer: Training, epoch: int) -> None:
        """Before the epoch's first step, not where a run goes on within the epoch; every rank calls it."""

    def on_step_start(self, trainer: Training, step: int) -> None:
        """Before an optimiser step; `step` counts those done before it in the whole run. Every rank calls it.

        A run that is resumed within an epoch goes on with the call that follows its last saved step.
        """

    def on_epoch_end(self, trainer: Training, epoch: int, metrics: dict[str, Any]) -> None:
        """After the evaluation, before the checkpoint is written."""

    def summary(self) -> dict[str, Any]:
        """Figures for the run's summary."""
        return {}


class EnergyLog(Callback):
    """Counts the model's operations and energy when training starts, logs them and keeps them for the summary."""

    name = "energy_log"

    def __init__(self, config: EnergyConfig) -> None:
        self.config = config
        self.figures: dict[str, Any] = {}

    def on_fit_start(self, trainer: Training) -> None:
        from ecoformer.energy import summarize

        before = self.figures
        self.figures = summarize(
            trainer.skeleton,
            input_size(trainer.skeleton, trainer.data.img_size),
            convention=self.config.convention,
            profile=self.config.profile,
        )
        if self.figures != before:  # a resumed run has the line already
            trainer.log("energy", **self.figures)

    def state_dict(self) -> dict[str, Any]:
        return {"figures": self.figures}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.figures = state["figures"]

    def summary(self) -> dict[str, Any]:
        return self.figures


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
        if not redraw_due(self.config, epoch):
            return
        if count := redraw_features(trainer.model, redraw_seed(trainer.seed, epoch)):
            trainer.sync_buffers()
            trainer.log("feature_redraw", layers=count)
