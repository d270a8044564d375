"""A whole EcoFormer layer with tokens as columns, forward: see `kernel_hash_layer`.

Projected as W x^T, tokens come out with their heads split, and everything after is rows over the tokens: norms and
sigma scale whole rows, and no pass has a short inner loop. Three rows come along that save passes over the others:
a row of ones beside v (so that one product gives context and sum of codes, and one numerator and denominator), a row
of ones beside the codes (whose product with v is the sum of all v), and the mean anchor beside the anchors (for sigma).
Codes are 0/1, one comparison; the small context is what turns them into -1/+1. Samples go through in groups of some
MiB, so what lies between x and the output is never whole in memory.

Shapes: B samples (of a group), H heads, G = B H, N tokens, D model channels, C head channels, K code bits, M anchors;
V = C + 1, L = K + 1 and R = M + 1 count the rows with their extra one, which is the last.
A sample of many tokens is worked on in pieces, which count as samples in all of these shapes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ecoformer.ops.ecoformer.codes import sigma_floor

Linear = tuple[Tensor, Tensor | None]  # weight (out, in), bias (out)
State = tuple[Tensor, Tensor, Tensor]  # anchors_HMC, A_HKM, mean_HM
GROUP_BYTES = 2**24  # of intermediate results in a group of samples, per thread; smaller ones wake threads too often
PIECE_TOKENS = 4000  # longer rows cost products of 16 to 32 rows a third of their speed


@dataclass(frozen=True)
class ColumnLayer:
    """Weights and hash functions, laid out for columns of tokens and padded by their extra rows."""

    num_heads: int
    own_token: bool
    qk_DD: Tensor
    qk_bias_D1: Tensor
    v_HVD: Tensor  # the last row of a head is 0 and its bias 1: the ones
    v_bias_HV1: Tensor
    proj_DHV: Tensor  # the last column of a head is 0: the denominators
    proj_bias_D: Tensor
    anchors_GRC: Tensor
    squares_GM1: Tensor  # |x|^2 + |a|^2 of tokens of norm 1
    mean_squares_G11: Tensor
    A_GLM: Tensor
    threshold_GL1: Tensor
    signs_LL: Tensor  # symmetric: from the context of 0/1 codes to what they are read out with, over K + 1
    pieces: int  # of every sample's tokens

    @classmethod
    def of(cls, linears: tuple[Linear, Linear, Linear], state: State, numerator: str) -> ColumnLayer:
        (qk, qk_bias), (v, v_bias), (proj, proj_bias) = linears
        anchors_HMC, A_HKM, mean_HM = state
        num_heads, _, channels = anchors_HMC.shape
        squares_HM1 = 1 + anchors_HMC.square().sum(dim=-1, keepdim=True)
        zero_D = qk.new_zeros(qk.shape[0])
        A_HLM = F.pad(A_HKM, (0, 0, 0, 1))
        return cls(
            num_heads=num_heads,
            own_token=numerator == "own_token",
            qk_DD=qk,
            qk_bias_D1=(zero_D if qk_bias is None else qk_bias).unsqueeze(-1),
            v_HVD=F.pad(v.reshape(num_heads, channels, -1), (0, 0, 0, 1)).flatten(0, 1),
            v_bias_HV1=F.pad((zero_D if v_bias is None else v_bias).view(num_heads, -1), (0, 1), value=1.0).view(-1, 1),
            proj_DHV=F.pad(proj.reshape(-1, num_heads, channels), (0, 1)).flatten(1),
            proj_bias_D=zero_D if proj_bias is None else proj_bias,
            anchors_GRC=torch.cat([anchors_HMC, anchors_HMC.mean(dim=1, keepdim=True)], dim=1),
            squares_GM1=squares_HM1,
            mean_squares_G11=squares_HM1.mean(dim=1, keepdim=True),
            A_GLM=A_HLM,
            # 0 in the last row, which is always 0: reached. A product with one column would wake all threads.
            threshold_GL1=(A_HLM * mean_HM.unsqueeze(1)).sum(dim=-1, keepdim=True),
            signs_LL=_signs(A_HKM.shape[1], numerator, qk.dtype, qk.device),
            pieces=1,
        )

    def repeated(self, samples: int, pieces: int) -> ColumnLayer:
        """The hash functions once for every piece: batched products take no broadcast operand as it is."""
        if samples * pieces == 1:
            return self
        names = ("anchors_GRC", "squares_GM1", "mean_squares_G11", "A_GLM", "threshold_GL1")
        parts = {name: every(getattr(self, name), samples * pieces).flatten(0, 1) for name in names}
        return replace(self, pieces=pieces, **parts)  # type: ignore[arg-type]

    def over_pieces(self, x_G: Tensor) -> Tensor:
        """The sum of what the pieces of a sample found, for each of them."""
        if self.pieces == 1:
            return x_G
        sums = x_G.view(-1, self.pieces, self.num_heads, *x_G.shape[1:]).sum(dim=1, keepdim=True)
        return sums.expand(-1, self.pieces, *sums.shape[2:]).reshape(x_G.shape)


@functools.cache
def _signs(num_bits: int, numerator: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # kept, and used in whatever mode comes next
        # With h = 2 c - 1 for codes c, h_i . sum_j h_j v_j = sum_j (4 c_i . c_j - 2 c_i . 1 - 2 c_j . 1 + K) v_j.
        signs_LL = F.pad(4 * torch.eye(num_bits, dtype=dtype, device=device), (0, 1, 0, 1), value=-2.0)
        signs_LL[-1, -1] = num_bits if numerator == "own_token" else 2 * num_bits + 1
        # Over K + 1 a token's own value comes in as it is, and a product that adds to once what is there is faster.
        return signs_LL / (num_bits + 1)


def groups(x_BND: Tensor, layer: ColumnLayer) -> Iterator[tuple[slice, ColumnLayer]]:
    """Samples to work on at a time, as many a thread as GROUP_BYTES allow, and the layer for that many."""
    (samples, tokens, dim), threads = x_BND.shape, torch.get_num_threads()
    rows = 3 * dim + layer.num_heads * (2 + layer.anchors_GRC.shape[1] + layer.A_GLM.shape[1])
    size = threads * max(1, GROUP_BYTES // (rows * max(1, tokens) * x_BND.element_size()))
    pieces = next((n for n in range(1, 1 + tokens // 100) if tokens % n == 0 and tokens // n <= PIECE_TOKENS), 1)
    repeated: dict[int, ColumnLayer] = {}
    for start in range(0, samples if tokens else 0, size):
        count = min(size, samples - start)
        if count not in repeated:
            repeated[count] = layer.repeated(count, pieces)
        yield slice(start, start + count), repeated[count]


def layer_forward(x_BND: Tensor, layer: ColumnLayer, mask_BN: Tensor | None) -> Tensor:
    out_BND = torch.empty_like(x_BND, memory_format=torch.contiguous_format)
    for group, own in groups(x_BND, layer):
        x_BDN, out = pieces_of(x_BND[group], own).transpose(1, 2), pieces_of(out_BND[group], own)
        # Queries lie where the output will be written, when they have been read.
        hashed = hash_tokens(x_BDN, own, real_tokens(mask_BN, group, x_BDN, own), room=out)
        v_GVN = project(x_BDN, own.v_HVD, own.v_bias_HV1, own.num_heads)
        code_GLN = hashed.pre_code_GLN.ge_(own.threshold_GL1)
        attended_GVN = read(readout(v_GVN, hashed.of_keys(code_GLN), hashed, own), v_GVN, code_GLN, own)
        columns_BND = attended_GVN.view(len(out), -1, out.shape[1]).transpose(1, 2)
        torch.bmm(columns_BND, every(own.proj_DHV.t(), len(out)), out=out).add_(own.proj_bias_D)
    return out_BND


def pieces_of(x_BND: Tensor, layer: ColumnLayer) -> Tensor:
    """Every sample as some samples of fewer tokens."""
    return x_BND.reshape(x_BND.shape[0] * layer.pieces, -1, x_BND.shape[-1])


def real_tokens(mask_BN: Tensor | None, group: slice, x_BDN: Tensor, layer: ColumnLayer) -> Tensor | None:
    """1 for the tokens of a group that take part, else 0, for every head and piece: (G, 1, N)."""
    if mask_BN is None:
        return None
    real_B1N = mask_BN[group].reshape(len(x_BDN), 1, -1).to(x_BDN.dtype)
    return real_B1N.repeat_interleave(layer.num_heads, dim=0)


def every(weight: Tensor, samples: int) -> Tensor:
    """The same matrix for every sample."""
    return weight.expand(samples, *weight.shape)


def project(x_BDN: Tensor, weight: Tensor, bias: Tensor, num_heads: int, room: Tensor | None = None) -> Tensor:
    """The heads' projections, in the memory of `room` if that is given."""
    samples, _, tokens = x_BDN.shape
    shape = (samples, len(weight), tokens)
    out = None if room is None else room.view(shape)
    # torch.baddbmm would write the bias everywhere first, in a pass that costs one sample half of the product.
    return torch.bmm(every(weight, samples), x_BDN, out=out).add_(bias).view(samples * num_heads, -1, tokens)


@dataclass(frozen=True)
class ColumnHash:
    """Queries and keys of a group, and what their codes are made of. Rates and features are to the base 2."""

    qk_GCN: Tensor
    inverse_norm_G1N: Tensor  # 0 for zero tokens
    product_GRN: Tensor  # with the anchors and the mean anchor, before normalisation
    sigma_G11: Tensor
    rate_G11: Tensor  # log2(e) / sigma
    feature_GMN: Tensor
    pre_code_GLN: Tensor  # the threshold not yet taken away
    real_G1N: Tensor | None  # 1 for tokens that take part, else 0; None: all do
    count: Tensor | int  # of them in the sample, (G, 1, 1)

    def of_keys(self, x_GLN: Tensor) -> Tensor:
        """With zeros for the tokens that take no part."""
        return x_GLN if self.real_G1N is None else x_GLN * self.real_G1N


def hash_tokens(x_BDN: Tensor, layer: ColumnLayer, real_G1N: Tensor | None, room: Tensor | None = None) -> ColumnHash:
    """With `room`, of as many numbers as x, queries and keys lie there, and features where the products were."""
    count: Tensor | int = x_BDN.shape[-1] * layer.pieces
    if real_G1N is not None:
        count = layer.over_pieces(real_G1N.sum(dim=-1, keepdim=True))
    qk_GCN = project(x_BDN, layer.qk_DD, layer.qk_bias_D1, layer.num_heads, room)
    square_G1N = qk_GCN.square().sum(dim=1, keepdim=True)
    zero_G1N = None if square_G1N.amin().item() > 0 else (square_G1N == 0).to(square_G1N.dtype)
    if zero_G1N is not None:
        square_G1N += zero_G1N
    inverse_norm_G1N = square_G1N.rsqrt_()
    if zero_G1N is not None:
        inverse_norm_G1N -= zero_G1N
    product_GRN = torch.bmm(layer.anchors_GRC, qk_GCN)
    # Sigma is the mean of |x|^2 + |a|^2 - 2 x . a over tokens and anchors: the product with the mean anchor will do.
    counted_G1N = inverse_norm_G1N if real_G1N is None else inverse_norm_G1N * real_G1N
    near_G11 = torch.bmm(product_GRN[:, -1:], counted_G1N.transpose(1, 2))
    if zero_G1N is not None:
        near_G11 += 0.5 * (zero_G1N if real_G1N is None else zero_G1N * real_G1N).sum(dim=-1, keepdim=True)
    sigma_G11 = torch.add(layer.mean_squares_G11, layer.over_pieces(near_G11) / count, alpha=-2)
    rate_G11 = sigma_G11.clamp_min(sigma_floor(sigma_G11)).reciprocal_().mul_(math.log2(math.e))
    product_GMN = product_GRN[:, :-1]
    feature_GMN = torch.empty_like(product_GMN) if room is None else product_GMN
    torch.addcmul(-0.5 * rate_G11 * layer.squares_GM1, product_GMN, inverse_norm_G1N * rate_G11, out=feature_GMN)
    if zero_G1N is not None:
        feature_GMN += zero_G1N * (0.5 * rate_G11)
    feature_GMN.exp2_()  # a quarter of exp's time
    pre_code_GLN = torch.bmm(layer.A_GLM, feature_GMN)
    return ColumnHash(
        qk_GCN, inverse_norm_G1N, product_GRN, sigma_G11, rate_G11, feature_GMN, pre_code_GLN, real_G1N, count
    )


def readout(v_GVN: Tensor, key_GLN: Tensor, hashed: ColumnHash, layer: ColumnLayer) -> Tensor:
    """The matrix (G, L, V) that takes 0/1 codes to numerators and denominators of the attention of -1/+1 codes.

    `key_GLN` are the codes of the tokens as keys, 0 for those that take no part.
    """
    context_GLV = layer.over_pieces(torch.bmm(key_GLN, v_GVN.transpose(1, 2)))
    readout_GLV = torch.matmul(layer.signs_LL, context_GLV)
    # v brings its one along, the first of the count. No comparison holds for NaN, so a code cannot carry it: this does.
    last_G11 = readout_GLV[:, -1:, -1:].add_(hashed.rate_G11, alpha=0)
    if layer.own_token:
        last_G11 += hashed.count - 1
    return readout_GLV


def read(readout_GLV: Tensor, v_GVN: Tensor, code_GLN: Tensor, layer: ColumnLayer) -> Tensor:
    """The attention output in v's place; the denominator stays below it, as the last row."""
    v_GVN.baddbmm_(readout_GLV.transpose(1, 2), code_GLN, beta=int(layer.own_token))
    v_GVN[:, :-1].div_(v_GVN[:, -1:])
    return v_GVN
