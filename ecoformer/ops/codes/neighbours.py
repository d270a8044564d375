"""Weights of their own for keys at fixed offsets along the sequence: powers of two, which the query alone decides.

A head that looks at the token before, whatever it is, finds no such key by codes of what tokens are.
Shapes: B batch, H heads, N tokens, C channels, O = 2 R + 1 offsets, from -R to R.
"""

import torch.nn.functional as F
from torch import Tensor


def neighbour_sums(near_BHNO: Tensor, x_BHNC: Tensor) -> Tensor:
    """sum_o near_io x_(i+o), (B, H, N, C); beyond the ends there is nothing."""
    offsets, tokens = near_BHNO.shape[-1], x_BHNC.shape[-2]
    padded_BHNC = F.pad(x_BHNC, (0, 0, offsets // 2, offsets // 2))
    total_BHNC = near_BHNO[..., :1] * padded_BHNC[..., :tokens, :]
    for o in range(1, offsets):
        total_BHNC = total_BHNC + near_BHNO[..., o : o + 1] * padded_BHNC[..., o : o + tokens, :]
    return total_BHNC


def add_neighbours(weights_BHNN: Tensor, near_BHNO: Tensor) -> Tensor:
    """The weights of all pairs with those of neighbours added, in a new tensor: quadratic, for pictures and tests."""
    weights_BHNN, tokens, reach = weights_BHNN.clone(), weights_BHNN.shape[-1], near_BHNO.shape[-1] // 2
    for o in range(max(-reach, 1 - tokens), min(reach, tokens - 1) + 1):
        rows = slice(max(0, -o), tokens - max(0, o))
        weights_BHNN.diagonal(o, -2, -1).add_(near_BHNO[..., rows, o + reach])
    return weights_BHNN
