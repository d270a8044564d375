"""The training loop: a run, and an epoch of it. The optimiser step is in training_step.py.

The Trainer takes built objects and knows no kind of attention and no data set.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ecoformer.config.keys import check_limits
from ecoformer.config.schema import CheckpointConfig, OptimConfig, ScheduleConfig, TrainConfig
from ecoformer.engine import distributed, parallel
from ecoformer.engine.batches import Position, grouped, num_groups
from ecoformer.engine.callbacks import Callback, TrainingData
from ecoformer.engine.divergence import Diverged
from ecoformer.engine.evaluation import NotFinite, evaluate
from ecoformer.engine.loggers import CsvLogger, JsonlLogger, Logger
from ecoformer.engine.logit_teacher import LogitTeacher
from ecoformer.engine.optim import build_optimizer, build_schedule, learning_rate
from ecoformer.engine.progress import ProgressDisplay, epoch_line, evaluation_line
from ecoformer.engine.rng import seed_everything
from ecoformer.engine.run_state import RunState
from ecoformer.engine.same_run import shared_settings
from ecoformer.engine.signals import StopSignals
from ecoformer.engine.training_step import TrainingStep
from ecoformer.errors import Interrupted

EVALUATED = ("val_loss", "val_top1", "val_top5", "images_per_second")  # null in epochs without an evaluation


class Trainer:
    """Trains a model, evaluates it after its epochs, and keeps a run directory that can be resumed at any moment.

    Args:
        model: moved to `device`; its hash functions, if any, are fitted by a callback.
        run_dir: gets metrics.jsonl, metrics.csv, last.pt (to resume), previous.pt (the one before), best.pt (weights
            of the best `train.eval_metric`) and top/ (those of the best epochs, `checkpoint.keep_top_k` of them).
        seed: of everything that is drawn while training; each rank adds its number.
        loggers: beside the two metrics files, which are always written.
        config: the run's settings as plain containers, stored in the checkpoints.
        teacher: whose logits are learnt from, beside the labels.

    With `train.ema_decay` the EMA model is the one evaluated and kept in best.pt.
    """

    def __init__(
        self,
        model: nn.Module,
        data: TrainingData,
        *,
        train: TrainConfig,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        checkpoint: CheckpointConfig | None = None,
        run_dir: Path,
        device: torch.device,
        seed: int,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        config: dict[str, Any] | None = None,
        teacher: LogitTeacher | None = None,
    ) -> None:
        for name, settings in (("train", train), ("optim", optim), ("schedule", schedule)):
            check_limits(settings, f"{name}.")
        self.data, self.train, self.device, self.seed = data, train, device, seed
        self.callbacks, self.checkpoint = list(callbacks), checkpoint or CheckpointConfig()
        placed = parallel.place(model, train, device)
        self.network, self.skeleton = placed.network, placed.skeleton
        self.steps_per_epoch = num_groups(len(data.train_loader), train.grad_accum, train.max_steps)
        self.global_batch = train.batch_size * train.grad_accum * distributed.world_size()
        optimizer = build_optimizer(placed.model, optim, self.global_batch)
        self.state = RunState(
            run_dir=Path(run_dir),
            device=device,
            model=placed.model,
            ema=placed.ema,
            optimizer=optimizer,
            scheduler=build_schedule(optimizer, schedule, train, self.steps_per_epoch),
            scaler=torch.amp.GradScaler(device.type, enabled=train.amp == "fp16"),
            callbacks=self.callbacks,
            loggers=[JsonlLogger(), CsvLogger(), *loggers],
            settings={
                "seed": seed,
                "num_train": data.num_train,
                "steps_per_epoch": self.steps_per_epoch,
                "global_batch": self.global_batch,
                **shared_settings(train, optim, schedule),
            },
            config=config or {},
            train=train,
            steps_per_epoch=self.steps_per_epoch,
            keep_top_k=self.checkpoint.keep_top_k,
        )
        self.signals = StopSignals()
        self.train_step = TrainingStep(self.state, train, self.network, placed.ddp, optim, teacher, self.signals)

    @property
    def model(self) -> nn.Module:
        return self.state.model

    @property
    def step(self) -> int:
        """Optimiser steps done in the whole run."""
        return self.state.step

    def notes(self) -> list[str]:
        """What a user should know before the run: an average of the weights that will hardly leave its start."""
        decay, steps = self.train.ema_decay, self.steps_per_epoch * self.train.epochs
        if not 0 < decay < 1 or self.train.ema_warmup or steps == 0 or (left := decay**steps) < 0.05:
            return []
        return [
            f"train.ema_decay={decay:g} is slow for {steps} steps: the averaged model, which is evaluated and kept in "
            f"best.pt, is still {left:.0%} its starting weights at the end; {0.01 ** (1 / steps):.4g} would leave 1 %"
        ]

    def fit(self, resume: Path | None = None, stop_after: int | None = None) -> dict[str, Any]:
        """Train to the last epoch, or until `stop_after` epochs are done in all, and return the run's figures.

        With `train.epochs=0` nothing is trained: hash functions are fitted and the model is evaluated.

        Args:
            resume: a last.pt to continue from, or, with a warning, the previous.pt beside it where it cannot be read;
                None starts anew and sets an earlier run's files aside.
        Returns:
            top1, top5 (percent) and loss of best.pt, best_epoch (from 1), last_top1, epochs, images_per_second
            (of evaluation), train_images_per_second, duration_s, and what the callbacks add.
        Raises:
            InputError: the checkpoint cannot be resumed or a file cannot be written.
            Diverged: the loss or its gradient became infinite or NaN more often than `train.max_skipped_batches`.
            Interrupted: Ctrl-C, SIGTERM or SIGUSR1; the run was saved after its latest step and can be resumed.
        """
        state = self.state
        state.started = time.perf_counter()
        if resume is not None and state.restored_rng is None:
            state.restore(resume)
        start = state.epoch
        stop = self.train.epochs if stop_after is None else min(stop_after, self.train.epochs)
        self.display = ProgressDisplay(
            self.train.progress and distributed.is_main(),
            total_steps=stop * self.steps_per_epoch,
            epochs=self.train.epochs,
            samples=self.data.samples,
        )
        try:
            with self.signals:
                self._open(resume)
                # Nothing that ran before may change what the epochs draw: a resumed run built its objects too.
                seed_everything(self.seed + distributed.rank())
                if note := state.restore_rng():
                    self.print(note)
                for epoch in range(start, stop):
                    if self._ends_early(epoch):
                        break
                    self._run_epoch(epoch)
                if self.train.epochs == 0 and state.latest is None:
                    self._evaluate_untrained()
            figures = state.figures()
            for callback in self.callbacks:
                figures |= callback.summary()
            for logger in state.loggers if distributed.is_main() else ():
                logger.finish(figures)
        except Interrupted as interrupted:
            raise Interrupted(interrupted.signum, state.how_to_go_on(interrupted.signum)) from None
        finally:
            for logger in state.loggers:
                logger.close()
        return figures

    def _run_epoch(self, epoch: int) -> None:
        """Callbacks, steps, evaluation, metrics, checkpoint: in this order, so that a resume does what is missing."""
        state = self.state
        self._stop_if_asked()
        state.epoch = epoch
        if state.position is None:  # else the run is resumed within this epoch, and its start was before
            position = Position()
            for callback in self.callbacks:
                callback.on_epoch_start(self, epoch)
            state.position = position
        metrics = self._train_epoch(epoch, state.position)
        due = (epoch + 1) % self.train.val_interval == 0 or epoch + 1 == self.train.epochs
        metrics |= self._validate() if due or self._step_is_evaluated() else dict.fromkeys(EVALUATED)
        for callback in self.callbacks:
            callback.on_epoch_end(self, epoch, metrics)
        metrics["seconds"] = state.position.seconds()
        state.position = None
        state.latest = self.log("epoch", **metrics)
        is_best = state.takes_as_best(state.latest)
        if state.scheduler is not None:  # moves plateau alone
            state.scheduler.step(epoch + 1, state.latest[state.metric])
        self.print(epoch_line(state.latest, self.train.epochs, is_best, self.data.samples))
        state.save(is_best=is_best)

    def _ends_early(self, done: int) -> bool:
        """Whether `train.early_stop` ends the run after `done` epochs: a function of what the checkpoint holds."""
        best, latest, patience = self.state.best, self.state.latest, self.train.early_stop
        if patience is None:
            return False
        has_figures = latest is not None and latest[self.state.metric] is not None  # the last epoch
        over = has_figures and best is not None and done - best["epoch"] > patience
        ends = distributed.decided_by_main(lambda: over)  # it alone knows whether best.pt is there
        if ends:
            self.print(f"no better {self.train.eval_metric} in {patience} epochs: the run ends (train.early_stop)")
        return ends

    def _step_is_evaluated(self) -> bool:
        return self.train.val_interval_steps > 0 and self.step % self.train.val_interval_steps == 0

    def _evaluate_within(self, position: Position) -> None:
        """The evaluation of `train.val_interval_steps`: once, also in a run that was stopped before or during it."""
        if not self._step_is_evaluated() or position.evaluated == position.steps:
            return
        state = self.state
        with position.meter.paused():
            record = self.log("evaluation", **self._validate())
            position.evaluated = position.steps
            is_best = state.takes_as_best(record)
            self.print(evaluation_line(record, is_best))
            state.save(is_best=is_best)

    def _evaluate_untrained(self) -> None:
        """What a first epoch begins with, then the evaluation: a conversion and its hash fits, without training."""
        for callback in self.callbacks:
            callback.on_epoch_start(self, 0)
        self.state.epoch = -1  # before the first: no epoch is completed
        self.state.latest = self.state.best = self.log("evaluation", **self._validate())
        self.print(evaluation_line(self.state.latest))
        self.state.save(is_best=True)

    def _train_epoch(self, epoch: int, position: Position) -> dict[str, Any]:
        self.network.train()
        self.data.train_loader.set_epoch(epoch, position.steps * self.train.grad_accum)
        meter, steps_left = position.meter, self.steps_per_epoch - position.steps
        with self.display.epoch(epoch, self.steps_per_epoch, position.steps):
            for batches in grouped(self.data.train_loader, self.train.grad_accum, steps_left):
                self._evaluate_within(position)
                with meter.paused():
                    for callback in self.callbacks:
                        callback.on_step_start(self, self.step)
                position.lr = learning_rate(self.state.optimizer)
                result = self.train_step(batches)
                position.steps += 1
                if result.left_out is None:
                    meter.add(result.loss, result.hits, result.num_images)
                else:
                    self.print(result.left_out)
                self.display.step(self.step, meter.loss, meter.top1, meter.images_per_second)
                if self.train.log_every > 0 and self.step % self.train.log_every == 0:
                    self.log("train", loss=result.loss, lr=position.lr, images_per_second=meter.images_per_second)
                due = self.checkpoint.every_steps > 0 and self.step % self.checkpoint.every_steps == 0
                if due or result.stop:
                    self.state.save()
                if result.stop:
                    raise Interrupted(result.stop)
        return {"lr": position.lr, **meter.over_all_ranks(self.device)}

    def _stop_if_asked(self) -> None:
        """End the run on all ranks if one of them got a signal; everything before is saved."""
        received = torch.tensor([self.signals.received or 0], device=self.device)
        if signum := int(distributed.all_reduce_max(received)):
            raise Interrupted(signum)

    def sync_buffers(self, parameters: Sequence[str] = ()) -> None:
        """Make every rank's and the EMA model's buffers, and the named parameters, equal to rank 0's.

        Call it after changing any of them outside of the optimiser.
        """
        parallel.make_equal(self.model, None if self.state.ema is None else self.state.ema.module, parameters)

    def log(self, event: str, **values: Any) -> dict[str, Any]:
        """Write one record to all loggers (rank 0 alone writes) and return it."""
        return self.state.log(event, **values)

    def print(self, line: str) -> None:
        """Show the user a line, or several; rank 0 alone does, unless `train.progress` is off."""
        self.display.print(line)

    def _open(self, resume: Path | None) -> None:
        state = self.state
        if distributed.is_main():
            for note in state.open_run_dir(resume):
                self.print(note)
            for logger in state.loggers:
                logger.open(state.run_dir, state.epoch if resume else None, state.config)
        if state.scheduler is not None:
            state.scheduler.step_update(state.step)
        for callback in self.callbacks:
            callback.on_fit_start(self)

    def _validate(self) -> dict[str, Any]:
        model, on_batch = self.state.evaluated, self.state.when_asked_to_stop(self.signals)
        try:
            with parallel.whole_weights(model):
                result = evaluate(
                    model,
                    self.data.val_loader,
                    self.device,
                    self.train.amp,
                    channels_last=self.train.channels_last,
                    on_batch=on_batch,
                )
        except NotFinite as fault:
            lr = learning_rate(self.state.optimizer)
            raise Diverged(
                f"evaluation of epoch {self.state.epoch + 1}: {fault}, learning rate {lr:.3g}: "
                f"{self.train_step.remedies()}; {self.state.what_is_saved()}"
            ) from fault
        figures = (result.loss, result.top1, result.top5, result.images_per_second)
        return dict(zip(EVALUATED, figures, strict=True))
