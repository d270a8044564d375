"""How well one attention follows another: output error, recall of the strongest keys, correlation of the weights.

Shapes: B batch, H heads, N tokens, C head channels; the weights of a row sum over its last dimension.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def relative_error(out: Tensor, target: Tensor) -> float:
    """|out - target| / |target| (L2), summed in float64; infinite if the target is zero and out is not."""
    distance = (out.double() - target.double()).norm()
    size = target.double().norm()
    if size == 0:
        return 0.0 if distance == 0 else float("inf")
    return float((distance / size).detach())


def strongest_key_recall(weights_BHNN: Tensor, target_BHNN: Tensor, num_keys: int) -> float:
    """Share of each token's `num_keys` strongest keys under `target` that are among its strongest under `weights`.

    Codes give many equal weights. Keys that tie for the last places share them, which is the expected recall when
    ties are broken at random; so constant weights score num_keys / N, by chance. num_keys is at most N.
    """
    assert 1 <= num_keys <= target_BHNN.shape[-1]
    # Not topk of the target's own ties: which of two equally strong keys counts does not matter on average.
    wanted_BHNk = target_BHNN.topk(num_keys, dim=-1).indices
    threshold_BHN1 = weights_BHNN.topk(num_keys, dim=-1).values[..., -1:]
    rounding_BHN1 = 1e-6 * threshold_BHN1.abs()
    above = weights_BHNN > threshold_BHN1 + rounding_BHN1
    tied = (weights_BHNN - threshold_BHN1).abs() <= rounding_BHN1
    places_BHN1 = num_keys - above.sum(dim=-1, keepdim=True)
    chance = above + tied * (places_BHN1 / tied.sum(dim=-1, keepdim=True))
    return float(chance.double().gather(-1, wanted_BHNk).mean())


def row_correlation(weights_BHNN: Tensor, target_BHNN: Tensor) -> float:
    """Pearson correlation between the two weights of a token's keys, averaged over tokens, heads and samples.

    A row that is constant (beyond rounding) on either side says nothing about its keys and counts as 0.
    """
    centred = [w.double() - w.double().mean(dim=-1, keepdim=True) for w in (weights_BHNN, target_BHNN)]
    rounding = 1e-6
    norms = [c.norm(dim=-1) for c in centred]
    flat = [
        norm <= rounding * w.double().norm(dim=-1) for norm, w in zip(norms, (weights_BHNN, target_BHNN), strict=True)
    ]
    product = (centred[0] * centred[1]).sum(dim=-1)
    correlation = product / (norms[0] * norms[1]).clamp_min(torch.finfo(torch.float64).tiny)
    return float(correlation.masked_fill(flat[0] | flat[1], 0.0).mean())


def head_squares(out_BHNC: Tensor, target_BHNC: Tensor) -> tuple[Tensor, Tensor]:
    """Per head, |out - target|^2 and |target|^2: sums over batches of samples add up."""
    return (out_BHNC - target_BHNC).square().sum(dim=(0, 2, 3)), target_BHNC.square().sum(dim=(0, 2, 3))


def head_ratio(distance_H: Tensor, size_H: Tensor) -> Tensor:
    """The squared relative error of what `head_squares` gives; finite where the target is zero."""
    return distance_H / size_H.clamp_min(torch.finfo(size_H.dtype).tiny ** 0.5)


@torch.no_grad()
def head_errors(sums: Callable[..., tuple[Tensor, Tensor]], batch_size: int, *data: Any) -> Tensor:
    """The error of each head, float64, from what `sums` gives of each batch of the data, as `head_squares` does."""
    found = [sums(*batch) for batch in batches(batch_size, *data)]
    distance_H, size_H = (torch.stack([pair[i].double() for pair in found]).sum(dim=0) for i in (0, 1))
    return head_ratio(distance_H, size_H)


def batches(size: int, *tensors: Any) -> Iterator[tuple[Any, ...]]:
    """The tensors in pieces of `size` samples; what is None stays None."""
    for start in range(0, len(tensors[0]), size):
        yield tuple(None if t is None else t[start : start + size] for t in tensors)
