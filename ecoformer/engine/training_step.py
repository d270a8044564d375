"""One optimiser step: forward and backward over a group of batches, what all ranks make of it, and the update."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ecoformer.config.schema import OptimConfig
from ecoformer.engine import distributed, parallel
from ecoformer.engine.autocast import autocast
from ecoformer.engine.batches import Batch, top1_hits
from ecoformer.engine.divergence import ForwardState, leave_out
from ecoformer.engine.logit_teacher import LogitTeacher
from ecoformer.engine.optim import amp_dtype, build_loss, clip_gradients
from ecoformer.engine.run_state import RunState
from ecoformer.engine.signals import StopSignals
from ecoformer.errors import InputError


@dataclass(frozen=True)
class StepResult:
    """What a step gave.

    Attributes:
        loss, hits, num_images: this rank's mean loss, top-1 hits and images.
        left_out: why the weights were not updated, on any rank; None if they were.
        stop: the signal that asks the run to stop, whichever rank got it; 0 for none.
    """

    loss: float
    hits: float
    num_images: int
    left_out: str | None
    stop: int


class TrainingStep:
    """One optimiser step on a group of batches, equal to a step on all their images at once.

    Each batch's mean loss is weighted by its share of the group's images, so a smaller last batch and a last
    group with fewer batches count right. A step that is left out still counts, so the schedule does not move.

    Args:
        network: what the batches go through: the state's model, wrapped in `ddp`, compiled.
        optim: how gradients are clipped.
    """

    def __init__(
        self,
        state: RunState,
        network: Callable[[Tensor], Tensor],
        ddp: DistributedDataParallel | None,
        optim: OptimConfig,
        teacher: LogitTeacher | None,
        signals: StopSignals,
    ) -> None:
        self.state, self.network, self.ddp = state, network, ddp
        self.optim, self.teacher, self.signals = optim, teacher, signals
        train, self.limit = state.train, state.train.max_skipped_batches
        self.memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
        self.amp_dtype = amp_dtype(train.amp, state.device)
        self.criterion = build_loss(train, state.device)
        self.forward_state = ForwardState(state.model, enabled=self.limit > 0)
        if teacher is not None:
            teacher.to(state.device, self.memory_format)

    def __call__(self, batches: list[Batch]) -> StepResult:
        """Take the step.

        Raises:
            Diverged: a non-finite loss or gradient once more than `train.max_skipped_batches` times.
            InputError: too few images in a batch for batch norm.
        """
        state, scaler = self.state, self.state.scaler
        self.forward_state.keep()
        num_images = sum(len(images) for images, _ in batches)
        totals = torch.zeros(2, device=state.device)
        for index, (images, targets) in enumerate(batches):
            with parallel.gradient_sync(state.model, self.ddp, last=index == len(batches) - 1):
                logits, loss = self._forward(images, targets)
                loss = loss * (len(images) / num_images)
                scaler.scale(loss).backward()
            totals += torch.stack([loss.detach(), top1_hits(logits.detach(), targets)])
        scaler.unscale_(state.optimizer)
        norm = parallel.whole(clip_gradients(state.model, self.optim))
        group_loss, hits, norm, bad_loss, bad_norm, stop = self._agreed(totals, norm).tolist()

        # An overflow that fp16's loss scale explains is the scaler's to skip and to lower the scale for.
        overflow = bad_norm and not bad_loss and scaler.is_enabled() and scaler.get_scale() > 1
        left_out = None
        if overflow or not (bad_loss or bad_norm):
            scaler.step(state.optimizer)
        else:
            left_out = leave_out(state, self.limit, self.remedies(), group_loss, norm)
            self.forward_state.put_back()
        scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.scheduler is not None:
            state.scheduler.step_update(state.step)
        if left_out is None and state.ema is not None:
            state.ema.update(state.model, state.step if state.ema.use_warmup else None)
        return StepResult(group_loss, hits, num_images, left_out, int(stop))

    def remedies(self) -> str:
        """What a user can change against losses that are no numbers."""
        remedies = ["lower optim.lr"]
        remedies += ["set optim.clip_grad"] if self.optim.clip_grad is None else []
        remedies += ["set train.amp=off"] if self.amp_dtype is not None else []
        return " or ".join(remedies)

    def _forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        taught = None
        with autocast(self.state.device, self.amp_dtype):
            images = images.contiguous(memory_format=self.memory_format)
            try:
                logits = self.network(images)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):  # torch's batch norm, which has no own exception
                    raise
                raise InputError(
                    f"a batch of {len(images)} image is too small for the batch norm of this model: raise "
                    "train.batch_size (with train.grad_accum=1 if memory is short) or choose a larger data.img_size"
                ) from error
            if self.teacher is not None:
                taught = self.teacher.logits(images)
        loss = self.criterion(logits, targets)
        if self.teacher is not None and taught is not None:
            loss = self.teacher.mix(loss, logits, taught)
        return logits, loss

    def _agreed(self, totals: Tensor, norm: Tensor) -> Tensor:
        """Loss, hits and gradient norm of this rank; then what holds on any rank: bad loss, bad norm, stop signal.

        One tensor, so that the host waits for the device once a step; one exchange, so that ranks always act alike.
        """
        figures = torch.cat([totals, norm.reshape(1).to(totals)])
        flags = torch.zeros(3, device=totals.device)
        flags[0], flags[1] = ~figures[0].isfinite(), ~figures[2].isfinite()
        flags[2] = self.signals.received or 0
        return torch.cat([figures, distributed.all_reduce_max(flags)])
