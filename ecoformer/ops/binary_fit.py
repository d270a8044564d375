"""Fit binary codes of queries and keys to the attention output that they should reproduce, all bits at once.

The loss is the squared error of the output, relative to the output, per head: its target comes from fused attention, so
memory stays linear in the tokens. Steps are Adam with straight-through codes on random batches of samples.
Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ecoformer.ops.binary_attention import TokenHash, binary_attention, binary_codes, token_features
from ecoformer.ops.kernel_hash import squared_distances

START_BANDWIDTH = 0.3  # of the mean squared distance to the anchors: narrow features follow attention more closely


@dataclass(frozen=True)
class BinaryHash:
    """All that turns queries, keys and values into an attention output. `key` is None where keys are hashed queries.

    `weight_HK` (at least 0) and `floor_H` (above 0) are those of `binary_attention` for 0/1 codes. With `signed`
    codes are -1/+1 and the floor rises by the sum of the weights, so that attention weights stay positive.
    """

    query: TokenHash
    key: TokenHash | None
    weight_HK: Tensor
    floor_H: Tensor
    signed: bool = False

    def codes(self, q_BHNC: Tensor, k_BHNC: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of queries and keys, (B, H, N, K) each, in {0, 1} or {-1, +1}."""
        code_q = binary_codes(q_BHNC, self.query)
        code_k = code_q if self.key is None else binary_codes(k_BHNC, self.key)
        return (2 * code_q - 1, 2 * code_k - 1) if self.signed else (code_q, code_k)

    @property
    def raised_floor_H(self) -> Tensor:
        return self.floor_H + self.weight_HK.sum(dim=-1) if self.signed else self.floor_H

    def attend(self, q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor) -> Tensor:
        """The attention output (B, H, N, C)."""
        return binary_attention(*self.codes(q_BHNC, k_BHNC), v_BHNC, self.weight_HK, self.raised_floor_H)

    def tensors(self) -> Iterator[Tensor]:
        """Everything that a fit changes, in a fixed order; every tensor has the heads first."""
        for hashing in (self.query, self.key):
            if hashing is not None:
                yield from (hashing.A_HKF, hashing.threshold_HK)
                if hashing.anchors_HMC is not None and hashing.bandwidth_H is not None:
                    yield from (hashing.anchors_HMC, hashing.bandwidth_H)
        yield from (self.weight_HK, self.floor_H)

    def with_tensors(self, tensors: Iterator[Tensor]) -> BinaryHash:
        """The same hash with other tensors, in the order of `tensors`."""

        def take(hashing: TokenHash | None) -> TokenHash | None:
            if hashing is None:
                return None
            linear = hashing.anchors_HMC is None
            return TokenHash(next(tensors), next(tensors), *(() if linear else (next(tensors), next(tensors))))

        query, key = take(self.query), take(self.key)
        assert query is not None
        return BinaryHash(query, key, next(tensors), next(tensors), self.signed)


@dataclass(frozen=True)
class BinaryFit:
    """A fitted hash and its errors per head (squared, relative, on all samples, float64).

    `accepted_H` is False where the fit did not lower the error, or met NaN (`finite_H` False); such heads keep the hash
    they had.
    """

    hashing: BinaryHash
    error_before_H: Tensor
    error_after_H: Tensor
    accepted_H: Tensor
    finite_H: Tensor


def random_hash(
    q_BHNC: Tensor,
    k_BHNC: Tensor,
    generator: torch.Generator,
    *,
    num_bits: int,
    num_anchors: int,
    shared: bool = False,
    signed: bool = False,
) -> BinaryHash:
    """Random hash functions for these tokens, each bit splitting them near the middle. The start of a fit.

    Queries and keys, each about their own mean, get the same anchors (tokens of both, from the whole batch) and
    the same random functions, so that similar ones tend to agree. `num_anchors=0` makes the hash linear.
    `generator` is a CPU generator, so that the draw is the same on every device.
    """
    num_heads, channels = q_BHNC.shape[1], q_BHNC.shape[-1]
    kinds = [q_BHNC] if shared else [q_BHNC, k_BHNC]
    tokens_HTC = [x.transpose(0, 1).flatten(1, 2) for x in kinds]
    means_H1C = [x.mean(dim=1, keepdim=True) for x in tokens_HTC]
    A_HKF = torch.randn(num_heads, num_bits, num_anchors or channels, generator=generator).to(q_BHNC)
    anchors_HMC = None
    if num_anchors:
        centred = torch.cat([x - mean for x, mean in zip(tokens_HTC, means_H1C, strict=True)], dim=1)
        chosen = torch.randint(centred.shape[1], (num_anchors,), generator=generator)
        anchors_HMC = centred.index_select(1, chosen.to(centred.device))
    hashes = [_standardised(x, mean, A_HKF, anchors_HMC) for x, mean in zip(tokens_HTC, means_H1C, strict=True)]
    ones_H = q_BHNC.new_ones(num_heads)
    weight_HK = q_BHNC.new_ones(num_heads, num_bits)
    return BinaryHash(hashes[0], None if shared else hashes[1], weight_HK, ones_H, signed)


def _standardised(x_HTC: Tensor, mean_H1C: Tensor, A_HKF: Tensor, anchors_HMC: Tensor | None) -> TokenHash:
    """Hash functions whose values before the step have mean 0 and deviation 1 over the tokens."""
    x_1HTC = x_HTC.unsqueeze(0)
    bandwidth_H = None
    if anchors_HMC is not None:
        anchors_HMC = anchors_HMC + mean_H1C
        mean_distance_H = squared_distances(x_1HTC, anchors_HMC).mean(dim=(0, 2, 3))
        bandwidth_H = (START_BANDWIDTH * mean_distance_H).clamp_min(torch.finfo(x_HTC.dtype).tiny ** 0.5)
    values_HTK = token_features(x_1HTC, anchors_HMC, bandwidth_H)[0] @ A_HKF.transpose(-2, -1)
    deviation_H1K = values_HTK.std(dim=1, correction=0, keepdim=True)
    # A bit that is the same for all tokens (identical tokens, say) stays as it is.
    scale_H1K = torch.where(deviation_H1K > 1e-6, deviation_H1K, 1.0).reciprocal()
    threshold_HK = (values_HTK * scale_H1K).mean(dim=1)
    return TokenHash(A_HKF * scale_H1K.transpose(-2, -1), threshold_HK, anchors_HMC, bandwidth_H)


def fit_binary_hash(
    start: BinaryHash,
    q_BHNC: Tensor,
    k_BHNC: Tensor,
    v_BHNC: Tensor,
    generator: torch.Generator,
    *,
    lr: float,
    steps: int,
    batch_size: int,
) -> BinaryFit:
    """Fit to softmax(q k^T / sqrt(C)) v by Adam, the rate falling to zero along a cosine.

    Args:
        start: the hash to improve, from `random_hash` or an earlier fit.
        q_BHNC, k_BHNC, v_BHNC: float32 or float64, finite, not normalised.
        generator: CPU generator that draws the samples of each step.
        lr, steps, batch_size: Adam's rate, its steps (0: only measure), and samples per step.
    """
    with torch.no_grad():
        target_BHNC = torch.cat(
            [F.scaled_dot_product_attention(q, k, v) for q, k, v in _batches(batch_size, q_BHNC, k_BHNC, v_BHNC)]
        )
    data = (q_BHNC, k_BHNC, v_BHNC, target_BHNC)
    before_H = _error(start, batch_size, *data)
    # Adam steps on logarithms keep these positive.
    positive = {id(t) for h in (start.query, start.key) if h is not None for t in [h.bandwidth_H]}
    positive |= {id(start.weight_HK), id(start.floor_H)}
    is_positive = [id(t) in positive for t in start.tensors()]
    tiny = torch.finfo(q_BHNC.dtype).tiny ** 0.5

    def current() -> BinaryHash:
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
            chosen = torch.randperm(q_BHNC.shape[0], generator=generator)[:batch_size].to(q_BHNC.device)
            q, k, v, target = (x.index_select(0, chosen) for x in data)
            loss = _ratio(*_squares(current().attend(q, k, v), target)).sum()
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
    return BinaryFit(kept, before_H, torch.where(accepted_H, after_H, before_H), accepted_H, after_H.isfinite())


def _batches(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    yield from zip(*(t.split(size) for t in tensors), strict=True)


def _squares(out_BHNC: Tensor, target_BHNC: Tensor) -> tuple[Tensor, Tensor]:
    return (out_BHNC - target_BHNC).square().sum(dim=(0, 2, 3)), target_BHNC.square().sum(dim=(0, 2, 3))


def _ratio(distance_H: Tensor, size_H: Tensor) -> Tensor:
    return distance_H / size_H.clamp_min(torch.finfo(size_H.dtype).tiny ** 0.5)


@torch.no_grad()
def _error(hashing: BinaryHash, batch_size: int, *data: Tensor) -> Tensor:
    sums = [_squares(hashing.attend(q, k, v), target) for q, k, v, target in _batches(batch_size, *data)]
    distance_H, size_H = (torch.stack([pair[i].double() for pair in sums]).sum(dim=0) for i in (0, 1))
    return _ratio(distance_H, size_H)
