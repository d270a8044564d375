"""Between (B, N, D) and (B, H, N, C), and what a mask of tokens does to both."""

from torch import Tensor


def split_heads(x_BND: Tensor, num_heads: int) -> Tensor:
    """(B, N, H*C) to (B, H, N, C), a view."""
    return x_BND.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x_BHNC: Tensor) -> Tensor:
    """(B, H, N, C) to (B, N, H*C)."""
    return x_BHNC.transpose(1, 2).flatten(2)


def real_tokens(x: Tensor, mask_BN: Tensor | None) -> Tensor:
    """The tokens that take part, of all samples as if of one: (B, N, D) to (1, T, D), (B, H, N, C) to (1, H, T, C).

    B may be a multiple of the mask's, whose rows then repeat. Without a mask, x as it is.
    """
    if mask_BN is None:
        return x
    mask_BN = mask_BN.repeat(len(x) // len(mask_BN), 1)
    return (x[mask_BN] if x.dim() == 3 else x.transpose(0, 1)[:, mask_BN]).unsqueeze(0)


def without_padding(x: Tensor, mask_BN: Tensor | None) -> Tensor:
    """x, (B, N, D) or (B, H, N, C), with zeros for the tokens that take no part. Without a mask, as it is."""
    return x if mask_BN is None else x * mask_BN.view(x.shape[0], *[1] * (x.dim() - 3), -1, 1)


def as_attn_mask(mask_BN: Tensor | None) -> Tensor | None:
    """A mask of tokens as torch's and timm's attention take it: (B, 1, 1, N), True where a key takes part."""
    return None if mask_BN is None else mask_BN[:, None, None, :]


def token_mean(x: Tensor, mask_BN: Tensor | None) -> Tensor:
    """The mean of the tokens that take part, (B, 1, D) of (B, N, D) or (B, H, 1, C) of (B, H, N, C)."""
    if mask_BN is None:
        return x.mean(dim=-2, keepdim=True)
    count = mask_BN.sum(dim=1).view(x.shape[0], *[1] * (x.dim() - 1))
    return without_padding(x, mask_BN).sum(dim=-2, keepdim=True) / count
