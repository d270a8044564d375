"""Batches in groups, one group per optimiser step, running figures over them, and where in its epoch a run is."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ecoformer.engine import distributed
from ecoformer.errors import InputError

Batch = tuple[Tensor, Tensor]


def num_groups(num_batches: int, group_size: int, max_groups: int | None) -> int:
    """Optimiser steps in an epoch; the last group may be smaller. Raises InputError: no batch at all."""
    if num_batches < 1:
        raise InputError("the training set fills not one batch: lower train.batch_size or add images")
    groups = -(-num_batches // group_size)
    return groups if max_groups is None else min(groups, max_groups)


def grouped(loader: Iterable[Batch], group_size: int, max_groups: int) -> Iterator[list[Batch]]:
    """Lists of `group_size` batches, the last one perhaps shorter, at most `max_groups` of them."""
    batches = islice(loader, max_groups * group_size)
    while group := list(islice(batches, group_size)):
        yield group


def top1_hits(logits: Tensor, targets: Tensor) -> Tensor:
    """How many of the best guesses are right; against the larger share where targets are mixed (B, classes)."""
    labels = targets.argmax(dim=1) if targets.is_floating_point() else targets
    return (logits.argmax(dim=1) == labels).sum().float()


def top5(logits: Tensor) -> Tensor:
    """The five best guesses, best first, or all of fewer classes: (B, classes) -> (B, at most 5)."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


class RunningFigures:
    """Mean loss, accuracy (percent) and images per second of this rank, since it was made; NaN without images."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.loss_sum = self.hits = 0.0
        self.num_images = 0

    def add(self, mean_loss: float, hits: float, num_images: int) -> None:
        self.loss_sum += mean_loss * num_images
        self.hits += hits
        self.num_images += num_images

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside is no training: it does not lower the images per second."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def state_dict(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        return {"loss_sum": self.loss_sum, "hits": self.hits, "num_images": self.num_images, "seconds": seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take back what `state_dict` returned, its seconds included."""
        self.loss_sum, self.hits, self.num_images = state["loss_sum"], state["hits"], int(state["num_images"])
        self.started = time.perf_counter() - state["seconds"]

    @property
    def loss(self) -> float:
        return self.loss_sum / self.num_images if self.num_images else math.nan

    @property
    def top1(self) -> float:
        return 100 * self.hits / self.num_images if self.num_images else math.nan

    @property
    def images_per_second(self) -> float:
        return self.num_images / (time.perf_counter() - self.started)

    def over_all_ranks(self, device: torch.device) -> dict[str, float]:
        """The epoch's training figures over the images of all ranks."""
        values = [self.loss_sum, self.hits, float(self.num_images), self.images_per_second]
        totals = distributed.all_reduce_sum(torch.tensor(values, dtype=torch.float64, device=device))
        loss_sum, hits, num_images, rate = totals.tolist()
        return {
            "train_loss": loss_sum / num_images if num_images else math.nan,
            "train_top1": 100 * hits / num_images if num_images else math.nan,
            "train_images_per_second": rate,
        }


class Position:
    """One epoch so far. It travels in last.pt, so that a run can stop and go on after any optimiser step.

    Attributes:
        steps: optimiser steps done in it, those that were left out included.
        evaluated: how many were done at its latest evaluation.
        lr: learning rate of the latest one.
        meter: training figures of this rank.
    """

    def __init__(self) -> None:
        self.steps, self.evaluated, self.lr, self.meter = 0, 0, 0.0, RunningFigures()
        self._started, self._seconds_before = time.perf_counter(), 0.0

    def seconds(self) -> float:
        """Time spent in this epoch, in this process and in those it was resumed from."""
        return self._seconds_before + time.perf_counter() - self._started

    def gathered(self) -> dict[str, Any]:
        """Plain containers with every rank's figures. Every rank must call it."""
        return {
            "steps": self.steps,
            "evaluated": self.evaluated,
            "lr": self.lr,
            "seconds": self.seconds(),
            "meters": distributed.gather_objects(self.meter.state_dict()),
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Position:
        """This rank's position from what `gathered` returned; after a change of processes rank 0 takes all figures."""
        position = cls()
        position.steps, position.lr, position._seconds_before = state["steps"], state["lr"], state["seconds"]
        position.evaluated = state.get("evaluated", 0)  # written since there are evaluations within epochs
        meters = state["meters"]
        if len(meters) == distributed.world_size():
            position.meter.load_state_dict(meters[distributed.rank()])
        elif distributed.is_main():
            whole = {key: sum(meter[key] for meter in meters) for key in meters[0]}
            # The processes spent their seconds side by side.
            position.meter.load_state_dict(whole | {"seconds": max(meter["seconds"] for meter in meters)})
        return position
