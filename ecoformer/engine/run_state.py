"""What a run must remember to go on exactly where it was: the content of last.pt.

A run can be resumed between two epochs and after any optimiser step within one. Everything that follows is a function
of what is saved here: weights, optimiser, step, position in the epoch, random states, callbacks.
"""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from ecoformer.config.schema import TrainConfig
from ecoformer.engine import distributed, parallel
from ecoformer.engine.batches import Position
from ecoformer.engine.best import Best
from ecoformer.engine.loggers import Logger, Stateful
from ecoformer.engine.optim import load_state, state_of
from ecoformer.engine.rng import rng_state
from ecoformer.engine.run_files import make_room, read_intact
from ecoformer.engine.same_run import require_same_run
from ecoformer.engine.signals import StopSignals
from ecoformer.errors import InputError, counted
from ecoformer.files.run_names import LAST, METRICS, PREVIOUS
from ecoformer.model.checkpoint import load_checkpoint, load_weights, no_plain, save_checkpoint


@dataclass
class RunState:
    """The parts of a run that change as it goes on, and how they are saved and put back.

    Attributes:
        settings: what a resumed run must share with the one that wrote the checkpoint.
        config: stored in the checkpoints as it is; its `class_names` must be the same in a resumed run, too.
        epoch, step: the epoch in hand; optimiser steps done.
        position: in the epoch in hand; None between epochs.
        latest: the "epoch" record of the latest epoch.
        saved: epochs, and steps of the next, that last.pt holds.
        last_is_good: whether run_dir/last.pt was read or written by this process.
        elapsed_s: in earlier processes of this run.
        restored_rng: random states of every rank, of the checkpoint that was restored.
    """

    run_dir: Path
    device: torch.device
    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    scaler: torch.amp.GradScaler
    callbacks: Sequence[Stateful]
    loggers: Sequence[Logger]
    settings: dict[str, Any]
    config: dict[str, Any]
    train: TrainConfig
    steps_per_epoch: int
    best: Best

    epoch: int = 0
    step: int = 0
    position: Position | None = None
    skipped_batches: int = 0
    latest: dict[str, Any] | None = None
    saved: tuple[int, int] | None = None
    last_is_good: bool = False
    elapsed_s: float = 0.0
    restored_rng: list[dict[str, Any]] | None = None
    started: float = field(default_factory=time.perf_counter)

    def check_parts(self) -> None:
        """Raise InputError for parts whose states a checkpoint could not hold, or not tell apart."""
        for parts in (self.callbacks, self.loggers):
            held = [part for part in parts if type(part).state_dict is not Stateful.state_dict]
            names = [part.name for part in held]
            for part in held:
                where = f"{type(part).__name__} ({part.name})"
                if names.count(part.name) > 1:
                    raise InputError(f"{where} keeps a state under the name of another one: give each class a name")
                if (fault := no_plain(part.state_dict(), "its state_dict()")) is not None:
                    raise InputError(f"{where}: {fault}: hand numbers, texts, tensors and containers of them")

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and kept in best.pt: the average of the weights where the run has one."""
        return self.model if self.ema is None else self.ema.module

    def duration_s(self) -> float:
        """Seconds spent on this run, in this process and in those it was resumed from."""
        return self.elapsed_s + time.perf_counter() - self.started

    def log(self, event: str, **values: Any) -> dict[str, Any]:
        """Write one record to all loggers (rank 0 alone writes) and return it."""
        record = {"event": event, "epoch": self.epoch, "step": self.step, "time": time.time(), **values}
        if distributed.is_main():
            for logger in self.loggers:
                logger.log(record)
        return record

    def figures(self) -> dict[str, Any]:
        """The run's figures so far; see `Trainer.fit`. Epochs are 0 and rates of training absent without training."""
        best, latest = self.best.record, self.latest
        if best is None or latest is None:  # stopped before its first evaluation
            return {}
        return {
            **{key: best[f"val_{key}"] for key in ("top1", "top5", "loss")},
            "best_epoch": best["epoch"] + 1,
            "last_top1": latest["val_top1"],
            "epochs": latest["epoch"] + 1,
            **{key: latest[key] for key in ("images_per_second", "train_images_per_second") if key in latest},
            "duration_s": self.duration_s(),
        }

    def capture(self) -> dict[str, Any]:
        """What no rank knows alone: random states, figures of the epoch, sharded tensors. Every rank must call it."""
        return {
            "state": self._tensors() if parallel.holds_shares(self.model) else None,
            "rng": distributed.gather_objects(rng_state(self.device)),
            "position": None if self.position is None else self.position.gathered(),
        }

    def _tensors(self) -> dict[str, Any]:
        """The state dicts of the model, its average and the optimiser, of whole tensors."""
        return {
            "model": parallel.whole(dict(self.model.state_dict())),
            "ema": None if self.ema is None else parallel.whole(dict(self.ema.module.state_dict())),
            "optimizer": parallel.whole(self.optimizer.state_dict()),
        }

    def save(self, *, is_best: bool = False, captured: dict[str, Any] | None = None) -> None:
        """Write last.pt and before it best.pt and, at the end of an epoch, the epoch's file in top/.

        A kill in between only repeats the epoch. The last.pt before becomes previous.pt. Every rank must call it, or
        hand in what `capture` returned; rank 0 writes.
        """
        captured = captured or self.capture()
        if not distributed.is_main():
            return
        completed = self.epoch + (captured["position"] is None)
        common = {"config": self.config, "epoch": completed, "step": self.step, "metrics": self.latest}
        state = captured["state"] or self._tensors()
        weights = {"kind": "weights", **common, "model": state["ema"] or state["model"]}
        if is_best:
            self.best.write(weights)
        if captured["position"] is None:
            self.best.write_if_top(self.latest, weights)
        training = {
            "optimizer": state["optimizer"],
            "scaler": self.scaler.state_dict(),
            "plateau": state_of(self.scheduler),
            "settings": self.settings,
            "rng": captured["rng"],
            "position": captured["position"],
            "callbacks": {callback.name: callback.state_dict() for callback in self.callbacks},
            "loggers": {logger.name: logger.state_dict() for logger in self.loggers},
            "best": self.best.record,
            "top": self.best.top,
            "skipped_batches": self.skipped_batches,
            "elapsed_s": self.duration_s(),
        }
        content = {"kind": "run", **common, "model": state["model"], "ema": state["ema"], "training": training}
        # A last.pt that this process neither read nor wrote may be damaged: it must not push out the good one before.
        save_checkpoint(self.run_dir / LAST, content, self.run_dir / PREVIOUS if self.last_is_good else None)
        self.last_is_good = True
        self.saved = (completed, self.step - completed * self.steps_per_epoch)
        self.best.remove_others()

    def when_asked_to_stop(self, signals: StopSignals) -> Callable[[], None]:
        """What the evaluation calls after each batch, so that a signal need not wait for its end to be obeyed.

        A lone process saves and stops. Of several, which cannot agree on a batch, rank 0 saves at once, with no word
        from the others, and all stop after the evaluation: should the grace period end before, nothing is lost.
        """
        captured, done = self.capture(), False

        def check() -> None:
            nonlocal done
            if signals.received is None or done:
                return
            done = True
            if captured["position"] is not None:  # else nothing was trained, and there is nothing to lose
                self.save(captured=captured)
            signals.obey_alone()

        return check

    def restore(self, path: Path) -> None:
        """Put everything but the random states back. Writes nothing.

        Raises InputError: not a checkpoint, or of a run that this one cannot continue; names the setting.
        """
        path, checkpoint = read_intact(path, load_checkpoint)
        require_same_run(path, checkpoint, self.train.epochs, self.config, self.settings)
        training = checkpoint["training"]
        load_weights(self.model, checkpoint["model"], path)
        if self.ema is not None:
            load_weights(self.ema.module, checkpoint["ema"], path)
        parallel.load_optimizer(self.optimizer, training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        load_state(self.scheduler, training["plateau"])
        for kind, parts in (("callbacks", self.callbacks), ("loggers", self.loggers)):
            for part in parts:
                if part.name in training[kind]:  # one that was added since has no state yet
                    part.load_state_dict(training[kind][part.name])
        self.epoch, self.step = checkpoint["epoch"], checkpoint["step"]
        position = training.get("position")  # format version 1 had none
        self.position = None if position is None else Position.restored(position)
        self.best.record, self.best.top = training["best"], training.get("top", [])
        self.latest, self.skipped_batches = checkpoint["metrics"], training.get("skipped_batches", 0)
        self.saved = (self.epoch, 0 if position is None else position["steps"])
        self.last_is_good = path.resolve() == (self.run_dir / LAST).resolve()
        self.elapsed_s = training["elapsed_s"]
        self.restored_rng = training["rng"]

    def open_run_dir(self, resume: Path | None) -> list[str]:
        """Make run_dir hold what was written before the first step to come, and nothing of another run; notes on it.

        Rank 0 alone does, and opens the loggers.
        """
        if not distributed.is_main():
            return []
        notes = make_room(self.run_dir, resume, self.best.top_files())
        if self.step > 0 and not (self.run_dir / METRICS).exists():
            notes.append(f"{self.run_dir} has no {METRICS} to go on with: it starts in epoch {self.epoch + 1}")
        notes += self.best.forget_missing(self.epoch < self.train.epochs, self.last_is_good)
        for logger in self.loggers:
            logger.open(self.run_dir, self.epoch if resume else None, self.config)
        return notes

    def what_is_saved(self) -> str:
        """Half a sentence: what a resume would continue from."""
        if self.saved is None:
            return "no epoch was complete, so nothing is saved yet"
        done, steps = self.saved
        within = f" and {steps} of {self.steps_per_epoch} steps of the next" if steps else ""
        return f"{done} of {counted(self.train.epochs, 'epoch')}{within} are saved in {self.run_dir / LAST}"

    def how_to_go_on(self, signum: int) -> str:
        """The one line for a user who stopped the run."""
        remedy = "start again with the same command" if self.saved is None else "go on with resume=auto"
        name = signal.Signals(signum).name
        return f"stopped by {name} in epoch {self.epoch + 1}: {self.what_is_saved()}; {remedy}"
