"""A whole EcoFormer layer with tokens as columns, backward: `token_columns` computed again, and back through it.

Shapes: B samples (of a group), H heads, G = B H, N tokens, D model channels, C head channels, K code bits, M anchors;
V = C + 1, L = K + 1 and R = M + 1 count the rows with their extra one, which is the last.
"""

import math

import torch
from torch import Tensor

from ecoformer.ops.ecoformer.codes import sigma_floor
from ecoformer.ops.ecoformer.columns_forward import (
    ColumnHash,
    ColumnLayer,
    every,
    groups,
    hash_tokens,
    pieces_of,
    project,
    read,
    readout,
    real_tokens,
)


def layer_backward(
    grad_out_BND: Tensor, x_BND: Tensor, layer: ColumnLayer, mask_BN: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of x and of weights and biases of to_qk, to_v and proj, in this order."""
    grad_x_BND = torch.empty_like(x_BND, memory_format=torch.contiguous_format)
    grads = [torch.zeros_like(w) for w in (layer.qk_DD, layer.v_HVD, layer.proj_DHV)]
    grads += [torch.zeros_like(b).view(-1) for b in (layer.qk_bias_D1, layer.v_bias_HV1)]
    grad_qk, grad_v, grad_proj, grad_qk_bias, grad_v_bias = grads
    for group, own in groups(x_BND, layer):
        x_BDN, rows = pieces_of(x_BND[group], own).transpose(1, 2), pieces_of(grad_out_BND[group], own)
        grad_x = pieces_of(grad_x_BND[group], own)
        samples, tokens, _ = rows.shape
        hashed = hash_tokens(x_BDN, own, real_tokens(mask_BN, group, x_BDN, own))
        v_GVN = project(x_BDN, own.v_HVD, own.v_bias_HV1, own.num_heads)
        pre_code_GLN = hashed.pre_code_GLN.sub_(own.threshold_GL1)
        code_GLN = torch.ge(pre_code_GLN, 0, out=torch.empty_like(pre_code_GLN))
        readout_GLV = readout(v_GVN, hashed.of_keys(code_GLN), hashed, own)
        attended_GVN = read(readout_GLV, v_GVN.clone(), code_GLN, own)
        grad_proj += torch.bmm(rows.transpose(1, 2), attended_GVN.view(samples, -1, tokens).transpose(1, 2)).sum(dim=0)
        grad_attended_BEN = torch.bmm(every(own.proj_DHV.t(), samples), rows.transpose(1, 2))
        grad_code_GLN, grad_v_GVN = _attention_backward(
            grad_attended_BEN.view_as(v_GVN), attended_GVN, v_GVN, code_GLN, readout_GLV, hashed, own
        )
        # What passes straight through the sign is the gradient of hardtanh: 0 unless -1 < pre-code < 1. Codes of
        # -1/+1 are twice these.
        grad_pre_code_GLN = torch.ops.aten.hardtanh_backward(grad_code_GLN, pre_code_GLN, -1.0, 1.0)
        grad_logit_GMN = torch.bmm(0.5 * own.A_GLM.transpose(1, 2), grad_pre_code_GLN).mul_(hashed.feature_GMN)
        grad_qk_BDN = _hash_backward(grad_logit_GMN, hashed, own).view(samples, -1, tokens)
        grad_v_BEN = grad_v_GVN.view(samples, -1, tokens)
        for weight, bias, grad_BEN in ((grad_qk, grad_qk_bias, grad_qk_BDN), (grad_v, grad_v_bias, grad_v_BEN)):
            weight += torch.bmm(grad_BEN, x_BDN.transpose(1, 2)).sum(dim=0)
            bias += grad_BEN.sum(dim=-1).sum(dim=0)
        torch.bmm(grad_qk_BDN.transpose(1, 2), every(own.qk_DD, samples), out=grad_x)
        grad_x.baddbmm_(grad_v_BEN.transpose(1, 2), every(own.v_HVD, samples))
    heads = layer.num_heads
    return (
        grad_x_BND,
        grad_qk,
        grad_qk_bias,
        grad_v.view(heads, -1, grad_v.shape[-1])[:, :-1].flatten(0, 1),
        grad_v_bias.view(heads, -1)[:, :-1].flatten(),
        grad_proj.view(len(grad_proj), heads, -1)[..., :-1].flatten(1),
        grad_out_BND.sum(dim=(0, 1)),
    )


def _attention_backward(
    grad_GVN: Tensor,
    attended_GVN: Tensor,
    v_GVN: Tensor,
    code_GLN: Tensor,
    readout_GLV: Tensor,
    hashed: ColumnHash,
    layer: ColumnLayer,
) -> tuple[Tensor, Tensor]:
    """Gradients of the 0/1 codes and of v with its row of ones, from that of the output; overwrites it."""
    # From the output to numerators and, in the last row, denominators.
    grad_GVN[:, :-1].div_(attended_GVN[:, -1:])
    torch.sum(grad_GVN[:, :-1] * attended_GVN[:, :-1], dim=1, keepdim=True, out=grad_GVN[:, -1:])
    grad_GVN[:, -1:].neg_()
    grad_readout_GLV = layer.over_pieces(torch.bmm(code_GLN, grad_GVN.transpose(1, 2)))
    grad_context_GLV = torch.matmul(layer.signs_LL, grad_readout_GLV)
    grad_code_GLN = torch.bmm(readout_GLV, grad_GVN)
    grad_code_GLN.baddbmm_(grad_context_GLV, hashed.of_keys(v_GVN))
    into_context_GVL = grad_context_GLV.transpose(1, 2)
    grad_v_GVN = grad_GVN.baddbmm_(into_context_GVL, hashed.of_keys(code_GLN), beta=int(layer.own_token))
    return grad_code_GLN, grad_v_GVN


def _hash_backward(grad_logit_GMN: Tensor, hashed: ColumnHash, layer: ColumnLayer) -> Tensor:
    """Gradient (G, C, N) of the projected tokens: through the distances, sigma and the norm."""
    rate_G11 = math.log(2) * hashed.rate_G11  # 1 / sigma
    scale_G1N = hashed.inverse_norm_G1N * rate_G11  # 1 / (|x| sigma)
    radial_G1N = (grad_logit_GMN * hashed.product_GRN[:, :-1]).sum(dim=1, keepdim=True)
    # d logit / d sigma = -logit / sigma: the sum of grad_logit * logit, one term of the logit after the other.
    from_squares_G11 = torch.bmm(layer.squares_GM1.transpose(1, 2), grad_logit_GMN.sum(dim=-1, keepdim=True))
    zero_G1N = (hashed.inverse_norm_G1N == 0).to(scale_G1N.dtype)
    from_squares_G11 -= (zero_G1N * grad_logit_GMN.sum(dim=1, keepdim=True)).sum(dim=-1, keepdim=True)
    moved_G11 = torch.bmm(scale_G1N, radial_G1N.transpose(1, 2)) - 0.5 * rate_G11 * from_squares_G11
    moved_G11 = layer.over_pieces(moved_G11) * (hashed.sigma_G11 > sigma_floor(hashed.sigma_G11))
    # Sigma takes -2 / N of every product with the mean anchor.
    grad_mean_G1N = hashed.of_keys((moved_G11 * (2 / hashed.count)).expand(-1, 1, grad_logit_GMN.shape[-1]))
    radial_G1N += grad_mean_G1N * hashed.product_GRN[:, -1:]
    grad_product_GRN = torch.cat([grad_logit_GMN, grad_mean_G1N], dim=1)
    grad_qk_GCN = torch.bmm(layer.anchors_GRC.transpose(1, 2), grad_product_GRN)
    # The norm takes the radial part away. 1 / |x|^2 is never formed: of 1e-20 it is beyond float32.
    radial_G1N = radial_G1N * hashed.inverse_norm_G1N * hashed.inverse_norm_G1N
    return grad_qk_GCN.addcmul_(hashed.qk_GCN, radial_G1N, value=-1).mul_(scale_G1N)
