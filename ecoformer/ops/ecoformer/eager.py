"""EcoFormer's attention core in plain PyTorch: from projected tokens to the attention output, fast and small.

It computes what `normalize`, `hash_codes` and `hash_attention` compute in turn, with fewer passes over the tokens:
tokens of norm 1 need no squares in their distances, sigma follows from two means, and 1 / |x| and 1 / sigma scale the
products with the anchors, not the tokens. Heads come first, so that all samples meet a head's anchors in one product
and splitting the heads copies nothing. The backward pass keeps the inputs alone and computes the rest again.

Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ecoformer.ops.ecoformer.codes import hash_codes, in_a_graph, is_differentiated, normalize, sigma_floor, sign
from ecoformer.ops.ecoformer.linear_form import hash_attention
from ecoformer.ops.precision import without_autocast

State = tuple[Tensor, Tensor, Tensor]  # anchors_HMC, A_HKM, mean_HM


def attend(
    qk_BHNC: Tensor,
    v_BHNC: Tensor,
    anchors_HMC: Tensor,
    A_HKM: Tensor,
    mean_HM: Tensor,
    numerator: str,
    mask_BN: Tensor | None = None,
) -> Tensor:
    """`kernel_hash_attention` of tokens in float32 or float64, on any device."""
    state = anchors_HMC, A_HKM, mean_HM
    if not is_differentiated(qk_BHNC, v_BHNC):
        return _forward(qk_BHNC, v_BHNC, state, mask_BN, numerator)
    if in_a_graph():
        return recorded(qk_BHNC, v_BHNC, state, mask_BN, numerator)
    return _Recomputed.apply(qk_BHNC, v_BHNC, *state, mask_BN, numerator)


def recorded(qk_BHNC: Tensor, v_BHNC: Tensor, state: State, mask_BN: Tensor | None, numerator: str) -> Tensor:
    """`attend` in operations that autograd knows, so that it may be differentiated as often as they are."""
    code_BHNK = hash_codes(normalize(qk_BHNC), *state, mask_BN)
    real_B1N1 = None if mask_BN is None else mask_BN[:, None, :, None].to(v_BHNC.dtype)
    return hash_attention(code_BHNK, code_BHNK, v_BHNC, numerator, real_B1N1)


def with_graph() -> bool:
    """Whether a backward pass runs under create_graph=True, so that its gradients may be differentiated again.

    torch's `once_differentiable` says nothing where `torch.autograd.grad` is asked for them: they would be wrong.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def gradients_with_graph(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad_output: Tensor
) -> list[Tensor | None]:
    """The gradients of a `recorded` function, None for inputs that need none, for a backward pass `with_graph`."""
    # Views: behind the inputs themselves lies the graph of the pass that asks, which one input may share with another.
    own = [None if x is None else x.view_as(x) for x in inputs]
    wanted = [x for x in own if x is not None and x.requires_grad]
    with without_autocast(grad_output):
        found = iter(torch.autograd.grad(function(*own), wanted, grad_output, create_graph=True))
    return [next(found) if x is not None and x.requires_grad else None for x in own]


class _Recomputed(torch.autograd.Function):
    """The core with its backward pass written out, keeping qk and v alone: 2 C numbers a token and head."""

    @staticmethod
    def forward(ctx: Any, qk: Tensor, v: Tensor, *tensors: Any) -> Tensor:
        anchors, A, mean, mask, numerator = tensors
        ctx.save_for_backward(qk, v, anchors, A, mean, mask)
        ctx.numerator = numerator
        return _forward(qk, v, (anchors, A, mean), mask, numerator)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        qk, v, *state, mask = ctx.saved_tensors
        if with_graph():
            of_qk, of_v = gradients_with_graph(
                lambda qk, v: recorded(qk, v, tuple(state), mask, ctx.numerator), (qk, v), grad_outputs[0]
            )
            return of_qk, of_v, None, None, None, None, None
        with without_autocast(qk):  # a loop may call backward() within its own
            grads = _backward(grad_outputs[0], qk, v, tuple(state), mask, ctx.numerator)
        return *grads, None, None, None, None, None


def _forward(qk_BHNC: Tensor, v_BHNC: Tensor, state: State, mask_BN: Tensor | None, numerator: str) -> Tensor:
    qk_HBNC, v_HBNC = qk_BHNC.transpose(0, 1), v_BHNC.transpose(0, 1)
    kernel = _kernel(qk_HBNC, state, mask_BN)
    code_HBNK = sign(_pre_code(_features(qk_HBNC, kernel), kernel))
    return hash_attention(code_HBNK, code_HBNK, v_HBNC, numerator, kernel.real_1BN1).transpose(0, 1)


def _backward(
    grad_out_BHNC: Tensor, qk_BHNC: Tensor, v_BHNC: Tensor, state: State, mask_BN: Tensor | None, numerator: str
) -> tuple[Tensor, Tensor]:
    grad_out_HBNC, qk_HBNC, v_HBNC = (x.transpose(0, 1) for x in (grad_out_BHNC, qk_BHNC, v_BHNC))
    kernel = _kernel(qk_HBNC, state, mask_BN)
    feature_HBNM = _features(qk_HBNC, kernel)
    pre_code_HBNK = _pre_code(feature_HBNM, kernel)
    grad_code_HBNK, grad_v_HBNC = _attention_backward(grad_out_HBNC, sign(pre_code_HBNK), v_HBNC, kernel, numerator)
    # What passes straight through the sign is the gradient of hardtanh: 0 unless -1 < pre-code < 1.
    grad_pre_code_HBNK = torch.ops.aten.hardtanh_backward(grad_code_HBNK, pre_code_HBNK, -1.0, 1.0)
    grad_logit_HBNM = _per_head(grad_pre_code_HBNK, kernel.A_HKM).mul_(feature_HBNM)
    return _kernel_backward(grad_logit_HBNM, qk_HBNC, kernel).transpose(0, 1), grad_v_HBNC.transpose(0, 1)


@dataclass(frozen=True)
class _Kernel:
    """The Gaussian kernel of a batch: exp2(scale_HBN1 * x . a + square_HBN1 + anchor_square_HB1M).

    They are log2(e) times 1 / (|x| sigma), -|x|^2 / (2 sigma) of normalised tokens, and -|a|^2 / (2 sigma); exp2 takes
    a quarter of exp's time on CPU. `sigma_moves` is 1, or 0 where sigma was raised to the floor. `real` is 1 for tokens
    that take part, else 0, and None where all do; `count` is how many do.
    """

    inverse_norm_HBN1: Tensor
    scale_HBN1: Tensor
    square_HBN1: Tensor
    anchor_square_HB1M: Tensor
    sigma_moves_HB11: Tensor
    anchors_HMC: Tensor
    A_HKM: Tensor
    threshold_H11K: Tensor
    real_1BN1: Tensor | None
    count: Tensor | int  # (1, B, 1, 1)


def _kernel(qk_HBNC: Tensor, state: State, mask_BN: Tensor | None) -> _Kernel:
    anchors_HMC, A_HKM, mean_HM = state
    norm_HBN1 = torch.linalg.vector_norm(qk_HBNC, dim=-1, keepdim=True)
    nonzero_HBN1 = (norm_HBN1 > 0).to(norm_HBN1.dtype)  # also |x|^2 of the normalised tokens
    inverse_norm_HBN1 = nonzero_HBN1 / (norm_HBN1 + (1 - nonzero_HBN1))
    anchor_square_H11M = anchors_HMC.square().sum(dim=-1)[:, None, None]
    # Sigma is the mean of |x|^2 + |a|^2 - 2 x . a over tokens and anchors: the means of each will do.
    counted_HBN1, square_HBN1, real_1BN1 = inverse_norm_HBN1, nonzero_HBN1, None
    count: Tensor | int = qk_HBNC.shape[-2]
    if mask_BN is not None:
        real_1BN1 = mask_BN[None, :, :, None].to(qk_HBNC.dtype)
        counted_HBN1, square_HBN1 = counted_HBN1 * real_1BN1, square_HBN1 * real_1BN1
        count = real_1BN1.sum(dim=-2, keepdim=True)
    mean_unit_HB1C = torch.matmul(counted_HBN1.transpose(-2, -1), qk_HBNC) / count
    mean_anchor_H1C1 = anchors_HMC.mean(dim=-2)[:, None, :, None]
    mean_squares_HB11 = square_HBN1.sum(dim=-2, keepdim=True) / count + anchor_square_H11M.mean(dim=-1, keepdim=True)
    sigma_HB11 = mean_squares_HB11 - 2 * torch.matmul(mean_unit_HB1C, mean_anchor_H1C1)
    floor = sigma_floor(sigma_HB11)
    rate_HB11 = math.log2(math.e) / sigma_HB11.clamp_min(floor)
    return _Kernel(
        inverse_norm_HBN1=inverse_norm_HBN1,
        scale_HBN1=inverse_norm_HBN1 * rate_HB11,
        square_HBN1=nonzero_HBN1 * (-0.5 * rate_HB11),
        anchor_square_HB1M=anchor_square_H11M * (-0.5 * rate_HB11),
        sigma_moves_HB11=(sigma_HB11 > floor).to(sigma_HB11.dtype),
        anchors_HMC=anchors_HMC,
        A_HKM=A_HKM,
        threshold_H11K=torch.matmul(A_HKM, mean_HM.unsqueeze(-1)).view(A_HKM.shape[0], 1, 1, -1),
        real_1BN1=real_1BN1,
        count=count,
    )


def _per_head(x_HBNC: Tensor, weight_HCM: Tensor) -> Tensor:
    """x W for all samples of a head in one product; a view of split heads is not copied."""
    return torch.bmm(x_HBNC.flatten(1, 2), weight_HCM).unflatten(1, x_HBNC.shape[1:3])


def _features(qk_HBNC: Tensor, kernel: _Kernel) -> Tensor:
    """exp(-d2 / (2 sigma)) as (H, B, N, M), in one buffer."""
    product_HBNM = _per_head(qk_HBNC, kernel.anchors_HMC.transpose(-2, -1))
    return product_HBNM.mul_(kernel.scale_HBN1).add_(kernel.square_HBN1).add_(kernel.anchor_square_HB1M).exp2_()


def _pre_code(feature_HBNM: Tensor, kernel: _Kernel) -> Tensor:
    """(k - mean) A^T as (H, B, N, K), whose signs are the codes."""
    return _per_head(feature_HBNM, kernel.A_HKM.transpose(-2, -1)).sub_(kernel.threshold_H11K)


def _attention_backward(
    grad_out_HBNC: Tensor, code_HBNK: Tensor, v_HBNC: Tensor, kernel: _Kernel, numerator: str
) -> tuple[Tensor, Tensor]:
    """Gradients of the codes, as queries and keys together, and of v."""
    real, offset = kernel.real_1BN1, code_HBNK.shape[-1] + 1
    v_HBNC = v_HBNC.contiguous()  # it enters two products
    code_HBKN = code_HBNK.transpose(-2, -1)
    key_HBNK, all_v_HBNC = (x if real is None else x * real for x in (code_HBNK, v_HBNC))
    context_HBKC = torch.matmul(key_HBNK.transpose(-2, -1), v_HBNC)
    sum_HB1K = key_HBNK.sum(dim=-2, keepdim=True)
    denominator_HBN1 = torch.matmul(sum_HB1K, code_HBKN).transpose(-2, -1) + kernel.count * offset
    raised = v_HBNC if numerator == "own_token" else all_v_HBNC.sum(dim=-2, keepdim=True)
    numerator_HBNC = torch.matmul(code_HBNK, context_HBKC).add_(raised, alpha=offset)
    grad_numerator_HBNC = (grad_out_HBNC / denominator_HBN1).contiguous()
    grad_denominator_HBN1 = numerator_HBNC.mul_(grad_numerator_HBNC).sum(dim=-1, keepdim=True) / -denominator_HBN1
    grad_context_HBKC = torch.matmul(code_HBKN, grad_numerator_HBNC)
    grad_sum_HB1K = torch.matmul(grad_denominator_HBN1.transpose(-2, -1), code_HBNK)
    grad_code_HBNK = torch.matmul(all_v_HBNC, grad_context_HBKC.transpose(-2, -1))
    grad_code_HBNK.add_(grad_sum_HB1K if real is None else grad_sum_HB1K * real)
    grad_code_HBNK.add_(torch.matmul(grad_numerator_HBNC, context_HBKC.transpose(-2, -1)))
    grad_code_HBNK.add_(grad_denominator_HBN1 * sum_HB1K)
    if numerator == "kernel":
        grad_numerator_HBNC = grad_numerator_HBNC.sum(dim=-2, keepdim=True)
        if real is not None:
            grad_numerator_HBNC = grad_numerator_HBNC * real
    return grad_code_HBNK, torch.matmul(key_HBNK, grad_context_HBKC).add_(grad_numerator_HBNC, alpha=offset)


def _kernel_backward(grad_logit_HBNM: Tensor, qk_HBNC: Tensor, kernel: _Kernel) -> Tensor:
    """Gradient of the projected tokens: through the distances, sigma and the norm. `grad_logit` is to the base e."""
    num_anchors = grad_logit_HBNM.shape[-1]
    to_base_e = math.log(2)
    rate_HBN1 = to_base_e * kernel.scale_HBN1  # 1 / (|x| sigma)
    grad_product_HBNC = _per_head(grad_logit_HBNM, kernel.anchors_HMC)
    radial_HBN1 = (grad_product_HBNC * qk_HBNC).sum(dim=-1, keepdim=True)
    # d logit / d sigma = -logit / sigma: the sum of grad_logit * logit, one term of the logit after the other.
    from_squares_HB1M = torch.matmul(kernel.square_HBN1.transpose(-2, -1), grad_logit_HBNM)
    from_squares_HB1M += grad_logit_HBNM.sum(dim=-2, keepdim=True) * kernel.anchor_square_HB1M
    from_products_HB11 = torch.matmul(rate_HBN1.transpose(-2, -1), radial_HBN1)
    moved_HB11 = from_products_HB11 + to_base_e * from_squares_HB1M.sum(dim=-1, keepdim=True)
    # Sigma takes -2 / (N M) of every product x . a, so all tokens share one more term.
    anchor_sum_H11C = kernel.anchors_HMC.sum(dim=-2)[:, None, None]
    shared_HB1C = anchor_sum_H11C * (moved_HB11 * kernel.sigma_moves_HB11 * (2 / (kernel.count * num_anchors)))
    radial_of_shared_HBN1 = torch.matmul(shared_HB1C, qk_HBNC.transpose(-2, -1)).transpose(-2, -1)
    if kernel.real_1BN1 is not None:
        radial_of_shared_HBN1 = radial_of_shared_HBN1 * kernel.real_1BN1
        shared_HB1C = shared_HB1C * kernel.real_1BN1
    radial_HBN1 += radial_of_shared_HBN1
    # The norm takes the radial part away. 1 / |x|^2 is never formed: of 1e-20 it is beyond float32.
    radial_HBN1 = radial_HBN1 * kernel.inverse_norm_HBN1 * kernel.inverse_norm_HBN1
    grad_product_HBNC.add_(shared_HB1C).sub_(qk_HBNC * radial_HBN1)
    return grad_product_HBNC.mul_(rate_HBN1)
