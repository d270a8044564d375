"""Fit anything that attends to the attention output that it should reproduce.

The loss is the squared error of the output, relative to the output, per head. Steps are Adam on random batches of
samples, the rate falling to zero along a cosine. Shapes: B batch, H heads, N tokens, C head channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor


class Attends(Protocol):
    """What can be fitted: tensors, heads first, that turn per-sample inputs into an attention output."""

    def tensors(self) -> Iterator[Tensor]:
        """Everything that a fit changes, in a fixed order; every tensor has the heads first."""
        ...

    def positive(self) -> Sequence[bool]:
        """Which of `tensors` must stay above 0: Adam steps on their logarithms."""
        ...

    def with_tensors(self, tensors: Iterator[Tensor]) -> Self:
        """The same with other tensors, in the order of `tensors`."""
        ...

    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        """The attention output (B, H, N, C) of a batch of samples, given as tensors.

        A fit that anneals passes `slope`, that of the soft codes to compute it with.
        """
        ...


AttendsT = TypeVar("AttendsT", bound=Attends)


@dataclass(frozen=True)
class OutputFit(Generic[AttendsT]):
    """The fitted hash, and its errors per head (squared, relative, on all samples, float64).

    `accepted_H` is False where the fit did not lower the error, or met NaN (`finite_H` False); such heads keep what
    they had.
    """

    hashing: AttendsT
    error_before_H: Tensor
    error_after_H: Tensor
    accepted_H: Tensor
    finite_H: Tensor


def fit_to_output(
    start: AttendsT,
    inputs: Sequence[Tensor],
    target_BHNC: Tensor,
    generator: torch.Generator,
    *,
    lr: float,
    steps: int,
    batch_size: int,
    slope_at: Callable[[float], float] | None = None,
) -> OutputFit[AttendsT]:
    """Lower the error of `start.attend(*inputs)` against the target.

    Args:
        start: what to improve; its tensors are left as they are.
        inputs: tensors with the samples in dimension 0, float32 or float64, finite.
        generator: CPU generator that draws the samples of each step.
        lr, steps, batch_size: Adam's rate, its steps (0: only measure), and samples per step.
        slope_at: anneals: `attend` gets, as `slope`, what this says for the share of the steps that is done. Errors are
            of hard codes all the same.
    """
    data = (*inputs, target_BHNC)
    before_H = _error(start, batch_size, *data)
    is_positive = start.positive()
    tiny = torch.finfo(target_BHNC.dtype).tiny ** 0.5

    def current() -> AttendsT:
        pairs = zip(leaves, is_positive, strict=True)
        return start.with_tensors(leaf.exp() if positive else leaf for leaf, positive in pairs)

    with torch.enable_grad():
        leaves = [
            (t.detach().clamp_min(tiny).log() if positive else t.detach().clone()).requires_grad_()
            for t, positive in zip(start.tensors(), is_positive, strict=True)
        ]
        optimizer = torch.optim.Adam(leaves, lr=lr)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.5 * lr * (1 + math.cos(math.pi * step / steps))
            chosen = torch.randperm(len(target_BHNC), generator=generator)[:batch_size].to(target_BHNC.device)
            *batch, target = (x.index_select(0, chosen) for x in data)
            softness = {} if slope_at is None else {"slope": slope_at(step / steps)}
            loss = _ratio(*_squares(current().attend(*batch, **softness), target)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        fitted = current()
    after_H = _error(fitted, batch_size, *data)
    # NaN is never smaller.
    accepted_H = after_H < before_H
    kept = start.with_tensors(
        torch.where(accepted_H.view(-1, *[1] * (new.dim() - 1)), new, old)
        for new, old in zip(fitted.tensors(), start.tensors(), strict=True)
    )
    return OutputFit(kept, before_H, torch.where(accepted_H, after_H, before_H), accepted_H, after_H.isfinite())


def batches(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in pieces of `size` samples."""
    yield from zip(*(t.split(size) for t in tensors), strict=True)


def _squares(out_BHNC: Tensor, target_BHNC: Tensor) -> tuple[Tensor, Tensor]:
    return (out_BHNC - target_BHNC).square().sum(dim=(0, 2, 3)), target_BHNC.square().sum(dim=(0, 2, 3))


def _ratio(distance_H: Tensor, size_H: Tensor) -> Tensor:
    return distance_H / size_H.clamp_min(torch.finfo(size_H.dtype).tiny ** 0.5)


@torch.no_grad()
def _error(fitted: Attends, batch_size: int, *data: Tensor) -> Tensor:
    sums = [_squares(fitted.attend(*batch), target) for *batch, target in batches(batch_size, *data)]
    distance_H, size_H = (torch.stack([pair[i].double() for pair in sums]).sum(dim=0) for i in (0, 1))
    return _ratio(distance_H, size_H)
