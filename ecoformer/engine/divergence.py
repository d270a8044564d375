"""Losses and gradients that are no numbers: such steps are left out up to a limit, then the run stops."""

import math

import torch
from torch import Tensor, nn

from ecoformer.engine import distributed
from ecoformer.engine.optim import learning_rate
from ecoformer.engine.run_state import RunState
from ecoformer.errors import InputError


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


def leave_out(state: RunState, limit: int, remedies: str, loss: float, gradient_norm: float) -> str:
    """Count and log a step that is not applied, and return a line about it. Every rank must call it.

    Args:
        limit: `train.max_skipped_batches`.
        remedies: what a user can do, in words.
    Raises:
        Diverged: `limit` steps were left out before; on every rank alike.
    """
    figures = distributed.gather_objects((loss, gradient_norm))
    name = "loss" if any(not math.isfinite(loss) for loss, _ in figures) else "gradient norm"
    seen = [loss if name == "loss" else norm for loss, norm in figures]
    values = {rank: value for rank, value in enumerate(seen) if not math.isfinite(value)}
    ranks = f"rank{'s' if len(values) > 1 else ''} {', '.join(map(str, values))}"
    lr = learning_rate(state.optimizer)
    fault = (
        f"{name} is {next(iter(values.values()))} at step {state.step} of epoch {state.epoch + 1} on {ranks}, "
        f"learning rate {lr:.3g}"
    )
    if state.skipped_batches >= limit:
        already = f"; {limit} batches were skipped before (train.max_skipped_batches={limit})" if limit else ""
        raise Diverged(f"{fault}{already}: {remedies} or raise train.max_skipped_batches; {state.what_is_saved()}")
    state.skipped_batches += 1
    state.log("skipped_batch", reason=name, ranks=list(values), lr=lr, skipped=state.skipped_batches)
    return f"{fault}: skipped, {state.skipped_batches} of at most {limit}"
