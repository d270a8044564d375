"""What the training loop costs beside a bare one: the same model, batches, loss and optimiser, in turns.

The Trainer's loop has its display, figures, log lines, schedule and checks for losses that are no numbers; data are
tensors in memory, evaluation and checkpoints are outside of the clock. Under torchrun both loops are DDP's.
"""

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecoformer.config.schema import OptimConfig, ScheduleConfig, TrainConfig
from ecoformer.engine import distributed
from ecoformer.engine.autocast import autocast
from ecoformer.engine.callbacks import Callback, Training
from ecoformer.engine.trainer import Trainer
from ecoformer.errors import InputError
from ecoformer.files.table import Column, Table
from ecoformer.lab.speed.cases import SpeedCase, Variant
from ecoformer.lab.speed.throughput import PRECISIONS, interleaved_seconds, training_step
from ecoformer.nn.inputs import example_input

BATCHES, LEAST_STEPS = 4, 20  # what a loop goes round and round, and the steps of a short epoch
FIGURES = ("bare_milliseconds", "trainer_milliseconds", "ratio", "ratio_low", "ratio_high")
Row = dict[str, Any]


def run(args: argparse.Namespace, cases: list[SpeedCase], device: torch.device) -> list[Row]:
    """A row of every case, as rank 0 saw it. Raises InputError for what a loop is not measured with."""
    if args.layer or args.beside_load or args.profile or args.joules:
        others = "--layer, --beside-load, --profile and --joules"
        raise InputError(f"--loop trains whole models and measures nothing else: leave {others} out")
    if suffixed := [case.attention for case in cases if Variant.parse(case.attention).suffixes]:
        raise InputError(f"--loop runs no variant with a suffix, which {suffixed[0]} has: leave it out")
    return [measure(case, args.rounds, args.min_seconds, device) for case in cases]


def table(rows: list[Row]) -> Table:
    return Table([Column(key, key) for key in ("model", "attention", *FIGURES)], rows)


def measure(case: SpeedCase, rounds: int, min_seconds: float, device: torch.device) -> Row:
    """Milliseconds of a step in either loop, medians over the rounds, and of each round's ratio the same.

    A loop runs 20 steps a round, more where they take less than `min_seconds`; the first round warms up and does not
    count. Raises InputError as `SpeedCase.build` does.
    """
    model = case.build()
    batches = Batches(model, case, min_seconds, device)
    turns = Turns(batches, PRECISIONS[case.precision], device)
    epochs = rounds + 2  # the last would be evaluated, and is never begun
    amp = "off" if case.precision == "fp32" else case.precision
    # The display belongs to the loop, and what it prints not to the table.
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        trainer = Trainer(
            model,
            batches,
            train=TrainConfig(epochs=epochs, val_interval=epochs, amp=amp, channels_last=case.channels_last),
            optim=OptimConfig(lr=1e-6),
            schedule=ScheduleConfig(),
            run_dir=Path(folder),
            device=device,
            seed=case.seed,
            callbacks=[turns],
        )
        trainer.fit(stop_after=epochs - 1)
    steps = len(batches)
    pairs = [(1e3 * bare / steps, 1e3 * whole / steps) for bare, whole in turns.seconds[1:]]
    ratios = [whole / bare for bare, whole in pairs]
    medians = [statistics.median(side) for side in (*zip(*pairs, strict=True), ratios)]
    figures = zip(FIGURES, (*medians, min(ratios), max(ratios)), strict=True)
    run = {"mode": "train", "steps": steps, "rounds": rounds, "processes": distributed.world_size()}
    return case.settings() | run | {key: round(value, 4) for key, value in figures}


class Batches:
    """Training data: the same few batches over and over, for `min_seconds` an epoch at least."""

    samples = "samples"
    val_loader: Any = None

    def __init__(self, model: Any, case: SpeedCase, min_seconds: float, device: torch.device) -> None:
        targets = torch.arange(case.batch_size, device=device) % model.num_classes
        self.held = [
            (example_input(model, case.img_size, case.batch_size, seed=seed, device=device), targets)
            for seed in range(BATCHES)
        ]
        step = training_step(model, self.held[0][0], model.num_classes, case.precision)
        seconds = torch.tensor(interleaved_seconds({"": step}, device, rounds=1, min_seconds=0)[""], device=device)
        model.zero_grad()
        self.steps = max(LEAST_STEPS, math.ceil(min_seconds / distributed.all_reduce_max(seconds).item()))
        self.img_size, self.num_train = case.img_size, self.steps * case.batch_size
        self.train_loader: Any = self

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.held[step % BATCHES] for step in range(self.steps))

    def set_epoch(self, epoch: int, first_batch: int) -> None:
        """All epochs are alike."""

    def calibration_images(self, num_images: int, seed: int) -> Tensor:
        return self.held[0][0][:num_images]


class Turns(Callback):
    """Runs a bare epoch before each of the Trainer's, and keeps the seconds of both."""

    def __init__(self, batches: Batches, dtype: torch.dtype | None, device: torch.device) -> None:
        self.batches, self.dtype, self.device = batches, dtype, device
        self.seconds: list[tuple[float, float]] = []

    def on_epoch_start(self, trainer: Training, epoch: int) -> None:
        assert isinstance(trainer, Trainer)
        began, model, optimizer = distributed.clock(self.device), trainer.network.train(), trainer.state.optimizer
        for inputs, targets in self.batches:
            with autocast(self.device, self.dtype):
                logits = model(inputs)
            torch.nn.functional.cross_entropy(logits, targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.between = distributed.clock(self.device)
        self.bare = self.between - began

    def on_epoch_end(self, trainer: Training, epoch: int, metrics: dict[str, Any]) -> None:
        self.seconds.append((self.bare, distributed.clock(self.device) - self.between))
