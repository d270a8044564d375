"""The attention that codes stand for, on some inputs.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.nn.heads import as_attn_mask, join_heads, real_tokens, split_heads, token_mean
from ecoformer.nn.projections import read_projections


@dataclass(frozen=True)
class AttentionTarget:
    """What a fit is measured against: an attention output before the output projection, without an N x N matrix.

    It is (B, N, D), or (B, H, N, C), and so is `uniform`, what a replacement that knows nothing gives. `softmax` stands
    where the attention is one of all tokens.
    """

    output: Tensor
    uniform: Tensor
    softmax: SoftmaxTarget | None = None

    def split_heads(self, num_heads: int) -> AttentionTarget:
        """The outputs alone, as (B, H, N, C)."""
        return AttentionTarget(split_heads(self.output, num_heads), split_heads(self.uniform, num_heads))


@dataclass(frozen=True)
class SoftmaxTarget:
    """Queries, keys and values, (B, H, N, C) each, and what softmax attention makes of them."""

    q_BHNC: Tensor
    k_BHNC: Tensor
    v_BHNC: Tensor
    mask_BN: Tensor | None = None  # True where a token takes part; None: all do

    @classmethod
    def of(cls, layer: nn.Module, where: str, x_BND: Tensor, mask_BN: Tensor | None = None) -> SoftmaxTarget:
        """That of a layer of plain softmax attention on these inputs. Raises InputError for any other layer."""
        source = read_projections(layer, where)
        if source.key is None or source.dropped:
            raise InputError(f"{where} of the MSA model is no plain softmax attention: start from an attention=msa run")
        parts = (source.query, source.key, source.value)
        q_BHNC, k_BHNC, v_BHNC = (split_heads(part(x_BND), source.num_heads) for part in parts)
        return cls(q_BHNC, k_BHNC, v_BHNC, mask_BN)

    def output(self) -> Tensor:
        """The attention output (B, N, D) before the output projection, without an N x N matrix."""
        qkv = (self.q_BHNC, self.k_BHNC, self.v_BHNC)
        return join_heads(F.scaled_dot_product_attention(*qkv, as_attn_mask(self.mask_BN)))

    def known(self) -> AttentionTarget:
        """Its output, and that of uniform attention: the mean of all values for every token."""
        uniform_BND = join_heads(token_mean(self.v_BHNC, self.mask_BN).expand_as(self.v_BHNC))
        return AttentionTarget(self.output(), uniform_BND, self)

    def weights(self, image: int, head: int) -> Tensor:
        """The attention map of one head on one image, as (1, 1, N, N), of its N tokens that take part."""
        mask_1N = None if self.mask_BN is None else self.mask_BN[image : image + 1]
        parts = (x[image : image + 1, head : head + 1] for x in (self.q_BHNC, self.k_BHNC, self.v_BHNC))
        return SoftmaxTarget(*(real_tokens(x, mask_1N) for x in parts)).maps()

    def maps(self) -> Tensor:
        """All of them, (B, H, N, N), of all tokens."""
        return (self.q_BHNC @ self.k_BHNC.transpose(-2, -1) * self.q_BHNC.shape[-1] ** -0.5).softmax(dim=-1)
