"""The evaluations of a run: when they are due, and what is no number ends it."""

from collections.abc import Iterable
from typing import Any

from ecoformer.config.schema import TrainConfig
from ecoformer.engine import distributed, parallel
from ecoformer.engine.batches import Batch
from ecoformer.engine.divergence import Diverged
from ecoformer.engine.evaluation import NotFinite, evaluate
from ecoformer.engine.optim import learning_rate
from ecoformer.engine.run_state import RunState
from ecoformer.engine.signals import StopSignals
from ecoformer.errors import counted

FIGURES = {"val_loss": "loss", "val_top1": "top1", "val_top5": "top5", "images_per_second": "images_per_second"}
NOT_EVALUATED: dict[str, Any] = dict.fromkeys(FIGURES)


def due_after_epoch(train: TrainConfig, epoch: int) -> bool:
    """Whether `train.val_interval` asks for an evaluation after `epoch` (from 0); there is one after the last."""
    return (epoch + 1) % train.val_interval == 0 or epoch + 1 == train.epochs


def due_after_step(train: TrainConfig, step: int) -> bool:
    """Whether `train.val_interval_steps` asks for one after so many steps of the run."""
    return train.val_interval_steps > 0 and step % train.val_interval_steps == 0


def early_end(state: RunState, done: int) -> str | None:
    """A line on why `train.early_stop` ends the run after `done` epochs, if it does: what the checkpoint holds says so.

    Every rank must call it.
    """
    patience, latest, best = state.train.early_stop, state.latest, state.best
    if patience is None:
        return None
    has_figures = latest is not None and latest[best.metric] is not None  # the last epoch
    over = has_figures and best.record is not None and done - best.record["epoch"] > patience
    if not distributed.decided_by_main(lambda: over):  # it alone knows whether best.pt is there
        return None
    return f"no better {state.train.eval_metric} in {counted(patience, 'epoch')}: the run ends (train.early_stop)"


def validate(state: RunState, loader: Iterable[Batch], signals: StopSignals, remedies: str) -> dict[str, Any]:
    """Figures of the model that is kept in best.pt, as records name them. Every rank must call it.

    Raises:
        Diverged: logits are no numbers; says `remedies`.
        Interrupted: a signal came to a lone process; the run was saved.
    """
    model, train, on_batch = state.evaluated, state.train, state.when_asked_to_stop(signals)
    try:
        with parallel.whole_weights(model):
            result = evaluate(
                *(model, loader, state.device, train.amp), channels_last=train.channels_last, on_batch=on_batch
            )
    except NotFinite as fault:
        lr = learning_rate(state.optimizer)
        raise Diverged(
            f"evaluation of epoch {state.epoch + 1}: {fault}, learning rate {lr:.3g}: {remedies}; "
            f"{state.what_is_saved()}"
        ) from fault
    return {key: getattr(result, name) for key, name in FIGURES.items()}
