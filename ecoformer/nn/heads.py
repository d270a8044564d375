"""Between (B, N, D) and (B, H, N, C)."""

from torch import Tensor


def split_heads(x_BND: Tensor, num_heads: int) -> Tensor:
    """(B, N, H*C) to (B, H, N, C), a view."""
    return x_BND.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x_BHNC: Tensor) -> Tensor:
    """(B, H, N, C) to (B, N, H*C)."""
    return x_BHNC.transpose(1, 2).flatten(2)
