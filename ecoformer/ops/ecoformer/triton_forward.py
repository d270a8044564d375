"""Triton kernels of EcoFormer's attention, forward: tokens -> codes and context, codes and context -> output.

Normalised tokens, features and pre-codes stay on chip. A code of up to 32 bits is one word a token and head, a longer
one a byte a bit. Every kernel takes one block of tokens of one head and sample; sums over the blocks are left as
partial sums for torch, which adds them in a fixed order, so results do not change from run to run.

Shapes: N tokens of a block, C head channels, K code bits, M anchors. C, K and M are padded to powers of two of at least
16, which is what tl.dot takes; what is padded is loaded as 0.
"""

import triton
import triton.language as tl


@triton.jit
def place(batch, tokens, TOKENS: tl.constexpr):
    """This program's head and sample (apart and as one row), its tokens, and the first of them over all rows."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    return row // batch, row % batch, row, n, row * tokens + n


@triton.jit
def load_tokens(x, head, sample, n, c, stride_h, stride_b, stride_n, tokens, channels):
    inside = (n < tokens)[:, None] & (c < channels)[None, :]
    address = x + head * stride_h + sample * stride_b + n[:, None] * stride_n + c[None, :]
    return tl.load(address, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_matrix(x, row, i, j, rows, columns):
    """The `row`-th (rows, columns) matrix of a contiguous stack."""
    address = x + (row * rows + i[:, None]) * columns + j[None, :]
    return tl.load(address, mask=(i < rows)[:, None] & (j < columns)[None, :], other=0.0)


@triton.jit
def inverse_norm(x_NC):
    """1 / |x|, and 0 for a zero token."""
    square_N = tl.sum(x_NC * x_NC, axis=1)
    return tl.where(square_N > 0, 1.0 / tl.sqrt(tl.where(square_N > 0, square_N, 1.0)), 0.0)


@triton.jit
def exponent(x_NC, inverse_norm_N, anchors_MC, rate):
    """-d2 / (2 sigma) to the base 2, with rate = log2(e) / sigma. TF32 would flip codes."""
    product_NM = tl.dot(x_NC, tl.trans(anchors_MC), input_precision="ieee")
    squares_NM = tl.where(inverse_norm_N > 0, 1.0, 0.0)[:, None] + tl.sum(anchors_MC * anchors_MC, axis=1)[None, :]
    return (product_NM * inverse_norm_N[:, None] - 0.5 * squares_NM) * rate


@triton.jit
def store_code(code, bit_NK, token, in_n, k, bits, PACKED: tl.constexpr):
    if PACKED:
        tl.store(code + token, tl.sum(bit_NK << k[None, :], axis=1), mask=in_n)
    else:
        tl.store(
            code + token[:, None] * bits + k[None, :], bit_NK.to(tl.int8), mask=in_n[:, None] & (k < bits)[None, :]
        )


@triton.jit
def load_code(code, token, in_n, k, bits, PACKED: tl.constexpr):
    """Codes in {-1, +1} as float32; 0 where there is no token or bit."""
    inside = in_n[:, None] & (k < bits)[None, :]
    if PACKED:
        bit_NK = (tl.load(code + token, mask=in_n, other=0)[:, None] >> k[None, :]) & 1
    else:
        bit_NK = tl.load(code + token[:, None] * bits + k[None, :], mask=inside, other=0)
    return tl.where(inside, 2.0 * bit_NK.to(tl.float32) - 1.0, 0.0)


@triton.jit
def unit_sums(
    qk, unit_sum, nonzero,
    qk_stride_h, qk_stride_b, qk_stride_n, batch, tokens, channels, blocks,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sum of the normalised tokens, and how many are not zero: what sigma is made of."""
    head, sample, row, n, _token = place(batch, tokens, TOKENS)
    c = tl.arange(0, CHANNELS)
    x_NC = load_tokens(qk, head, sample, n, c, qk_stride_h, qk_stride_b, qk_stride_n, tokens, channels)
    inverse_norm_N = inverse_norm(x_NC)
    part = row * blocks + tl.program_id(1)
    tl.store(unit_sum + part * channels + c, tl.sum(x_NC * inverse_norm_N[:, None], axis=0), mask=c < channels)
    tl.store(nonzero + part, tl.sum(tl.where(inverse_norm_N > 0, 1.0, 0.0), axis=0))


@triton.jit
def codes_and_context(
    qk, v, rate, anchors, A, threshold, code, context, code_sum, v_sum,
    qk_stride_h, qk_stride_b, qk_stride_n, v_stride_h, v_stride_b, v_stride_n,
    batch, tokens, channels, bits, num_anchors, blocks,
    PACKED: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr, ANCHORS: tl.constexpr,
):  # fmt: skip
    """Codes, and the partial sums of codes, of v, and of codes times v."""
    head, sample, row, n, token = place(batch, tokens, TOKENS)
    c, k, m = tl.arange(0, CHANNELS), tl.arange(0, BITS), tl.arange(0, ANCHORS)
    x_NC = load_tokens(qk, head, sample, n, c, qk_stride_h, qk_stride_b, qk_stride_n, tokens, channels)
    anchors_MC = load_matrix(anchors, head, m, c, num_anchors, channels)
    feature_NM = tl.exp2(exponent(x_NC, inverse_norm(x_NC), anchors_MC, tl.load(rate + row)))
    # The features of padded anchors meet zeros of A.
    A_KM = load_matrix(A, head, k, m, bits, num_anchors)
    threshold_K = tl.load(threshold + head * bits + k, mask=k < bits, other=0.0)
    pre_code_NK = tl.dot(feature_NM, tl.trans(A_KM), input_precision="ieee") - threshold_K[None, :]
    inside = (n < tokens)[:, None] & (k < bits)[None, :]
    bit_NK = tl.where(inside, tl.where(pre_code_NK < 0, 0, 1), 0)
    store_code(code, bit_NK, token, n < tokens, k, bits, PACKED)
    code_NK = tl.where(inside, 2.0 * bit_NK.to(tl.float32) - 1.0, 0.0)
    v_NC = load_tokens(v, head, sample, n, c, v_stride_h, v_stride_b, v_stride_n, tokens, channels)
    context_KC = tl.dot(tl.trans(code_NK), v_NC, input_precision="ieee")
    part = row * blocks + tl.program_id(1)
    address = context + (part * bits + k[:, None]) * channels + c[None, :]
    tl.store(address, context_KC, mask=(k < bits)[:, None] & (c < channels)[None, :])
    tl.store(code_sum + part * bits + k, tl.sum(code_NK, axis=0), mask=k < bits)
    tl.store(v_sum + part * channels + c, tl.sum(v_NC, axis=0), mask=c < channels)


@triton.jit
def numerator_and_denominator(
    code_NK, v_NC, context, code_sum, v_sum, row, k, c, bits, channels, tokens, OWN_TOKEN: tl.constexpr
):
    offset = bits + 1.0
    context_KC = load_matrix(context, row, k, c, bits, channels)
    sum_K = tl.load(code_sum + row * bits + k, mask=k < bits, other=0.0)
    if OWN_TOKEN:
        raised_NC = offset * v_NC
    else:
        raised_NC = offset * tl.load(v_sum + row * channels + c, mask=c < channels, other=0.0)[None, :]
    numerator_NC = tl.dot(code_NK, context_KC, input_precision="ieee") + raised_NC
    return numerator_NC, tl.sum(code_NK * sum_K[None, :], axis=1) + tokens * offset


@triton.jit
def output(
    code, v, context, code_sum, v_sum, out,
    v_stride_h, v_stride_b, v_stride_n, out_stride_h, out_stride_b, out_stride_n,
    batch, tokens, channels, bits,
    OWN_TOKEN: tl.constexpr, PACKED: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The attention output."""
    head, sample, row, n, token = place(batch, tokens, TOKENS)
    c, k = tl.arange(0, CHANNELS), tl.arange(0, BITS)
    code_NK = load_code(code, token, n < tokens, k, bits, PACKED)
    v_NC = load_tokens(v, head, sample, n, c, v_stride_h, v_stride_b, v_stride_n, tokens, channels)
    numerator_NC, denominator_N = numerator_and_denominator(
        code_NK, v_NC, context, code_sum, v_sum, row, k, c, bits, channels, tokens, OWN_TOKEN
    )
    address = out + head * out_stride_h + sample * out_stride_b + n[:, None] * out_stride_n + c[None, :]
    tl.store(address, numerator_NC / denominator_N[:, None], mask=(n < tokens)[:, None] & (c < channels)[None, :])
