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
from ecoformer.engine.best import Best
from ecoformer.engine.callbacks import Callback, TrainingData
from ecoformer.engine.loggers import CsvLogger, JsonlLogger, Logger
from ecoformer.engine.logit_teacher import LogitTeacher
from ecoformer.engine.optim import build_optimizer, build_schedule, learning_rate, notes_on_average
from ecoformer.engine.progress import ProgressDisplay, epoch_line, evaluation_line
from ecoformer.engine.rng import restore_rng, seed_everything
from ecoformer.engine.run_state import RunState
from ecoformer.engine.same_run import shared_settings
from ecoformer.engine.signals import StopSignals
from ecoformer.engine.training_step import TrainingStep
from ecoformer.engine.validation import NOT_EVALUATED, due_after_epoch, due_after_step, early_end, validate
from ecoformer.errors import Interrupted


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
        own = {"seed": seed, "num_train": data.num_train}
        own |= {"steps_per_epoch": self.steps_per_epoch, "global_batch": self.global_batch}
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
            settings=own | shared_settings(train, optim, schedule),
            config=config or {},
            train=train,
            steps_per_epoch=self.steps_per_epoch,
            best=Best(Path(run_dir), f"val_{train.eval_metric}", self.checkpoint.keep_top_k),
        )
        self.signals = StopSignals()
        self.train_step = TrainingStep(self.state, self.network, placed.ddp, optim, teacher, self.signals)

    @property
    def model(self) -> nn.Module:
        return self.state.model

    @property
    def step(self) -> int:
        """Optimiser steps done in the whole run."""
        return self.state.step

    def notes(self) -> list[str]:
        """What a user should know before the run."""
        return notes_on_average(self.train, self.steps_per_epoch * self.train.epochs)

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
        stop = self.train.epochs if stop_after is None else min(stop_after, self.train.epochs)
        steps, is_shown = stop * self.steps_per_epoch, self.train.progress and distributed.is_main()
        self.display = ProgressDisplay(is_shown, steps, self.train.epochs, samples=self.data.samples)
        try:
            with self.signals:
                self._open(resume)
                # Nothing that ran before may change what the epochs draw: a resumed run built its objects too.
                seed_everything(self.seed + distributed.rank())
                if note := restore_rng(state.restored_rng, self.device):
                    self.print(note)
                for epoch in range(state.epoch, stop):
                    if line := early_end(state, epoch):
                        self.print(line)
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
        self.signals.obey(self.device)  # everything before is saved
        state.epoch = epoch
        if state.position is None:  # else the run is resumed within this epoch, and its start was before
            position = Position()
            for callback in self.callbacks:
                callback.on_epoch_start(self, epoch)
            state.position = position
        metrics = self._train_epoch(epoch, state.position)
        due = due_after_epoch(self.train, epoch) or due_after_step(self.train, self.step)
        metrics |= self._validate() if due else NOT_EVALUATED
        for callback in self.callbacks:
            callback.on_epoch_end(self, epoch, metrics)
        metrics["seconds"] = state.position.seconds()
        state.position = None
        state.latest = self.log("epoch", **metrics)
        is_best = state.best.takes(state.latest)
        if state.scheduler is not None:  # moves plateau alone
            state.scheduler.step(epoch + 1, state.latest[state.best.metric])
        self.print(epoch_line(state.latest, self.train.epochs, is_best, self.data.samples))
        state.save(is_best=is_best)

    def _evaluate_within(self, position: Position) -> None:
        """The evaluation of `train.val_interval_steps`: once, also in a run that was stopped before or during it."""
        if not due_after_step(self.train, self.step) or position.evaluated == position.steps:
            return
        with position.meter.paused():
            record = self.log("evaluation", **self._validate())
            position.evaluated = position.steps
            is_best = self.state.best.takes(record)
            self.print(evaluation_line(record, is_best))
            self.state.save(is_best=is_best)

    def _evaluate_untrained(self) -> None:
        """What a first epoch begins with, then the evaluation: a conversion and its hash fits, without training."""
        for callback in self.callbacks:
            callback.on_epoch_start(self, 0)
        self.state.epoch = -1  # before the first: no epoch is completed
        self.state.latest = self.state.best.record = self.log("evaluation", **self._validate())
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

    def stop_if_asked(self) -> None:
        """End the run of a lone process that got a signal, as it was last saved."""
        self.signals.obey_alone()

    def sync_buffers(self, parameters: Sequence[str] = ()) -> None:
        """Give all ranks and the EMA model rank 0's buffers and named parameters: after any change but the steps'."""
        parallel.make_equal(self.model, None if self.state.ema is None else self.state.ema.module, parameters)

    def log(self, event: str, **values: Any) -> dict[str, Any]:
        """Write one record to all loggers (rank 0 alone writes) and return it."""
        return self.state.log(event, **values)

    def print(self, line: str) -> None:
        """Show the user a line, or several; rank 0 alone does, unless `train.progress` is off."""
        self.display.print(line)

    def _open(self, resume: Path | None) -> None:
        self.state.check_parts()
        for note in self.state.open_run_dir(resume):
            self.print(note)
        if self.state.scheduler is not None:
            self.state.scheduler.step_update(self.step)
        for callback in self.callbacks:
            callback.on_fit_start(self)

    def _validate(self) -> dict[str, Any]:
        return validate(self.state, self.data.val_loader, self.signals, self.train_step.remedies())
