"""EcoFormer's attention core as two Triton kernels: tokens -> codes and context, codes and context -> output.

The first kernel keeps features and pre-codes on chip and writes one byte a code; nothing of size N x M reaches memory.
Partial contexts of token blocks are summed by torch, in a fixed order, so results do not change from run to run.

Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors; P token blocks. C, K and M are padded to
powers of two of at least 16, which is what tl.dot takes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_TOKENS = 64


@triton.jit
def _codes_and_context(
    qk, v, scale, square, anchor_square, anchors, A, threshold, code, context, code_sum,
    qk_stride_h, qk_stride_b, qk_stride_n, v_stride_h, v_stride_b, v_stride_n,
    batch, tokens, channels, bits, num_anchors, blocks,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr, ANCHORS: tl.constexpr,
):  # fmt: skip
    """One block of tokens of one head and sample."""
    head_sample, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head, sample = head_sample // batch, head_sample % batch
    n = block * TOKENS + tl.arange(0, TOKENS)
    c, k, m = tl.arange(0, CHANNELS), tl.arange(0, BITS), tl.arange(0, ANCHORS)
    in_n, in_c, in_k, in_m = n < tokens, c < channels, k < bits, m < num_anchors
    in_nc = in_n[:, None] & in_c[None, :]
    x_NC = tl.load(
        qk + head * qk_stride_h + sample * qk_stride_b + n[:, None] * qk_stride_n + c[None, :], mask=in_nc, other=0.0
    )
    anchors_MC = tl.load(
        anchors + (head * num_anchors + m[:, None]) * channels + c[None, :],
        mask=in_m[:, None] & in_c[None, :],
        other=0.0,
    )
    token = head_sample * tokens + n
    scale_N, square_N = tl.load(scale + token, mask=in_n, other=0.0), tl.load(square + token, mask=in_n, other=0.0)
    anchor_square_M = tl.load(anchor_square + head_sample * num_anchors + m, mask=in_m, other=0.0)
    # TF32 would flip codes.
    product_NM = tl.dot(x_NC, tl.trans(anchors_MC), input_precision="ieee")
    feature_NM = tl.exp2(product_NM * scale_N[:, None] + square_N[:, None] + anchor_square_M[None, :])
    # A is padded with zeros, so the features of padded anchors do not count.
    A_KM = tl.load(
        A + (head * bits + k[:, None]) * num_anchors + m[None, :], mask=in_k[:, None] & in_m[None, :], other=0.0
    )
    threshold_K = tl.load(threshold + head * bits + k, mask=in_k, other=0.0)
    pre_code_NK = tl.dot(feature_NM, tl.trans(A_KM), input_precision="ieee") - threshold_K[None, :]
    code_NK = tl.where(pre_code_NK < 0, -1.0, 1.0)
    in_nk = in_n[:, None] & in_k[None, :]
    tl.store(code + token[:, None] * bits + k[None, :], code_NK.to(tl.int8), mask=in_nk)
    code_NK = tl.where(in_nk, code_NK, 0.0)
    v_NC = tl.load(
        v + head * v_stride_h + sample * v_stride_b + n[:, None] * v_stride_n + c[None, :], mask=in_nc, other=0.0
    )
    context_KC = tl.dot(tl.trans(code_NK), v_NC, input_precision="ieee")
    row = (head_sample * blocks + block) * bits + k
    tl.store(context + row[:, None] * channels + c[None, :], context_KC, mask=in_k[:, None] & in_c[None, :])
    tl.store(code_sum + row, tl.sum(code_NK, axis=0), mask=in_k)


@triton.jit
def _output(
    code, v, raised, context, code_sum, out,
    v_stride_h, v_stride_b, v_stride_n, out_stride_h, out_stride_b, out_stride_n,
    batch, tokens, channels, bits,
    OWN_TOKEN: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """One block of tokens of one head and sample."""
    head_sample, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head, sample = head_sample // batch, head_sample % batch
    n = block * TOKENS + tl.arange(0, TOKENS)
    c, k = tl.arange(0, CHANNELS), tl.arange(0, BITS)
    in_n, in_c, in_k = n < tokens, c < channels, k < bits
    in_nc = in_n[:, None] & in_c[None, :]
    token = head_sample * tokens + n
    code_NK = tl.load(code + token[:, None] * bits + k[None, :], mask=in_n[:, None] & in_k[None, :], other=0)
    code_NK = code_NK.to(tl.float32)
    row = head_sample * bits + k
    context_KC = tl.load(context + row[:, None] * channels + c[None, :], mask=in_k[:, None] & in_c[None, :], other=0.0)
    sum_K = tl.load(code_sum + row, mask=in_k, other=0.0)
    offset = (bits + 1).to(tl.float32)
    if OWN_TOKEN:
        address = head * v_stride_h + sample * v_stride_b + n[:, None] * v_stride_n + c[None, :]
        raised_NC = tl.load(v + address, mask=in_nc, other=0.0)
    else:
        raised_NC = tl.load(raised + head_sample * channels + c, mask=in_c, other=0.0)[None, :]
    weighted_NC = tl.dot(code_NK, context_KC, input_precision="ieee") + offset * raised_NC
    denominator_N = tl.sum(code_NK * sum_K[None, :], axis=1) + tokens * offset
    address = head * out_stride_h + sample * out_stride_b + n[:, None] * out_stride_n + c[None, :]
    tl.store(out + address, weighted_NC / denominator_N[:, None], mask=in_nc)


def attend(
    qk_HBNC: Tensor,
    v_HBNC: Tensor,
    kernel: tuple[Tensor, Tensor, Tensor],
    hash_functions: tuple[Tensor, Tensor, Tensor],
    numerator: str,
) -> Tensor:
    """Attention output (H, B, N, C), laid out so that joining the heads copies nothing.

    Args:
        qk_HBNC, v_HBNC: float32; channels contiguous.
        kernel: scale_HBN1, square_HBN1 and anchor_square_HB1M of the Gaussian kernel to the base 2.
        hash_functions: anchors_HMC, A_HKM and threshold_H11K.
        numerator: "own_token" or "kernel".
    """
    assert qk_HBNC.dtype == v_HBNC.dtype == torch.float32, "codes are float32 arithmetic"
    qk_HBNC, v_HBNC = (x if x.stride(-1) == 1 else x.contiguous() for x in (qk_HBNC, v_HBNC))
    scale, square, anchor_square = (x.contiguous() for x in kernel)
    anchors_HMC, A_HKM, threshold_H11K = (x.contiguous() for x in hash_functions)
    heads, batch, tokens, channels = qk_HBNC.shape
    bits, num_anchors = A_HKM.shape[1:]
    blocks = triton.cdiv(tokens, BLOCK_TOKENS)
    padded = {"TOKENS": BLOCK_TOKENS, "CHANNELS": _padded(channels), "BITS": _padded(bits)}
    code_HBNK = qk_HBNC.new_empty(heads, batch, tokens, bits, dtype=torch.int8)
    context_HBPKC = qk_HBNC.new_empty(heads, batch, blocks, bits, channels)
    sum_HBPK = qk_HBNC.new_empty(heads, batch, blocks, bits)
    grid = (heads * batch, blocks)
    _codes_and_context[grid](
        qk_HBNC, v_HBNC, scale, square, anchor_square, anchors_HMC, A_HKM, threshold_H11K,
        code_HBNK, context_HBPKC, sum_HBPK,
        *qk_HBNC.stride()[:3], *v_HBNC.stride()[:3],
        batch, tokens, channels, bits, num_anchors, blocks,
        **padded, ANCHORS=_padded(num_anchors),
    )  # fmt: skip
    context_HBKC, sum_HBK = context_HBPKC.sum(dim=2), sum_HBPK.sum(dim=2)
    own_token = numerator == "own_token"
    raised = context_HBKC if own_token else v_HBNC.sum(dim=2).contiguous()  # the first is a placeholder, never read
    out_HBNC = v_HBNC.new_empty(batch, tokens, heads, channels).permute(2, 0, 1, 3)
    _output[grid](
        code_HBNK, v_HBNC, raised, context_HBKC, sum_HBK, out_HBNC,
        *v_HBNC.stride()[:3], *out_HBNC.stride()[:3],
        batch, tokens, channels, bits,
        OWN_TOKEN=own_token, **padded,
    )  # fmt: skip
    return out_HBNC


def _padded(size: int) -> int:
    return max(16, triton.next_power_of_2(size))
