"""Triton kernels of EcoFormer's attention, forward: tokens -> codes and context, codes and context -> output.

Normalised tokens, features and pre-codes stay on chip. A code of up to 32 bits is one word a token and head, a longer
one a byte a bit. Every program takes some blocks of tokens of one head and sample, one after the other. What is summed
over all tokens it leaves as one part of the sum; programs of the next kernel add up the parts, in a fixed order, so
results do not change from run to run.

Shapes: N tokens of a block, C head channels, K code bits, M anchors, P parts of a sum. C, K and M are padded to powers
of two of at least 16, which is what tl.dot takes; what is padded is loaded as 0.
"""

import torch
import triton
import triton.language as tl

LEAST_SHARED = 160 * 1024  # bytes that a block may have in shared memory: A100 and its successors in data centres


def _precision() -> str:
    """How float32 numbers are multiplied: on tensor cores, three products for every one, whose sum has the accuracy of
    float32, where a block may hold the parts; else one by one. TF32 alone would flip codes."""
    if not torch.cuda.is_available():
        return "tf32x3"
    held = triton.runtime.driver.active.utils.get_device_properties(torch.cuda.current_device())["max_shared_mem"]
    return "tf32x3" if held >= LEAST_SHARED and torch.version.hip is None else "ieee"


PRECISION = tl.constexpr(_precision())
LOG2_E = tl.constexpr(1.4426950408889634)
SIGMA_FLOOR = tl.constexpr(16 * 2.0**-23)


@triton.jit
def place(batch):
    """This program's head and sample, apart and as one row."""
    row = tl.program_id(0).to(tl.int64)
    return row // batch, row % batch, row


@triton.jit
def blocks_of_program(tokens, blocks, TOKENS: tl.constexpr):
    """First and last (excluded) of this program's blocks of tokens, of which it has `blocks`."""
    first = tl.program_id(1) * blocks
    return first, tl.minimum(first + blocks, tl.cdiv(tokens, TOKENS))


@triton.jit
def dot(x, y):
    return tl.dot(x, y, input_precision=PRECISION)


@triton.jit
def load_tokens(x, head, sample, n, c, stride_h, stride_b, stride_n, tokens, channels):
    inside = (n < tokens)[:, None] & (c < channels)[None, :]
    address = x + head * stride_h + sample * stride_b + n[:, None] * stride_n + c[None, :]
    return tl.load(address, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_tokens(x, value_NC, head, sample, n, c, stride_h, stride_b, stride_n, tokens, channels):
    inside = (n < tokens)[:, None] & (c < channels)[None, :]
    tl.store(x + head * stride_h + sample * stride_b + n[:, None] * stride_n + c[None, :], value_NC, mask=inside)


@triton.jit
def load_vector(x, row, i, size):
    return tl.load(x + row * size + i, mask=i < size, other=0.0)


@triton.jit
def load_matrix(x, row, i, j, rows, columns):
    """The `row`-th (rows, columns) matrix of a contiguous stack."""
    address = x + (row * rows + i[:, None]) * columns + j[None, :]
    return tl.load(address, mask=(i < rows)[:, None] & (j < columns)[None, :], other=0.0)


@triton.jit
def store_matrix(x, value, row, i, j, rows, columns):
    address = x + (row * rows + i[:, None]) * columns + j[None, :]
    tl.store(address, value, mask=(i < rows)[:, None] & (j < columns)[None, :])


@triton.jit
def total_vector(x, row, parts, i, size):
    """Sum of the P parts of a row."""
    total = load_vector(x, row * parts, i, size)
    for part in range(1, parts):
        total += load_vector(x, row * parts + part, i, size)
    return total


@triton.jit
def total_matrix(x, row, parts, i, j, rows, columns):
    total = load_matrix(x, row * parts, i, j, rows, columns)
    for part in range(1, parts):
        total += load_matrix(x, row * parts + part, i, j, rows, columns)
    return total


@triton.jit
def inverse_norm(x_NC):
    """1 / |x|, and 0 for a zero token."""
    square_N = tl.sum(x_NC * x_NC, axis=1)
    return tl.where(square_N > 0, 1.0 / tl.sqrt(tl.where(square_N > 0, square_N, 1.0)), 0.0)


@triton.jit
def exponent(x_NC, inverse_norm_N, anchors_MC, rate):
    """-d2 / (2 sigma) to the base 2, with rate = log2(e) / sigma."""
    product_NM = dot(x_NC, tl.trans(anchors_MC))
    squares_NM = tl.where(inverse_norm_N > 0, 1.0, 0.0)[:, None] + tl.sum(anchors_MC * anchors_MC, axis=1)[None, :]
    return (product_NM * inverse_norm_N[:, None] - 0.5 * squares_NM) * rate


@triton.jit
def threshold(A_KM, mean, head, m, num_anchors):
    return tl.sum(A_KM * load_vector(mean, head, m, num_anchors)[None, :], axis=1)


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
    qk_stride_h, qk_stride_b, qk_stride_n, batch, tokens, channels, parts, blocks,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sum of the normalised tokens, and how many are not zero: what sigma is made of."""
    head, sample, row = place(batch)
    c = tl.arange(0, CHANNELS)
    unit_sum_C, nonzero_N = tl.zeros([CHANNELS], tl.float32), tl.zeros([TOKENS], tl.float32)
    first, last = blocks_of_program(tokens, blocks, TOKENS)
    for block in range(first, last):
        n = block * TOKENS + tl.arange(0, TOKENS)
        x_NC = load_tokens(qk, head, sample, n, c, qk_stride_h, qk_stride_b, qk_stride_n, tokens, channels)
        inverse_norm_N = inverse_norm(x_NC)
        unit_sum_C += tl.sum(x_NC * inverse_norm_N[:, None], axis=0)
        nonzero_N += tl.where(inverse_norm_N > 0, 1.0, 0.0)
    part = row * parts + tl.program_id(1)
    tl.store(unit_sum + part * channels + c, unit_sum_C, mask=c < channels)
    tl.store(nonzero + part, tl.sum(nonzero_N, axis=0))


@triton.jit
def rate_of(unit_sum, nonzero, anchors_MC, row, c, tokens, channels, num_anchors, parts):
    """log2(e) / sigma: the mean squared distance over tokens and anchors follows from the means of both."""
    unit_sum_C = total_vector(unit_sum, row, parts, c, channels)
    count = tl.load(nonzero + row * parts)
    for part in range(1, parts):
        count += tl.load(nonzero + row * parts + part)
    product = tl.sum(unit_sum_C * tl.sum(anchors_MC, axis=0), axis=0) / num_anchors
    anchor_square = tl.sum(tl.sum(anchors_MC * anchors_MC, axis=1), axis=0) / num_anchors
    sigma = (count - 2 * product) / tokens + anchor_square
    return LOG2_E / tl.where(sigma < SIGMA_FLOOR, SIGMA_FLOOR, sigma)  # NaN stays


@triton.jit
def codes_and_context(
    qk, v, anchors, A, mean, unit_sum, nonzero, rate, code, context, code_sum, v_sum,
    qk_stride_h, qk_stride_b, qk_stride_n, v_stride_h, v_stride_b, v_stride_n,
    batch, tokens, channels, bits, num_anchors, parts, blocks,
    PACKED: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr, ANCHORS: tl.constexpr,
):  # fmt: skip
    """Rates and codes, and the parts of the sums of codes, of v, and of codes times v."""
    head, sample, row = place(batch)
    c, k, m = tl.arange(0, CHANNELS), tl.arange(0, BITS), tl.arange(0, ANCHORS)
    anchors_MC = load_matrix(anchors, head, m, c, num_anchors, channels)
    A_KM = load_matrix(A, head, k, m, bits, num_anchors)
    threshold_K = threshold(A_KM, mean, head, m, num_anchors)
    own_rate = rate_of(unit_sum, nonzero, anchors_MC, row, c, tokens, channels, num_anchors, parts)
    tl.store(rate + row, own_rate)  # all programs of a row store the same
    context_KC = tl.zeros([BITS, CHANNELS], tl.float32)
    code_sum_K, v_sum_C = tl.zeros([BITS], tl.float32), tl.zeros([CHANNELS], tl.float32)
    first, last = blocks_of_program(tokens, blocks, TOKENS)
    for block in range(first, last):
        n = block * TOKENS + tl.arange(0, TOKENS)
        x_NC = load_tokens(qk, head, sample, n, c, qk_stride_h, qk_stride_b, qk_stride_n, tokens, channels)
        v_NC = load_tokens(v, head, sample, n, c, v_stride_h, v_stride_b, v_stride_n, tokens, channels)
        # The features of padded anchors meet zeros of A.
        feature_NM = tl.exp2(exponent(x_NC, inverse_norm(x_NC), anchors_MC, own_rate))
        pre_code_NK = dot(feature_NM, tl.trans(A_KM)) - threshold_K[None, :]
        inside = (n < tokens)[:, None] & (k < bits)[None, :]
        bit_NK = tl.where(inside, tl.where(pre_code_NK < 0, 0, 1), 0)
        store_code(code, bit_NK, row * tokens + n, n < tokens, k, bits, PACKED)
        code_NK = tl.where(inside, 2.0 * bit_NK.to(tl.float32) - 1.0, 0.0)
        context_KC += dot(tl.trans(code_NK), v_NC)
        code_sum_K += tl.sum(code_NK, axis=0)
        v_sum_C += tl.sum(v_NC, axis=0)
    part = row * parts + tl.program_id(1)
    store_matrix(context, context_KC, part, k, c, bits, channels)
    # No comparison holds for NaN, so a code cannot carry it; the denominator does.
    code_sum_K = tl.where(own_rate != own_rate, own_rate, code_sum_K)
    tl.store(code_sum + part * bits + k, code_sum_K, mask=k < bits)
    tl.store(v_sum + part * channels + c, v_sum_C, mask=c < channels)


@triton.jit
def numerator_and_denominator(code_NK, v_NC, context_KC, sum_K, v_sum_C, bits, tokens, OWN_TOKEN: tl.constexpr):
    offset = bits + 1.0
    raised_NC = offset * v_NC if OWN_TOKEN else offset * v_sum_C[None, :]
    return dot(code_NK, context_KC) + raised_NC, tl.sum(code_NK * sum_K[None, :], axis=1) + tokens * offset


@triton.jit
def output(
    code, v, context, code_sum, v_sum, out,
    v_stride_h, v_stride_b, v_stride_n, out_stride_h, out_stride_b, out_stride_n,
    batch, tokens, channels, bits, parts, blocks,
    OWN_TOKEN: tl.constexpr, PACKED: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The attention output."""
    head, sample, row = place(batch)
    c, k = tl.arange(0, CHANNELS), tl.arange(0, BITS)
    context_KC = total_matrix(context, row, parts, k, c, bits, channels)
    sum_K, v_sum_C = total_vector(code_sum, row, parts, k, bits), total_vector(v_sum, row, parts, c, channels)
    first, last = blocks_of_program(tokens, blocks, TOKENS)
    for block in range(first, last):
        n = block * TOKENS + tl.arange(0, TOKENS)
        code_NK = load_code(code, row * tokens + n, n < tokens, k, bits, PACKED)
        v_NC = load_tokens(v, head, sample, n, c, v_stride_h, v_stride_b, v_stride_n, tokens, channels)
        numerator_NC, denominator_N = numerator_and_denominator(
            code_NK, v_NC, context_KC, sum_K, v_sum_C, bits, tokens, OWN_TOKEN
        )
        out_NC = numerator_NC / denominator_N[:, None]
        store_tokens(out, out_NC, head, sample, n, c, out_stride_h, out_stride_b, out_stride_n, tokens, channels)
