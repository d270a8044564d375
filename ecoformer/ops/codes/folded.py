"""Attention on codes that are computed from the tokens themselves, with every projection folded away.

The weight of key j for query i is sum_b weight_b q_ib k_jb + floor, with codes q and k of a form of `forms`. Values and
the output projection are linear, so they need not be applied to tokens: codes pick rows of x, the sums of these rows
(one per code) are projected to values and on to the output, and codes pick among the results. What is left per token is
one projection, to the codes.

Shapes: B batch, H heads, N tokens, C head channels, D model channels, K code length, L = H K codes of all heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ecoformer.ops.codes.forms import BITS, CodeForm
from ecoformer.ops.codes.ternary import TernaryAffine
from ecoformer.ops.ecoformer.codes import is_differentiated


@dataclass(frozen=True)
class Affine:
    """x W^T + b, as nn.Linear holds it: weight (out, in), and bias (out,) or None."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def like(self, x: Tensor) -> Affine:
        """The same in x's dtype and on its device."""
        return Affine(self.weight.to(x), None if self.bias is None else self.bias.to(x))


def token_codes(
    x_BND: Tensor, to_codes: Affine | TernaryAffine, form: CodeForm = BITS, slope: float | None = None
) -> tuple[Tensor, Tensor]:
    """Codes (B, N, L) of queries and of keys. `to_codes` has the rows of the queries' codes first.

    Differentiable by the straight-through estimator; with a slope, soft codes.
    """
    code_q_BNL, code_k_BNL = form(to_codes(x_BND), slope).chunk(2, dim=-1)
    return code_q_BNL, code_k_BNL


def distilled_attention(
    x_BND: Tensor,
    to_codes: Affine | TernaryAffine,
    value: Affine,
    proj: Affine,
    weight_HK: Tensor | None,
    floor_H: Tensor,
    slope: float | None = None,
    form: CodeForm = BITS,
    mask_BN: Tensor | None = None,
) -> Tensor:
    """The output (B, N, D) of the layer, output projection included; see `naive.distilled_attention_reference`.

    With a_i = 1 / denominator_i and mean values taken off, out_i = uniform + sum_b a_i q_ib row_b, where `uniform` is
    the output of uniform attention: the floor then needs no product of its own.

    Args:
        x_BND: float32 or float64, like all the rest.
        to_codes: D to 2 L, the codes of all heads' queries and then those of their keys.
        value, proj: D to D.
        weight_HK, floor_H: above 0; weights None: all 1, and nothing is multiplied.
        slope: of soft codes, for a fit that anneals; None: codes as they are.
        form: what makes codes of projected tokens.
        mask_BN: True where a token takes part as a key, at least one a sample; None: all do.
    """
    code_q_BNL, code_k_BNL = token_codes(x_BND, to_codes, form, slope)
    count: Tensor | int = x_BND.shape[1]
    if mask_BN is None:
        mean_B1D = x_BND.mean(dim=1, keepdim=True)
    else:
        real_BN1 = mask_BN.unsqueeze(-1).to(x_BND.dtype)
        code_k_BNL, count = code_k_BNL * real_BN1, real_BN1.sum(dim=1, keepdim=True)
        mean_B1D = (x_BND * real_BN1).sum(dim=1, keepdim=True) / count
    rows_BLD, mass_BLH = bit_rows(x_BND, mean_B1D, code_k_BNL, value, proj, weight_HK, len(floor_H))
    uniform_B1D = proj(value(mean_B1D))
    share_BNH = (torch.matmul(code_q_BNL, mass_BLH) + floor_H * count).reciprocal()
    heads_BNHK = code_q_BNL.unflatten(-1, (len(floor_H), -1))
    share_BNH1 = share_BNH.unsqueeze(-1)
    kept = is_differentiated(share_BNH)
    scaled_BNHK = heads_BNHK * share_BNH1 if kept else heads_BNHK.mul_(share_BNH1)
    return torch.baddbmm(uniform_B1D, scaled_BNHK.flatten(2), rows_BLD)


def bit_rows(
    x_BND: Tensor,
    mean_B1D: Tensor,
    code_k_BNL: Tensor,
    value: Affine,
    proj: Affine,
    weight_HK: Tensor | None,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    """What a query's code adds: to the output before normalisation (B, L, D), and to each head's denominator (B, L, H).

    Sums of token rows are additions (of shifted rows, for powers of two); all products here are per image.
    """
    count_BL1 = code_k_BNL.sum(dim=1).unsqueeze(-1)
    sums_BLD = torch.matmul(code_k_BNL.transpose(1, 2), x_BND) - count_BL1 * mean_B1D
    value_HDC = value.weight.unflatten(0, (num_heads, -1)).transpose(1, 2)
    proj_HCD = proj.weight.t().unflatten(0, (num_heads, -1))
    context_BHKC = torch.matmul(sums_BLD.unflatten(1, (num_heads, -1)), value_HDC)
    mass_BHK1 = count_BL1.unflatten(1, (num_heads, -1))
    if weight_HK is not None:
        context_BHKC, mass_BHK1 = (x * weight_HK.unsqueeze(-1) for x in (context_BHKC, mass_BHK1))
    rows_BLD = torch.matmul(context_BHKC, proj_HCD).flatten(1, 2)
    if num_heads == 1:
        return rows_BLD, mass_BHK1.flatten(1, 2)
    # A head's denominator takes the mass of its own codes only.
    own_H1H = torch.eye(num_heads, dtype=x_BND.dtype, device=x_BND.device).unsqueeze(1)
    return rows_BLD, (mass_BHK1 * own_H1H).flatten(1, 2)
