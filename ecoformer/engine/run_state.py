"""What a run must remember to go on exactly where it was, and what is told to the user about it.

A run is resumed at the end of its last whole epoch. Everything that an epoch does follows from the state at its
start (weights, optimiser, step, random states, callbacks), so an epoch that was cut short is simply done again.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecoformer.engine import distributed
from ecoformer.engine.checkpoint import load_checkpoint, load_weights, save_checkpoint
from ecoformer.engine.files import atomic_write, set_aside
from ecoformer.engine.rng import rng_state, set_rng_state
from ecoformer.errors import InputError

if TYPE_CHECKING:
    from ecoformer.engine.trainer import Trainer

LAST, BEST = "last.pt", "best.pt"
METRICS = "metrics.jsonl"
RUN_FILES = (LAST, BEST, METRICS, "metrics.csv", "summary.json")
_MADE_OF = {
    "steps_per_epoch": "the data, train.batch_size, train.grad_accum and train.max_steps",
    "global_batch": "train.batch_size, train.grad_accum and the number of processes",
}


def save(trainer: Trainer, is_best: bool) -> None:
    """Write last.pt, and best.pt before it, so that a kill in between only repeats the epoch.

    Every rank must call it, since each has its own random state; rank 0 writes.
    """
    rng = distributed.gather_objects(rng_state(trainer.device))
    if not distributed.is_main():
        return
    common = {
        "config": trainer.config,
        "epoch": trainer.epoch + 1,
        "step": trainer.step,
        "metrics": trainer.latest,
    }
    model = dict(trainer.model.state_dict())
    ema = None if trainer.ema is None else dict(trainer.ema.module.state_dict())
    if is_best:
        save_checkpoint(trainer.run_dir / BEST, {"kind": "weights", **common, "model": ema or model})
    training = {
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "settings": trainer.settings,
        "rng": rng,
        "callbacks": {callback.name: callback.state_dict() for callback in trainer.callbacks},
        "loggers": {logger.name: logger.state_dict() for logger in trainer.loggers},
        "best": trainer.best,
        "elapsed_s": trainer.duration_s(),
    }
    content: dict[str, Any] = {"kind": "run", **common, "model": model, "ema": ema, "training": training}
    save_checkpoint(trainer.run_dir / LAST, content)
    trainer.saved_epochs = content["epoch"]


def restore(trainer: Trainer, path: Path) -> dict[str, Any]:
    """Put everything but the random states back, and return the checkpoint.

    Raises:
        InputError: not a checkpoint, or of a run that this one cannot continue; names the setting.
    """
    checkpoint = load_checkpoint(path)
    _require_same_run(trainer, checkpoint, path)
    training = checkpoint["training"]
    load_weights(trainer.model, checkpoint["model"], path)
    if trainer.ema is not None:
        load_weights(trainer.ema.module, checkpoint["ema"], path)
    trainer.optimizer.load_state_dict(training["optimizer"])
    trainer.scaler.load_state_dict(training["scaler"])
    # A callback or logger that was added since has no state yet.
    for callback in trainer.callbacks:
        if callback.name in training["callbacks"]:
            callback.load_state_dict(training["callbacks"][callback.name])
    for logger in trainer.loggers:
        if logger.name in training["loggers"]:
            logger.load_state_dict(training["loggers"][logger.name])
    trainer.epoch, trainer.step = checkpoint["epoch"], checkpoint["step"]
    trainer.saved_epochs = checkpoint["epoch"]
    trainer.best, trainer.latest = training["best"], checkpoint["metrics"]
    trainer.elapsed_s = training["elapsed_s"]
    return checkpoint


def _require_same_run(trainer: Trainer, checkpoint: dict[str, Any], path: Path) -> None:
    if checkpoint["kind"] != "run":
        raise InputError(f"{path} holds weights only: resume from {LAST}, or start from it with init.checkpoint")
    training, epoch = checkpoint["training"], checkpoint["epoch"]
    if epoch > trainer.train.epochs:
        raise InputError(f"{path} has {epoch} epochs > train.epochs={trainer.train.epochs}: raise train.epochs")
    for name, now in trainer.settings.items():
        then = training["settings"].get(name, now)  # a setting that came later had its default
        if then != now:
            remedy = _MADE_OF.get(name, "it")
            raise InputError(
                f"{path} was written with {name}={then}, now it is {now}: keep {remedy}, or use resume=off"
            )


def restore_rng(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Put this rank's random states back; call it last, right before the first epoch."""
    states = checkpoint["training"]["rng"]
    # The global batch is the same, but it may be spread over another number of processes.
    if len(states) == distributed.world_size():
        set_rng_state(states[distributed.rank()], trainer.device)
    else:
        trainer.print(
            f"resumed on {distributed.world_size()} processes, was {len(states)}: augmentation and drop-path draw anew"
        )


def prepare_run_dir(trainer: Trainer, resume: Path | None) -> None:
    """Make run_dir hold what was written before the first epoch to come, and nothing of another run.

    A run that is resumed from another folder's last.pt takes that folder's metrics and best.pt along.
    """
    run_dir = trainer.run_dir
    continued = resume is not None and resume.parent.resolve() == run_dir.resolve()
    if not continued and any((run_dir / name).exists() for name in (LAST, BEST)):
        # A new run must not destroy an earlier one's checkpoints.
        trainer.print(f"{run_dir} held an earlier run: its files are now in {set_aside(run_dir, RUN_FILES)}")
    if resume is not None and not continued:
        for source in (resume.with_name(BEST), resume.with_name(METRICS)):
            if source.exists():
                with atomic_write(run_dir / source.name) as file:
                    file.write(source.read_bytes())
    if trainer.epoch > 0 and not (run_dir / METRICS).exists():
        trainer.print(f"{run_dir} has no {METRICS} to go on with: it starts at epoch {trainer.epoch + 1}")
    if not (run_dir / BEST).exists() and trainer.epoch < trainer.train.epochs:
        trainer.best = None  # the next epoch writes one


def what_is_saved(trainer: Trainer) -> str:
    """Half a sentence: what a resume would continue from."""
    if trainer.saved_epochs == 0:
        return "no epoch was complete, so nothing is saved yet"
    return f"{trainer.saved_epochs} of {trainer.train.epochs} epochs are saved in {trainer.run_dir / LAST}"


def how_to_go_on(trainer: Trainer, signum: int) -> str:
    """The one line for a user who stopped the run."""
    saved = what_is_saved(trainer)
    remedy = "start again with the same command" if trainer.saved_epochs == 0 else "go on with resume=auto"
    return f"stopped by {signal.Signals(signum).name} in epoch {trainer.epoch + 1}: {saved}; {remedy}"
