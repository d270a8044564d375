"""Adam on random batches of samples, the rate falling to zero along a cosine: how codes are fitted to an output."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def adam_on_batches(
    leaves: Sequence[Tensor],
    loss: Callable[[float, Tensor], Tensor],
    *,
    lr: float,
    steps: int,
    num_samples: int,
    batch_size: int,
    generator: torch.Generator,
    on_step: Callable[[int, int], None] | None = None,
) -> None:
    """Lower `loss` by changing `leaves` in place; call it with gradients enabled.

    Args:
        loss: of the share of the steps that is done and of the numbers of a batch's samples.
        generator: CPU generator that draws the samples of each step.
        on_step: called after each step with its number, from 1, and that of all steps.
    """
    optimizer = torch.optim.Adam(leaves, lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.5 * lr * (1 + math.cos(math.pi * step / steps))
        chosen = torch.randperm(num_samples, generator=generator)[:batch_size].to(leaves[0].device)
        value = loss(step / steps, chosen)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, steps)
