"""Losses and gradients that are no numbers: such steps are left out up to a limit, then the run stops."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ecoformer.engine import distributed, run_state
from ecoformer.errors import InputError

if TYPE_CHECKING:
    from ecoformer.engine.trainer import Trainer


class Diverged(InputError):
    """The loss or its gradient is no longer a number; the last checkpoint is from before."""


class ForwardState:
    """The buffers that a forward pass may change by itself (batch norm's), to be put back when its step is left out.

    They are copied before each step, so only runs that may leave out steps (`enabled`) pay for it.
    """

    def __init__(self, model: nn.Module, enabled: bool) -> None:
        self.buffers = list(model.buffers()) if enabled else []
        self.kept: list[Tensor] = []

    def keep(self) -> None:
        self.kept = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def put_back(self) -> None:
        for buffer, kept in zip(self.buffers, self.kept, strict=True):
            buffer.copy_(kept)


def leave_out(trainer: Trainer, loss: float, gradient_norm: float) -> None:
    """Count and log a step that is not applied. Every rank must call it, whichever of them has the fault.

    Raises:
        Diverged: `train.max_skipped_batches` steps were left out before; on every rank alike.
    """
    figures = distributed.gather_objects((loss, gradient_norm))
    name = "loss" if any(not math.isfinite(loss) for loss, _ in figures) else "gradient norm"
    seen = [loss if name == "loss" else norm for loss, norm in figures]
    values = {rank: value for rank, value in enumerate(seen) if not math.isfinite(value)}
    ranks = f"rank{'s' if len(values) > 1 else ''} {', '.join(map(str, values))}"
    lr, limit = trainer.optimizer.param_groups[0]["lr"], trainer.train.max_skipped_batches
    fault = (
        f"{name} is {next(iter(values.values()))} at step {trainer.step} of epoch {trainer.epoch + 1} on {ranks}, "
        f"learning rate {lr:.3g}"
    )
    if trainer.skipped_batches >= limit:
        already = f"; {limit} batches were skipped before (train.max_skipped_batches={limit})" if limit else ""
        raise Diverged(f"{fault}{already}: {_remedies(trainer)}; {run_state.what_is_saved(trainer)}")
    trainer.skipped_batches += 1
    trainer.log("skipped_batch", reason=name, ranks=list(values), lr=lr, skipped=trainer.skipped_batches)
    trainer.print(f"{fault}: skipped, {trainer.skipped_batches} of at most {limit}")


def _remedies(trainer: Trainer) -> str:
    remedies = ["lower optim.lr"]
    remedies += ["set optim.clip_grad"] if trainer.clip_grad is None else []
    remedies += ["set train.amp=off"] if trainer.amp_dtype is not None else []
    return " or ".join([*remedies, "raise train.max_skipped_batches"])
