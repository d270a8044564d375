"""What a run costs, measured before it is started: one hash fit, two optimiser steps and a validation batch.

The steps are real ones, on the run's data and device, taken by a trainer of the probe's own; nothing is written.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.engine import distributed, parallel
from ecoformer.engine.autocast import autocast
from ecoformer.engine.batches import Batch, grouped
from ecoformer.engine.hash_update import HashUpdate
from ecoformer.engine.trainer import Trainer
from ecoformer.engine.training_step import TrainingStep
from ecoformer.run.build import Run, build_run


@dataclass(frozen=True)
class Probe:
    """Seconds are the slowest process's. Bytes are of one process, but `last_bytes` and `best_bytes` of the files.

    `step_seconds` is the second step with the wait for its data (`data_seconds`); the first also pays for starting
    workers and allocating. `fit_seconds` is None where no fit comes before the first step. `activation_bytes` is what
    the forward pass of one batch keeps for the backward pass. `peak_bytes` is None on CPU.
    """

    start_epoch: int
    fit_seconds: float | None
    first_step_seconds: float
    step_seconds: float
    data_seconds: float
    val_batch_seconds: float
    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    last_bytes: int
    best_bytes: int
    peak_bytes: int | None


def probe_run(run: Run) -> Probe:
    """Measure a run that was built but not started; `run` itself is left as it is. Every process must call it.

    Raises InputError for whatever the run itself would stop with in its first steps.
    """
    trainer = build_run(run.config, run.folder, run.trainer.device, data=run.data).trainer
    device = trainer.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    fit_seconds = _fit(trainer)
    trainer.network.train()
    groups = _groups(trainer)
    seen: list[Batch] = []

    def step(group: list[Batch]) -> None:
        seen[:] = group[:1]
        trainer.train_step(group)

    steps = [_timed(groups, step, device) for _ in range(2)]
    activation_bytes = _activation_bytes(trainer.train_step, *seen[0])
    measured = [steps[0][0], *steps[1], _validation_batch_seconds(trainer), fit_seconds or 0.0]
    times = distributed.all_reduce_max(torch.tensor(measured, dtype=torch.float64, device=device)).tolist()
    parameters = [_local(parameter) for parameter in trainer.model.parameters()]
    moments = [
        value for state in trainer.state.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    ]
    best_bytes = _bytes([*trainer.model.parameters(), *trainer.model.buffers()])
    return Probe(
        start_epoch=trainer.state.epoch,
        fit_seconds=None if fit_seconds is None else times[4],
        first_step_seconds=times[0],
        step_seconds=times[1],
        data_seconds=times[2],
        val_batch_seconds=times[3],
        parameter_bytes=_bytes(parameters),
        buffer_bytes=_bytes(trainer.model.buffers()),
        gradient_bytes=_bytes(parameter for parameter in parameters if parameter.requires_grad),
        optimizer_bytes=_bytes(map(_local, moments)),
        activation_bytes=activation_bytes,
        last_bytes=best_bytes * (1 if trainer.state.ema is None else 2) + _bytes(moments),
        best_bytes=best_bytes,
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def _fit(trainer: Trainer) -> float | None:
    """Seconds of the hash fit that comes before the first step, None if none does."""
    for callback in trainer.callbacks:
        if isinstance(callback, HashUpdate) and callback.fits_before(trainer, trainer.step):
            started = time.perf_counter()
            callback.fit(trainer, trainer.step)
            return time.perf_counter() - started
    return None


def _groups(trainer: Trainer) -> Iterator[list[Batch]]:
    for epoch in count(trainer.state.epoch):
        trainer.data.train_loader.set_epoch(epoch)
        yield from grouped(trainer.data.train_loader, trainer.train.grad_accum, trainer.steps_per_epoch)


def _timed(items: Iterator[Any], work: Callable[[Any], object], device: torch.device) -> tuple[float, float]:
    """(seconds to get and work on one item, seconds to get it)."""
    started = time.perf_counter()
    item = next(items)
    got = time.perf_counter()
    work(item)
    return distributed.clock(device) - started, got - started


def _validation_batch_seconds(trainer: Trainer) -> float:
    """Of the second batch; the first one also pays for starting workers."""

    def batches() -> Iterator[Batch]:
        while True:
            yield from trainer.data.val_loader

    model = trainer.state.evaluated.eval()

    @torch.inference_mode()
    def work(batch: Batch) -> None:
        _forward(trainer.train_step, model, batch[0])

    found = batches()
    with parallel.whole_weights(model):
        return [_timed(found, work, trainer.device)[0] for _ in range(2)][1]


def _forward(step: TrainingStep, model: Any, images: Tensor) -> Tensor:
    with autocast(step.state.device, step.amp_dtype):
        return model(images.contiguous(memory_format=step.memory_format))


def _activation_bytes(step: TrainingStep, images: Tensor, targets: Tensor) -> int:
    """Bytes that the forward pass of one training batch keeps for its backward pass, parameters not counted."""
    model = step.state.model
    known = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:
            kept[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step.criterion(_forward(step, step.network, images), targets)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage(tensor: Tensor) -> int:
    return _local(tensor).untyped_storage().data_ptr()


def _local(tensor: Tensor | nn.Parameter) -> Tensor:
    """This process's share of a tensor that FSDP has spread over the processes."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
