"""Triton kernels of EcoFormer's attention, backward. Conventions and shapes as in `triton_forward`.

Codes, contexts and sigma come from the forward pass; features and pre-codes are computed again on chip. Three passes,
because two sums over all tokens stand between them: the gradient of the context, and that of sigma.
"""

import triton
import triton.language as tl

from ecoformer.ops.ecoformer.triton_forward import (
    exponent,
    inverse_norm,
    load_code,
    load_matrix,
    load_tokens,
    numerator_and_denominator,
    place,
)


@triton.jit
def grad_of_parts(
    grad, v_NC, code_NK, context, code_sum, v_sum, head, sample, row, n, k, c,
    grad_stride_h, grad_stride_b, grad_stride_n, tokens, channels, bits, OWN_TOKEN: tl.constexpr,
):  # fmt: skip
    """Gradients of numerator and denominator, from that of the output."""
    grad_NC = load_tokens(grad, head, sample, n, c, grad_stride_h, grad_stride_b, grad_stride_n, tokens, channels)
    numerator_NC, denominator_N = numerator_and_denominator(
        code_NK, v_NC, context, code_sum, v_sum, row, k, c, bits, channels, tokens, OWN_TOKEN
    )
    grad_NC = grad_NC / denominator_N[:, None]
    return grad_NC, -tl.sum(grad_NC * numerator_NC, axis=1) / denominator_N


@triton.jit
def context_backward(
    grad, v, code, context, code_sum, v_sum, grad_context, grad_code_sum, grad_v_sum,
    grad_stride_h, grad_stride_b, grad_stride_n, v_stride_h, v_stride_b, v_stride_n,
    batch, tokens, channels, bits, blocks,
    OWN_TOKEN: tl.constexpr, PACKED: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Partial gradients of the context, of the sum of codes, and of the sum of v (less K + 1)."""
    head, sample, row, n, token = place(batch, tokens, TOKENS)
    c, k = tl.arange(0, CHANNELS), tl.arange(0, BITS)
    code_NK = load_code(code, token, n < tokens, k, bits, PACKED)
    v_NC = load_tokens(v, head, sample, n, c, v_stride_h, v_stride_b, v_stride_n, tokens, channels)
    grad_NC, grad_denominator_N = grad_of_parts(
        grad, v_NC, code_NK, context, code_sum, v_sum, head, sample, row, n, k, c,
        grad_stride_h, grad_stride_b, grad_stride_n, tokens, channels, bits, OWN_TOKEN,
    )  # fmt: skip
    part = row * blocks + tl.program_id(1)
    address = grad_context + (part * bits + k[:, None]) * channels + c[None, :]
    grad_context_KC = tl.dot(tl.trans(code_NK), grad_NC, input_precision="ieee")
    tl.store(address, grad_context_KC, mask=(k < bits)[:, None] & (c < channels)[None, :])
    grad_sum_K = tl.sum(code_NK * grad_denominator_N[:, None], axis=0)
    tl.store(grad_code_sum + part * bits + k, grad_sum_K, mask=k < bits)
    tl.store(grad_v_sum + part * channels + c, tl.sum(grad_NC, axis=0), mask=c < channels)


@triton.jit
def codes_backward(
    grad, qk, v, rate, anchors, A, threshold, code, context, code_sum, v_sum,
    grad_context, grad_code_sum, grad_v_sum, grad_v, grad_product, moved,
    grad_stride_h, grad_stride_b, grad_stride_n, qk_stride_h, qk_stride_b, qk_stride_n,
    v_stride_h, v_stride_b, v_stride_n, grad_v_stride_h, grad_v_stride_b, grad_v_stride_n,
    batch, tokens, channels, bits, num_anchors, blocks,
    OWN_TOKEN: tl.constexpr, PACKED: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr, ANCHORS: tl.constexpr,
):  # fmt: skip
    """Gradient of v; that of the products with the anchors, gathered into channels; and sum of grad logit * logit."""
    head, sample, row, n, token = place(batch, tokens, TOKENS)
    c, k, m = tl.arange(0, CHANNELS), tl.arange(0, BITS), tl.arange(0, ANCHORS)
    in_n = n < tokens
    code_NK = load_code(code, token, in_n, k, bits, PACKED)
    v_NC = load_tokens(v, head, sample, n, c, v_stride_h, v_stride_b, v_stride_n, tokens, channels)
    grad_NC, grad_denominator_N = grad_of_parts(
        grad, v_NC, code_NK, context, code_sum, v_sum, head, sample, row, n, k, c,
        grad_stride_h, grad_stride_b, grad_stride_n, tokens, channels, bits, OWN_TOKEN,
    )  # fmt: skip
    context_KC = load_matrix(context, row, k, c, bits, channels)
    grad_context_KC = load_matrix(grad_context, row, k, c, bits, channels)
    sum_K = tl.load(code_sum + row * bits + k, mask=k < bits, other=0.0)
    grad_sum_K = tl.load(grad_code_sum + row * bits + k, mask=k < bits, other=0.0)
    inside_NC = in_n[:, None] & (c < channels)[None, :]

    if OWN_TOKEN:
        raised_NC = grad_NC
    else:
        raised_NC = tl.load(grad_v_sum + row * channels + c, mask=c < channels, other=0.0)[None, :]
    grad_v_NC = tl.dot(code_NK, grad_context_KC, input_precision="ieee") + (bits + 1.0) * raised_NC
    address = grad_v + head * grad_v_stride_h + sample * grad_v_stride_b + n[:, None] * grad_v_stride_n + c[None, :]
    tl.store(address, grad_v_NC, mask=inside_NC)

    grad_code_NK = tl.dot(grad_NC, tl.trans(context_KC), input_precision="ieee")
    grad_code_NK += tl.dot(v_NC, tl.trans(grad_context_KC), input_precision="ieee")
    grad_code_NK += grad_denominator_N[:, None] * sum_K[None, :] + grad_sum_K[None, :]
    x_NC = load_tokens(qk, head, sample, n, c, qk_stride_h, qk_stride_b, qk_stride_n, tokens, channels)
    anchors_MC = load_matrix(anchors, head, m, c, num_anchors, channels)
    exponent_NM = exponent(x_NC, inverse_norm(x_NC), anchors_MC, tl.load(rate + row))
    feature_NM = tl.exp2(exponent_NM)
    A_KM = load_matrix(A, head, k, m, bits, num_anchors)
    threshold_K = tl.load(threshold + head * bits + k, mask=k < bits, other=0.0)
    pre_code_NK = tl.dot(feature_NM, tl.trans(A_KM), input_precision="ieee") - threshold_K[None, :]
    # Straight through the sign.
    passes = (tl.abs(pre_code_NK) < 1) & in_n[:, None] & (k < bits)[None, :]
    grad_logit_NM = tl.dot(tl.where(passes, grad_code_NK, 0.0), A_KM, input_precision="ieee") * feature_NM
    grad_product_NC = tl.dot(grad_logit_NM, anchors_MC, input_precision="ieee")
    tl.store(grad_product + token[:, None] * channels + c[None, :], grad_product_NC, mask=inside_NC)
    part = row * blocks + tl.program_id(1)
    tl.store(moved + part, tl.sum(tl.sum(grad_logit_NM * exponent_NM, axis=1), axis=0))


@triton.jit
def norm_backward(
    qk, rate, grad_product, shared, grad_qk,
    qk_stride_h, qk_stride_b, qk_stride_n, grad_stride_h, grad_stride_b, grad_stride_n,
    batch, tokens, channels, log_2,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradient of the projected tokens: through sigma, which all tokens share, and through the norm."""
    head, sample, row, n, token = place(batch, tokens, TOKENS)
    c = tl.arange(0, CHANNELS)
    inside_NC = (n < tokens)[:, None] & (c < channels)[None, :]
    x_NC = load_tokens(qk, head, sample, n, c, qk_stride_h, qk_stride_b, qk_stride_n, tokens, channels)
    grad_NC = tl.load(grad_product + token[:, None] * channels + c[None, :], mask=inside_NC, other=0.0)
    grad_NC += tl.load(shared + row * channels + c, mask=c < channels, other=0.0)[None, :]
    inverse_norm_N = inverse_norm(x_NC)
    unit_NC = x_NC * inverse_norm_N[:, None]
    radial_N = tl.sum(grad_NC * unit_NC, axis=1)
    scale_N = inverse_norm_N * tl.load(rate + row) * log_2
    address = grad_qk + head * grad_stride_h + sample * grad_stride_b + n[:, None] * grad_stride_n + c[None, :]
    tl.store(address, (grad_NC - unit_NC * radial_N[:, None]) * scale_N[:, None], mask=inside_NC)
