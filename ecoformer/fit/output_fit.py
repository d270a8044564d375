"""Fit anything that attends to the attention that it should reproduce.

The loss is the squared error of the output, relative to the output, per head, if a kind knows no better one.
Shapes: B batch, H heads, N tokens, C head channels, K code bits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ecoformer.fit.compare import compare
from ecoformer.fit.contract import HashFitReport, code_figures
from ecoformer.fit.target import AttentionTarget
from ecoformer.nn.heads import without_padding
from ecoformer.ops.closeness import head_errors, head_ratio, head_squares
from ecoformer.ops.codes.fitted import Attends

AttendsT = TypeVar("AttendsT", bound=Attends)


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
    """Lower `loss` by changing `leaves` in place: Adam on random batches, the rate falling to zero along a cosine.

    Call it with gradients enabled.

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


@dataclass(frozen=True)
class OutputFit(Generic[AttendsT]):
    """The fitted hash, and errors per head (on all samples, float64).

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
    inputs: Sequence[Tensor | None],
    target_BHNC: Tensor,
    generator: torch.Generator,
    *,
    lr: float,
    steps: int,
    batch_size: int,
    slope_at: Callable[[float], float] | None = None,
    mask_BN: Tensor | None = None,
    sums: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> OutputFit[AttendsT]:
    """Lower the error of `start.attend(*inputs)` against the target.

    Args:
        start: what to improve; its tensors are left as they are.
        inputs: tensors with the samples in dimension 0, float32 or float64, finite; None for those not given.
        generator: CPU generator that draws the samples of each step.
        lr, steps, batch_size: Adam's rate, its steps (0: only measure), and samples per step.
        slope_at: anneals: `attend` gets, as `slope`, what this says for the share of the steps that is done. Errors are
            of hard codes all the same.
        mask_BN: True where a token takes part: only there are outputs compared, and `attend` gets it after the inputs.
        sums: another error, of what attends, a batch of inputs, mask and target: per head what is to fall, and by what
            it is divided, summed over the batch; None: that of the output.
    """
    masks = () if mask_BN is None else (mask_BN,)
    data = (*inputs, *masks, without_padding(target_BHNC, mask_BN))

    def output_sums(hashing: AttendsT, *batch: Any, **softness: float) -> tuple[Tensor, Tensor]:
        *given, target = batch
        out = hashing.attend(*given, **softness)
        return head_squares(without_padding(out, given[-1] if masks else None), target)

    sums = sums or output_sums
    before_H = head_errors(partial(sums, start), batch_size, *data)
    is_positive = start.positive()
    tiny = torch.finfo(target_BHNC.dtype).tiny ** 0.5

    def current() -> AttendsT:
        pairs = zip(leaves, is_positive, strict=True)
        return start.with_tensors(leaf.exp() if positive else leaf for leaf, positive in pairs)

    def loss(done: float, chosen: Tensor) -> Tensor:
        batch = (None if x is None else x.index_select(0, chosen) for x in data)
        softness = {} if slope_at is None else {"slope": slope_at(done)}
        return head_ratio(*sums(current(), *batch, **softness)).sum()

    with torch.enable_grad():
        leaves = [
            (t.detach().clamp_min(tiny).log() if positive else t.detach().clone()).requires_grad_()
            for t, positive in zip(start.tensors(), is_positive, strict=True)
        ]
        adam_on_batches(
            leaves, loss, lr=lr, steps=steps, num_samples=len(target_BHNC), batch_size=batch_size, generator=generator
        )
    with torch.no_grad():
        fitted = current()
    after_H = head_errors(partial(sums, fitted), batch_size, *data)
    # NaN is never smaller.
    accepted_H = after_H < before_H
    kept = start.with_tensors(
        torch.where(accepted_H.view(-1, *[1] * (new.dim() - 1)), new, old)
        for new, old in zip(fitted.tensors(), start.tensors(), strict=True)
    )
    return OutputFit(kept, before_H, torch.where(accepted_H, after_H, before_H), accepted_H, after_H.isfinite())


def fit_and_report(
    start: AttendsT,
    inputs: Sequence[Tensor | None],
    target: AttentionTarget,
    generator: torch.Generator,
    *,
    num_bits: int,
    num_images: int,
    random: Attends | None = None,
    mask_BN: Tensor | None = None,
    **options: Any,
) -> tuple[AttendsT, HashFitReport]:
    """What `fit_to_output` makes of `start`, and what it did.

    A fit takes or leaves whole heads: `accepted_bits` is K times the share of heads that took new functions, rounded
    down, `failed_bits` likewise those that met NaN.

    Args:
        inputs, target, options: of `fit_to_output`; the outputs of `target` have the shape of what attends.
        num_images: that were given; those that are not among the inputs were skipped.
        random: the random hash that is the floor to beat; None: the start.
    """
    fit = fit_to_output(start, inputs, target.output, generator, mask_BN=mask_BN, **options)
    num_heads, floor = len(fit.accepted_H), start if random is None else random
    masks = () if mask_BN is None else (mask_BN,)
    both: tuple[Any, Any] = (start, fit.hashing)
    if hasattr(start, "signed_codes"):
        old_BHNK, new_BHNK = (hashing.signed_codes(*inputs) for hashing in both)
        figures = code_figures(old_BHNK, new_BHNK, mask_BN)
    else:
        figures = dict.fromkeys(("bit_balance", "bit_correlation", "flipped_bits"), 0.0)
    return fit.hashing, HashFitReport(
        objective_before=float(fit.error_before_H.mean()),
        objective_after=float(fit.error_after_H.mean()),
        accepted_bits=int(fit.accepted_H.sum()) * num_bits // num_heads,
        num_bits=num_bits,
        failed_bits=int((~fit.finite_H).sum()) * num_bits // num_heads,
        skipped_images=num_images - len(target.output),
        **figures,
        **asdict(compare(fit.hashing.attend, target, *inputs, *masks, mask_BN=mask_BN, random=floor.attend)),
    )
