"""The report of a fit to an attention output. Shapes: B batch, H heads, N tokens, C head channels, K code bits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ecoformer.fit.contract import HashFitReport, bit_statistics
from ecoformer.ops.closeness import relative_error
from ecoformer.ops.codes.output_fit import OutputFit


def output_fit_report(
    fit: OutputFit[Any],
    start: Any,
    inputs: list[Tensor],
    target_BHNC: Tensor,
    uniform_BHNC: Tensor,
    codes: tuple[Tensor, Tensor] | None,
    *,
    num_bits: int,
    skipped_images: int,
    seconds: float,
) -> HashFitReport:
    """What `fit_to_output` did; the block name is left to the caller.

    A fit takes or leaves whole heads: `accepted_bits` is K times the share of heads that took new functions, rounded
    down, `failed_bits` likewise those that met NaN.

    Args:
        start: the random hash that is the floor to beat.
        inputs, target_BHNC: what was fitted to what.
        uniform_BHNC: the output of uniform attention, the other floor.
        codes: before and after the fit, (B, H, N, K) in {-1, +1}; None for what has no codes.
    """
    num_heads = len(fit.accepted_H)
    balance = correlation = flipped = 0.0
    if codes is not None:
        old, new = codes
        balance, correlation = bit_statistics(new)
        flipped = float((old != new).float().mean())
    return HashFitReport(
        block="",
        seconds=seconds,
        objective_before=float(fit.error_before_H.mean()),
        objective_after=float(fit.error_after_H.mean()),
        accepted_bits=int(fit.accepted_H.sum()) * num_bits // num_heads,
        num_bits=num_bits,
        bit_balance=balance,
        bit_correlation=correlation,
        flipped_bits=flipped,
        failed_bits=int((~fit.finite_H).sum()) * num_bits // num_heads,
        skipped_images=skipped_images,
        attention_error=relative_error(fit.hashing.attend(*inputs), target_BHNC),
        random_error=relative_error(start.attend(*inputs), target_BHNC),
        uniform_error=relative_error(uniform_BHNC, target_BHNC),
    )
