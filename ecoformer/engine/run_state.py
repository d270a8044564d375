"""What a run must remember to go on exactly where it was, and what is told to the user about it.

A run can be resumed between two epochs and after any optimiser step within one. Everything that follows is a function
of what is saved here: weights, optimiser, step, position in the epoch, random states, callbacks.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecoformer.engine import distributed, parallel
from ecoformer.engine.position import Position
from ecoformer.engine.rng import rng_state, set_rng_state
from ecoformer.engine.run_files import BEST, LAST, METRICS, PREVIOUS, TOP, read_intact, set_earlier_run_aside
from ecoformer.engine.signals import Interrupted
from ecoformer.errors import InputError
from ecoformer.files import atomic_write, remove
from ecoformer.model.checkpoint import load_checkpoint, load_weights, save_checkpoint

if TYPE_CHECKING:
    from ecoformer.engine.trainer import Trainer

_MADE_OF = {
    "steps_per_epoch": "the data, train.batch_size, train.grad_accum and train.max_steps",
    "global_batch": "train.batch_size, train.grad_accum and the number of processes",
}


def capture(trainer: Trainer) -> dict[str, Any]:
    """What no rank knows alone: random states, figures of the epoch, sharded tensors. Every rank must call it."""
    return {
        "state": _state(trainer) if trainer.sharded else None,
        "rng": distributed.gather_objects(rng_state(trainer.device)),
        "position": None if trainer.position is None else trainer.position.gathered(),
    }


def _state(trainer: Trainer) -> dict[str, Any]:
    """The state dicts of the model, its average and the optimiser, of whole tensors."""
    return {
        "model": parallel.whole(dict(trainer.model.state_dict())),
        "ema": None if trainer.ema is None else parallel.whole(dict(trainer.ema.module.state_dict())),
        "optimizer": parallel.whole(trainer.optimizer.state_dict()),
    }


def save(trainer: Trainer, *, is_best: bool = False, captured: dict[str, Any] | None = None) -> None:
    """Write last.pt and, at the end of an epoch, best.pt and the epoch's file in top/ before it.

    A kill in between only repeats the epoch. The last.pt before becomes previous.pt. Every rank must call it, or hand
    in what `capture` returned; rank 0 writes.
    """
    captured = captured or capture(trainer)
    if not distributed.is_main():
        return
    completed = trainer.epoch + (captured["position"] is None)
    common = {"config": trainer.config, "epoch": completed, "step": trainer.step, "metrics": trainer.latest}
    state = captured["state"] or _state(trainer)
    weights = {"kind": "weights", **common, "model": state["ema"] or state["model"]}
    if is_best:
        save_checkpoint(trainer.run_dir / BEST, weights)
    if captured["position"] is None:
        _keep_if_top(trainer, weights)
    training = {
        "optimizer": state["optimizer"],
        "scaler": trainer.scaler.state_dict(),
        "settings": trainer.settings,
        "rng": captured["rng"],
        "position": captured["position"],
        "callbacks": {callback.name: callback.state_dict() for callback in trainer.callbacks},
        "loggers": {logger.name: logger.state_dict() for logger in trainer.loggers},
        "best": trainer.best,
        "top": trainer.top,
        "skipped_batches": trainer.skipped_batches,
        "elapsed_s": trainer.duration_s(),
    }
    content: dict[str, Any] = {"kind": "run", **common, "model": state["model"], "ema": state["ema"]}
    content["training"] = training
    # A last.pt that this process neither read nor wrote may be damaged: it must not push out the good one before.
    previous = trainer.run_dir / PREVIOUS if trainer.last_is_good else None
    save_checkpoint(trainer.run_dir / LAST, content, previous)
    trainer.last_is_good = True
    trainer.saved = (completed, trainer.step - completed * trainer.steps_per_epoch)
    for path in (trainer.run_dir / TOP).glob("epoch-*.pt"):
        if path.name not in map(_top_name, trainer.top):
            remove(path)


def when_asked_to_stop(trainer: Trainer) -> Callable[[], None]:
    """What the evaluation calls after each batch, so that a signal need not wait for its end to be obeyed.

    A lone process saves and stops. Of several, which cannot agree on a batch, rank 0 saves at once, with no word from
    the others, and all stop after the evaluation: should the grace period end before, nothing is lost.
    """
    captured, done = capture(trainer), False

    def check() -> None:
        nonlocal done
        if trainer.signals.received is None or done:
            return
        done = True
        if captured["position"] is not None:  # else nothing was trained, and there is nothing to lose
            save(trainer, captured=captured)
        if distributed.world_size() == 1:
            raise Interrupted(trainer.signals.received)

    return check


def restore(trainer: Trainer, path: Path) -> dict[str, Any]:
    """Put everything but the random states back, and return the checkpoint.

    Raises:
        InputError: not a checkpoint, or of a run that this one cannot continue; names the setting.
    """
    path, checkpoint = read_intact(path, load_checkpoint)
    _require_same_run(trainer, checkpoint, path)
    training = checkpoint["training"]
    load_weights(trainer.model, checkpoint["model"], path)
    if trainer.ema is not None:
        load_weights(trainer.ema.module, checkpoint["ema"], path)
    parallel.load_optimizer(trainer.optimizer, training["optimizer"])
    trainer.scaler.load_state_dict(training["scaler"])
    # A callback or logger that was added since has no state yet.
    for callback in trainer.callbacks:
        if callback.name in training["callbacks"]:
            callback.load_state_dict(training["callbacks"][callback.name])
    for logger in trainer.loggers:
        if logger.name in training["loggers"]:
            logger.load_state_dict(training["loggers"][logger.name])
    trainer.epoch, trainer.step = checkpoint["epoch"], checkpoint["step"]
    position = training.get("position")  # format version 1 had none
    trainer.position = None if position is None else Position.restored(position)
    trainer.best, trainer.latest = training["best"], checkpoint["metrics"]
    trainer.top, trainer.skipped_batches = training.get("top", []), training.get("skipped_batches", 0)
    trainer.saved = (trainer.epoch, 0 if position is None else position["steps"])
    trainer.last_is_good = path.resolve() == (trainer.run_dir / LAST).resolve()
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
    """Put this rank's random states back; call it last, right before the first step."""
    states = checkpoint["training"]["rng"]
    # The global batch is the same, but it may be spread over another number of processes.
    if len(states) == distributed.world_size():
        set_rng_state(states[distributed.rank()], trainer.device)
    else:
        trainer.print(
            f"resumed on {distributed.world_size()} processes, was {len(states)}: augmentation and drop-path draw anew"
        )


def prepare_run_dir(trainer: Trainer, resume: Path | None) -> None:
    """Make run_dir hold what was written before the first step to come, and nothing of another run.

    A run that is resumed from another folder's last.pt takes that folder's metrics and best weights along.
    """
    run_dir = trainer.run_dir
    continued = resume is not None and resume.parent.resolve() == run_dir.resolve()
    # A new run must not destroy an earlier one's checkpoints.
    if not continued and (aside := set_earlier_run_aside(run_dir)) is not None:
        trainer.print(f"{run_dir} held an earlier run: its files are now in {aside}")
    if resume is not None and not continued:
        names = [BEST, METRICS, *(f"{TOP}/{_top_name(kept)}" for kept in trainer.top)]
        for source, target in ((resume.parent / name, run_dir / name) for name in names):
            if source.exists():
                with atomic_write(target) as file, open(source, "rb") as original:
                    shutil.copyfileobj(original, file)
    if trainer.step > 0 and not (run_dir / METRICS).exists():
        trainer.print(f"{run_dir} has no {METRICS} to go on with: it starts in epoch {trainer.epoch + 1}")
    if not (run_dir / BEST).exists() and trainer.epoch < trainer.train.epochs:
        trainer.best = None  # the next epoch writes one
    trainer.top = [kept for kept in trainer.top if (run_dir / TOP / _top_name(kept)).exists()]


def _keep_if_top(trainer: Trainer, weights: dict[str, Any]) -> None:
    """Write the epoch's weights if they are among the best; an equal earlier epoch goes before a later one."""
    assert trainer.latest is not None, "an epoch ends with its record"
    latest = {key: trainer.latest[key] for key in ("epoch", "val_top1")}
    ranking = sorted([*trainer.top, latest], key=lambda kept: -kept["val_top1"])
    trainer.top = ranking[: trainer.checkpoint.keep_top_k]
    if latest in trainer.top:
        save_checkpoint(trainer.run_dir / TOP / _top_name(latest), weights)


def _top_name(kept: dict[str, Any]) -> str:
    return f"epoch-{kept['epoch'] + 1}.pt"


def what_is_saved(trainer: Trainer) -> str:
    """Half a sentence: what a resume would continue from."""
    if trainer.saved is None:
        return "no epoch was complete, so nothing is saved yet"
    epochs, steps = trainer.saved
    within = f" and {steps} of {trainer.steps_per_epoch} steps of the next" if steps else ""
    return f"{epochs} of {trainer.train.epochs} epochs{within} are saved in {trainer.run_dir / LAST}"


def how_to_go_on(trainer: Trainer, signum: int) -> str:
    """The one line for a user who stopped the run."""
    saved = what_is_saved(trainer)
    remedy = "start again with the same command" if trainer.saved is None else "go on with resume=auto"
    return f"stopped by {signal.Signals(signum).name} in epoch {trainer.epoch + 1}: {saved}; {remedy}"
