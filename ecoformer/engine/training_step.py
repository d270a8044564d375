"""One optimiser step: forward and backward over a group of batches, what all ranks make of it, and the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ecoformer.engine import distributed, parallel
from ecoformer.engine.autocast import autocast
from ecoformer.engine.batches import Batch, top1_hits
from ecoformer.engine.divergence import leave_out

if TYPE_CHECKING:
    from ecoformer.engine.trainer import Trainer


@dataclass(frozen=True)
class StepResult:
    """What a step gave.

    Attributes:
        loss, hits, num_images: this rank's mean loss, top-1 hits and images.
        applied: whether the weights were updated; False on all ranks where one had a non-finite loss or gradient.
        stop: the signal that asks the run to stop, whichever rank got it; 0 for none.
    """

    loss: float
    hits: float
    num_images: int
    applied: bool
    stop: int


def train_step(trainer: Trainer, batches: list[Batch]) -> StepResult:
    """One optimiser step on a group of batches, equal to a step on all their images at once.

    Each batch's mean loss is weighted by its share of the group's images, so a smaller last batch and a last
    group with fewer batches count right. A step that is left out still counts, so the schedule does not move.

    Raises:
        Diverged: a non-finite loss or gradient once more than `train.max_skipped_batches` times.
    """
    trainer.forward_state.keep()
    num_images = sum(len(images) for images, _ in batches)
    totals = torch.zeros(2, device=trainer.device)
    for index, (images, targets) in enumerate(batches):
        with parallel.gradient_sync(trainer.model, trainer.ddp, last=index == len(batches) - 1):
            with autocast(trainer.device, trainer.amp_dtype):
                images = images.contiguous(memory_format=trainer.memory_format)
                logits = trainer.network(images)
                taught = None if trainer.teacher is None else trainer.teacher.logits(images)
            loss = trainer.criterion(logits, targets)
            if trainer.teacher is not None and taught is not None:
                loss = trainer.teacher.mix(loss, logits, taught)
            loss = loss * (len(images) / num_images)
            trainer.scaler.scale(loss).backward()
        totals += torch.stack([loss.detach(), top1_hits(logits.detach(), targets)])
    trainer.scaler.unscale_(trainer.optimizer)
    group_loss, hits, norm, bad_loss, bad_norm, stop = _agreed(trainer, totals, _clip(trainer)).tolist()

    # An overflow that fp16's loss scale explains is the scaler's to skip and to lower the scale for.
    overflow = bad_norm and not bad_loss and trainer.scaler.is_enabled() and trainer.scaler.get_scale() > 1
    applied = overflow or not (bad_loss or bad_norm)
    if applied:
        trainer.scaler.step(trainer.optimizer)
    else:
        leave_out(trainer, group_loss, norm)
        trainer.forward_state.put_back()
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.step += 1
    if trainer.scheduler is not None:
        trainer.scheduler.step_update(trainer.step)
    if applied and trainer.ema is not None:
        trainer.ema.update(trainer.model)
    return StepResult(group_loss, hits, num_images, applied, int(stop))


def _clip(trainer: Trainer) -> Tensor:
    """Clip the gradients if the run does, and return their norm before it."""
    if trainer.clip_grad is not None:
        return parallel.whole(nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.clip_grad))
    return parallel.whole(nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None]))


def _agreed(trainer: Trainer, totals: Tensor, norm: Tensor) -> Tensor:
    """Loss, hits and gradient norm of this rank; then what holds on any rank: bad loss, bad norm, stop signal.

    One tensor, so that the host waits for the device once a step; one exchange, so that ranks always act alike.
    """
    figures = torch.cat([totals, norm.reshape(1).to(totals)])
    flags = torch.zeros(3, device=totals.device)
    flags[0], flags[1] = ~figures[0].isfinite(), ~figures[2].isfinite()
    flags[2] = trainer.signals.received or 0
    return torch.cat([figures, distributed.all_reduce_max(flags)])
