"""Triton kernels of EcoFormer's attention, backward. Conventions and shapes as in `triton_forward`.

Codes, parts of the sums and rates come from the forward pass; features and pre-codes are computed again on chip. Three
passes, because two sums over all tokens stand between them: the gradient of the context, and that of sigma.
"""

import triton
import triton.language as tl

from ecoformer.ops.ecoformer.triton_forward import (
    LOG2_E,
    SIGMA_FLOOR,
    blocks_of_program,
    dot,
    exponent,
    inverse_norm,
    load_code,
    load_matrix,
    load_tokens,
    numerator_and_denominator,
    place,
    store_matrix,
    store_tokens,
    threshold,
    total_matrix,
    total_vector,
)


@triton.jit
def grad_of_parts(
    grad, v_NC, code_NK, context_KC, sum_K, v_sum_C, head, sample, n, c,
    grad_stride_h, grad_stride_b, grad_stride_n, tokens, channels, bits, OWN_TOKEN: tl.constexpr,
):  # fmt: skip
    """Gradients of numerator and denominator, from that of the output."""
    grad_NC = load_tokens(grad, head, sample, n, c, grad_stride_h, grad_stride_b, grad_stride_n, tokens, channels)
    numerator_NC, denominator_N = numerator_and_denominator(
        code_NK, v_NC, context_KC, sum_K, v_sum_C, bits, tokens, OWN_TOKEN
    )
    grad_NC = grad_NC / denominator_N[:, None]
    return grad_NC, -tl.sum(grad_NC * numerator_NC, axis=1) / denominator_N


@triton.jit
def context_backward(
    grad, v, code, context, code_sum, v_sum, grad_context, grad_code_sum, grad_v_sum,
    grad_stride_h, grad_stride_b, grad_stride_n, v_stride_h, v_stride_b, v_stride_n,
    batch, tokens, channels, bits, parts, blocks,
    OWN_TOKEN: tl.constexpr, PACKED: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Parts of the gradients of the context, of the sum of codes, and of the sum of v (less K + 1)."""
    head, sample, row = place(batch)
    c, k = tl.arange(0, CHANNELS), tl.arange(0, BITS)
    context_KC = total_matrix(context, row, parts, k, c, bits, channels)
    sum_K, v_sum_C = total_vector(code_sum, row, parts, k, bits), total_vector(v_sum, row, parts, c, channels)
    grad_context_KC = tl.zeros([BITS, CHANNELS], tl.float32)
    grad_sum_K, grad_v_sum_C = tl.zeros([BITS], tl.float32), tl.zeros([CHANNELS], tl.float32)
    first, last = blocks_of_program(tokens, blocks, TOKENS)
    for block in range(first, last):
        n = block * TOKENS + tl.arange(0, TOKENS)
        code_NK = load_code(code, row * tokens + n, n < tokens, k, bits, PACKED)
        v_NC = load_tokens(v, head, sample, n, c, v_stride_h, v_stride_b, v_stride_n, tokens, channels)
        grad_NC, grad_denominator_N = grad_of_parts(
            grad, v_NC, code_NK, context_KC, sum_K, v_sum_C, head, sample, n, c,
            grad_stride_h, grad_stride_b, grad_stride_n, tokens, channels, bits, OWN_TOKEN,
        )  # fmt: skip
        grad_context_KC += dot(tl.trans(code_NK), grad_NC)
        grad_sum_K += tl.sum(code_NK * grad_denominator_N[:, None], axis=0)
        grad_v_sum_C += tl.sum(grad_NC, axis=0)
    part = row * parts + tl.program_id(1)
    store_matrix(grad_context, grad_context_KC, part, k, c, bits, channels)
    tl.store(grad_code_sum + part * bits + k, grad_sum_K, mask=k < bits)
    tl.store(grad_v_sum + part * channels + c, grad_v_sum_C, mask=c < channels)


@triton.jit
def codes_backward(
    grad, qk, v, rate, anchors, A, mean, code, context, code_sum, v_sum,
    grad_context, grad_code_sum, grad_v_sum, grad_v, grad_product, moved,
    grad_stride_h, grad_stride_b, grad_stride_n, qk_stride_h, qk_stride_b, qk_stride_n,
    v_stride_h, v_stride_b, v_stride_n, grad_v_stride_h, grad_v_stride_b, grad_v_stride_n,
    batch, tokens, channels, bits, num_anchors, parts, blocks,
    OWN_TOKEN: tl.constexpr, PACKED: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr, ANCHORS: tl.constexpr,
):  # fmt: skip
    """Gradient of v; that of the products with the anchors, gathered into channels; and sum of grad logit * logit."""
    head, sample, row = place(batch)
    c, k, m = tl.arange(0, CHANNELS), tl.arange(0, BITS), tl.arange(0, ANCHORS)
    context_KC = total_matrix(context, row, parts, k, c, bits, channels)
    sum_K, v_sum_C = total_vector(code_sum, row, parts, k, bits), total_vector(v_sum, row, parts, c, channels)
    grad_context_KC = total_matrix(grad_context, row, parts, k, c, bits, channels)
    grad_sum_K = total_vector(grad_code_sum, row, parts, k, bits)
    grad_v_sum_C = total_vector(grad_v_sum, row, parts, c, channels)
    anchors_MC = load_matrix(anchors, head, m, c, num_anchors, channels)
    A_KM = load_matrix(A, head, k, m, bits, num_anchors)
    threshold_K = threshold(A_KM, mean, head, m, num_anchors)
    own_rate = tl.load(rate + row)
    moved_N = tl.zeros([TOKENS], tl.float32)
    first, last = blocks_of_program(tokens, blocks, TOKENS)
    for block in range(first, last):
        n = block * TOKENS + tl.arange(0, TOKENS)
        in_n = n < tokens
        code_NK = load_code(code, row * tokens + n, in_n, k, bits, PACKED)
        v_NC = load_tokens(v, head, sample, n, c, v_stride_h, v_stride_b, v_stride_n, tokens, channels)
        grad_NC, grad_denominator_N = grad_of_parts(
            grad, v_NC, code_NK, context_KC, sum_K, v_sum_C, head, sample, n, c,
            grad_stride_h, grad_stride_b, grad_stride_n, tokens, channels, bits, OWN_TOKEN,
        )  # fmt: skip
        raised_NC = grad_NC if OWN_TOKEN else grad_v_sum_C[None, :]
        grad_v_NC = dot(code_NK, grad_context_KC) + (bits + 1.0) * raised_NC
        store_tokens(
            grad_v, grad_v_NC, head, sample, n, c, grad_v_stride_h, grad_v_stride_b, grad_v_stride_n, tokens, channels
        )
        grad_code_NK = dot(grad_NC, tl.trans(context_KC)) + dot(v_NC, tl.trans(grad_context_KC))
        grad_code_NK += grad_denominator_N[:, None] * sum_K[None, :] + grad_sum_K[None, :]
        x_NC = load_tokens(qk, head, sample, n, c, qk_stride_h, qk_stride_b, qk_stride_n, tokens, channels)
        exponent_NM = exponent(x_NC, inverse_norm(x_NC), anchors_MC, own_rate)
        feature_NM = tl.exp2(exponent_NM)
        pre_code_NK = dot(feature_NM, tl.trans(A_KM)) - threshold_K[None, :]
        # Straight through the sign.
        passes = (tl.abs(pre_code_NK) < 1) & in_n[:, None] & (k < bits)[None, :]
        grad_logit_NM = dot(tl.where(passes, grad_code_NK, 0.0), A_KM) * feature_NM
        moved_N += tl.sum(grad_logit_NM * exponent_NM, axis=1)
        store_tokens(
            grad_product, dot(grad_logit_NM, anchors_MC), 0, row, n, c, 0, tokens * channels, channels, tokens, channels
        )
    tl.store(moved + row * parts + tl.program_id(1), tl.sum(moved_N, axis=0))


@triton.jit
def norm_backward(
    qk, rate, anchors, grad_product, moved, grad_qk,
    qk_stride_h, qk_stride_b, qk_stride_n, grad_stride_h, grad_stride_b, grad_stride_n,
    batch, tokens, channels, num_anchors, parts, blocks,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, ANCHORS: tl.constexpr,
):  # fmt: skip
    """Gradient of the projected tokens: through sigma, which all tokens share, and through the norm."""
    head, sample, row = place(batch)
    c, m = tl.arange(0, CHANNELS), tl.arange(0, ANCHORS)
    own_rate = tl.load(rate + row)
    all_moved = tl.load(moved + row * parts)
    for part in range(1, parts):
        all_moved += tl.load(moved + row * parts + part)
    # Sigma takes -2 / N of every product with the mean anchor, and nothing where it was raised to the floor. The
    # exponents are to the base 2.
    all_moved = tl.where(own_rate < 0.999 * LOG2_E / SIGMA_FLOOR, all_moved, 0 * all_moved)
    anchor_sum_C = tl.sum(load_matrix(anchors, head, m, c, num_anchors, channels), axis=0)
    shared_C = anchor_sum_C * (all_moved * (2 / LOG2_E) / (tokens * num_anchors))
    first, last = blocks_of_program(tokens, blocks, TOKENS)
    for block in range(first, last):
        n = block * TOKENS + tl.arange(0, TOKENS)
        x_NC = load_tokens(qk, head, sample, n, c, qk_stride_h, qk_stride_b, qk_stride_n, tokens, channels)
        grad_NC = shared_C[None, :] + load_tokens(
            grad_product, 0, row, n, c, 0, tokens * channels, channels, tokens, channels
        )
        inverse_norm_N = inverse_norm(x_NC)
        unit_NC = x_NC * inverse_norm_N[:, None]
        radial_N = tl.sum(grad_NC * unit_NC, axis=1)
        scale_N = inverse_norm_N * own_rate / LOG2_E
        grad_qk_NC = (grad_NC - unit_NC * radial_N[:, None]) * scale_N[:, None]
        store_tokens(
            grad_qk, grad_qk_NC, head, sample, n, c, grad_stride_h, grad_stride_b, grad_stride_n, tokens, channels
        )
