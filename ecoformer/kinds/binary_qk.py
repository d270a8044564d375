"""Softmax attention on the signs of queries and keys: what the EcoFormer paper argues against, and BinaryAttention.

Shapes: B batch, H heads, N tokens, C head channels, D model channels, P prefix tokens.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.nn.base import ReplacementAttention, attention_kind
from ecoformer.nn.heads import as_attn_mask, token_mean
from ecoformer.nn.projections import Projections
from ecoformer.nn.specs import AttentionSpec, one_of
from ecoformer.ops.ecoformer.codes import straight_through_sign
from ecoformer.ops.precision import full_precision


@dataclass(frozen=True)
class BinaryQKSpec(AttentionSpec):
    """softmax(s sign(q) sign(k)^T / sqrt(C) + b) v.

    Binarising queries and keys directly, as binary networks do (Hubara et al., "Binarized Neural Networks", NeurIPS
    2016; in transformers Qin et al., "BiBERT", ICLR 2022). Liu et al. (EcoFormer, NeurIPS 2022) argue
    against it: signs of single channels need not keep the similarity of two tokens, and the softmax over all pairs of
    tokens stays quadratic. Gradients pass straight through the sign where its argument lies within (-1, 1).

    Xiao et al., "BinaryAttention: One-Bit QK-Attention for Vision and Diffusion Transformers", CVPR 2026, make it good
    by s, the mean |q| times the mean |k| of a sample's head, and by a learned b for every relative position, as their
    code has both. Of theirs we leave out the 8-bit weights and values, which go with any softmax attention; b starts at
    0, where they draw it, so that a conversion changes nothing but the signs.

    Args:
        form: "signs" has s = 1 and b = 0; "scaled" has s; "grid" both, as published, on a square map of tokens; "line"
            both, with positions along a sequence (ours), which may be shorter than `num_tokens`.
        num_tokens: tokens N, prefix tokens included, that b is made for; None: taken from the layer, which needs the
            image size.
    """

    name = "binary_qk"

    form: Literal["signs", "scaled", "grid", "line"] = "signs"
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        one_of("form", self.form, ("signs", "scaled", "grid", "line"))
        self.require_whole(1, "num_tokens")
        if self.num_tokens is not None and not self.has_bias:
            raise InputError(f"attention.num_tokens={self.num_tokens} is of form=grid and line: leave it out")

    @property
    def has_bias(self) -> bool:
        return self.form in ("grid", "line")

    def fit_to_tokens(self, num_tokens: int, where: str) -> Self:
        if self.num_tokens not in (None, num_tokens):
            raise InputError(
                f"{where} has {num_tokens} tokens, attention.num_tokens={self.num_tokens}: leave it out, and the image "
                "size decides"
            )
        return replace(self, num_tokens=num_tokens) if self.has_bias else self

    def is_met_by(self, module: nn.Module) -> bool:
        if not isinstance(module, BinaryQKAttention):
            return False
        return module.spec.form == self.form and self.num_tokens in (None, module.spec.num_tokens)


@attention_kind(BinaryQKSpec)
class BinaryQKAttention(ReplacementAttention):
    """Softmax attention whose scores count the channels in which a query and a key agree in sign.

    The scores are a product of its own, not torch's fused attention: with both factors +-1 it is XNOR and popcount, and
    the audited ledger has to see that.
    """

    takes_mask = True
    spec: BinaryQKSpec

    def add_parts(self, source: Projections | None) -> None:
        """Raises InputError for a bias without a token count, or on a map that is no square."""
        spec, where = self.spec, "" if source is None else f"{source.where}: "
        if not spec.has_bias:
            return
        if spec.num_tokens is None:
            raise InputError(
                f"{where}binary_qk of form={spec.form} needs the number of tokens: call convert(model, spec, "
                "img_size=...) or set attention.num_tokens"
            )
        self.num_prefix = 0 if source is None or spec.form == "line" else source.num_prefix
        on_map = spec.num_tokens - self.num_prefix
        height = 1 if spec.form == "line" else math.isqrt(on_map)
        self.grid = height, on_map // height
        if spec.form == "grid" and (on_map != height**2 or (source is not None and source.is_oblong)):
            raise InputError(f"{where}form=grid needs a square map, {on_map} tokens are none: set attention.form=line")
        pairs = math.prod(2 * length - 1 for length in self.grid) + (3 if self.num_prefix else 0)
        # One dimension: timm's optimizers decay nothing of one dimension, and the published code does not decay it.
        self.position_bias = nn.Parameter(self.proj.weight.new_zeros(self.num_heads * pairs))
        self.new_parts = ("position_bias",)

    def attention_output(self, x_BND: Tensor, feat_size: Any = None, mask_BN: Tensor | None = None) -> Tensor:
        """Raises InputError for a map, as hierarchical models tell theirs, that is not the one that b was made for."""
        if self.spec.form == "grid" and feat_size is not None and tuple(feat_size) != self.grid:
            (height, width), (mine, _) = feat_size, self.grid
            raise InputError(
                f"binary_qk of form=grid was made for a map of {mine} x {mine} tokens and got {height} x {width}: keep "
                "the image size it was converted for, or set attention.form=line"
            )
        return super().attention_output(x_BND, feat_size, mask_BN)

    def attend(self, q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        return self._weights(q_BHNC, k_BHNC, mask_BN).to(v_BHNC.dtype) @ v_BHNC

    def _weights(self, q_BHNC: Tensor, k_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        code_q_BHNC, code_k_BHNC = straight_through_sign(q_BHNC), straight_through_sign(k_BHNC)
        scores_BHNN = code_q_BHNC @ code_k_BHNC.transpose(-2, -1) * self._scale(q_BHNC, k_BHNC, mask_BN)
        if self.spec.has_bias:
            scores_BHNN = scores_BHNN + self.bias(q_BHNC.shape[-2])
        mask = as_attn_mask(mask_BN)
        return (scores_BHNN if mask is None else scores_BHNN.masked_fill(~mask, -math.inf)).softmax(dim=-1)

    def _scale(self, q_BHNC: Tensor, k_BHNC: Tensor, mask_BN: Tensor | None) -> Tensor | float:
        """s / sqrt(C), (B, H, 1, 1) in full precision; means are over the tokens that take part."""
        if self.spec.form == "signs":
            return self.head_dim**-0.5
        q_BH11, k_BH11 = (
            token_mean(full_precision(x).abs(), mask_BN).mean(dim=-1, keepdim=True) for x in (q_BHNC, k_BHNC)
        )
        return q_BH11 * k_BH11 * self.head_dim**-0.5

    def bias(self, num_tokens: int) -> Tensor:
        """b, (H, N, N): by where a key stands from a query; prefix tokens have one to the map, one from it, their own.

        Raises InputError for other tokens than it was made for.
        """
        most, (height, width) = self.spec.num_tokens, self.grid
        assert most is not None
        if num_tokens > most or (num_tokens < most and self.spec.form == "grid"):
            raise InputError(
                f"binary_qk attention was made for {most} tokens and got {num_tokens}: keep the image size it was "
                "converted for, or convert anew for another"
            )
        of_head_HT = self.position_bias.view(self.num_heads, -1)
        near = of_head_HT[:, : (2 * height - 1) * (2 * width - 1)].unflatten(1, (2 * height - 1, 2 * width - 1))
        if self.spec.form == "line":
            near, width = near[..., width - num_tokens : width + num_tokens - 1], num_tokens
        # A query's keys are a window of the table, one further back for each step of the query.
        windows_HYXYX = near.unfold(1, height, 1).unfold(2, width, 1).flip(1, 2)
        near_HNN = windows_HYXYX.flatten(3).flatten(1, 2)
        if not self.num_prefix:
            return near_HNN
        to_map, from_map, own = (x_H[:, None, None] for x_H in of_head_HT[:, -3:].unbind(1))
        prefix, on_map = self.num_prefix, near_HNN.shape[1]
        of_prefix = torch.cat([own.expand(-1, prefix, prefix), to_map.expand(-1, prefix, on_map)], dim=2)
        return torch.cat([of_prefix, torch.cat([from_map.expand(-1, on_map, prefix), near_HNN], dim=2)], dim=1)

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        q_BHNC, k_BHNC, _ = self.heads(x_BND)
        return self._weights(q_BHNC, k_BHNC)

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """MSA's 2 N^2 D + H N^2 multiplications less the N^2 D of the scores, whose terms are additions of +-1.

        With s, which no code can take in: 2 N D additions and 2 H divisions for the means, 2 H multiplications for s,
        H N^2 for the scores times s. With b, H N^2 additions.
        """
        product, pairs = num_tokens**2 * self.dim, self.num_heads * num_tokens**2
        muls, adds = product + pairs, 2 * product
        if self.spec.form != "signs":
            muls, adds = muls + 4 * self.num_heads + pairs, adds + 2 * num_tokens * self.dim
        return muls, adds + (pairs if self.spec.has_bias else 0)
