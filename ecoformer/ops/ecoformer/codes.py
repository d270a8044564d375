"""From tokens to binary codes: normalise, Gaussian kernel against anchors, project, sign.

Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors. Everything runs in the dtype it is
given; callers under autocast pass float32, because a code is a sign and half precision flips it near zero.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def normalize(x: Tensor) -> Tensor:
    """x / |x| over the last dimension. A zero vector stays zero, and so does its gradient."""
    square = x.square().sum(dim=-1, keepdim=True)
    nonzero = square > 0
    return x * torch.where(nonzero, square.masked_fill(~nonzero, 1.0).rsqrt(), 0.0)


def squared_distances(x_BHNC: Tensor, anchors_HMC: Tensor) -> Tensor:
    """|x - a|^2 as (B, H, N, M), by a matrix product instead of the (B, H, N, M, C) differences."""
    x_square_BHN1 = x_BHNC.square().sum(dim=-1, keepdim=True)
    anchor_square_H1M = anchors_HMC.square().sum(dim=-1).unsqueeze(1)
    cross_BHNM = torch.matmul(x_BHNC, (-2 * anchors_HMC).transpose(-2, -1))
    return (cross_BHNM + x_square_BHN1 + anchor_square_H1M).clamp_min(0)


def kernel_features(x_BHNC: Tensor, anchors_HMC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """exp(-d2 / (2 sigma)) as (B, H, N, M); sigma is the mean of d2 over tokens and anchors, per sample and head.

    The gradient flows through sigma, as in the published code. Where every token equals every anchor sigma
    is zero; the features are then 1. `mask_BN` is True where a token takes part in sigma; None: all do.
    """
    distance_BHNM = squared_distances(x_BHNC, anchors_HMC)
    if mask_BN is None:
        sigma_BH11 = distance_BHNM.mean(dim=(2, 3), keepdim=True)
    else:
        counted = distance_BHNM * mask_BN[:, None, :, None]
        total = mask_BN.sum(dim=1)[:, None, None, None] * anchors_HMC.shape[1]
        sigma_BH11 = counted.sum(dim=(2, 3), keepdim=True) / total
    return torch.exp(distance_BHNM * (-0.5 / sigma_BH11.clamp_min(torch.finfo(x_BHNC.dtype).tiny)))


def sigma_floor(sigma: Tensor) -> float:
    """Over a sigma of this size the rounding errors of distances, some eps and also below zero, stay harmless."""
    return 16 * torch.finfo(sigma.dtype).eps


def sign(y: Tensor) -> Tensor:
    """-1 where y < 0, else +1: zero is no third code.

    Two signs around a half: on CPU 17 times faster than `torch.where`, which branches on every element.
    """
    return torch.sign(y).add_(0.5).sign_()


class _StraightThroughSign(torch.autograd.Function):
    """sign(y) forward; the gradient passes where |y| < 1 (Hubara et al., 2016)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y.abs() < 1)
        return sign(y)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (inside,) = ctx.saved_tensors
        return grad_outputs[0] * inside


def straight_through_sign(y: Tensor) -> Tensor:
    """Codes in {-1, +1} of y's dtype, differentiable by the straight-through estimator."""
    if not is_differentiated(y):
        return sign(y)
    if in_a_graph():
        held = y.clamp(-1, 1)
        return sign(y).detach() + (held - held.detach())
    return _StraightThroughSign.apply(y)


def in_a_graph() -> bool:
    """Whether plain operations are asked for: a graph that is to train too (torch.jit.trace, torch.export), torch.func.

    `ExportedProgram.run_decompositions` drops `detach`, and with it what passes straight through a sign.
    """
    return torch.jit.is_tracing() or torch.compiler.is_exporting() or is_transformed()


def is_transformed() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) or forward-mode differentiation runs."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_differentiated(*tensors: Tensor | None) -> bool:
    """Whether a result of these tensors needs a gradient; within a transform, where they do not tell, it may."""
    needed = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return needed or is_transformed()


def hash_codes(
    x_BHNC: Tensor, anchors_HMC: Tensor, A_HKM: Tensor, mean_HM: Tensor, mask_BN: Tensor | None = None
) -> Tensor:
    """Binary codes (B, H, N, K) in {-1, +1} of normalised tokens: sign((k(x, anchors) - mean) A^T), as in EcoFormer.

    The mean of the features is folded into one K-vector per head, so nothing of size N x M is subtracted.
    """
    features_BHNM = kernel_features(x_BHNC, anchors_HMC, mask_BN)
    threshold_H1K = torch.matmul(A_HKM, mean_HM.unsqueeze(-1)).transpose(-2, -1)
    return straight_through_sign(torch.matmul(features_BHNM, A_HKM.transpose(-2, -1)) - threshold_H1K)
