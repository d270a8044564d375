"""Binary codes of queries and keys as one thing to fit to the attention output that they should reproduce.

Codes are straight-through.
Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ecoformer.ops.codes.attention import TokenHash, binary_attention, binary_codes, token_features
from ecoformer.ops.codes.fitted import Attends
from ecoformer.ops.ecoformer.codes import squared_distances

START_BANDWIDTH = 0.3  # of the mean squared distance to the anchors: narrow features follow attention more closely


@dataclass(frozen=True)
class BinaryHash(Attends):
    """All that turns queries, keys and values into an attention output. `key` is None where keys are hashed queries.

    `weight_HK` (at least 0) and `floor_H` (above 0) are those of `binary_attention` for 0/1 codes. With `signed`
    codes are -1/+1 and the floor rises by the sum of the weights, so that attention weights stay positive. A fit leaves
    the weights alone, all 1, without `fits_weight`, and the floor without `fits_floor`.
    """

    query: TokenHash
    key: TokenHash | None
    weight_HK: Tensor
    floor_H: Tensor
    signed: bool = False
    fits_weight: bool = True
    fits_floor: bool = True

    @property
    def fitted(self) -> tuple[str, ...]:
        return "query", "key", *["weight_HK"] * self.fits_weight, *["floor_H"] * self.fits_floor

    @property
    def weights_of_bits(self) -> Tensor | None:
        """`weight_HK`, or None where all are 1, so that nothing is multiplied."""
        return self.weight_HK if self.fits_weight else None

    def codes(self, q_BHNC: Tensor, k_BHNC: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of queries and keys, (B, H, N, K) each, in {0, 1} or {-1, +1}."""
        code_q = binary_codes(q_BHNC, self.query)
        code_k = code_q if self.key is None else binary_codes(k_BHNC, self.key)
        return (2 * code_q - 1, 2 * code_k - 1) if self.signed else (code_q, code_k)

    def signed_codes(self, q_BHNC: Tensor, k_BHNC: Tensor, *values: Tensor | None) -> Tensor:
        """Those of queries, then keys along B, (2B, H, N, K), in {-1, +1}."""
        codes = torch.cat(self.codes(q_BHNC, k_BHNC))
        return codes if self.signed else 2 * codes - 1

    @property
    def raised_floor_H(self) -> Tensor:
        return self.floor_H + self.weight_HK.sum(dim=-1) if self.signed else self.floor_H

    def attend(self, q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """The attention output (B, H, N, C)."""
        codes = self.codes(q_BHNC, k_BHNC)
        return binary_attention(*codes, v_BHNC, self.weights_of_bits, self.raised_floor_H, mask_BN)


def random_hash(
    q_BHNC: Tensor,
    k_BHNC: Tensor,
    generator: torch.Generator,
    *,
    num_bits: int,
    num_anchors: int,
    shared: bool = False,
    signed: bool = False,
    fits_weight: bool = True,
    floor: float = 1.0,
    fits_floor: bool = True,
) -> BinaryHash:
    """Random hash functions for these tokens, each bit splitting them near the middle. The start of a fit.

    Queries and keys, each about their own mean, get the same anchors (tokens of both from the whole batch) and the same
    random functions, so that similar ones tend to agree. `num_anchors=0` makes the hash linear. The rest is for
    `BinaryHash`. `generator` is a CPU generator, so that the draw is the same on every device.
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
    floor_H = q_BHNC.new_full((num_heads,), floor)
    weight_HK = q_BHNC.new_ones(num_heads, num_bits)
    key = None if shared else hashes[1]
    return BinaryHash(hashes[0], key, weight_HK, floor_H, signed, fits_weight, fits_floor)


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
