"""The training loop: a run, and an epoch of it. The optimiser step is in training_step.py.

The Trainer takes built objects and knows no kind of attention and no data set.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.table import Table
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ecoformer.config.schema import CheckpointConfig, OptimConfig, ScheduleConfig, TrainConfig
from ecoformer.engine import distributed, parallel, run_state
from ecoformer.engine.batches import grouped, num_groups
from ecoformer.engine.callbacks import Callback
from ecoformer.engine.divergence import ForwardState
from ecoformer.engine.evaluate import evaluate
from ecoformer.engine.lines import epoch_line, evaluation_line, run_summary
from ecoformer.engine.loggers import CsvLogger, JsonlLogger, Logger
from ecoformer.engine.logit_teacher import LogitTeacher
from ecoformer.engine.optim import amp_dtype, build_loss, build_optimizer, build_schedule
from ecoformer.engine.position import Position
from ecoformer.engine.progress import ProgressDisplay
from ecoformer.engine.rng import seed_everything
from ecoformer.engine.signals import Interrupted, StopSignals
from ecoformer.engine.training_step import train_step


class TrainingData(Protocol):
    """What the Trainer asks of a data module; loaders also have `__len__`.

    The training loader has `set_epoch(epoch, first_batch)`: its next pass begins at that batch of the epoch, as if
    those before it had been consumed.
    """

    img_size: int
    num_train: int
    train_loader: Any
    val_loader: Any

    def calibration_images(self, num_images: int, seed: int) -> Tensor: ...


class Trainer:
    """Trains a model, evaluates it every epoch, and keeps a run directory that can be resumed at any moment.

    Args:
        model: moved to `device`; its hash functions, if any, are fitted by a callback.
        run_dir: gets metrics.jsonl, metrics.csv, last.pt (to resume), previous.pt (the one before), best.pt (weights
            of the best top-1) and top/ (those of the best epochs, `checkpoint.keep_top_k` of them).
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
        self.data, self.train, self.device, self.seed = data, train, device, seed
        self.checkpoint = checkpoint or CheckpointConfig()
        self.run_dir = Path(run_dir)
        self.callbacks, self.config = list(callbacks), config or {}
        self.loggers = [JsonlLogger(), CsvLogger(), *loggers]
        self.memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
        self.model = model.to(device).to(memory_format=self.memory_format)
        self.sharded = parallel.is_sharded(train, model)
        self.skeleton = parallel.skeleton(self.model) if self.sharded else self.model  # to count on
        spread = distributed.world_size() > 1 and not self.sharded
        self.ddp = parallel.data_parallel(self.model, device) if spread else None
        self.ema = ModelEmaV3(self.model, train.ema_decay, exclude_buffers=True) if train.ema_decay > 0 else None
        if self.sharded:
            for copied in [self.model] if self.ema is None else [self.model, self.ema.module]:
                parallel.shard(copied, device)
        network = self.ddp or self.model
        self.network: Any = torch.compile(network) if train.compile else network

        self.steps_per_epoch = num_groups(len(data.train_loader), train.grad_accum, train.max_steps)
        self.global_batch = train.batch_size * train.grad_accum * distributed.world_size()
        self.optimizer = build_optimizer(self.model, optim, self.global_batch)
        self.scheduler = build_schedule(
            self.optimizer, schedule, epochs=train.epochs, steps_per_epoch=self.steps_per_epoch
        )
        self.clip_grad = optim.clip_grad
        self.criterion = build_loss(train.smoothing)
        self.teacher = teacher
        if teacher is not None:
            teacher.to(device, self.memory_format)
        self.amp_dtype = amp_dtype(train.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.amp == "fp16")
        self.forward_state = ForwardState(self.model, enabled=train.max_skipped_batches > 0)

        # What a resumed run must share with the one that wrote the checkpoint; the data check is steps_per_epoch.
        self.settings: dict[str, Any] = {
            "seed": seed,
            "steps_per_epoch": self.steps_per_epoch,
            "global_batch": self.global_batch,
            "train.ema_decay": train.ema_decay,
            "train.smoothing": train.smoothing,
            "train.amp": train.amp,
            **{f"optim.{key}": value for key, value in asdict(optim).items()},
            **{f"schedule.{key}": value for key, value in asdict(schedule).items()},
        }

        self.epoch = self.step = 0  # the epoch in hand; optimiser steps done
        self.position: Position | None = None  # in the epoch in hand; None between epochs
        self.skipped_batches = 0
        self.best: dict[str, Any] | None = None  # the "epoch" record of the best and of the latest epoch
        self.latest: dict[str, Any] | None = None
        self.top: list[dict[str, Any]] = []  # epoch and val_top1 of the epochs in top/, best first
        self.saved: tuple[int, int] | None = None  # epochs, and steps of the next, that last.pt holds
        self.last_is_good = False  # whether run_dir/last.pt was read or written by this process
        self.elapsed_s = 0.0  # in earlier processes of this run
        self.signals = StopSignals()

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
        self.started = time.perf_counter()
        resumed = run_state.restore(self, resume) if resume else None
        start = self.epoch
        stop = self.train.epochs if stop_after is None else min(stop_after, self.train.epochs)
        self.display = ProgressDisplay(
            self.train.progress and distributed.is_main(),
            total_steps=stop * self.steps_per_epoch,
            epochs=self.train.epochs,
        )
        try:
            with self.signals:
                self._open(resume)
                # Nothing that ran before may change what the epochs draw: a resumed run built its objects too.
                seed_everything(self.seed + distributed.rank())
                if resumed is not None:
                    run_state.restore_rng(self, resumed)
                for epoch in range(start, stop):
                    self._run_epoch(epoch)
                if self.train.epochs == 0 and self.latest is None:
                    self._evaluate_untrained()
        except Interrupted as interrupted:
            raise Interrupted(interrupted.signum, run_state.how_to_go_on(self, interrupted.signum)) from None
        finally:
            for logger in self.loggers:
                logger.close()
        return run_summary(self)

    def _run_epoch(self, epoch: int) -> None:
        """Callbacks, steps, evaluation, metrics, checkpoint: in this order, so that a resume does what is missing."""
        self._stop_if_asked()
        self.epoch = epoch
        if self.position is None:  # else the run is resumed within this epoch, and its start was before
            position = Position()
            for callback in self.callbacks:
                callback.on_epoch_start(self, epoch)
            self.position = position
        metrics = self._train_epoch(epoch, self.position) | self._validate()
        for callback in self.callbacks:
            callback.on_epoch_end(self, epoch, metrics)
        metrics["seconds"] = self.position.seconds()
        self.position = None
        self.latest = self.log("epoch", **metrics)
        is_best = self.best is None or self.latest["val_top1"] > self.best["val_top1"]
        if is_best:
            self.best = self.latest
        self.print(epoch_line(self.latest, self.train.epochs, is_best))
        run_state.save(self, is_best=is_best)

    def _evaluate_untrained(self) -> None:
        """What a first epoch begins with, then the evaluation: a conversion and its hash fits, without training."""
        for callback in self.callbacks:
            callback.on_epoch_start(self, 0)
        self.epoch = -1  # before the first: no epoch is completed
        self.latest = self.best = self.log("evaluation", **self._validate())
        self.print(evaluation_line(self.latest))
        run_state.save(self, is_best=True)

    def _train_epoch(self, epoch: int, position: Position) -> dict[str, Any]:
        self.network.train()
        self.data.train_loader.set_epoch(epoch, position.steps * self.train.grad_accum)
        meter, steps_left = position.meter, self.steps_per_epoch - position.steps
        with self.display.epoch(epoch, self.steps_per_epoch, position.steps):
            for batches in grouped(self.data.train_loader, self.train.grad_accum, steps_left):
                with meter.paused():
                    for callback in self.callbacks:
                        callback.on_step_start(self, self.step)
                position.lr = self.optimizer.param_groups[0]["lr"]
                result = train_step(self, batches)
                position.steps += 1
                if result.applied:
                    meter.add(result.loss, result.hits, result.num_images)
                self.display.step(self.step, meter.loss, meter.top1, meter.images_per_second)
                if self.train.log_every > 0 and self.step % self.train.log_every == 0:
                    self.log("train", loss=result.loss, lr=position.lr, images_per_second=meter.images_per_second)
                due = self.checkpoint.every_steps > 0 and self.step % self.checkpoint.every_steps == 0
                if due or result.stop:
                    run_state.save(self)
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
        distributed.broadcast_buffers(self.model)
        own = dict(self.model.named_parameters())
        distributed.broadcast_tensors([own[name].data for name in parameters])
        if self.ema is not None:
            averaged = dict(self.ema.module.named_parameters())
            for name in parameters:
                averaged[name].data.copy_(own[name].data)
            for ema_buffer, buffer in zip(self.ema.module.buffers(), self.model.buffers(), strict=True):
                ema_buffer.copy_(buffer)

    def log(self, event: str, **values: Any) -> dict[str, Any]:
        """Write one record to all loggers (rank 0 alone writes) and return it."""
        record = {"event": event, "epoch": self.epoch, "step": self.step, "time": time.time(), **values}
        if distributed.is_main():
            for logger in self.loggers:
                logger.log(record)
        return record

    def print(self, content: str | Table) -> None:
        """Show the user a line or a table; rank 0 alone does, unless `train.progress` is off."""
        self.display.print(content)

    def duration_s(self) -> float:
        """Seconds spent on this run, in this process and in those it was resumed from."""
        return self.elapsed_s + time.perf_counter() - self.started

    def _open(self, resume: Path | None) -> None:
        if distributed.is_main():
            run_state.prepare_run_dir(self, resume)
            for logger in self.loggers:
                logger.open(self.run_dir, self.epoch if resume else None, self.config)
        if self.scheduler is not None:
            self.scheduler.step_update(self.step)
        for callback in self.callbacks:
            callback.on_fit_start(self)

    def _validate(self) -> dict[str, Any]:
        model, on_batch = self.model if self.ema is None else self.ema.module, run_state.when_asked_to_stop(self)
        with parallel.whole_weights(model):
            result = evaluate(
                model,
                self.data.val_loader,
                self.device,
                self.train.amp,
                channels_last=self.train.channels_last,
                on_batch=on_batch,
            )
        return {
            "val_loss": result.loss,
            "val_top1": result.top1,
            "val_top5": result.top5,
            "images_per_second": result.images_per_second,
        }
