"""Between (B, N, D) and (B, H, N, C), and the one thing that no attention here takes: a mask."""

from __future__ import annotations

from torch import Tensor, nn

from ecoformer.errors import InputError


def split_heads(x_BND: Tensor, num_heads: int) -> Tensor:
    """(B, N, H*C) to (B, H, N, C), a view."""
    return x_BND.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x_BHNC: Tensor) -> Tensor:
    """(B, H, N, C) to (B, N, H*C)."""
    return x_BHNC.transpose(1, 2).flatten(2)


def refuse_mask(module: nn.Module, attn_mask: Tensor | None, is_causal: bool) -> None:
    """Raise InputError if a caller passes an attention mask: every token attends to every token here."""
    if attn_mask is not None or is_causal:
        raise InputError(
            f"{type(module).__name__} takes no attn_mask or is_causal=True: keep the stock attention for masked layers"
        )
